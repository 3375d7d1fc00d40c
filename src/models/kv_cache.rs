//! The key-value cache of inference: slots that are allocated once each and written in place, here for the CPU and in
//! `device_cache` on a device.
//!
//! A slot holds one sequence, in blocks of 64 positions, each with all layers. Keys are kept by channel (`[kv heads,
//! d_head, BLOCK]`) so that scores run along the keys, values by position (`[kv heads, BLOCK, d_head]`). What one head reads
//! of a block lies together, and a short sequence touches little memory however long the longest one may be.
//! Slots do not touch each other, so threads can work on different ones at once ([`KvCache::divide`]).

use std::ops::Range;

use bytemuck::allocation::try_zeroed_vec;
use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

pub use super::cache_layout::CacheRow;
use super::cache_layout::{BLOCK, SlotShape};
use super::config::TransformerConfig;
use super::device_cache::{DeviceSlots, PlacedRows};
use crate::numerics::attention::kernel::{Blocks, Heads, Keys, Values, attend, padded};
use crate::numerics::{kernels, rows};

/// Keys and values to be gone through below which one thread is as fast as several.
const WORTH_THREADS: usize = 1 << 18;

/// Keys and values of every layer for a number of sequences.
#[derive(Debug)]
pub struct KvCache {
    shape: SlotShape,
    device: Device,
    slots: Slots,
}

#[derive(Debug)]
enum Slots {
    /// Each slot's keys and values, layer after layer.
    Host(Vec<Vec<f32>>),
    Device(DeviceSlots),
}

/// Some slots of a cache, known by their numbers in it.
#[derive(Debug)]
pub struct CacheSlots<'c> {
    shape: SlotShape,
    device: Device,
    slots: LentSlots<'c>,
}

#[derive(Debug)]
enum LentSlots<'c> {
    /// By number; none where the slot is someone else's.
    Host(Vec<Option<&'c mut [f32]>>),
    /// All of them, and where the rows of the pass stand.
    Device(&'c DeviceSlots, Option<PlacedRows>),
}

impl KvCache {
    /// No room yet, for a model on this device; each sequence will have at most `capacity` tokens.
    pub fn empty(config: &TransformerConfig, capacity: usize, device: &Device) -> Self {
        let shape = SlotShape::new(config, capacity);
        KvCache {
            shape,
            device: device.clone(),
            slots: match kernels::run_on(device) {
                true => Slots::Device(DeviceSlots::new(shape, device)),
                false => Slots::Host(Vec::new()),
            },
        }
    }

    /// Room for `slots` sequences of at most `capacity` tokens; an error where memory has no room for them.
    pub fn new(
        config: &TransformerConfig,
        slots: usize,
        capacity: usize,
        device: &Device,
    ) -> Result<Self> {
        let mut cache = Self::empty(config, capacity, device);
        for _ in 0..slots {
            cache.add_slot()?;
        }
        Ok(cache)
    }

    /// Makes room for one more sequence and returns its slot; an error where memory has no room for it.
    pub fn add_slot(&mut self) -> Result<usize> {
        let count = self.shape.values();
        let added = match &mut self.slots {
            // Not filled with zeros but allocated as zeros: pages that are never used never take memory.
            Slots::Host(slots) => match try_zeroed_vec(count) {
                Ok(slot) => {
                    slots.push(slot);
                    Ok(())
                }
                Err(_) => Err("memory has no room for it".to_owned()),
            },
            Slots::Device(slots) => slots.add().map_err(|error| error.to_string()),
        };
        match added {
            Ok(()) => Ok(self.slots() - 1),
            Err(problem) => bail!(
                "the key-value cache of one sequence of {} tokens takes {} MiB: {problem}",
                self.shape.capacity,
                count.saturating_mul(size_of::<f32>()).div_ceil(1 << 20),
            ),
        }
    }

    /// Numbers that one sequence of at most `capacity` tokens takes; `usize::MAX` where they cannot be counted.
    pub fn values_per_sequence(config: &TransformerConfig, capacity: usize) -> usize {
        match capacity.checked_next_multiple_of(BLOCK) {
            Some(capacity) => SlotShape::new(config, capacity).values(),
            None => usize::MAX,
        }
    }

    /// How many sequences there is room for.
    pub fn slots(&self) -> usize {
        match &self.slots {
            Slots::Host(slots) => slots.len(),
            Slots::Device(slots) => slots.len(),
        }
    }

    /// Whether different threads can work on different slots at once.
    pub fn is_divisible(&self) -> bool {
        matches!(self.slots, Slots::Host(_))
    }

    pub fn capacity(&self) -> usize {
        self.shape.capacity
    }

    /// Numbers that `positions` of a sequence take.
    pub fn values_of(&self, positions: usize) -> usize {
        2 * self.shape.n_layers * self.shape.width() * positions
    }

    /// The keys and values of some positions of a slot, which lie in one of its blocks, to be put into another slot: the
    /// keys of each channel and the values of each head, layer after layer. None where memory has no room for them.
    pub fn read_block(&self, slot: usize, positions: Range<usize>) -> Result<Option<Box<[f32]>>> {
        self.check_positions(&positions)?;
        if slot >= self.slots() {
            bail!("there is no slot {slot}")
        }
        let on_device;
        let (values, positions) = match &self.slots {
            Slots::Host(slots) => (slots[slot].as_slice(), positions),
            Slots::Device(slots) => {
                on_device = slots.read(slot, positions.start / BLOCK)?;
                (on_device.as_slice(), within_block(&positions))
            }
        };
        let mut block = Vec::new();
        let count = self.values_of(positions.len());
        if block.try_reserve_exact(count).is_err() {
            return Ok(None);
        }
        for (line, _) in self.shape.lines(positions) {
            block.extend_from_slice(&values[line]);
        }
        Ok(Some(block.into_boxed_slice()))
    }

    /// Puts the first of the positions that were read into a slot.
    pub fn write_block(
        &mut self,
        slot: usize,
        positions: Range<usize>,
        block: &[f32],
    ) -> Result<()> {
        self.check_positions(&positions)?;
        let (shape, of_block) = (self.shape, block.len() / self.values_of(1).max(1));
        if slot >= self.slots() || positions.len() > of_block {
            bail!(
                "there is no slot {slot}, or {positions:?} are more than the {of_block} of a block"
            )
        }
        match &mut self.slots {
            Slots::Host(slots) => shape.put(&mut slots[slot], positions, block, of_block),
            Slots::Device(slots) => {
                let number = positions.start / BLOCK;
                let mut values = slots.read(slot, number)?;
                shape.put(&mut values, within_block(&positions), block, of_block);
                slots.write(slot, number, values)?;
            }
        }
        Ok(())
    }

    fn check_positions(&self, positions: &Range<usize>) -> Result<()> {
        let last = positions.end.saturating_sub(1).max(positions.start);
        if positions.end > self.shape.capacity || positions.start / BLOCK != last / BLOCK {
            bail!(
                "{positions:?} are outside this cache of {} positions, or in several of its blocks of {BLOCK}",
                self.shape.capacity
            )
        }
        Ok(())
    }

    /// All slots together.
    pub fn all(&mut self) -> CacheSlots<'_> {
        let slots = match &mut self.slots {
            Slots::Host(slots) => {
                let slots = slots.iter_mut().map(|slot| Some(slot.as_mut_slice()));
                LentSlots::Host(slots.collect())
            }
            Slots::Device(slots) => LentSlots::Device(slots, None),
        };
        CacheSlots {
            shape: self.shape,
            device: self.device.clone(),
            slots,
        }
    }

    /// The slots that each group names; one that several name goes to the first of them. Slots on a device are not
    /// divided ([`Self::is_divisible`]): all go to the first group, and others can do nothing with theirs.
    pub fn divide(&mut self, groups: &[Vec<usize>]) -> Vec<CacheSlots<'_>> {
        let (count, shape) = (self.slots(), self.shape);
        let CacheSlots { device, slots, .. } = self.all();
        let mut all = match slots {
            LentSlots::Host(slots) => slots,
            slots @ LentSlots::Device(..) => {
                let none = groups.iter().skip(1).map(|_| LentSlots::Host(Vec::new()));
                let lent = std::iter::once(slots).chain(none);
                return lent
                    .map(|slots| CacheSlots {
                        shape,
                        device: device.clone(),
                        slots,
                    })
                    .collect();
            }
        };
        let take = |group: &Vec<usize>| -> Vec<Option<&mut [f32]>> {
            let mut slots: Vec<Option<&mut [f32]>> = (0..count).map(|_| None).collect();
            for &slot in group {
                if let Some(own) = all.get_mut(slot).and_then(Option::take) {
                    slots[slot] = Some(own);
                }
            }
            slots
        };
        let divided = groups.iter().map(take).map(LentSlots::Host);
        divided
            .map(|slots| CacheSlots {
                shape,
                device: device.clone(),
                slots,
            })
            .collect()
    }
}

/// Positions of one block, counted from its first.
fn within_block(positions: &Range<usize>) -> Range<usize> {
    let first = positions.start % BLOCK;
    first..first + positions.len()
}

impl CacheSlots<'_> {
    /// Where the model is that they are of.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Makes ready for a pass of these rows: what it does with a device's cache is told to the device once, not in every
    /// layer.
    pub fn prepare(&mut self, at: &[CacheRow], copies: &[(usize, CacheRow)]) -> Result<()> {
        if let LentSlots::Device(slots, rows) = &mut self.slots {
            *rows = Some(slots.rows(at, copies)?);
        }
        Ok(())
    }

    /// Stores the rows' keys and values, then lets each row attend to its own slot up to itself. `q` and the result are
    /// `[rows, heads * d_head]`, `k` and `v` `[rows, kv heads * d_head]`; positions below a row's own must have been stored before
    /// or be among the rows. `copies` name further places for a row's key and value: the same token of the same
    /// text in another slot.
    pub fn attend(
        &mut self,
        layer: usize,
        (at, copies): (&[CacheRow], &[(usize, CacheRow)]),
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        sinks: &Tensor,
        heads: Heads,
    ) -> Result<Tensor> {
        let kv_width = self.shape.width();
        if heads.kv_width() != kv_width {
            bail!(
                "keys of {} channels do not fit slots of {kv_width}",
                heads.kv_width()
            )
        }
        if let LentSlots::Device(slots, rows) = &self.slots {
            let Some(rows) = rows else {
                bail!("the cache was not told of the pass")
            };
            return slots.attend(layer, rows, (q, k, v), sinks, heads);
        }
        rows::with_two(k, v, |k, v| {
            let own = at.iter().copied().enumerate();
            for (row, place) in own.chain(copies.iter().copied()) {
                let of_row = row * kv_width..(row + 1) * kv_width;
                self.store(layer, place, &k[of_row.clone()], &v[of_row])?;
            }
            Result::Ok(())
        })??;
        let width = heads.width();
        let mut output = vec![0f32; at.len() * width];
        rows::with_two(q, sinks, |q, sinks| {
            let one_row = |row: usize, weights: &mut Vec<f32>, out: &mut [f32]| {
                let q = &q[row * width..][..width];
                self.attend_row(layer, at[row], q, (heads, sinks), weights, out)
            };
            let work: usize = at.iter().map(|row| (row.position + 1) * width).sum();
            if work < WORTH_THREADS {
                let mut weights = Vec::new();
                let mut rows = output.chunks_exact_mut(width).enumerate();
                rows.try_for_each(|(row, out)| one_row(row, &mut weights, out))
            } else {
                let rows = output.par_chunks_mut(width).enumerate();
                rows.map_init(Vec::new, |weights, (row, out)| one_row(row, weights, out))
                    .collect()
            }
        })??;
        Tensor::from_vec(output, (at.len(), width), &Device::Cpu)
    }

    fn store(&mut self, layer: usize, at: CacheRow, k: &[f32], v: &[f32]) -> Result<()> {
        let (shape, d_head, half) = (self.shape, self.shape.d_head, self.shape.half());
        let slot = match &mut self.slots {
            LentSlots::Host(slots) => slots.get_mut(at.slot).and_then(Option::as_deref_mut),
            LentSlots::Device(..) => None,
        };
        let Some(slot) = slot.filter(|_| at.position < shape.capacity) else {
            bail!(
                "{at:?} is outside these slots of {} positions",
                shape.capacity
            )
        };
        let (block, place) = (at.position / BLOCK, at.position % BLOCK);
        let layer = &mut slot[block * shape.block() + 2 * layer * half..][..2 * half];
        let (keys, values) = layer.split_at_mut(half);
        for (keys, &key) in keys.chunks_exact_mut(BLOCK).zip(k) {
            keys[place] = key;
        }
        for (values, v) in values
            .chunks_exact_mut(BLOCK * d_head)
            .zip(v.chunks_exact(d_head))
        {
            values[place * d_head..][..d_head].copy_from_slice(v);
        }
        Ok(())
    }

    fn attend_row(
        &self,
        layer: usize,
        at: CacheRow,
        q: &[f32],
        (heads, sinks): (Heads, &[f32]),
        weights: &mut Vec<f32>,
        out: &mut [f32],
    ) -> Result<()> {
        let (d_head, half) = (self.shape.d_head, self.shape.half());
        let slot = match &self.slots {
            LentSlots::Host(slots) => slots.get(at.slot).and_then(Option::as_deref),
            LentSlots::Device(..) => None,
        };
        let Some(slot) = slot else {
            bail!("slot {} is not among these", at.slot)
        };
        let blocks = Blocks::new(BLOCK, self.shape.block());
        let keys = &slot[2 * layer * half..];
        let values = &keys[half..];
        let count = at.position + 1;
        weights.resize(padded(count), 0.0);
        for (head, out) in out.chunks_exact_mut(d_head).enumerate() {
            let first = heads.kv_head(head) * d_head * BLOCK;
            let keys = Keys {
                by_channel: &keys[first..],
                stride: BLOCK,
                blocks,
            };
            let values = Values {
                rows: &values[first..],
                stride: d_head,
                blocks,
            };
            let q = &q[head * d_head..][..d_head];
            attend(
                q,
                keys,
                values,
                sinks[head],
                count,
                heads.scores,
                weights,
                out,
            );
        }
        Ok(())
    }
}
