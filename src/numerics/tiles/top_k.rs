//! AbsTopK of a tile: of every token the `k` channels of largest magnitude stay, among equals the first ones.
//!
//! The threshold of sixteen tokens is found at once by bisection on the bits of their magnitudes.

use super::processor::{Instructions, LANES, Processor};
use crate::numerics::parts::Part;

/// Zeroes what does not stay in `x [channels][width]`.
pub fn keep_largest(cpu: Processor, x: &mut [f32], width: usize, k: usize) {
    let channels = x.len() / width;
    assert!(width.is_multiple_of(LANES) && x.len() == channels * width);
    if k >= channels {
        return;
    }
    let _timed = Part::AbsTopK.begin();
    if k == 0 {
        x.fill(0.0);
        return;
    }
    #[cfg(target_arch = "x86_64")]
    {
        let mut magnitudes = vec![0u32; channels * LANES];
        for first in (0..width).step_by(LANES) {
            // SAFETY: `Processor` proves the instructions; `first + LANES <= width`, and both slices have `channels`
            // rows.
            unsafe {
                match cpu.instructions() {
                    Instructions::Avx512 => sixteen_tokens(x, &mut magnitudes, width, first, k),
                    Instructions::Avx2 => narrow_tokens(x, &mut magnitudes, width, first, k),
                }
            };
        }
    }
}

/// [`sixteen_tokens`] for AVX2. Masks are words of all ones or all zeros.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn narrow_tokens(x: &mut [f32], magnitudes: &mut [u32], width: usize, first: usize, k: usize) {
    let rows = magnitudes.chunks_exact_mut(LANES);
    let mut any = [0u32; LANES];
    for (bits, x) in rows.zip(x.chunks_exact(width)) {
        let values = x[first..first + LANES].iter();
        for ((bits, value), any) in bits.iter_mut().zip(values).zip(&mut any) {
            *bits = value.to_bits() & 0x7fff_ffff;
            *any |= *bits;
        }
    }
    let wanted = k as i32;
    let mut threshold = [0i32; LANES];
    let mut open = [true; LANES];
    let all = any.iter().fold(0, |all, any| all | any);
    let highest = 31 - all.leading_zeros().min(31);
    for bit in (0..=highest).rev() {
        let candidate = threshold.map(|threshold| threshold | 1 << bit);
        let mut counts = [[0i32; LANES]; 2];
        for rows in magnitudes.chunks(2 * LANES) {
            for (counts, row) in counts.iter_mut().zip(rows.chunks_exact(LANES)) {
                for ((count, bits), candidate) in counts.iter_mut().zip(row).zip(&candidate) {
                    *count += i32::from(*bits as i32 >= *candidate);
                }
            }
        }
        for lane in 0..LANES {
            let count = counts[0][lane] + counts[1][lane];
            if open[lane] && count >= wanted {
                threshold[lane] = candidate[lane];
                open[lane] = count != wanted;
            }
        }
        if open.iter().all(|open| !open) {
            break;
        }
    }
    let mut room = [0i32; LANES];
    for row in magnitudes.chunks_exact(LANES) {
        for ((above, bits), threshold) in room.iter_mut().zip(row).zip(&threshold) {
            *above += i32::from(*bits as i32 > *threshold);
        }
    }
    room.iter_mut().for_each(|above| *above = wanted - *above);
    for (row, x) in magnitudes
        .chunks_exact(LANES)
        .zip(x.chunks_exact_mut(width))
    {
        let values = x[first..first + LANES].iter_mut();
        for (lane, (value, bits)) in values.zip(row).enumerate() {
            let is_equal = *bits as i32 == threshold[lane];
            let stays = *bits as i32 > threshold[lane] || (is_equal && room[lane] > 0);
            room[lane] -= i32::from(is_equal && room[lane] > 0);
            *value = if stays { *value } else { 0.0 };
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn sixteen_tokens(
    x: &mut [f32],
    magnitudes: &mut [u32],
    width: usize,
    first: usize,
    k: usize,
) {
    use std::arch::x86_64::*;
    let channels = x.len() / width;
    let sign = _mm512_set1_epi32(0x7fff_ffff);
    let one = _mm512_set1_epi32(1);
    let wanted = _mm512_set1_epi32(k as i32);
    let x = x.as_mut_ptr();
    let bits = magnitudes.as_mut_ptr();
    let mut any = _mm512_setzero_si512();
    for channel in 0..channels {
        // SAFETY: see the caller.
        unsafe {
            let value = _mm512_loadu_si512(x.add(channel * width + first).cast());
            let value = _mm512_and_si512(value, sign);
            any = _mm512_or_si512(any, value);
            _mm512_storeu_si512(bits.add(channel * LANES).cast(), value);
        }
    }
    // The largest threshold that at least `k` magnitudes reach, from its highest bit down. A token whose threshold
    // is reached by exactly `k` needs no lower bits.
    let mut threshold = _mm512_setzero_si512();
    let mut open: u16 = 0xffff;
    let highest = 31 - _mm512_reduce_or_epi32(any).leading_zeros().min(31) as i32;
    for bit in (0..=highest).rev() {
        let candidate = _mm512_or_si512(threshold, _mm512_set1_epi32(1 << bit));
        let mut counts = [_mm512_setzero_si512(); 4];
        let mut channel = 0;
        while channel + 4 <= channels {
            for (offset, count) in counts.iter_mut().enumerate() {
                // SAFETY: see the caller.
                let value =
                    unsafe { _mm512_loadu_si512(bits.add((channel + offset) * LANES).cast()) };
                let reaches = _mm512_cmpge_epi32_mask(value, candidate);
                *count = _mm512_mask_add_epi32(*count, reaches, *count, one);
            }
            channel += 4;
        }
        while channel < channels {
            // SAFETY: see the caller.
            let value = unsafe { _mm512_loadu_si512(bits.add(channel * LANES).cast()) };
            let reaches = _mm512_cmpge_epi32_mask(value, candidate);
            counts[0] = _mm512_mask_add_epi32(counts[0], reaches, counts[0], one);
            channel += 1;
        }
        let count = _mm512_add_epi32(
            _mm512_add_epi32(counts[0], counts[1]),
            _mm512_add_epi32(counts[2], counts[3]),
        );
        let enough = open & _mm512_cmpge_epi32_mask(count, wanted);
        threshold = _mm512_mask_mov_epi32(threshold, enough, candidate);
        open &= !(enough & _mm512_cmpeq_epi32_mask(count, wanted));
        if open == 0 {
            break;
        }
    }
    // Of those that equal the threshold, as many stay as there is room for: all where exactly `k` reach it.
    let mut above = _mm512_setzero_si512();
    if open != 0 {
        for channel in 0..channels {
            // SAFETY: see the caller.
            let value = unsafe { _mm512_loadu_si512(bits.add(channel * LANES).cast()) };
            let is_above = _mm512_cmpgt_epi32_mask(value, threshold);
            above = _mm512_mask_add_epi32(above, is_above, above, one);
        }
    }
    let mut room = _mm512_sub_epi32(wanted, above);
    for channel in 0..channels {
        // SAFETY: see the caller.
        unsafe {
            let value = _mm512_loadu_si512(bits.add(channel * LANES).cast());
            let is_above = _mm512_cmpgt_epi32_mask(value, threshold);
            let is_equal = _mm512_cmpeq_epi32_mask(value, threshold);
            let has_room = _mm512_cmpgt_epi32_mask(room, _mm512_setzero_si512());
            let closed_equal = is_equal & !open;
            let open_equal = is_equal & open & has_room;
            room = _mm512_mask_sub_epi32(room, open_equal, room, one);
            let stays = (is_above | closed_equal | open_equal) as __mmask16;
            let at = x.add(channel * width + first);
            let kept = _mm512_maskz_mov_ps(stays, _mm512_loadu_ps(at));
            _mm512_storeu_ps(at, kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numerics::abs_top_k::keep_largest as of_row;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    #[test]
    fn agrees_with_the_row_kernel_with_and_without_ties() {
        let mut rng = SmallRng::seed_from_u64(4);
        for (cpu, case) in Processor::all()
            .into_iter()
            .flat_map(|cpu| (0..100).map(move |case| (cpu, case)))
        {
            let (channels, width) = (rng.random_range(1..70), 16 * rng.random_range(1..4));
            let values: Vec<f32> = (0..channels * width)
                .map(|_| match case % 3 {
                    0 => rng.random_range(-1.0..1.0f32),
                    1 => rng.random_range(-3..4) as f32,
                    _ => rng.random_range(-1.0..1.0f32).max(0.0),
                })
                .collect();
            let k = rng.random_range(0..=channels);
            let mut found = values.clone();
            keep_largest(cpu, &mut found, width, k);
            for token in 0..width {
                let column = |tile: &[f32]| -> Vec<f32> {
                    (0..channels)
                        .map(|channel| tile[channel * width + token])
                        .collect()
                };
                let mut expected = vec![0f32; channels];
                of_row(&column(&values), k, &mut expected);
                assert_eq!(column(&found), expected, "k {k} of {:?}", column(&values));
            }
        }
    }
}
