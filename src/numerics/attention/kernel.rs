//! Attention of one query of one head, and what heads are: the innermost part of [`attention`](super).

use std::ops::Range;

use multiversion::multiversion;

use crate::numerics::exponential;
use crate::numerics::lanes::{LANES, Lanes};

/// How the channels of a row divide into heads, and what becomes of their scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Of queries.
    pub count: usize,
    /// Of keys and values; divides `count`.
    pub kv_count: usize,
    pub d_head: usize,
    pub scores: Scores,
}

/// What a score is made of beside the product of query and key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// Tokens seen, the query's own among them.
    pub window: Option<usize>,
}

impl Heads {
    /// As many key-value heads as query heads, scores scaled by `1 / sqrt(d_head)`, all keys seen.
    pub fn plain(count: usize, d_head: usize) -> Self {
        Heads {
            count,
            kv_count: count,
            d_head,
            scores: Scores {
                scale: 1.0 / (d_head as f32).sqrt(),
                soft_cap: None,
                window: None,
            },
        }
    }

    /// Channels of queries and outputs.
    pub fn width(self) -> usize {
        self.count * self.d_head
    }

    /// Channels of keys, and of values.
    pub fn kv_width(self) -> usize {
        self.kv_count * self.d_head
    }

    /// The key-value head that a query head reads.
    pub fn kv_head(self, head: usize) -> usize {
        head / (self.count / self.kv_count)
    }
}

impl Scores {
    /// Where the keys that [`attend`] is given begin, for a query that is the `count`-th token: a whole number of lanes
    /// before the first one seen.
    pub fn first_key(self, count: usize) -> usize {
        self.first_seen(count) / LANES * LANES
    }

    pub fn first_seen(self, count: usize) -> usize {
        self.window.map_or(0, |window| count.saturating_sub(window))
    }
}

/// The keys of a sequence: channel `d` of key `j` is `by_channel[d * stride + j]` within each block.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    pub by_channel: &'a [f32],
    pub stride: usize,
    pub blocks: Blocks,
}

/// The values that go with the keys: channel `d` of value `j` is `rows[j * stride + d]` within each block.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    pub rows: &'a [f32],
    pub stride: usize,
    pub blocks: Blocks,
}

/// How positions are divided into blocks that lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Positions of a block, a multiple of [`LANES`].
    positions: usize,
    /// From a block to the next one.
    stride: usize,
    /// The first position that is looked at, a multiple of [`LANES`].
    first: usize,
}

impl Blocks {
    /// All positions in one.
    pub const ONE: Self = Blocks {
        positions: usize::MAX,
        stride: 0,
        first: 0,
    };

    /// Blocks of `positions`, the next one `stride` numbers after each.
    pub fn new(positions: usize, stride: usize) -> Self {
        Blocks {
            positions,
            stride,
            first: 0,
        }
    }

    #[inline(always)]
    fn from(self, first: usize) -> Self {
        Blocks {
            first: self.first + first,
            ..self
        }
    }

    /// The first `count` positions that are looked at, those of each block by themselves: which they are, where the block
    /// begins, and the first one's place in it.
    #[inline(always)]
    fn parts(self, count: usize) -> impl Iterator<Item = (Range<usize>, usize, usize)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let position = self.first + done;
            let (block, place) = (position / self.positions, position % self.positions);
            let part = done..(done + self.positions - place).min(count);
            done = part.end;
            (!part.is_empty()).then_some((part, block * self.stride, place))
        })
    }
}

impl<'a> Keys<'a> {
    /// Those from key `first` on.
    #[inline(always)]
    fn from(self, first: usize) -> Self {
        Keys {
            blocks: self.blocks.from(first),
            ..self
        }
    }
}

impl<'a> Values<'a> {
    #[inline(always)]
    fn from(self, first: usize) -> Self {
        Values {
            blocks: self.blocks.from(first),
            ..self
        }
    }
}

/// The length that [`attend`] needs for `keys` weights, and the least stride of [`Keys`]: kernels read whole
/// groups of keys and then disregard those that the query may not see.
pub fn padded(keys: usize) -> usize {
    keys.next_multiple_of(LANES)
}

/// One query of one head: `q [d_head]`, the `count`-th token, over the keys up to its own, the result in `out [d_head]`.
/// `weights` has room for [`padded`] keys and is left holding the attention probabilities of those from
/// [`Scores::first_key`] on.
#[expect(
    clippy::too_many_arguments,
    reason = "one query's whole attention, called in the innermost loop"
)]
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn attend(
    q: &[f32],
    keys: Keys,
    values: Values,
    sink: f32,
    count: usize,
    scores: Scores,
    weights: &mut [f32],
    out: &mut [f32],
) {
    let first = scores.first_key(count);
    let count = count - first;
    let hidden = scores.first_seen(count + first) - first;
    let weights = &mut weights[..padded(count)];
    let (keys, values) = (keys.from(first), values.from(first));
    probabilities(q, keys, sink, hidden..count, scores, weights);
    weighted_sum(&weights[..count], values, out);
}

/// Fills `weights` with the probabilities of the keys in `seen`, zero outside, and returns the sink's.
#[inline(always)]
pub fn probabilities(
    q: &[f32],
    keys: Keys,
    sink: f32,
    seen: Range<usize>,
    scores: Scores,
    weights: &mut [f32],
) -> f32 {
    let scale = scores.scale;
    project(q, keys, weights);
    if let Some(cap) = scores.soft_cap {
        for group in weights.chunks_exact_mut(LANES) {
            let capped =
                Lanes::load(group).map(|x| cap * exponential::tanh(x * scale / cap) / scale);
            capped.store(group);
        }
    }
    weights[..seen.start].fill(f32::NEG_INFINITY);
    weights[seen.end..].fill(f32::NEG_INFINITY);
    let mut largest = Lanes::splat(f32::NEG_INFINITY);
    for group in weights.chunks_exact_mut(LANES) {
        let scaled = Lanes::load(group).map(|x| x * scale);
        scaled.store(group);
        largest = largest.max(scaled);
    }
    let largest = largest.largest().max(sink);
    let sink_weight = exponential::exp(sink - largest);
    let mut total = Lanes::splat(0.0);
    for group in weights.chunks_exact_mut(LANES) {
        let weight = Lanes::load(group).map(|x| exponential::exp(x - largest));
        weight.store(group);
        total = total + weight;
    }
    let inverse = 1.0 / (total.sum() + sink_weight);
    for group in weights.chunks_exact_mut(LANES) {
        Lanes::load(group).map(|x| x * inverse).store(group);
    }
    sink_weight * inverse
}

/// `out[j] = sum_d x[d] * keys[d, j]`, in ascending `d` for every key.
#[inline(always)]
pub fn project(x: &[f32], keys: Keys, out: &mut [f32]) {
    for (part, base, place) in keys.blocks.parts(out.len()) {
        let by_channel = &keys.by_channel[base + place..];
        project_part(x, by_channel, keys.stride, &mut out[part]);
    }
}

/// The same of the keys of one block.
#[inline(always)]
fn project_part(x: &[f32], by_channel: &[f32], stride: usize, out: &mut [f32]) {
    // Four groups at once keep enough independent sums in flight; the rest follow one by one.
    let mut first = 0;
    let mut fours = out.chunks_exact_mut(4 * LANES);
    for four in &mut fours {
        let mut sums = [Lanes::splat(0.0); 4];
        for (d, &x) in x.iter().enumerate() {
            let keys = &by_channel[d * stride + first..][..4 * LANES];
            let x = Lanes::splat(x);
            sums[0] = sums[0].add_product(x, Lanes::load(keys));
            sums[1] = sums[1].add_product(x, Lanes::load(&keys[LANES..]));
            sums[2] = sums[2].add_product(x, Lanes::load(&keys[2 * LANES..]));
            sums[3] = sums[3].add_product(x, Lanes::load(&keys[3 * LANES..]));
        }
        for (group, sum) in four.chunks_exact_mut(LANES).zip(sums) {
            sum.store(group);
        }
        first += 4 * LANES;
    }
    for group in fours.into_remainder().chunks_exact_mut(LANES) {
        let mut sum = Lanes::splat(0.0);
        for (d, &x) in x.iter().enumerate() {
            let keys = &by_channel[d * stride + first..];
            sum = sum.add_product(Lanes::splat(x), Lanes::load(keys));
        }
        sum.store(group);
        first += LANES;
    }
}

/// `out = sum_j weights[j] * values[j]`, sixteen channels at a time.
#[inline(always)]
pub fn weighted_sum(weights: &[f32], values: Values, out: &mut [f32]) {
    let stride = values.stride;
    let mut first = 0;
    let mut groups = out.chunks_exact_mut(LANES);
    for group in &mut groups {
        // Four interleaved sums, so that an addition need not wait for the one before. A block has a multiple of four
        // positions, so that each position goes into the same sum whatever the blocks.
        let mut sums = [Lanes::splat(0.0); 4];
        for (part, base, place) in values.blocks.parts(weights.len()) {
            let rows = &values.rows[base + place * stride..];
            let value = |j: usize| Lanes::load(&rows[j * stride + first..]);
            let fours = weights[part.clone()].chunks_exact(4);
            let (done, rest) = (part.len() - fours.remainder().len(), fours.remainder());
            for (index, four) in fours.enumerate() {
                let j = 4 * index;
                sums[0] = sums[0].add_product(Lanes::splat(four[0]), value(j));
                sums[1] = sums[1].add_product(Lanes::splat(four[1]), value(j + 1));
                sums[2] = sums[2].add_product(Lanes::splat(four[2]), value(j + 2));
                sums[3] = sums[3].add_product(Lanes::splat(four[3]), value(j + 3));
            }
            for (offset, &weight) in rest.iter().enumerate() {
                sums[offset] = sums[offset].add_product(Lanes::splat(weight), value(done + offset));
            }
        }
        ((sums[0] + sums[1]) + (sums[2] + sums[3])).store(group);
        first += LANES;
    }
    for (offset, out) in groups.into_remainder().iter_mut().enumerate() {
        let mut sum = 0.0;
        for (part, base, place) in values.blocks.parts(weights.len()) {
            for (j, &weight) in weights[part].iter().enumerate() {
                sum += weight * values.rows[base + (place + j) * stride + first + offset];
            }
        }
        *out = sum;
    }
}
