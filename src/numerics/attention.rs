//! Causal attention with sinks: one query row at a time, whole sequences for training, a cache for inference.
//!
//! `y[t] = sum_{j <= t} p[j] v[j]`, `p[j] = exp(s[j]) / (exp(b) + sum_i exp(s[i]))`, `s[j] = q[t] . k[j] * scale`.
//! `b` is the head's sink logit: it takes part in the denominator only (minus infinity: no sink).
//! `q`, `k`, `v`, `y` are `[rows, heads * d_head]`. Both paths run [`attend`], so a token's result is the same
//! computed with its whole sequence or alone from the cache.

use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::lanes::{LANES, Lanes};
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
    /// `[d_head, padded(length)]`.
    k_by_channel: Vec<f32>,
}

impl CausalAttention {
    fn gather(&self, q: &[f32], keys_values: &[f32], sequence: usize, head: usize) -> HeadData {
        let (width, d_head) = (self.heads.width(), self.heads.d_head);
        let k = self.pick(keys_values, sequence, 2 * width, head * d_head);
        HeadData {
            q: self.pick(q, sequence, width, head * d_head),
            v: self.pick(keys_values, sequence, 2 * width, width + head * d_head),
            k_by_channel: by_channel(&k, d_head, padded(self.length)),
            k,
        }
    }

    /// One sequence's `[length, d_head]` block at channel `offset` of rows of `stride` channels.
    fn pick(&self, source: &[f32], sequence: usize, stride: usize, offset: usize) -> Vec<f32> {
        let mut block = Vec::with_capacity(self.length * self.heads.d_head);
        for row in sequence * self.length..(sequence + 1) * self.length {
            block.extend_from_slice(&source[row * stride + offset..][..self.heads.d_head]);
        }
        block
    }

    fn sequences(&self, rows: usize) -> Result<usize> {
        if self.length == 0 || !rows.is_multiple_of(self.length) {
            bail!("{rows} rows are not whole sequences of {}", self.length)
        }
        Ok(rows / self.length)
    }
}

/// `[rows, width] -> [width, stride]`, zeros after the last row.
fn by_channel(values: &[f32], width: usize, stride: usize) -> Vec<f32> {
    let mut out = vec![0f32; width * stride];
    for (row, values) in values.chunks_exact(width).enumerate() {
        for (channel, &value) in values.iter().enumerate() {
            out[channel * stride + row] = value;
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
                let stride = padded(self.length);
                let mut weights = vec![0f32; stride];
                let mut out = vec![0f32; self.length * d_head];
                for (t, out) in out.chunks_exact_mut(d_head).enumerate() {
                    let keys = Keys {
                        by_channel: &data.k_by_channel,
                        stride,
                    };
                    let values = Values {
                        rows: &data.v,
                        stride: d_head,
                    };
                    let q = &data.q[t * d_head..][..d_head];
                    let weights = &mut weights[..padded(t + 1)];
                    attend(q, keys, values, sinks[head], t + 1, weights, out);
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
        let sink_values = rows::to_vec(sinks)?;
        let sequences = self.sequences(q.dim(0)?)?;
        let one_head = |task: usize, q: &[f32], keys_values: &[f32], grad: &[f32]| {
            let (sequence, head) = (task / self.heads.count, task % self.heads.count);
            let data = self.gather(q, keys_values, sequence, head);
            let grad = self.pick(grad, sequence, width, head * d_head);
            head_gradients(&data, &grad, sink_values[head], d_head)
        };
        let gradients: Vec<HeadGradients> = rows::with_two(q, keys_values, |q, keys_values| {
            rows::with_values(grad, |grad| {
                let heads = (0..sequences * self.heads.count).into_par_iter();
                heads
                    .map(|task| one_head(task, q, keys_values, grad))
                    .collect()
            })
        })??;
        let mut grad_q = vec![0f32; q.elem_count()];
        let mut grad_kv = vec![0f32; keys_values.elem_count()];
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
fn scatter(
    block: &[f32],
    rows: &mut [f32],
    task: usize,
    op: &CausalAttention,
    stride: usize,
    offset: usize,
) {
    let (sequence, head) = (task / op.heads.count, task % op.heads.count);
    let d_head = op.heads.d_head;
    for (t, values) in block.chunks_exact(d_head).enumerate() {
        let start = (sequence * op.length + t) * stride + offset + head * d_head;
        rows[start..start + d_head].copy_from_slice(values);
    }
}

/// The keys of a sequence: channel `d` of key `j` is `by_channel[d * stride + j]`.
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

/// The length that [`attend`] needs for `keys` weights, and the least stride of [`Keys`]: kernels read whole
/// groups of keys and then disregard those that the query may not see.
pub fn padded(keys: usize) -> usize {
    keys.next_multiple_of(LANES)
}

/// One query of one head: `q [d_head]` over the first `count` keys, the result in `out [d_head]`. `weights` has
/// [`padded`] length and is left holding the attention probabilities.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn attend(
    q: &[f32],
    keys: Keys,
    values: Values,
    sink: f32,
    count: usize,
    weights: &mut [f32],
    out: &mut [f32],
) {
    probabilities(q, keys, sink, count, weights);
    weighted_sum(&weights[..count], values, out);
}

/// Fills `weights` with the probabilities of the first `count` keys, zero after them, and returns the sink's.
#[inline(always)]
fn probabilities(q: &[f32], keys: Keys, sink: f32, count: usize, weights: &mut [f32]) -> f32 {
    let scale = 1.0 / (q.len() as f32).sqrt();
    project(q, keys, weights);
    weights[count..].fill(f32::NEG_INFINITY);
    let mut largest = Lanes::splat(f32::NEG_INFINITY);
    for group in weights.chunks_exact_mut(LANES) {
        let scaled = Lanes::load(group).map(|x| x * scale);
        scaled.store(group);
        largest = largest.max(scaled);
    }
    let largest = largest.largest().max(sink);
    let sink_weight = exponential::exp(sink - largest);
    let mut total = Lanes::splat(0.0);
    for group in weights.chunks_exact_mut(LANES) {
        let weight = Lanes::load(group).map(|x| exponential::exp(x - largest));
        weight.store(group);
        total = total + weight;
    }
    let inverse = 1.0 / (total.sum() + sink_weight);
    for group in weights.chunks_exact_mut(LANES) {
        Lanes::load(group).map(|x| x * inverse).store(group);
    }
    sink_weight * inverse
}

/// `out[j] = sum_d x[d] * keys[d, j]`, in ascending `d` for every key.
#[inline(always)]
fn project(x: &[f32], keys: Keys, out: &mut [f32]) {
    // Four groups at once keep enough independent sums in flight; the rest follow one by one.
    let mut first = 0;
    let mut fours = out.chunks_exact_mut(4 * LANES);
    for four in &mut fours {
        let mut sums = [Lanes::splat(0.0); 4];
        for (d, &x) in x.iter().enumerate() {
            let keys = &keys.by_channel[d * keys.stride + first..][..4 * LANES];
            let x = Lanes::splat(x);
            sums[0] = sums[0].add_product(x, Lanes::load(keys));
            sums[1] = sums[1].add_product(x, Lanes::load(&keys[LANES..]));
            sums[2] = sums[2].add_product(x, Lanes::load(&keys[2 * LANES..]));
            sums[3] = sums[3].add_product(x, Lanes::load(&keys[3 * LANES..]));
        }
        for (group, sum) in four.chunks_exact_mut(LANES).zip(sums) {
            sum.store(group);
        }
        first += 4 * LANES;
    }
    for group in fours.into_remainder().chunks_exact_mut(LANES) {
        let mut sum = Lanes::splat(0.0);
        for (d, &x) in x.iter().enumerate() {
            let keys = &keys.by_channel[d * keys.stride + first..];
            sum = sum.add_product(Lanes::splat(x), Lanes::load(keys));
        }
        sum.store(group);
        first += LANES;
    }
}

/// `out = sum_j weights[j] * values[j]`, sixteen channels at a time.
#[inline(always)]
fn weighted_sum(weights: &[f32], values: Values, out: &mut [f32]) {
    let mut first = 0;
    let mut groups = out.chunks_exact_mut(LANES);
    for group in &mut groups {
        // Four interleaved sums, so that an addition need not wait for the one before.
        let mut sums = [Lanes::splat(0.0); 4];
        let value = |j: usize| Lanes::load(&values.rows[j * values.stride + first..]);
        let fours = weights.chunks_exact(4);
        let (done, rest) = (weights.len() - fours.remainder().len(), fours.remainder());
        for (index, four) in fours.enumerate() {
            let j = 4 * index;
            sums[0] = sums[0].add_product(Lanes::splat(four[0]), value(j));
            sums[1] = sums[1].add_product(Lanes::splat(four[1]), value(j + 1));
            sums[2] = sums[2].add_product(Lanes::splat(four[2]), value(j + 2));
            sums[3] = sums[3].add_product(Lanes::splat(four[3]), value(j + 3));
        }
        for (offset, &weight) in rest.iter().enumerate() {
            sums[offset] = sums[offset].add_product(Lanes::splat(weight), value(done + offset));
        }
        ((sums[0] + sums[1]) + (sums[2] + sums[3])).store(group);
        first += LANES;
    }
    for (offset, out) in groups.into_remainder().iter_mut().enumerate() {
        let value = |j: usize| values.rows[j * values.stride + first + offset];
        *out = weights
            .iter()
            .enumerate()
            .map(|(j, &weight)| weight * value(j))
            .sum();
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
    let stride = padded(length);
    let v_by_channel = by_channel(&data.v, d_head, stride);
    let mut gradients = HeadGradients {
        q: vec![0f32; data.q.len()],
        k: vec![0f32; data.q.len()],
        v: vec![0f32; data.q.len()],
        sink: 0.0,
    };
    let (mut weights, mut slopes) = (vec![0f32; stride], vec![0f32; stride]);
    for t in 0..length {
        let row = t * d_head..(t + 1) * d_head;
        let query = QueryGradient {
            q: &data.q[row.clone()],
            grad: &grad[row.clone()],
            keys: Keys {
                by_channel: &data.k_by_channel,
                stride,
            },
            key_rows: Values {
                rows: &data.k,
                stride: d_head,
            },
            values: Keys {
                by_channel: &v_by_channel,
                stride,
            },
            sink,
            count: t + 1,
        };
        gradients.sink += query_gradient(
            query,
            &mut weights[..padded(t + 1)],
            &mut slopes[..padded(t + 1)],
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
    count: usize,
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
    let scale = 1.0 / (query.q.len() as f32).sqrt();
    let sink_weight = probabilities(query.q, query.keys, query.sink, query.count, weights);
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
    weighted_sum(&slopes[..query.count], query.key_rows, grad_q);
    add_outer(&slopes[..query.count], query.q, grad_k);
    add_outer(&weights[..query.count], query.grad, grad_v);
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

/// The same out of candle's operations, for devices without a kernel of ours.
fn composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sinks: &Tensor,
    heads: Heads,
    length: usize,
) -> Result<Tensor> {
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
        let values =
            (0..shape.0 * shape.1).map(|i| ((i as f32 + 1.7) * (seed as f32 + 0.37)).sin());
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
                    let grad = grads
                        .get(var)
                        .ok_or_else(|| candle_core::Error::Msg("no gradient".into()))?;
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
