//! Rows of tokens become rows of channels and the other way round, sixteen by sixteen.

use super::processor::{Instructions, LANES, Processor};

/// `from [lines, length]`, lines `from_stride` apart, as `to [length, lines]`, lines `to_stride` apart.
pub fn transpose(
    cpu: Processor,
    from: &[f32],
    (lines, length): (usize, usize),
    from_stride: usize,
    to: &mut [f32],
    to_stride: usize,
) {
    if lines == 0 || length == 0 {
        return;
    }
    assert!((lines - 1) * from_stride + length <= from.len() && length <= from_stride);
    assert!((length - 1) * to_stride + lines <= to.len() && lines <= to_stride);
    for line in (0..lines).step_by(LANES) {
        for at in (0..length).step_by(LANES) {
            let (some, others) = ((lines - line).min(LANES), (length - at).min(LANES));
            #[cfg(target_arch = "x86_64")]
            if some == LANES && others == LANES && cpu.instructions() == Instructions::Avx512 {
                // SAFETY: `Processor` proves the instructions; the block of sixteen by sixteen lies in both slices, as
                // asserted above.
                unsafe {
                    block(
                        from.as_ptr().add(line * from_stride + at),
                        from_stride,
                        to.as_mut_ptr().add(at * to_stride + line),
                        to_stride,
                    );
                }
                continue;
            }
            let from = &from[line * from_stride + at..];
            let to = &mut to[at * to_stride + line..];
            quarters(from, (some, others), from_stride, to, to_stride);
        }
    }
}

/// A block of at most sixteen by sixteen without wide registers: four by four at a time, which stay in small ones, and what
/// is left number by number.
fn quarters(
    from: &[f32],
    (lines, length): (usize, usize),
    from_stride: usize,
    to: &mut [f32],
    to_stride: usize,
) {
    let (whole_lines, whole_length) = (lines - lines % 4, length - length % 4);
    for line in (0..whole_lines).step_by(4) {
        for at in (0..whole_length).step_by(4) {
            let mut part = [[0f32; 4]; 4];
            for (row, part) in part.iter_mut().enumerate() {
                part.copy_from_slice(&from[(line + row) * from_stride + at..][..4]);
            }
            for column in 0..4 {
                let turned = [
                    part[0][column],
                    part[1][column],
                    part[2][column],
                    part[3][column],
                ];
                to[(at + column) * to_stride + line..][..4].copy_from_slice(&turned);
            }
        }
    }
    for line in 0..lines {
        let first = if line < whole_lines { whole_length } else { 0 };
        for at in first..length {
            to[at * to_stride + line] = from[line * from_stride + at];
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn block(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    use std::arch::x86_64::*;
    let mut rows = [_mm512_setzero_ps(); LANES];
    for (index, row) in rows.iter_mut().enumerate() {
        // SAFETY: see the caller.
        *row = unsafe { _mm512_loadu_ps(from.add(index * from_stride)) };
    }
    // Pairs of rows, then fours, within quarters of a register; then the quarters change places.
    let mut pairs = rows;
    for index in 0..8 {
        let (a, b) = (rows[2 * index], rows[2 * index + 1]);
        pairs[2 * index] = _mm512_unpacklo_ps(a, b);
        pairs[2 * index + 1] = _mm512_unpackhi_ps(a, b);
    }
    let mut fours = pairs;
    for index in 0..4 {
        let p = &pairs[4 * index..4 * index + 4];
        let as_pd = |x: __m512| _mm512_castps_pd(x);
        fours[4 * index] = _mm512_castpd_ps(_mm512_unpacklo_pd(as_pd(p[0]), as_pd(p[2])));
        fours[4 * index + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(as_pd(p[0]), as_pd(p[2])));
        fours[4 * index + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(as_pd(p[1]), as_pd(p[3])));
        fours[4 * index + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(as_pd(p[1]), as_pd(p[3])));
    }
    for column in 0..4 {
        let (a, b, c, d) = (
            fours[column],
            fours[4 + column],
            fours[8 + column],
            fours[12 + column],
        );
        let ab_low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        let ab_high = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
        let cd_low = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
        let cd_high = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
        let lines = [
            (
                column,
                _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_low, cd_low),
            ),
            (
                4 + column,
                _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_high, cd_high),
            ),
            (
                8 + column,
                _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_low, cd_low),
            ),
            (
                12 + column,
                _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_high, cd_high),
            ),
        ];
        for (line, values) in lines {
            // SAFETY: see the caller.
            unsafe { _mm512_storeu_ps(to.add(line * to_stride), values) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_goes_to_its_place() {
        let sizes = [(1, 1), (16, 16), (17, 40), (64, 48), (3, 33)];
        for (cpu, (lines, length)) in Processor::all()
            .into_iter()
            .flat_map(|cpu| sizes.map(|size| (cpu, size)))
        {
            let (from_stride, to_stride) = (length + 5, lines + 2);
            let from: Vec<f32> = (0..lines * from_stride).map(|i| i as f32 + 1.0).collect();
            let mut to = vec![0f32; length * to_stride];
            transpose(cpu, &from, (lines, length), from_stride, &mut to, to_stride);
            for j in 0..length {
                for i in 0..to_stride {
                    let expected = match i < lines {
                        true => from[i * from_stride + j],
                        false => 0.0,
                    };
                    assert_eq!(
                        to[j * to_stride + i],
                        expected,
                        "{lines} x {length}: {i}, {j}"
                    );
                }
            }
        }
    }
}
