//! Causal attention with sinks: one query row at a time, whole sequences for training, a cache for inference.
//!
//! `y[t] = sum_{j <= t} p[j] v[j]`, `p[j] = exp(s[j]) / (exp(b) + sum_i exp(s[i]))`, `s[j] = q[t] . k[j] * scale`.
//! `b` is the head's sink logit: it takes part in the denominator only (minus infinity: no sink).
//! `q`, `k`, `v`, `y` are `[rows, heads * d_head]`. Both paths run [`attend`], so a token's result is the same
//! computed with its whole sequence or alone from the cache.

use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{exponential, rows};

/// How the channels of a row divide into heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    pub count: usize,
    pub d_head: usize,
}

impl Heads {
    fn width(self) -> usize {
        self.count * self.d_head
    }

    fn scale(self) -> f32 {
        1.0 / (self.d_head as f32).sqrt()
    }
}

/// Attention within each of the sequences of `length` rows that follow one another in `q`, `k`, `v`
/// (`[sequences * length, heads * d_head]`). `sinks` is `[heads]`. Differentiable in all four.
pub fn causal_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sinks: &Tensor,
    heads: Heads,
    length: usize,
) -> Result<Tensor> {
    if q.device().is_cpu() {
        let keys_values = Tensor::cat(&[k, v], 1)?;
        let op = CausalAttention { heads, length };
        return q.contiguous()?.apply_op3(&keys_values, sinks, op);
    }
    composed(q, k, v, sinks, heads, length)
}

struct CausalAttention {
    heads: Heads,
    length: usize,
}

/// One head of one sequence, with the layouts that the row kernels read.
struct HeadData {
    /// `[length, d_head]` each.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[d_head, length]`.
    k_by_channel: Vec<f32>,
}

impl CausalAttention {
    fn gather(&self, q: &[f32], keys_values: &[f32], sequence: usize, head: usize) -> HeadData {
        let (width, d_head) = (self.heads.width(), self.heads.d_head);
        let first = sequence * self.length;
        let pick = |source: &[f32], stride: usize, offset: usize| -> Vec<f32> {
            (first..first + self.length)
                .flat_map(|row| &source[row * stride + offset..][..d_head])
                .copied()
                .collect()
        };
        let k = pick(keys_values, 2 * width, head * d_head);
        HeadData {
            q: pick(q, width, head * d_head),
            v: pick(keys_values, 2 * width, width + head * d_head),
            k_by_channel: transposed(&k, d_head),
            k,
        }
    }

    fn sequences(&self, rows: usize) -> Result<usize> {
        if self.length == 0 || rows % self.length != 0 {
            bail!("{rows} rows are not whole sequences of {}", self.length)
        }
        Ok(rows / self.length)
    }
}

/// `[rows, width] -> [width, rows]`.
fn transposed(values: &[f32], width: usize) -> Vec<f32> {
    let n_rows = values.len() / width;
    let mut out = vec![0f32; values.len()];
    for (row, values) in values.chunks_exact(width).enumerate() {
        for (channel, &value) in values.iter().enumerate() {
            out[channel * n_rows + row] = value;
        }
    }
    out
}

impl CustomOp3 for CausalAttention {
    fn name(&self) -> &'static str {
        "causal-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        keys_values: &CpuStorage,
        kv_layout: &Layout,
        sinks: &CpuStorage,
        sinks_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let q = rows::values(q, q_layout)?;
        let keys_values = rows::values(keys_values, kv_layout)?;
        let sinks = rows::values(sinks, sinks_layout)?;
        let (width, d_head) = (self.heads.width(), self.heads.d_head);
        let sequences = self.sequences(q.len() / width)?;
        let outputs: Vec<Vec<f32>> = (0..sequences * self.heads.count)
            .into_par_iter()
            .map(|task| {
                let (sequence, head) = (task / self.heads.count, task % self.heads.count);
                let data = self.gather(q, keys_values, sequence, head);
                let mut weights = vec![0f32; self.length];
                let mut out = vec![0f32; self.length * d_head];
                for (t, out) in out.chunks_exact_mut(d_head).enumerate() {
                    let keys = Keys { by_channel: &data.k_by_channel, stride: self.length };
                    let values = Values { rows: &data.v, stride: d_head };
                    let q = &data.q[t * d_head..][..d_head];
                    attend(q, keys, values, sinks[head], &mut weights[..=t], out);
                }
                out
            })
            .collect();
        let mut output = vec![0f32; q.len()];
        for (task, block) in outputs.iter().enumerate() {
            scatter(block, &mut output, task, self, width, 0);
        }
        Ok((CpuStorage::F32(output), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        keys_values: &Tensor,
        sinks: &Tensor,
        _result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (width, d_head) = (self.heads.width(), self.heads.d_head);
        let (q_values, kv_values) = (rows::to_vec(q)?, rows::to_vec(keys_values)?);
        let (sink_values, grad) = (rows::to_vec(sinks)?, rows::to_vec(grad)?);
        let sequences = self.sequences(q_values.len() / width)?;
        let gradients: Vec<HeadGradients> = (0..sequences * self.heads.count)
            .into_par_iter()
            .map(|task| {
                let (sequence, head) = (task / self.heads.count, task % self.heads.count);
                let data = self.gather(&q_values, &kv_values, sequence, head);
                let grad: Vec<f32> = (sequence * self.length..(sequence + 1) * self.length)
                    .flat_map(|row| &grad[row * width + head * d_head..][..d_head])
                    .copied()
                    .collect();
                head_gradients(&data, &grad, sink_values[head], d_head)
            })
            .collect();
        let mut grad_q = vec![0f32; q_values.len()];
        let mut grad_kv = vec![0f32; kv_values.len()];
        let mut grad_sinks = vec![0f32; self.heads.count];
        for (task, gradient) in gradients.iter().enumerate() {
            scatter(&gradient.q, &mut grad_q, task, self, width, 0);
            scatter(&gradient.k, &mut grad_kv, task, self, 2 * width, 0);
            scatter(&gradient.v, &mut grad_kv, task, self, 2 * width, width);
            grad_sinks[task % self.heads.count] += gradient.sink;
        }
        Ok((
            Some(Tensor::from_vec(grad_q, q.shape(), q.device())?),
            Some(Tensor::from_vec(grad_kv, keys_values.shape(), q.device())?),
            Some(Tensor::from_vec(grad_sinks, sinks.shape(), q.device())?),
        ))
    }
}

/// Puts one head's `[length, d_head]` block back into rows of `stride` channels.
fn scatter(block: &[f32], rows: &mut [f32], task: usize, op: &CausalAttention, stride: usize, offset: usize) {
    let (sequence, head) = (task / op.heads.count, task % op.heads.count);
    let d_head = op.heads.d_head;
    for (t, values) in block.chunks_exact(d_head).enumerate() {
        let start = (sequence * op.length + t) * stride + offset + head * d_head;
        rows[start..start + d_head].copy_from_slice(values);
    }
}

/// The keys one query may see: channel `d` of key `j` is `by_channel[d * stride + j]`.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    pub by_channel: &'a [f32],
    pub stride: usize,
}

/// The values that go with the keys: channel `d` of value `j` is `rows[j * stride + d]`.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    pub rows: &'a [f32],
    pub stride: usize,
}

/// One query of one head: `q [d_head]` over `weights.len()` keys, the result in `out [d_head]`. `weights` is
/// left holding the attention probabilities.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn attend(q: &[f32], keys: Keys, values: Values, sink: f32, weights: &mut [f32], out: &mut [f32]) {
    probabilities(q, keys, sink, weights);
    weighted_sum(weights, values, out);
}

/// Fills `weights` with the probabilities of the keys and returns the sink's.
#[inline(always)]
fn probabilities(q: &[f32], keys: Keys, sink: f32, weights: &mut [f32]) -> f32 {
    let scale = 1.0 / (q.len() as f32).sqrt();
    project(q, keys, weights);
    let mut largest = sink;
    for weight in weights.iter_mut() {
        *weight *= scale;
        largest = largest.max(*weight);
    }
    let sink_weight = if sink == f32::NEG_INFINITY { 0.0 } else { exponential::exp(sink - largest) };
    let mut lanes = [0f32; 16];
    for chunk in weights.chunks_mut(16) {
        for (lane, weight) in lanes.iter_mut().zip(chunk) {
            *weight = exponential::exp(*weight - largest);
            *lane += *weight;
        }
    }
    let inverse = 1.0 / (lanes.iter().sum::<f32>() + sink_weight);
    for weight in weights.iter_mut() {
        *weight *= inverse;
    }
    sink_weight * inverse
}

/// `out[j] = sum_d x[d] * keys[d, j]`.
#[inline(always)]
fn project(x: &[f32], keys: Keys, out: &mut [f32]) {
    const BLOCK: usize = 64;
    let mut first = 0;
    for block in out.chunks_mut(BLOCK) {
        let mut sums = [0f32; BLOCK];
        if block.len() == BLOCK {
            for (d, &x) in x.iter().enumerate() {
                let keys = &keys.by_channel[d * keys.stride + first..][..BLOCK];
                for lane in 0..BLOCK {
                    sums[lane] += x * keys[lane];
                }
            }
        } else {
            for (d, &x) in x.iter().enumerate() {
                let keys = &keys.by_channel[d * keys.stride + first..][..block.len()];
                for (sum, &key) in sums.iter_mut().zip(keys) {
                    *sum += x * key;
                }
            }
        }
        block.copy_from_slice(&sums[..block.len()]);
        first += BLOCK;
    }
}

/// `out = sum_j weights[j] * values[j]`, in four interleaved sums so that additions need not wait.
#[inline(always)]
fn weighted_sum(weights: &[f32], values: Values, out: &mut [f32]) {
    match out.len() {
        16 => weighted_sum_of::<16>(weights, values, out),
        32 => weighted_sum_of::<32>(weights, values, out),
        64 => weighted_sum_of::<64>(weights, values, out),
        width => {
            out.fill(0.0);
            for (j, &weight) in weights.iter().enumerate() {
                let value = &values.rows[j * values.stride..][..width];
                for (out, &value) in out.iter_mut().zip(value) {
                    *out += weight * value;
                }
            }
        }
    }
}

#[inline(always)]
fn weighted_sum_of<const WIDTH: usize>(weights: &[f32], values: Values, out: &mut [f32]) {
    let mut sums = [[0f32; WIDTH]; 4];
    let groups = weights.chunks_exact(4);
    let rest = groups.remainder();
    let mut j = 0;
    for group in groups {
        for (sums, &weight) in sums.iter_mut().zip(group) {
            let value = &values.rows[j * values.stride..][..WIDTH];
            for lane in 0..WIDTH {
                sums[lane] += weight * value[lane];
            }
            j += 1;
        }
    }
    for (sums, &weight) in sums.iter_mut().zip(rest) {
        let value = &values.rows[j * values.stride..][..WIDTH];
        for lane in 0..WIDTH {
            sums[lane] += weight * value[lane];
        }
        j += 1;
    }
    for lane in 0..WIDTH {
        out[lane] = (sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]);
    }
}

/// The gradients of one head of one sequence: `[length, d_head]` each, and the sink's.
struct HeadGradients {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    sink: f32,
}

fn head_gradients(data: &HeadData, grad: &[f32], sink: f32, d_head: usize) -> HeadGradients {
    let length = data.q.len() / d_head;
    let v_by_channel = transposed(&data.v, d_head);
    let mut gradients = HeadGradients {
        q: vec![0f32; data.q.len()],
        k: vec![0f32; data.q.len()],
        v: vec![0f32; data.q.len()],
        sink: 0.0,
    };
    let (mut weights, mut slopes) = (vec![0f32; length], vec![0f32; length]);
    for t in 0..length {
        let row = t * d_head..(t + 1) * d_head;
        let query = QueryGradient {
            q: &data.q[row.clone()],
            grad: &grad[row.clone()],
            keys: Keys { by_channel: &data.k_by_channel, stride: length },
            key_rows: Values { rows: &data.k, stride: d_head },
            values: Keys { by_channel: &v_by_channel, stride: length },
            sink,
        };
        gradients.sink += query_gradient(
            query,
            &mut weights[..=t],
            &mut slopes[..=t],
            &mut gradients.q[row],
            &mut gradients.k,
            &mut gradients.v,
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
}

/// Adds one query's part to the gradients of the keys and values, writes the query's own, returns the sink's.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn query_gradient(
    query: QueryGradient,
    weights: &mut [f32],
    slopes: &mut [f32],
    grad_q: &mut [f32],
    grad_k: &mut [f32],
    grad_v: &mut [f32],
) -> f32 {
    let d_head = query.q.len();
    let scale = 1.0 / (d_head as f32).sqrt();
    let sink_weight = probabilities(query.q, query.keys, query.sink, weights);
    project(query.grad, query.values, slopes);
    let mut lanes = [0f32; 16];
    for (weights, slopes) in weights.chunks(16).zip(slopes.chunks(16)) {
        for ((lane, &weight), &slope) in lanes.iter_mut().zip(weights).zip(slopes) {
            *lane += weight * slope;
        }
    }
    let mean = lanes.iter().sum::<f32>();
    for (slope, &weight) in slopes.iter_mut().zip(weights.iter()) {
        *slope = weight * (*slope - mean) * scale;
    }
    weighted_sum(slopes, query.key_rows, grad_q);
    add_outer(slopes, query.q, grad_k);
    add_outer(weights, query.grad, grad_v);
    -sink_weight * mean
}

/// `rows[j] += weights[j] * x`.
#[inline(always)]
fn add_outer(weights: &[f32], x: &[f32], rows: &mut [f32]) {
    match x.len() {
        16 => add_outer_of::<16>(weights, x, rows),
        32 => add_outer_of::<32>(weights, x, rows),
        width => {
            for (row, &weight) in rows.chunks_exact_mut(width).zip(weights) {
                for (value, &x) in row.iter_mut().zip(x) {
                    *value += weight * x;
                }
            }
        }
    }
}

#[inline(always)]
fn add_outer_of<const WIDTH: usize>(weights: &[f32], x: &[f32], rows: &mut [f32]) {
    let mut fixed = [0f32; WIDTH];
    fixed.copy_from_slice(x);
    for (row, &weight) in rows.chunks_exact_mut(WIDTH).zip(weights) {
        for lane in 0..WIDTH {
            row[lane] += weight * fixed[lane];
        }
    }
}

/// The same out of candle's operations, for devices without a kernel of ours.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, sinks: &Tensor, heads: Heads, length: usize) -> Result<Tensor> {
    let sequences = q.dim(0)? / length;
    let split = |x: &Tensor| {
        x.reshape((sequences, length, heads.count, heads.d_head))?
            .transpose(1, 2)?
            .contiguous()
    };
    let (q, k, v) = (split(q)?, split(k)?, split(v)?);
    let scores = (q.matmul(&k.t()?)? * heads.scale() as f64)?;
    let position = Tensor::arange(0u32, length as u32, q.device())?;
    let visible = position
        .reshape((length, 1))?
        .broadcast_ge(&position.reshape((1, length))?)?;
    // A finite stand-in for minus infinity keeps `0 * inf` out of the gradient.
    let hidden = Tensor::full(-1e30f32, scores.shape(), q.device())?;
    let scores = visible
        .broadcast_as(scores.shape())?
        .where_cond(&scores, &hidden)?;
    let sinks = sinks
        .maximum(&Tensor::full(-1e30f32, sinks.shape(), q.device())?)?
        .reshape((1, heads.count, 1, 1))?
        .broadcast_as((sequences, heads.count, length, 1))?;
    let all = Tensor::cat(&[&scores, &sinks.contiguous()?], D::Minus1)?;
    let all = candle_nn::ops::softmax(&all, D::Minus1)?;
    let weights = all.narrow(D::Minus1, 0, length)?.contiguous()?;
    debug_assert_eq!(weights.dtype(), DType::F32);
    weights
        .matmul(&v)?
        .transpose(1, 2)?
        .reshape((sequences * length, heads.width()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    fn noise(shape: (usize, usize), seed: u32) -> Result<Tensor> {
        let values = (0..shape.0 * shape.1).map(|i| ((i as f32 + 1.7) * (seed as f32 + 0.37)).sin());
        Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)
    }

    #[test]
    fn kernel_and_composed_version_agree_in_value_and_gradient() -> Result<()> {
        for (d_head, length) in [(16, 70), (8, 5), (32, 33)] {
            let heads = Heads { count: 3, d_head };
            let shape = (2 * length, heads.width());
            let vars: Vec<Var> = (0..3)
                .map(|seed| Var::from_tensor(&noise(shape, seed)?))
                .collect::<Result<_>>()?;
            let sinks = Var::new(&[0.3f32, -1.0, 2.0], &Device::Cpu)?;
            let weights = noise(shape, 9)?;
            let mut outcomes = Vec::new();
            for kernel in [true, false] {
                let run = if kernel { causal_attention } else { composed };
                let y = run(&vars[0], &vars[1], &vars[2], &sinks, heads, length)?;
                let grads = (&y * &weights)?.sum_all()?.backward()?;
                let mut all = rows::to_vec(&y)?;
                for var in vars.iter().chain([&sinks]) {
                    let grad = grads.get(var).ok_or_else(|| candle_core::Error::Msg("no gradient".into()))?;
                    all.extend(rows::to_vec(grad)?);
                }
                outcomes.push(all);
            }
            for (a, b) in outcomes[0].iter().zip(&outcomes[1]) {
                assert!((a - b).abs() < 2e-5, "{a} {b}");
            }
        }
        Ok(())
    }
}
