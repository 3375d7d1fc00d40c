//! Rows against panels and against sparse columns. The sums of 64 outputs stay in registers while the inputs go by, in
//! ascending order; that order is the same in every routine here, so that all of them give the same bits.

use multiversion::multiversion;

use super::width::{PANEL, ROWS_TOGETHER};

/// `a * b + c`, in one rounding where the machine has it; the same choice for a whole process.
macro_rules! multiply_add {
    ($a:expr, $b:expr, $c:expr) => {
        // A constant on purpose: asked at run time, the question costs far more than the sum.
        if const {
            cfg!(target_arch = "aarch64")
                || multiversion::target::selected_target!().supports_feature_str("fma")
        } {
            $a.mul_add($b, $c)
        } else {
            $a * $b + $c
        }
    };
}

pub(super) use multiply_add;

/// One row against the first panels, as many as `y` has outputs for, skipping inactive inputs.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn panels_by_row(x: &[f32], panels: &[f32], bias: &[f32], y: &mut [f32]) {
    let size = x.len() * PANEL;
    // Two panels at once: the sums of one would wait for each other.
    let pairs = y.chunks_mut(2 * PANEL).zip(bias.chunks(2 * PANEL));
    for ((y, bias), panels) in pairs.zip(panels.chunks(2 * size)) {
        let (left, right) = panels.split_at(size);
        let mut sums = [0f32; 2 * PANEL];
        sums[..bias.len()].copy_from_slice(bias);
        let (left, right) = (left.as_chunks::<PANEL>().0, right.as_chunks::<PANEL>().0);
        let [one, other] = sums.as_chunks_mut::<PANEL>().0 else {
            continue;
        };
        if right.is_empty() {
            for (&x, left) in x.iter().zip(left) {
                if x != 0.0 {
                    for lane in 0..PANEL {
                        one[lane] = multiply_add!(x, left[lane], one[lane]);
                    }
                }
            }
        } else {
            for ((&x, left), right) in x.iter().zip(left).zip(right) {
                if x != 0.0 {
                    for lane in 0..PANEL {
                        one[lane] = multiply_add!(x, left[lane], one[lane]);
                    }
                    for lane in 0..PANEL {
                        other[lane] = multiply_add!(x, right[lane], other[lane]);
                    }
                }
            }
        }
        y.copy_from_slice(&sums[..y.len()]);
    }
}

/// Rows `[rows, inputs]` against all panels.
pub fn panels_by_rows(
    x: &[f32],
    panels: &[f32],
    bias: &[f32],
    inputs: usize,
    outputs: usize,
    y: &mut [f32],
) {
    let (bias, _) = bias.as_chunks::<PANEL>();
    for ((index, panel), bias) in panels.chunks_exact(inputs * PANEL).enumerate().zip(bias) {
        let place = index * PANEL..((index + 1) * PANEL).min(outputs);
        let blocks = x.chunks(ROWS_TOGETHER * inputs);
        for (x, y) in blocks.zip(y.chunks_mut(ROWS_TOGETHER * outputs)) {
            if x.len() == ROWS_TOGETHER * inputs {
                let rows = std::array::from_fn(|row| &x[row * inputs..(row + 1) * inputs]);
                let mut sums = [*bias; ROWS_TOGETHER];
                add_to_four(rows, panel.as_chunks::<PANEL>().0, &mut sums);
                for (y, sums) in y.chunks_exact_mut(outputs).zip(sums) {
                    y[place.clone()].copy_from_slice(&sums[..place.len()]);
                }
            } else {
                for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
                    panels_by_row(x, panel, bias, &mut y[place.clone()]);
                }
            }
        }
    }
}

/// Adds to the sums of four rows in one panel what a piece of their inputs adds: `columns [inputs, 64]`.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn add_to_four(
    x: [&[f32]; ROWS_TOGETHER],
    columns: &[[f32; PANEL]],
    sums: &mut [[f32; PANEL]; ROWS_TOGETHER],
) {
    let [mut a, mut b, mut c, mut d] = *sums;
    // Without a check in the loop: with one, the sums would go to memory and back at every input.
    let rows = x[0].iter().zip(x[1]).zip(x[2]).zip(x[3]);
    for (column, (((&xa, &xb), &xc), &xd)) in columns.iter().zip(rows) {
        for lane in 0..PANEL {
            a[lane] = multiply_add!(xa, column[lane], a[lane]);
        }
        for lane in 0..PANEL {
            b[lane] = multiply_add!(xb, column[lane], b[lane]);
        }
        for lane in 0..PANEL {
            c[lane] = multiply_add!(xc, column[lane], c[lane]);
        }
        for lane in 0..PANEL {
            d[lane] = multiply_add!(xd, column[lane], d[lane]);
        }
    }
    *sums = [a, b, c, d];
}

/// How many active channels ahead a column is asked for.
const AHEAD: usize = 8;
/// Channels whose active ones are listed at once.
const LISTED: usize = 1024;

/// `y += sum over active inputs of x[c] * column c`.
///
/// The active channels are listed first, without a branch on each. Their columns lie far apart and are short, so
/// the processor cannot foresee them: waiting for memory would take more than half of the time.
#[multiversion(targets("x86_64+avx2+fma"))]
pub fn add_active<I: Copy + Into<u32>>(
    x: &[f32],
    starts: &[u32],
    indices: &[I],
    weights: &[f32],
    y: &mut [f32],
) {
    let mut list = [0u32; LISTED + 1];
    for (block, channels) in x.chunks(LISTED).enumerate() {
        let mut count = 0;
        for (offset, &x) in channels.iter().enumerate() {
            list[count] = (block * LISTED + offset) as u32;
            count += usize::from(x != 0.0);
        }
        let active = &list[..count];
        for (position, &channel) in active.iter().enumerate() {
            if let Some(&later) = active.get(position + AHEAD) {
                let start = starts[later as usize] as usize;
                prefetch(indices, start, 2);
                prefetch(weights, start, 3);
            }
            let channel = channel as usize;
            let x = x[channel];
            let column = starts[channel] as usize..starts[channel + 1] as usize;
            let (indices, weights) = (&indices[column.clone()], &weights[column]);
            // SAFETY: `Columns::sparse` made every index from an output's position, and `y` has one value for
            // each output. The check would cost as much as the sum.
            let mut add = |index: I, weight: f32| {
                let y = unsafe { y.get_unchecked_mut(index.into() as usize) };
                *y = multiply_add!(x, weight, *y);
            };
            let ((four_indices, last_indices), (four_weights, last_weights)) =
                (indices.as_chunks::<4>(), weights.as_chunks::<4>());
            for (indices, weights) in four_indices.iter().zip(four_weights) {
                for (&index, &weight) in indices.iter().zip(weights) {
                    add(index, weight);
                }
            }
            for (&index, &weight) in last_indices.iter().zip(last_weights) {
                add(index, weight);
            }
        }
    }
}

/// Asks for the first `lines` cache lines of the values from `start` on. A hint: it may be past the end.
#[inline(always)]
pub fn prefetch<T>(values: &[T], start: usize, lines: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..lines {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = values
            .as_ptr()
            .wrapping_add(start)
            .cast::<i8>()
            .wrapping_add(64 * line);
        // SAFETY: a prefetch reads nothing and faults nowhere, whatever its address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, start, lines);
}
