//! The key-value cache of inference: a fixed number of slots, allocated once, written in place.
//!
//! A slot holds one sequence. Keys are kept by channel (`[slot, heads, d_head, capacity]`) so that scores run
//! along the keys, values by position (`[slot, heads, capacity, d_head]`). Either way what one head reads lies
//! together: in rows of all heads each position would be a cache line of its own, far from the next.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::config::TransformerConfig;
use crate::numerics::attention::{Heads, Keys, Values, attend, padded};
use crate::numerics::rows;

/// Keys and values to be gone through below which one thread is as fast as several.
const WORTH_THREADS: usize = 1 << 18;

/// Keys and values of every layer for a number of sequences.
#[derive(Debug)]
pub struct KvCache {
    slots: usize,
    capacity: usize,
    heads: Heads,
    layers: Vec<LayerCache>,
}

#[derive(Debug)]
struct LayerCache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// One row's sequence and its place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheRow {
    pub slot: usize,
    pub position: usize,
}

impl KvCache {
    /// Room for `slots` sequences of at most `capacity` tokens.
    pub fn new(config: &TransformerConfig, slots: usize, capacity: usize) -> Self {
        let heads = Heads {
            count: config.n_heads,
            d_head: config.d_head,
        };
        let capacity = padded(capacity);
        let size = slots * capacity * config.d_attention();
        let layer = || LayerCache {
            keys: vec![0.0; size],
            values: vec![0.0; size],
        };
        KvCache {
            slots,
            capacity,
            heads,
            layers: (0..config.n_layers).map(|_| layer()).collect(),
        }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Stores the rows' keys and values, then lets each row attend to its own slot up to itself. `q`, `k`, `v`
    /// and the result are `[rows, heads * d_head]`; positions below a row's own must have been stored before
    /// or be among the rows.
    pub fn attend(
        &mut self,
        layer: usize,
        at: &[CacheRow],
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        sinks: &Tensor,
    ) -> Result<Tensor> {
        let width = self.heads.count * self.heads.d_head;
        if let Some(bad) = at
            .iter()
            .find(|row| row.slot >= self.slots || row.position >= self.capacity)
        {
            bail!(
                "{bad:?} is outside a cache of {} slots of {}",
                self.slots,
                self.capacity
            )
        }
        let LayerCache { keys, values } = &mut self.layers[layer];
        let (slot_size, d_head) = (self.capacity * width, self.heads.d_head);
        rows::with_two(k, v, |k, v| {
            for (row, at) in at.iter().enumerate() {
                let slot = at.slot * slot_size;
                for (channel, &key) in k[row * width..][..width].iter().enumerate() {
                    keys[slot + channel * self.capacity + at.position] = key;
                }
                for (head, v) in v[row * width..][..width].chunks_exact(d_head).enumerate() {
                    values[slot + (head * self.capacity + at.position) * d_head..][..d_head]
                        .copy_from_slice(v);
                }
            }
        })?;
        let (keys, values) = (&keys[..], &values[..]);
        let mut output = vec![0f32; at.len() * width];
        let attend_all = |q: &[f32], sinks: &[f32]| {
            let one_row = |row: usize, weights: &mut Vec<f32>, out: &mut [f32]| {
                let at = at[row];
                let count = at.position + 1;
                weights.resize(padded(count), 0.0);
                for (head, out) in out.chunks_exact_mut(d_head).enumerate() {
                    let first = at.slot * slot_size + head * d_head * self.capacity;
                    let keys = Keys {
                        by_channel: &keys[first..][..d_head * self.capacity],
                        stride: self.capacity,
                    };
                    let values = Values {
                        rows: &values[first..][..count * d_head],
                        stride: d_head,
                    };
                    let q = &q[row * width + head * d_head..][..d_head];
                    attend(q, keys, values, sinks[head], count, weights, out);
                }
            };
            let work: usize = at.iter().map(|row| (row.position + 1) * width).sum();
            if work < WORTH_THREADS {
                let mut weights = Vec::new();
                for (row, out) in output.chunks_exact_mut(width).enumerate() {
                    one_row(row, &mut weights, out);
                }
            } else {
                let rows = output.par_chunks_mut(width).enumerate();
                rows.for_each_init(Vec::new, |weights, (row, out)| one_row(row, weights, out));
            }
        };
        rows::with_two(q, sinks, attend_all)?;
        Tensor::from_vec(output, (at.len(), width), &Device::Cpu)
    }
}
