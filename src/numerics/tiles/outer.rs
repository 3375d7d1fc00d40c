//! Weight gradients `y' x^T` where an AbsTopK has left one of the two few values: lists of those values times the whole
//! other side.
//!
//! The side with few values is listed by channel: which tokens have one. The other side is laid out by token, [`PANEL`]
//! channels side by side, so that every listed value is one scaled addition of a panel's row to the sums that a group of
//! registers holds. A panel of sixty-four tokens stays in the first-level cache.

use super::processor::{Instructions, LANES, Processor};
use super::transpose::transpose;

/// Channels of the other side that are summed at once.
pub const PANEL: usize = 64;
/// Tokens whose panel is in the first-level cache at once.
const TOKENS: usize = 64;

/// Above this share of values that are not zero the whole product is faster.
pub const LISTED_BELOW: f64 = 0.5;

/// The values of a tile that are not zero, by groups of sixty-four tokens, by channel.
#[derive(Debug, Default)]
pub struct Listed {
    channels: usize,
    /// In group `g` channel `i` has the values `starts[j]..starts[j + 1]`, `j = g * channels + i`.
    starts: Vec<u32>,
    /// Counted from the group's first.
    tokens: Vec<u32>,
    values: Vec<f32>,
}

impl Listed {
    /// Of a tile `[channels][width]`.
    pub fn new(cpu: Processor, tile: &[f32], width: usize) -> Self {
        assert!(width.is_multiple_of(LANES) && tile.len().is_multiple_of(width));
        let count = tile.iter().filter(|&&value| value != 0.0).count();
        let mut listed = Listed {
            channels: tile.len() / width,
            starts: vec![0],
            // Sixteen are written at once, whatever their number.
            tokens: vec![0; count + LANES],
            values: vec![0.0; count + LANES],
        };
        #[cfg(target_arch = "x86_64")]
        {
            let mut end = 0;
            for first in (0..width).step_by(TOKENS) {
                for row in tile.chunks_exact(width) {
                    let row = &row[first..width.min(first + TOKENS)];
                    // SAFETY: `Processor` proves the instructions; both lists have room for sixteen more than all
                    // values.
                    let (tokens, values) = (&mut listed.tokens, &mut listed.values);
                    end = match cpu.instructions() {
                        Instructions::Avx512 => unsafe { append(row, end, tokens, values) },
                        Instructions::Avx2 => append_each(row, end, tokens, values),
                    };
                    listed.starts.push(end as u32);
                }
            }
        }
        listed
    }

    pub fn channels(&self) -> usize {
        self.channels
    }
}

/// The share of a tile's values that are not zero.
pub fn density(tile: &[f32]) -> f64 {
    let count = tile.iter().filter(|&&value| value != 0.0).count();
    count as f64 / tile.len().max(1) as f64
}

/// [`append`] for AVX2, which cannot pack.
#[cfg(target_arch = "x86_64")]
fn append_each(row: &[f32], mut end: usize, tokens: &mut [u32], values: &mut [f32]) -> usize {
    for (at, &value) in row.iter().enumerate() {
        // Written whatever it is, and counted where it is not zero: nothing to be guessed by a branch.
        tokens[end] = at as u32;
        values[end] = value;
        end += usize::from(value != 0.0);
    }
    end
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn append(row: &[f32], mut end: usize, tokens: &mut [u32], values: &mut [f32]) -> usize {
    use std::arch::x86_64::*;
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (group, chunk) in row.chunks_exact(LANES).enumerate() {
        // SAFETY: the chunk has sixteen values; see the caller for the lists.
        unsafe {
            let value = _mm512_loadu_ps(chunk.as_ptr());
            let there = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(value, _mm512_setzero_ps());
            let at = _mm512_add_epi32(lanes, _mm512_set1_epi32((group * LANES) as i32));
            let packed = _mm512_maskz_compress_epi32(there, at);
            _mm512_storeu_si512(tokens.as_mut_ptr().add(end).cast(), packed);
            _mm512_storeu_ps(
                values.as_mut_ptr().add(end),
                _mm512_maskz_compress_ps(there, value),
            );
            end += there.count_ones() as usize;
        }
    }
    end
}

/// `sums [channels][PANEL] += listed * other^T` for the channels `first..first + PANEL` of the other side, a tile
/// `[others][width]`; past its last channel the sums are of no meaning. `panel` is room.
pub fn add_products(
    cpu: Processor,
    listed: &Listed,
    other: &[f32],
    width: usize,
    first: usize,
    panel: &mut Vec<f32>,
    sums: &mut [f32],
) {
    let columns = (other.len() / width - first).min(PANEL);
    assert!(sums.len() == listed.channels * PANEL);
    panel.resize(TOKENS * PANEL, 0.0);
    for (group, token) in (0..width).step_by(TOKENS).enumerate() {
        let tokens = (width - token).min(TOKENS);
        let rows = &other[first * width + token..][..(columns - 1) * width + tokens];
        transpose(cpu, rows, (columns, tokens), width, panel, PANEL);
        let starts = &listed.starts[group * listed.channels..][..listed.channels + 1];
        let (begin, end) = (starts[0] as usize, starts[listed.channels] as usize);
        assert!(
            listed.tokens[begin..end]
                .iter()
                .all(|&token| (token as usize) < TOKENS)
        );
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Processor` proves the instructions; a panel has a row for every token that is listed, and the sums one
        // for every channel.
        unsafe {
            match cpu.instructions() {
                Instructions::Avx512 => accumulate(listed, starts, panel, sums),
                Instructions::Avx2 => narrow_accumulate(listed, starts, panel, sums),
            }
        }
    }
}

/// [`accumulate`] for AVX2: the sums of two turns, as there, half a panel at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn narrow_accumulate(listed: &Listed, starts: &[u32], panel: &[f32], sums: &mut [f32]) {
    const PART: usize = 2 * LANES;
    for (channel, ends) in starts.windows(2).enumerate() {
        let listed_here = ends[0] as usize..ends[1] as usize;
        for first in (0..PANEL).step_by(PART) {
            let out = &mut sums[channel * PANEL + first..][..PART];
            let mut parts = [[0f32; PART]; 2];
            parts[0].copy_from_slice(out);
            for (turn, at) in listed_here.clone().enumerate() {
                let value = listed.values[at];
                let row = &panel[listed.tokens[at] as usize * PANEL + first..][..PART];
                let part = &mut parts[turn % 2];
                for (sum, other) in part.iter_mut().zip(row) {
                    *sum = value.mul_add(*other, *sum);
                }
            }
            for (lane, out) in out.iter_mut().enumerate() {
                *out = parts[0][lane] + parts[1][lane];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn accumulate(listed: &Listed, starts: &[u32], panel: &[f32], sums: &mut [f32]) {
    use std::arch::x86_64::*;
    const GROUPS: usize = PANEL / LANES;
    let panel = panel.as_ptr();
    for (channel, ends) in starts.windows(2).enumerate() {
        // SAFETY: see the caller.
        unsafe {
            let out = sums.as_mut_ptr().add(channel * PANEL);
            // Two sums for every group: an addition need not wait for the one before.
            let mut parts = [[_mm512_setzero_ps(); GROUPS]; 2];
            for (group, part) in parts[0].iter_mut().enumerate() {
                *part = _mm512_loadu_ps(out.add(group * LANES));
            }
            let (mut index, end) = (ends[0] as usize, ends[1] as usize);
            while index < end {
                for (offset, parts) in parts.iter_mut().enumerate().take(end - index) {
                    let at = index + offset;
                    let value = _mm512_set1_ps(*listed.values.get_unchecked(at));
                    let row = panel.add(*listed.tokens.get_unchecked(at) as usize * PANEL);
                    for (group, part) in parts.iter_mut().enumerate() {
                        let values = _mm512_loadu_ps(row.add(group * LANES));
                        *part = _mm512_fmadd_ps(value, values, *part);
                    }
                }
                index += parts.len();
            }
            let [even, odd] = parts;
            for (group, (even, odd)) in even.into_iter().zip(odd).enumerate() {
                _mm512_storeu_ps(out.add(group * LANES), _mm512_add_ps(even, odd));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn lists_times_the_other_side_are_the_whole_product() {
        let mut rng = SmallRng::seed_from_u64(6);
        let sizes = [(3, 5, 16), (20, 140, 48), (7, 256, 32), (5, 70, 176)];
        for (cpu, (channels, others, width)) in Processor::all()
            .into_iter()
            .flat_map(|cpu| sizes.map(|size| (cpu, size)))
        {
            let few: Vec<f32> = (0..channels * width)
                .map(|_| {
                    if rng.random_bool(0.3) {
                        rng.random_range(-1.0..1.0f32)
                    } else {
                        0.0
                    }
                })
                .collect();
            let other: Vec<f32> = (0..others * width)
                .map(|_| rng.random_range(-1.0..1.0))
                .collect();
            let listed = Listed::new(cpu, &few, width);
            for first in (0..others).step_by(PANEL) {
                let mut sums = vec![0.25f32; channels * PANEL];
                add_products(
                    cpu,
                    &listed,
                    &other,
                    width,
                    first,
                    &mut Vec::new(),
                    &mut sums,
                );
                for channel in 0..channels {
                    for at in first..others.min(first + PANEL) {
                        let expected: f32 = (0..width)
                            .map(|token| few[channel * width + token] * other[at * width + token])
                            .sum();
                        let found = sums[channel * PANEL + at - first] - 0.25;
                        assert!((found - expected).abs() < 1e-4, "{found} for {expected}");
                    }
                }
            }
        }
    }
}
