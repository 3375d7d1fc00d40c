//! AbsTopK of a tile: of every token the `k` channels of largest magnitude stay, among equals the first ones.
//!
//! The threshold of sixteen tokens is found at once by bisection on the bits of their magnitudes.

use multiversion::multiversion;

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

/// More channels than this are found faster by a threshold than by counting for each.
pub const FEW: usize = 12;

/// [`keep_largest`] for the listed channels alone; the others stay as they are, whatever becomes of them. A channel stays
/// where fewer than `k` are ahead of it.
pub fn keep_largest_among(cpu: Processor, x: &mut [f32], width: usize, k: usize, listed: &[usize]) {
    let channels = x.len() / width;
    assert!(width.is_multiple_of(LANES) && x.len() == channels * width);
    assert!(listed.iter().all(|channel| *channel < channels));
    if k >= channels {
        return;
    }
    if listed.len() > FEW {
        return keep_largest(cpu, x, width, k);
    }
    let _timed = Part::AbsTopK.begin();
    let mut ahead = [[0i32; LANES]; FEW];
    for first in (0..width).step_by(LANES) {
        for (ahead, &channel) in ahead.iter_mut().zip(listed) {
            *ahead = count_ahead(x, (width, first), channel);
        }
        for (ahead, &channel) in ahead.iter().zip(listed) {
            let values = x[channel * width + first..][..LANES].iter_mut();
            for (value, ahead) in values.zip(ahead) {
                *value = if *ahead < k as i32 { *value } else { 0.0 };
            }
        }
    }
}

/// How many channels are ahead of one at each of sixteen tokens: those of larger magnitude, and of the same those before
/// it.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn count_ahead(x: &[f32], (width, first): (usize, usize), channel: usize) -> [i32; LANES] {
    let mut own = [0i32; LANES];
    for (own, value) in own.iter_mut().zip(&x[channel * width + first..][..LANES]) {
        *own = (value.to_bits() & 0x7fff_ffff) as i32;
    }
    let mut ahead = [0i32; LANES];
    for row in x[..channel * width].chunks_exact(width) {
        let row = &row[first..first + LANES];
        for lane in 0..LANES {
            ahead[lane] += i32::from((row[lane].to_bits() & 0x7fff_ffff) as i32 >= own[lane]);
        }
    }
    for row in x[(channel + 1) * width..].chunks_exact(width) {
        let row = &row[first..first + LANES];
        for lane in 0..LANES {
            ahead[lane] += i32::from((row[lane].to_bits() & 0x7fff_ffff) as i32 > own[lane]);
        }
    }
    ahead
}

/// [`sixteen_tokens`] for AVX2: two registers of eight tokens, masks of all ones or all zeros.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn narrow_tokens(
    x: &mut [f32],
    magnitudes: &mut [u32],
    width: usize,
    first: usize,
    k: usize,
) {
    use std::arch::x86_64::*;
    let channels = x.len() / width;
    let sign = _mm256_set1_epi32(0x7fff_ffff);
    let x = x.as_mut_ptr();
    let bits = magnitudes.as_mut_ptr();
    for half in [0, LANES / 2] {
        let mut any = _mm256_setzero_si256();
        for channel in 0..channels {
            // SAFETY: the caller has `channels` rows of `width` values in `x`, of `LANES` magnitudes in `bits`, and
            // `first + LANES <= width`.
            unsafe {
                let value = _mm256_loadu_si256(x.add(channel * width + first + half).cast());
                let value = _mm256_and_si256(value, sign);
                any = _mm256_or_si256(any, value);
                _mm256_storeu_si256(bits.add(channel * LANES + half).cast(), value);
            }
        }
        let wanted = _mm256_set1_epi32(k as i32);
        let one = _mm256_set1_epi32(1);
        let zero = _mm256_setzero_si256();
        let mut lanes = [0u32; LANES / 2];
        // SAFETY: eight numbers fit.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), any) };
        let highest = 31
            - lanes
                .iter()
                .fold(0, |all, any| all | any)
                .leading_zeros()
                .min(31) as i32;
        let mut threshold = zero;
        let mut open = _mm256_set1_epi32(-1);
        for bit in (0..=highest).rev() {
            let candidate = _mm256_or_si256(threshold, _mm256_set1_epi32(1 << bit));
            // Magnitudes are no negative integers, so that `a >= b` is `a > b - 1`.
            let below = _mm256_sub_epi32(candidate, one);
            let mut counts = [zero; 4];
            let mut channel = 0;
            while channel + 4 <= channels {
                for (offset, count) in counts.iter_mut().enumerate() {
                    // SAFETY: as above.
                    let value = unsafe {
                        _mm256_loadu_si256(bits.add((channel + offset) * LANES + half).cast())
                    };
                    *count = _mm256_sub_epi32(*count, _mm256_cmpgt_epi32(value, below));
                }
                channel += 4;
            }
            while channel < channels {
                // SAFETY: as above.
                let value = unsafe { _mm256_loadu_si256(bits.add(channel * LANES + half).cast()) };
                counts[0] = _mm256_sub_epi32(counts[0], _mm256_cmpgt_epi32(value, below));
                channel += 1;
            }
            let count = _mm256_add_epi32(
                _mm256_add_epi32(counts[0], counts[1]),
                _mm256_add_epi32(counts[2], counts[3]),
            );
            let short = _mm256_cmpgt_epi32(wanted, count);
            let enough = _mm256_andnot_si256(short, open);
            threshold = _mm256_blendv_epi8(threshold, candidate, enough);
            let exactly = _mm256_and_si256(enough, _mm256_cmpeq_epi32(count, wanted));
            open = _mm256_andnot_si256(exactly, open);
            if _mm256_testz_si256(open, open) == 1 {
                break;
            }
        }
        let mut above = zero;
        for channel in 0..channels {
            // SAFETY: as above.
            let value = unsafe { _mm256_loadu_si256(bits.add(channel * LANES + half).cast()) };
            above = _mm256_sub_epi32(above, _mm256_cmpgt_epi32(value, threshold));
        }
        // Of those that equal the threshold, as many stay as there is room for.
        let mut room = _mm256_sub_epi32(wanted, above);
        for channel in 0..channels {
            // SAFETY: as above.
            unsafe {
                let value = _mm256_loadu_si256(bits.add(channel * LANES + half).cast());
                let is_above = _mm256_cmpgt_epi32(value, threshold);
                let is_equal = _mm256_cmpeq_epi32(value, threshold);
                let taken = _mm256_and_si256(is_equal, _mm256_cmpgt_epi32(room, zero));
                room = _mm256_add_epi32(room, taken);
                let stays = _mm256_castsi256_ps(_mm256_or_si256(is_above, taken));
                let at = x.add(channel * width + first + half);
                _mm256_storeu_ps(at, _mm256_and_ps(_mm256_loadu_ps(at), stays));
            }
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
            let listed: Vec<usize> = (0..channels).filter(|_| rng.random_bool(0.1)).collect();
            let mut of_listed = values.clone();
            keep_largest_among(cpu, &mut of_listed, width, k, &listed);
            keep_largest(cpu, &mut found, width, k);
            for &channel in &listed {
                let row = channel * width..(channel + 1) * width;
                assert_eq!(
                    of_listed[row.clone()],
                    found[row],
                    "k {k}, channel {channel}"
                );
            }
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
