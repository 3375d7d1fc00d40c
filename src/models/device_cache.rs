//! The key-value cache of inference in the memory of a device: one pool of blocks, of which a slot has its own one after
//! another.
//!
//! A block holds 64 positions of all layers as a slot of [`super::kv_cache`] does. The pool, `[blocks, numbers of a block]`,
//! grows by doubling when slots are added, so that a server of few sequences takes little. What a pass does with it is said
//! once for all layers ([`PlacedRows`]).

use candle_core::{DType, Device, Result, Tensor, bail};

use super::cache_layout::{BLOCK, CacheRow, SlotShape};
use crate::numerics::attention::kernel::Heads;
use crate::numerics::kernels::operations::{
    CacheEntries, CachePlace, CachedRows, attention, cache_store,
};

/// Slots on a device.
#[derive(Debug)]
pub(super) struct DeviceSlots {
    device: Device,
    shape: SlotShape,
    /// None while there are no slots.
    pool: Option<Tensor>,
    slots: usize,
}

/// Where the rows of a pass stand in the pool, and what they see of it.
#[derive(Debug)]
pub(super) struct PlacedRows {
    entries: CacheEntries,
    rows: CachedRows,
}

impl DeviceSlots {
    pub fn new(shape: SlotShape, device: &Device) -> Self {
        DeviceSlots {
            device: device.clone(),
            shape,
            pool: None,
            slots: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.slots
    }

    fn blocks_of_slot(&self) -> usize {
        self.shape.capacity / BLOCK
    }

    /// One slot more; an error where the device's memory has no room.
    pub fn add(&mut self) -> Result<()> {
        let room = match &self.pool {
            Some(pool) => pool.dim(0)? / self.blocks_of_slot(),
            None => 0,
        };
        if self.slots == room {
            let blocks = (2 * room).max(1).saturating_mul(self.blocks_of_slot());
            let pool = Tensor::zeros((blocks, self.shape.block()), DType::F32, &self.device)?;
            if let Some(smaller) = &self.pool {
                pool.slice_set(smaller, 0, 0)?;
            }
            self.pool = Some(pool);
        }
        self.slots += 1;
        Ok(())
    }

    /// The number of a slot's block in the pool.
    fn block(&self, slot: usize, block: usize) -> Result<usize> {
        match slot < self.slots && block < self.blocks_of_slot() {
            true => Ok(slot * self.blocks_of_slot() + block),
            false => bail!(
                "there is no slot {slot} of {} positions",
                (block + 1) * BLOCK
            ),
        }
    }

    fn pool(&self) -> Result<&Tensor> {
        match &self.pool {
            Some(pool) => Ok(pool),
            None => bail!("the cache has no slots"),
        }
    }

    /// All numbers of one of a slot's blocks.
    pub fn read(&self, slot: usize, block: usize) -> Result<Vec<f32>> {
        let at = self.block(slot, block)?;
        self.pool()?.narrow(0, at, 1)?.flatten_all()?.to_vec1()
    }

    pub fn write(&self, slot: usize, block: usize, values: Vec<f32>) -> Result<()> {
        let at = self.block(slot, block)?;
        let values = Tensor::from_vec(values, (1, self.shape.block()), &self.device)?;
        self.pool()?.slice_set(&values, 0, at)
    }

    /// What a pass of these rows does with the pool, `copies` being further places of some rows' keys and values.
    pub fn rows(&self, at: &[CacheRow], copies: &[(usize, CacheRow)]) -> Result<PlacedRows> {
        let (mut sources, mut blocks, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let own = at.iter().copied().enumerate();
        for (row, place) in own.chain(copies.iter().copied()) {
            sources.push(number(row)?);
            blocks.push(number(self.block(place.slot, place.position / BLOCK)?)?);
            places.push(number(place.position % BLOCK)?);
        }
        let last_position = at.iter().map(|row| row.position).max().unwrap_or(0);
        let width = last_position / BLOCK + 1;
        let mut table = Vec::with_capacity(at.len() * width);
        let mut positions = Vec::with_capacity(at.len());
        for row in at {
            let seen = row.position / BLOCK;
            // Of what lies behind the row's own position nothing is read.
            for block in (0..width).map(|block| block.min(seen)) {
                table.push(number(self.block(row.slot, block)?)?);
            }
            positions.push(number(row.position)?);
        }
        let parts = [sources, blocks, places, table, positions];
        // One copy to the device.
        let all = Tensor::new(parts.concat(), &self.device)?;
        let mut first = 0;
        let mut part = |length: usize| {
            let begin = first;
            first += length;
            all.narrow(0, begin, length)
        };
        let [sources, blocks, places, table, positions] = parts.map(|values| part(values.len()));
        Ok(PlacedRows {
            entries: CacheEntries {
                sources: sources?,
                blocks: blocks?,
                places: places?,
            },
            rows: CachedRows {
                table: table?.reshape((at.len(), width))?,
                positions: positions?,
                last_position,
            },
        })
    }

    /// Stores keys and values of a pass's rows, then lets each row attend to its sequence up to itself.
    pub fn attend(
        &self,
        layer: usize,
        pass: &PlacedRows,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        sinks: &Tensor,
        heads: Heads,
    ) -> Result<Tensor> {
        let cache = CachePlace {
            pool: self.pool()?,
            layer_offset: 2 * layer * self.shape.half(),
        };
        cache_store((k, v), &pass.entries, cache, heads)?;
        attention(q, &pass.rows, sinks, cache, heads)
    }
}

/// As kernels are given it.
fn number(value: usize) -> Result<i32> {
    i32::try_from(value).map_err(candle_core::Error::wrap)
}
