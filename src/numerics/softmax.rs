//! Drawing from `softmax(logits / temperature)` of one row, without normalising it.
//!
//! A vocabulary is gone through once for every token that is generated, so each pass is one that the compiler
//! turns into vector code. The sums run in an order of their own, the same wherever the row comes from.

use multiversion::multiversion;

use super::exponential;
use super::lanes::{LANES, Lanes};

/// Weights that are summed together before a draw looks closer.
const BLOCK: usize = 4 * LANES;

/// The largest value of a row and the first place that has it; none where nothing is above minus infinity.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn largest(row: &[f32]) -> Option<(usize, f32)> {
    let larger = |best: f32, x: f32| if x > best { x } else { best };
    let mut lanes = Lanes::splat(f32::NEG_INFINITY);
    let groups = row.chunks_exact(LANES);
    let rest = groups.remainder().iter();
    for group in groups {
        // A comparison with NaN is false, so NaN never wins.
        lanes = lanes.zip(Lanes::load(group), larger);
    }
    let best = rest.fold(lanes.largest(), |best, &x| larger(best, x));
    let at = row.iter().position(|&x| x == best)?;
    (best > f32::NEG_INFINITY).then_some((at, best))
}

/// `exp((logit - largest) * inverse_temperature)` of each; zero for NaN.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn weights(row: &[f32], largest: f32, inverse_temperature: f32) -> Vec<f32> {
    let mut weights = vec![0f32; row.len()];
    for (weight, &logit) in weights.iter_mut().zip(row) {
        let power = (logit - largest) * inverse_temperature;
        *weight = if power <= 0.0 {
            exponential::exp(power)
        } else {
            0.0
        };
    }
    weights
}

/// The place in `weights` that a share in `0..1` of their total falls on; none where all are zero.
pub fn at_share(weights: &[f32], share: f64) -> Option<usize> {
    let blocks = block_sums(weights);
    let total: f64 = blocks.iter().map(|&sum| f64::from(sum)).sum();
    let mut left = share * total;
    let mut last = None;
    for (block, (&sum, weights)) in blocks.iter().zip(weights.chunks(BLOCK)).enumerate() {
        if sum <= 0.0 {
            continue;
        }
        let inside = f64::from(sum);
        let mut within = left;
        for (offset, &weight) in weights
            .iter()
            .enumerate()
            .filter(|(_, weight)| **weight > 0.0)
        {
            within -= f64::from(weight);
            last = Some(block * BLOCK + offset);
            // What a block's own sum was rounded by cannot carry a draw past its last weight.
            if left < inside && within < 0.0 {
                return last;
            }
        }
        if left < inside {
            return last;
        }
        left -= inside;
    }
    last
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn block_sums(weights: &[f32]) -> Vec<f32> {
    let mut sums = Vec::with_capacity(weights.len().div_ceil(BLOCK));
    for block in weights.chunks(BLOCK) {
        let groups = block.chunks_exact(LANES);
        let rest: f32 = groups.remainder().iter().sum();
        let lanes = groups.fold(Lanes::splat(0.0), |sum, group| sum + Lanes::load(group));
        sums.push(lanes.sum() + rest);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_is_the_first_of_equals_and_no_nan() {
        let mut row = vec![-1.0; 40];
        assert_eq!(largest(&row), Some((0, -1.0)));
        row[17] = 3.0;
        row[33] = 3.0;
        row[2] = f32::NAN;
        row[39] = f32::NAN;
        assert_eq!(largest(&row), Some((17, 3.0)));
        assert_eq!(largest(&[f32::NAN; 20]), None);
        assert_eq!(largest(&[f32::NEG_INFINITY; 3]), None);
    }

    #[test]
    fn weights_are_powers_of_the_distance_from_the_top() {
        let found = weights(&[0.0, 2.0, f32::NAN, f32::NEG_INFINITY], 2.0, 0.5);
        let expected = [(-1.0f32).exp(), 1.0, 0.0, 0.0];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn a_share_falls_where_the_cumulative_sum_passes_it() {
        let weights: Vec<f32> = (0..200)
            .map(|at| if at % 3 == 0 { 0.0 } else { 1.0 })
            .collect();
        let positive: Vec<usize> = (0..200).filter(|at| at % 3 != 0).collect();
        for (rank, &at) in positive.iter().enumerate() {
            let share = (rank as f64 + 0.5) / positive.len() as f64;
            assert_eq!(at_share(&weights, share), Some(at));
        }
        assert_eq!(at_share(&weights, 0.0), Some(1));
        assert_eq!(at_share(&weights, 1.0 - 1e-16), Some(199));
        assert_eq!(at_share(&[0.0; 5], 0.3), None);
    }
}
