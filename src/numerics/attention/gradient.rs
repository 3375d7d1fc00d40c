//! The gradients of attention, one head of one sequence at a time.

use std::ops::Range;

use multiversion::multiversion;

use super::kernel::{
    Blocks, Heads, Keys, Scores, Values, padded, probabilities, project, weighted_sum,
};
use crate::numerics::exponential;
use crate::numerics::lanes::{LANES, Lanes};

/// One head of one sequence, with the layouts that the row kernels read.
pub struct HeadData {
    /// `[length, d_head]` each.
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    /// `[d_head, padded(length)]`.
    pub k_by_channel: Vec<f32>,
}

/// `[rows, width] -> [width, stride]`, zeros after the last row.
pub fn by_channel(values: &[f32], width: usize, stride: usize) -> Vec<f32> {
    let mut out = vec![0f32; width * stride];
    for (row, values) in values.chunks_exact(width).enumerate() {
        for (channel, &value) in values.iter().enumerate() {
            out[channel * stride + row] = value;
        }
    }
    out
}

/// The gradients of one head of one sequence: `[length, d_head]` each, and the sink's.
pub struct GradientsOfHead {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub sink: f32,
}

pub fn head_gradients(data: &HeadData, grad: &[f32], sink: f32, heads: Heads) -> GradientsOfHead {
    let (d_head, scores) = (heads.d_head, heads.scores);
    let length = data.q.len() / d_head;
    let stride = padded(length);
    let v_by_channel = by_channel(&data.v, d_head, stride);
    let mut gradients = GradientsOfHead {
        q: vec![0f32; data.q.len()],
        k: vec![0f32; data.q.len()],
        v: vec![0f32; data.q.len()],
        sink: 0.0,
    };
    let (mut weights, mut slopes) = (vec![0f32; stride], vec![0f32; stride]);
    for t in 0..length {
        let row = t * d_head..(t + 1) * d_head;
        let first = scores.first_key(t + 1);
        let from_first = first * d_head..;
        let query = QueryGradient {
            q: &data.q[row.clone()],
            grad: &grad[row.clone()],
            keys: Keys {
                by_channel: &data.k_by_channel[first..],
                stride,
                blocks: Blocks::ONE,
            },
            key_rows: Values {
                rows: &data.k[from_first.clone()],
                stride: d_head,
                blocks: Blocks::ONE,
            },
            values: Keys {
                by_channel: &v_by_channel[first..],
                stride,
                blocks: Blocks::ONE,
            },
            sink,
            seen: scores.first_seen(t + 1) - first..t + 1 - first,
            scores,
        };
        let count = query.seen.end;
        gradients.sink += query_gradient(
            query,
            &mut weights[..padded(count)],
            &mut slopes[..padded(count)],
            &mut gradients.q[row],
            &mut gradients.k[from_first.clone()],
            &mut gradients.v[from_first],
        );
    }
    gradients
}

/// What one query's gradient is computed from; `values` are read by channel like the keys.
struct QueryGradient<'a> {
    q: &'a [f32],
    grad: &'a [f32],
    keys: Keys<'a>,
    key_rows: Values<'a>,
    values: Keys<'a>,
    sink: f32,
    /// The keys among those given.
    seen: Range<usize>,
    scores: Scores,
}

/// Adds one query's part to the gradients of the keys and values, writes the query's own, returns the sink's.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn query_gradient(
    query: QueryGradient,
    weights: &mut [f32],
    slopes: &mut [f32],
    grad_q: &mut [f32],
    grad_k: &mut [f32],
    grad_v: &mut [f32],
) -> f32 {
    let scale = query.scores.scale;
    let count = query.seen.end;
    let sink_weight = probabilities(
        query.q,
        query.keys,
        query.sink,
        query.seen,
        query.scores,
        weights,
    );
    project(query.grad, query.values, slopes);
    let mut total = Lanes::splat(0.0);
    for (weights, slopes) in weights.chunks_exact(LANES).zip(slopes.chunks_exact(LANES)) {
        total = total.add_product(Lanes::load(weights), Lanes::load(slopes));
    }
    let mean = total.sum();
    for (weights, slopes) in weights
        .chunks_exact(LANES)
        .zip(slopes.chunks_exact_mut(LANES))
    {
        let slope = Lanes::load(slopes).zip(Lanes::load(weights), |s, w| w * (s - mean) * scale);
        slope.store(slopes);
    }
    if let Some(cap) = query.scores.soft_cap {
        // The cap's own slope, `1 - tanh^2`, at the scores before it.
        let mut raw = vec![0f32; slopes.len()];
        project(query.q, query.keys, &mut raw);
        for (slope, raw) in slopes.iter_mut().zip(raw) {
            let capped = exponential::tanh(raw * scale / cap);
            *slope *= 1.0 - capped * capped;
        }
    }
    weighted_sum(&slopes[..count], query.key_rows, grad_q);
    add_outer(&slopes[..count], query.q, grad_k);
    add_outer(&weights[..count], query.grad, grad_v);
    -sink_weight * mean
}

/// `rows[j] += weights[j] * x`.
#[inline(always)]
fn add_outer(weights: &[f32], x: &[f32], rows: &mut [f32]) {
    let width = x.len();
    let whole = width - width % LANES;
    for first in (0..whole).step_by(LANES) {
        let x = Lanes::load(&x[first..]);
        for (row, &weight) in rows.chunks_exact_mut(width).zip(weights) {
            let row = &mut row[first..first + LANES];
            Lanes::load(row)
                .add_product(Lanes::splat(weight), x)
                .store(row);
        }
    }
    if whole < width {
        for (row, &weight) in rows.chunks_exact_mut(width).zip(weights) {
            for (value, &x) in row[whole..].iter_mut().zip(&x[whole..]) {
                *value += weight * x;
            }
        }
    }
}
