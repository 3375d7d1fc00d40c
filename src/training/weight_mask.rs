//! The magnitude mask: after every step a matrix keeps its largest weights and loses the others.
//!
//! Only weights are masked. Gradients and the optimizer's moments stay dense, so a weight that was lost can
//! come back. A number of weights per neuron or attention channel can be protected: they stay whatever their
//! rank, and the rest of the matrix has that many places fewer.

use multiversion::multiversion;

/// Along which dimension of a matrix `[rows, columns]` the protected weights are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protect {
    None,
    /// So many in each row: the inputs of a neuron or of an attention channel.
    Rows(usize),
    /// So many in each column: the outputs of a neuron or of an attention channel.
    Columns(usize),
}

/// How many of `count` weights stay; none where all do.
pub fn kept_count(fraction: f64, count: usize) -> Option<usize> {
    let keep = (fraction * count as f64).floor() as usize;
    (keep < count).then_some(keep)
}

/// Zeroes all but `floor(fraction * len)` weights of a row-major matrix of `columns` columns, smallest
/// magnitudes first; among equals the first stay.
pub fn keep_fraction(weights: &mut [f32], columns: usize, fraction: f64, protect: Protect) {
    let Some(keep) = kept_count(fraction, weights.len()) else {
        return;
    };
    let mut ranks: Vec<u32> = weights
        .iter()
        .map(|weight| weight.to_bits() & 0x7fff_ffff)
        .collect();
    // A protected weight ranks above all others by counting as infinite.
    for index in protected_weights(weights, columns, protect) {
        ranks[index] = f32::INFINITY.to_bits();
    }
    let threshold = kth_largest(&ranks, keep);
    if count_at_least(&ranks, threshold) == keep {
        keep_at_least(weights, &ranks, threshold);
        return;
    }
    let mut room = keep - count_at_least(&ranks, threshold.saturating_add(1)).min(keep);
    for (weight, &rank) in weights.iter_mut().zip(&ranks) {
        if rank > threshold {
            continue;
        }
        if rank == threshold && room > 0 {
            room -= 1;
        } else {
            *weight = 0.0;
        }
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn keep_at_least(weights: &mut [f32], ranks: &[u32], threshold: u32) {
    for (weight, &rank) in weights.iter_mut().zip(ranks) {
        *weight = if rank >= threshold { *weight } else { 0.0 };
    }
}

/// The largest `t` that at least `k` ranks reach; above every rank for `k` of zero.
///
/// The upper bits of all ranks are counted once, which leaves the few ranks of one bucket to look among.
fn kth_largest(ranks: &[u32], k: usize) -> u32 {
    const LOWER_BITS: u32 = 19;
    if k == 0 {
        return u32::MAX;
    }
    // Neighbours are counted apart, so that no count waits for the one before.
    let mut counts = [const { [0u32; 1 << (32 - LOWER_BITS)] }; 4];
    for four in ranks.chunks(4) {
        for (counts, rank) in counts.iter_mut().zip(four) {
            counts[(rank >> LOWER_BITS) as usize] += 1;
        }
    }
    let (mut above, mut bucket) = (0, counts[0].len() - 1);
    loop {
        let here: usize = counts.iter().map(|counts| counts[bucket] as usize).sum();
        if above + here >= k || bucket == 0 {
            break;
        }
        above += here;
        bucket -= 1;
    }
    let mut candidates: Vec<u32> = ranks
        .iter()
        .copied()
        .filter(|rank| (rank >> LOWER_BITS) as usize == bucket)
        .collect();
    let place = (k - above - 1).min(candidates.len().saturating_sub(1));
    match candidates.is_empty() {
        true => 0,
        false => {
            *candidates
                .select_nth_unstable_by(place, |one, other| other.cmp(one))
                .1
        }
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn count_at_least(ranks: &[u32], threshold: u32) -> usize {
    let mut total = 0usize;
    // Blocks keep the running count in 32 bits, which vectorises twice as wide.
    for block in ranks.chunks(1 << 16) {
        let mut count = 0u32;
        for &rank in block {
            count += u32::from(rank >= threshold);
        }
        total += count as usize;
    }
    total
}

/// The indices of the weights that are protected.
fn protected_weights(weights: &[f32], columns: usize, protect: Protect) -> Vec<usize> {
    let (lines, count) = match protect {
        Protect::None | Protect::Rows(0) | Protect::Columns(0) => return Vec::new(),
        Protect::Rows(count) => (weights.len() / columns, count),
        Protect::Columns(count) => (columns, count),
    };
    let mut largest: Vec<Vec<usize>> = vec![Vec::with_capacity(count + 1); lines];
    // What a weight must exceed to be among the largest of its line.
    let mut floors = vec![0f32; lines];
    for (row, values) in weights.chunks_exact(columns).enumerate() {
        for (column, weight) in values.iter().enumerate() {
            let line = match protect {
                Protect::Columns(_) => column,
                _ => row,
            };
            let magnitude = weight.abs();
            if magnitude <= floors[line] {
                continue;
            }
            let largest = &mut largest[line];
            let after = largest.partition_point(|&other| weights[other].abs() >= magnitude);
            largest.insert(after, row * columns + column);
            largest.truncate(count);
            if largest.len() == count {
                floors[line] = weights[largest[count - 1]].abs();
            }
        }
    }
    largest.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_largest_and_the_first_of_equals() {
        let mut weights = vec![1.0, -3.0, 2.0, 2.0, -2.0, 0.5, 0.0, 0.1];
        keep_fraction(&mut weights, 4, 3.0 / 8.0, Protect::None);
        assert_eq!(weights, [0.0, -3.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
        keep_fraction(&mut weights, 4, 0.0, Protect::None);
        assert!(weights.iter().all(|&w| w == 0.0));
    }

    #[test]
    fn protected_weights_stay_and_take_places() {
        let mut by_row = vec![9.0, 8.0, 7.0, 6.0, 0.1, 0.2, 0.3, 0.4];
        keep_fraction(&mut by_row, 4, 0.5, Protect::Rows(1));
        assert_eq!(by_row, [9.0, 8.0, 7.0, 0.0, 0.0, 0.0, 0.0, 0.4]);
        let mut by_column = vec![9.0, 0.1, 8.0, 0.2];
        keep_fraction(&mut by_column, 2, 0.5, Protect::Columns(1));
        assert_eq!(by_column, [9.0, 0.0, 0.0, 0.2]);
    }
}
