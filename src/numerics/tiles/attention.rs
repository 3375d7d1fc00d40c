//! Causal attention with sinks on tiles, sixteen queries at a time, with its gradients.
//!
//! One head of one sequence: `q`, `k`, `v`, `y` are `[d_head][width]`. For sixteen queries the scores of a key are one
//! register, so that the softmax runs from key to key without sums across a register. The probabilities are not kept:
//! the backward pass computes them again from the logarithm of each query's denominator. The formulas are those of
//! [`crate::numerics::attention`].

use super::processor::{Instructions, LANES, Processor};
use crate::numerics::parts::Part;

/// The sizes of a head that there are kernels for.
pub const SIZES: [usize; 3] = [16, 32, 64];

/// One head's queries, keys and values, `[d_head][width]` each.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    /// The sink's logit; minus infinity where there is none.
    pub sink: f32,
    pub d_head: usize,
    pub width: usize,
    /// Tokens of the sequence.
    pub length: usize,
}

/// The gradients of a head, `[d_head][width]` each.
pub struct HeadGradients<'a> {
    pub q: &'a mut [f32],
    pub k: &'a mut [f32],
    pub v: &'a mut [f32],
}

/// Room for what a pass over a head keeps beside the tiles.
#[derive(Default)]
pub struct Room {
    /// Keys, values, queries and the gradient of the output by token, `[width][d_head]` each.
    rows: [Vec<f32>; 4],
    /// The gradients of keys and values by token.
    gradients: [Vec<f32>; 2],
    /// For sixteen queries, `[keys][16]`: probabilities, and the gradients of the scores.
    scores: [Vec<f32>; 2],
}

impl Head<'_> {
    fn check(&self) {
        let size = self.d_head * self.width;
        assert!(SIZES.contains(&self.d_head) && self.width.is_multiple_of(LANES));
        assert!(self.length <= self.width);
        assert!(self.q.len() == size && self.k.len() == size && self.v.len() == size);
    }
}

/// The output `y`, and for every query the logarithm of its denominator, `[width]`.
pub fn forward(cpu: Processor, head: Head, room: &mut Room, y: &mut [f32], totals: &mut [f32]) {
    head.check();
    assert!(y.len() == head.q.len() && totals.len() == head.width);
    by_token(cpu, head.k, head.d_head, head.width, &mut room.rows[0]);
    by_token(cpu, head.v, head.d_head, head.width, &mut room.rows[1]);
    room.scores[0].resize(head.width * LANES, 0.0);
    let _timed = Part::Attention.begin();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `Processor` proves the instructions, and the sizes were asserted above.
    unsafe {
        match (cpu.instructions(), head.d_head) {
            (Instructions::Avx512, 16) => kernels::forward::<16>(head, room, y, totals),
            (Instructions::Avx512, 32) => kernels::forward::<32>(head, room, y, totals),
            (Instructions::Avx512, _) => kernels::forward::<64>(head, room, y, totals),
            (Instructions::Avx2, 16) => narrow_kernels::forward::<16>(head, room, y, totals),
            (Instructions::Avx2, 32) => narrow_kernels::forward::<32>(head, room, y, totals),
            (Instructions::Avx2, _) => narrow_kernels::forward::<64>(head, room, y, totals),
        }
    }
}

/// The gradients from that of `y`, which is `[d_head][width]` like `y` itself; returns the sink's.
pub fn backward(
    cpu: Processor,
    head: Head,
    room: &mut Room,
    outcome: Outcome,
    gradients: HeadGradients,
) -> f32 {
    head.check();
    let size = head.q.len();
    assert!(outcome.y.len() == size && outcome.grad.len() == size);
    assert!(outcome.totals.len() == head.width);
    assert!(gradients.q.len() == size && gradients.k.len() == size && gradients.v.len() == size);
    let (d_head, width) = (head.d_head, head.width);
    for (tile, rows) in [head.k, head.v, head.q, outcome.grad]
        .into_iter()
        .zip(&mut room.rows)
    {
        by_token(cpu, tile, d_head, width, rows);
    }
    for rows in &mut room.gradients {
        rows.clear();
        rows.resize(size, 0.0);
    }
    for scores in &mut room.scores {
        scores.resize(width * LANES, 0.0);
    }
    let timed = Part::Attention.begin();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `Processor` proves the instructions, and the sizes were asserted above.
    let sink = unsafe {
        let grad_q = gradients.q;
        match (cpu.instructions(), d_head) {
            (Instructions::Avx512, 16) => kernels::backward::<16>(head, room, outcome, grad_q),
            (Instructions::Avx512, 32) => kernels::backward::<32>(head, room, outcome, grad_q),
            (Instructions::Avx512, _) => kernels::backward::<64>(head, room, outcome, grad_q),
            (Instructions::Avx2, 16) => narrow_kernels::backward::<16>(head, room, outcome, grad_q),
            (Instructions::Avx2, 32) => narrow_kernels::backward::<32>(head, room, outcome, grad_q),
            (Instructions::Avx2, _) => narrow_kernels::backward::<64>(head, room, outcome, grad_q),
        }
    };
    #[cfg(not(target_arch = "x86_64"))]
    let sink = 0.0;
    drop(timed);
    super::layout::from_rows(cpu, &room.gradients[0], d_head, width, gradients.k);
    super::layout::from_rows(cpu, &room.gradients[1], d_head, width, gradients.v);
    sink
}

/// What the forward pass found, and the gradient of its output.
#[derive(Clone, Copy)]
pub struct Outcome<'a> {
    pub y: &'a [f32],
    pub totals: &'a [f32],
    pub grad: &'a [f32],
}

fn by_token(cpu: Processor, tile: &[f32], d_head: usize, width: usize, rows: &mut Vec<f32>) {
    rows.resize(d_head * width, 0.0);
    super::layout::to_rows(cpu, tile, d_head, width, rows);
}

#[cfg(target_arch = "x86_64")]
mod kernels {
    use std::arch::x86_64::*;

    use super::{Head, LANES, Outcome, Room};

    /// `e^x`, relative error about 2e-7; 0 far below zero.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn exp(x: __m512) -> __m512 {
        let x = _mm512_max_ps(x, _mm512_set1_ps(-150.0));
        let n =
            _mm512_roundscale_ps::<0>(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)));
        let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_4), x);
        let r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.121_944_4e-4), r);
        let mut p = _mm512_set1_ps(1.987_569_1e-4);
        for c in [
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ] {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
        }
        p = _mm512_fmadd_ps(
            _mm512_mul_ps(p, r),
            r,
            _mm512_add_ps(r, _mm512_set1_ps(1.0)),
        );
        _mm512_scalef_ps(p, n)
    }

    /// The queries of a group that may see key `j`, the group's first query being `first`.
    #[inline]
    fn seeing(first: usize, j: usize) -> __mmask16 {
        match j.saturating_sub(first) {
            0 => 0xffff,
            hidden => 0xffffu16.checked_shl(hidden as u32).unwrap_or(0),
        }
    }

    /// `rows [D][width]` at sixteen tokens.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load<const D: usize>(tile: &[f32], width: usize, first: usize) -> [__m512; D] {
        let mut lanes = [_mm512_setzero_ps(); D];
        for (d, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: the caller checked that the tile has `D` rows, and `first + 16 <= width`.
            *lane = unsafe { _mm512_loadu_ps(tile.as_ptr().add(d * width + first)) };
        }
        lanes
    }

    /// `sum over d of row[d] * lanes[d]`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn dot<const D: usize>(row: *const f32, lanes: &[__m512; D]) -> __m512 {
        let mut sums = [_mm512_setzero_ps(); 4];
        for (d, lane) in lanes.iter().enumerate() {
            // SAFETY: `row` has `D` values.
            let value = _mm512_set1_ps(unsafe { *row.add(d) });
            sums[d % 4] = _mm512_fmadd_ps(value, *lane, sums[d % 4]);
        }
        _mm512_add_ps(
            _mm512_add_ps(sums[0], sums[1]),
            _mm512_add_ps(sums[2], sums[3]),
        )
    }

    /// `lanes[d] += row[d] * factor`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add_scaled<const D: usize>(lanes: &mut [__m512; D], row: *const f32, factor: __m512) {
        for (d, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: `row` has `D` values.
            *lane = _mm512_fmadd_ps(_mm512_set1_ps(unsafe { *row.add(d) }), factor, *lane);
        }
    }

    /// See [`super::forward`], which checks the sizes.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn forward<const D: usize>(
        head: Head,
        room: &mut Room,
        y: &mut [f32],
        totals: &mut [f32],
    ) {
        let scale = _mm512_set1_ps(1.0 / (D as f32).sqrt());
        let [k, v, ..] = &room.rows;
        let (k, v) = (k.as_ptr(), v.as_ptr());
        let scores = room.scores[0].as_mut_ptr();
        for first in (0..head.width).step_by(LANES) {
            let keys = (first + LANES).min(head.length);
            // SAFETY: `first + 16 <= width`, keys and scores have `width` rows, as the caller checked.
            unsafe {
                let mut q = load::<D>(head.q, head.width, first);
                q.iter_mut().for_each(|q| *q = _mm512_mul_ps(*q, scale));
                let mut largest = _mm512_set1_ps(head.sink);
                for j in 0..keys {
                    let score = dot::<D>(k.add(j * D), &q);
                    let score = _mm512_mask_blend_ps(
                        seeing(first, j),
                        _mm512_set1_ps(f32::NEG_INFINITY),
                        score,
                    );
                    largest = _mm512_max_ps(largest, score);
                    _mm512_storeu_ps(scores.add(j * LANES), score);
                }
                // Padding sees nothing.
                largest = _mm512_max_ps(largest, _mm512_set1_ps(-1e30));
                let mut total = exp(_mm512_sub_ps(_mm512_set1_ps(head.sink), largest));
                let mut sums = [_mm512_setzero_ps(); D];
                for j in 0..keys {
                    let score = _mm512_loadu_ps(scores.add(j * LANES));
                    let p = exp(_mm512_sub_ps(score, largest));
                    let p = _mm512_maskz_mov_ps(seeing(first, j), p);
                    total = _mm512_add_ps(total, p);
                    add_scaled::<D>(&mut sums, v.add(j * D), p);
                }
                let inverse = _mm512_div_ps(_mm512_set1_ps(1.0), total);
                for (d, sum) in sums.into_iter().enumerate() {
                    let at = y.as_mut_ptr().add(d * head.width + first);
                    _mm512_storeu_ps(at, _mm512_mul_ps(sum, inverse));
                }
                let mut logs = [0f32; LANES];
                _mm512_storeu_ps(logs.as_mut_ptr(), total);
                logs.iter_mut().for_each(|total| *total = total.ln());
                let logs = _mm512_add_ps(_mm512_loadu_ps(logs.as_ptr()), largest);
                _mm512_storeu_ps(totals.as_mut_ptr().add(first), logs);
            }
        }
    }

    /// See [`super::backward`], which checks the sizes. Leaves the gradients of keys and values in the room.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn backward<const D: usize>(
        head: Head,
        room: &mut Room,
        outcome: Outcome,
        grad_q: &mut [f32],
    ) -> f32 {
        let scale = _mm512_set1_ps(1.0 / (D as f32).sqrt());
        let [k, v, q_rows, grad_rows] = &room.rows;
        let (k, v) = (k.as_ptr(), v.as_ptr());
        let (q_rows, grad_rows) = (q_rows.as_ptr(), grad_rows.as_ptr());
        let [grad_k, grad_v] = &mut room.gradients;
        let (grad_k, grad_v) = (grad_k.as_mut_ptr(), grad_v.as_mut_ptr());
        let [shares, slopes] = &mut room.scores;
        let (shares, slopes) = (shares.as_mut_ptr(), slopes.as_mut_ptr());
        let mut grad_sink = _mm512_setzero_ps();
        for first in (0..head.length).step_by(LANES) {
            let keys = (first + LANES).min(head.length);
            let tokens = (head.length - first).min(LANES);
            let present = 0xffffu16 >> (LANES - tokens);
            // SAFETY: `first + 16 <= width`, and every row of tokens and scores has `width` of them, as the caller
            // checked.
            unsafe {
                let grad = load::<D>(outcome.grad, head.width, first);
                let y = load::<D>(outcome.y, head.width, first);
                let mut mean = _mm512_setzero_ps();
                for (grad, y) in grad.iter().zip(&y) {
                    mean = _mm512_fmadd_ps(*grad, *y, mean);
                }
                let total = _mm512_loadu_ps(outcome.totals.as_ptr().add(first));
                {
                    let mut q = load::<D>(head.q, head.width, first);
                    q.iter_mut().for_each(|q| *q = _mm512_mul_ps(*q, scale));
                    for j in 0..keys {
                        let p = exp(_mm512_sub_ps(dot::<D>(k.add(j * D), &q), total));
                        let p = _mm512_maskz_mov_ps(seeing(first, j) & present, p);
                        _mm512_storeu_ps(shares.add(j * LANES), p);
                    }
                }
                for j in 0..keys {
                    let along = _mm512_sub_ps(dot::<D>(v.add(j * D), &grad), mean);
                    let p = _mm512_loadu_ps(shares.add(j * LANES));
                    let slope = _mm512_mul_ps(_mm512_mul_ps(p, along), scale);
                    _mm512_storeu_ps(slopes.add(j * LANES), slope);
                }
                let mut sums = [_mm512_setzero_ps(); D];
                for j in 0..keys {
                    let slope = _mm512_loadu_ps(slopes.add(j * LANES));
                    add_scaled::<D>(&mut sums, k.add(j * D), slope);
                }
                for (d, sum) in sums.into_iter().enumerate() {
                    _mm512_storeu_ps(grad_q.as_mut_ptr().add(d * head.width + first), sum);
                }
                for part in 0..D / LANES {
                    let offset = part * LANES;
                    outer::<D>(
                        slopes,
                        q_rows.add(first * D + offset),
                        grad_k.add(offset),
                        keys,
                    );
                    outer::<D>(
                        shares,
                        grad_rows.add(first * D + offset),
                        grad_v.add(offset),
                        keys,
                    );
                }
                if head.sink > f32::NEG_INFINITY {
                    let p = exp(_mm512_sub_ps(_mm512_set1_ps(head.sink), total));
                    let part = _mm512_mask_mul_ps(_mm512_setzero_ps(), present, p, mean);
                    grad_sink = _mm512_sub_ps(grad_sink, part);
                }
            }
        }
        _mm512_reduce_add_ps(grad_sink)
    }

    /// `sums[j] += sum over sixteen tokens t of factors[j][t] * rows[t]`, sixteen channels of rows of `D`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn outer<const D: usize>(
        factors: *const f32,
        rows: *const f32,
        sums: *mut f32,
        keys: usize,
    ) {
        let mut tokens = [_mm512_setzero_ps(); LANES];
        for (t, token) in tokens.iter_mut().enumerate() {
            // SAFETY: there are sixteen rows of `D` values.
            *token = unsafe { _mm512_loadu_ps(rows.add(t * D)) };
        }
        for j in 0..keys {
            // SAFETY: there are `keys` rows of factors and of sums.
            unsafe {
                let factors = factors.add(j * LANES);
                let mut parts = [_mm512_loadu_ps(sums.add(j * D)), _mm512_setzero_ps()];
                for (t, token) in tokens.iter().enumerate() {
                    let factor = _mm512_set1_ps(*factors.add(t));
                    parts[t % 2] = _mm512_fmadd_ps(factor, *token, parts[t % 2]);
                }
                _mm512_storeu_ps(sums.add(j * D), _mm512_add_ps(parts[0], parts[1]));
            }
        }
    }
}

/// The same kernels for AVX2. A closure would be compiled for itself and called for every number; loops are not.
#[cfg(target_arch = "x86_64")]
mod narrow_kernels {
    use std::arch::x86_64::*;

    use super::{Head, LANES, Outcome, Room};
    use crate::numerics::exponential::exp;

    type Sixteen = [f32; LANES];

    /// Whether query `lane` of a group may see key `j`, the group's first query being `first`.
    #[inline(always)]
    fn sees(first: usize, lane: usize, j: usize) -> bool {
        j <= first + lane
    }

    /// `rows [D][width]` at sixteen tokens.
    #[inline(always)]
    fn load<const D: usize>(tile: &[f32], width: usize, first: usize) -> [Sixteen; D] {
        let mut lanes = [[0.0; LANES]; D];
        for (lane, row) in lanes.iter_mut().zip(tile.chunks_exact(width)) {
            lane.copy_from_slice(&row[first..first + LANES]);
        }
        lanes
    }

    /// `sum over d of row[d] * lanes[d]`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn dot<const D: usize>(row: &[f32], lanes: &[Sixteen; D]) -> Sixteen {
        assert!(row.len() >= D);
        let mut sums = [[_mm256_setzero_ps(); 2]; 4];
        for d in 0..D {
            let value = _mm256_set1_ps(row[d]);
            let [low, high] = halves(&lanes[d]);
            let sum = &mut sums[d % 4];
            sum[0] = _mm256_fmadd_ps(value, low, sum[0]);
            sum[1] = _mm256_fmadd_ps(value, high, sum[1]);
        }
        let mut out = [0f32; LANES];
        let [a, b, c, d] = sums;
        for (half, ((a, b), (c, d))) in a.into_iter().zip(b).zip(c.into_iter().zip(d)).enumerate() {
            let (one, other) = (_mm256_add_ps(a, b), _mm256_add_ps(c, d));
            // SAFETY: `out` has two halves of eight.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * half), _mm256_add_ps(one, other)) };
        }
        out
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn halves(lanes: &Sixteen) -> [__m256; 2] {
        // SAFETY: there are two halves of eight.
        unsafe {
            [
                _mm256_loadu_ps(lanes.as_ptr()),
                _mm256_loadu_ps(lanes.as_ptr().add(8)),
            ]
        }
    }

    /// `lanes[d] += row[d] * factor`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn add_scaled<const D: usize>(lanes: &mut [Sixteen; D], row: &[f32], factor: &Sixteen) {
        assert!(row.len() >= D);
        let factor = halves(factor);
        for d in 0..D {
            let value = _mm256_set1_ps(row[d]);
            let [low, high] = halves(&lanes[d]);
            let at = lanes[d].as_mut_ptr();
            // SAFETY: there are two halves of eight.
            unsafe {
                _mm256_storeu_ps(at, _mm256_fmadd_ps(value, factor[0], low));
                _mm256_storeu_ps(at.add(8), _mm256_fmadd_ps(value, factor[1], high));
            }
        }
    }

    /// See [`super::forward`], which checks the sizes.
    #[target_feature(enable = "avx2,fma")]
    pub fn forward<const D: usize>(head: Head, room: &mut Room, y: &mut [f32], totals: &mut [f32]) {
        let scale = 1.0 / (D as f32).sqrt();
        let [k, v, ..] = &room.rows;
        let scores = &mut room.scores[0];
        for first in (0..head.width).step_by(LANES) {
            let keys = (first + LANES).min(head.length);
            let mut q = load::<D>(head.q, head.width, first);
            for q in q.as_flattened_mut() {
                *q *= scale;
            }
            let mut largest = [head.sink; LANES];
            for (j, (key, score)) in k
                .chunks_exact(D)
                .zip(scores.chunks_exact_mut(LANES))
                .take(keys)
                .enumerate()
            {
                let found = dot::<D>(key, &q);
                for (lane, (score, largest)) in score.iter_mut().zip(&mut largest).enumerate() {
                    *score = match sees(first, lane, j) {
                        true => found[lane],
                        false => f32::NEG_INFINITY,
                    };
                    *largest = largest.max(*score);
                }
            }
            // Padding sees nothing.
            let mut total = [0f32; LANES];
            for (largest, total) in largest.iter_mut().zip(&mut total) {
                *largest = largest.max(-1e30);
                *total = exp(head.sink - *largest);
            }
            let mut sums = [[0.0; LANES]; D];
            let scored = scores.chunks_exact(LANES).zip(v.chunks_exact(D));
            for (score, value) in scored.take(keys) {
                // What a query does not see has a score of minus infinity.
                let mut p = [0f32; LANES];
                for lane in 0..LANES {
                    p[lane] = exp(score[lane] - largest[lane]);
                    total[lane] += p[lane];
                }
                add_scaled::<D>(&mut sums, value, &p);
            }
            for (sum, row) in sums.iter().zip(y.chunks_exact_mut(head.width)) {
                for ((y, sum), total) in row[first..first + LANES].iter_mut().zip(sum).zip(&total) {
                    *y = sum * (1.0 / total);
                }
            }
            for (lane, out) in totals[first..first + LANES].iter_mut().enumerate() {
                *out = total[lane].ln() + largest[lane];
            }
        }
    }

    /// See [`super::backward`], which checks the sizes. Leaves the gradients of keys and values in the room.
    #[target_feature(enable = "avx2,fma")]
    pub fn backward<const D: usize>(
        head: Head,
        room: &mut Room,
        outcome: Outcome,
        grad_q: &mut [f32],
    ) -> f32 {
        let scale = 1.0 / (D as f32).sqrt();
        let [k, v, q_rows, grad_rows] = &room.rows;
        let [grad_k, grad_v] = &mut room.gradients;
        let [shares, slopes] = &mut room.scores;
        let mut grad_sink = [0f32; LANES];
        for first in (0..head.length).step_by(LANES) {
            let keys = (first + LANES).min(head.length);
            let tokens = (head.length - first).min(LANES);
            let grad = load::<D>(outcome.grad, head.width, first);
            let y = load::<D>(outcome.y, head.width, first);
            let mut mean = [0f32; LANES];
            for (grad, y) in grad.iter().zip(&y) {
                for ((mean, grad), y) in mean.iter_mut().zip(grad).zip(y) {
                    *mean = grad.mul_add(*y, *mean);
                }
            }
            let total: &[f32] = &outcome.totals[first..first + LANES];
            let mut q = load::<D>(head.q, head.width, first);
            for q in q.as_flattened_mut() {
                *q *= scale;
            }
            let by_key = shares
                .chunks_exact_mut(LANES)
                .zip(slopes.chunks_exact_mut(LANES));
            let rows = k.chunks_exact(D).zip(v.chunks_exact(D));
            for (j, ((key, value), (shares, slopes))) in rows.zip(by_key).take(keys).enumerate() {
                let score = dot::<D>(key, &q);
                let along = dot::<D>(value, &grad);
                for lane in 0..LANES {
                    let p = exp(score[lane] - total[lane]);
                    let is_seen = sees(first, lane, j) && lane < tokens;
                    shares[lane] = if is_seen { p } else { 0.0 };
                    slopes[lane] = shares[lane] * (along[lane] - mean[lane]) * scale;
                }
            }
            let mut sums = [[0.0; LANES]; D];
            for (slope, key) in slopes.chunks_exact(LANES).zip(k.chunks_exact(D)).take(keys) {
                let mut factor = [0f32; LANES];
                factor.copy_from_slice(slope);
                add_scaled::<D>(&mut sums, key, &factor);
            }
            for (sum, row) in sums.iter().zip(grad_q.chunks_exact_mut(head.width)) {
                row[first..first + LANES].copy_from_slice(sum);
            }
            outer::<D>(slopes, &q_rows[first * D..][..LANES * D], grad_k, keys);
            outer::<D>(shares, &grad_rows[first * D..][..LANES * D], grad_v, keys);
            if head.sink > f32::NEG_INFINITY {
                for lane in 0..tokens {
                    grad_sink[lane] -= exp(head.sink - total[lane]) * mean[lane];
                }
            }
        }
        grad_sink.iter().sum()
    }

    /// `sums[j] += sum over sixteen tokens t of factors[j][t] * rows[t]`, rows of `D`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn outer<const D: usize>(factors: &[f32], rows: &[f32], sums: &mut [f32], keys: usize) {
        assert!(rows.len() >= LANES * D && factors.len() >= keys * LANES && sums.len() >= keys * D);
        for j in 0..keys {
            for part in 0..D / 8 {
                // SAFETY: there are `keys` rows of factors and of sums, and sixteen of tokens, as asserted above.
                unsafe {
                    let at = sums.as_mut_ptr().add(j * D + 8 * part);
                    let mut parts = [_mm256_loadu_ps(at), _mm256_setzero_ps()];
                    for t in 0..LANES {
                        let factor = _mm256_set1_ps(*factors.as_ptr().add(j * LANES + t));
                        let values = _mm256_loadu_ps(rows.as_ptr().add(t * D + 8 * part));
                        parts[t % 2] = _mm256_fmadd_ps(factor, values, parts[t % 2]);
                    }
                    _mm256_storeu_ps(at, _mm256_add_ps(parts[0], parts[1]));
                }
            }
        }
    }
}
