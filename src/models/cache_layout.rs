//! How the key-value cache lays a sequence out, on the CPU and on a device: blocks of 64 positions, each with all layers, of
//! each layer its keys by channel and then its values by position.

use std::ops::Range;

use super::config::TransformerConfig;

/// Positions whose keys and values lie together.
pub(super) const BLOCK: usize = 64;

/// One row's sequence and its place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheRow {
    pub slot: usize,
    pub position: usize,
}

/// How a slot is laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotShape {
    pub n_layers: usize,
    pub kv_heads: usize,
    pub d_head: usize,
    pub capacity: usize,
}

impl SlotShape {
    /// Of one token's keys.
    pub fn width(self) -> usize {
        self.kv_heads * self.d_head
    }

    /// Numbers of a block's keys in one layer, and as many of its values.
    pub fn half(self) -> usize {
        self.width() * BLOCK
    }

    /// Numbers of a block in all layers.
    pub fn block(self) -> usize {
        2 * self.n_layers * self.half()
    }

    /// Where `positions`, all of one block, lie in a slot: a line of keys of each channel and one of values of each head,
    /// layer after layer. A line has so many numbers a position.
    pub fn lines(self, positions: Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> {
        let (block, place) = (positions.start / BLOCK, positions.start % BLOCK);
        let first = block * self.block();
        let line = move |begin: usize, width: usize| {
            let begin = begin + place * width;
            (begin..begin + positions.len() * width, width)
        };
        (0..2 * self.n_layers).flat_map(move |half| {
            let width = if half % 2 == 0 { 1 } else { self.d_head };
            let half = first + half * self.half()..first + (half + 1) * self.half();
            let line = line.clone();
            half.step_by(BLOCK * width)
                .map(move |begin| line(begin, width))
        })
    }

    /// Puts the first of the `of_block` positions that were read into `values`, at `positions`.
    pub fn put(self, values: &mut [f32], positions: Range<usize>, block: &[f32], of_block: usize) {
        let mut rest = block;
        for (line, width) in self.lines(positions) {
            let Some((from, after)) = rest.split_at_checked(of_block * width) else {
                break;
            };
            let length = line.len();
            values[line].copy_from_slice(&from[..length]);
            rest = after;
        }
    }

    pub fn new(config: &TransformerConfig, capacity: usize) -> Self {
        SlotShape {
            n_layers: config.n_layers,
            kv_heads: config.n_kv_heads(),
            d_head: config.d_head,
            capacity: capacity.next_multiple_of(BLOCK),
        }
    }

    /// Keys and values of all layers; `usize::MAX` where they are more than can be counted.
    pub fn values(self) -> usize {
        [2, self.kv_heads, self.d_head, self.capacity]
            .into_iter()
            .fold(self.n_layers, usize::saturating_mul)
    }
}
