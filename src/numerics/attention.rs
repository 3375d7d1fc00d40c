//! Causal attention with sinks: one query row at a time, whole sequences for training, a cache for inference.
//!
//! `y[t] = sum_{j <= t} p[j] v[j]`, `p[j] = exp(s[j]) / (exp(b) + sum_i exp(s[i]))`, `s[j] = q[t] . k[j] * scale`.
//! `b` is the head's sink logit: it takes part in the denominator only (minus infinity: no sink).
//! `q`, `y` are `[rows, heads * d_head]`, `k`, `v` are `[rows, kv heads * d_head]`: consecutive query heads share a head of
//! keys and values. Scores may be capped softly and keys further back than a window left out ([`kernel::Scores`]). Both paths run
//! [`kernel::attend`], so a token's result is the same computed with its whole sequence or alone from the cache.

mod composed;
mod gradient;
pub mod kernel;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use self::composed::composed;
use self::gradient::{GradientsOfHead, HeadData, by_channel, head_gradients};
use self::kernel::{Blocks, Heads, Keys, Values, attend, padded};
use super::rows;

/// Attention within each of the sequences of `length` rows that follow one another in `q`, `k`, `v`
/// (`[sequences * length, width]`). `sinks` is `[heads]`. Differentiable in all four.
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

impl CausalAttention {
    fn gather(&self, q: &[f32], keys_values: &[f32], sequence: usize, head: usize) -> HeadData {
        let (width, d_head) = (self.heads.width(), self.heads.d_head);
        let (kv_width, kv_first) = (self.heads.kv_width(), self.heads.kv_head(head) * d_head);
        let k = self.pick(keys_values, sequence, 2 * kv_width, kv_first);
        HeadData {
            q: self.pick(q, sequence, width, head * d_head),
            v: self.pick(keys_values, sequence, 2 * kv_width, kv_width + kv_first),
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
                        blocks: Blocks::ONE,
                    };
                    let values = Values {
                        rows: &data.v,
                        stride: d_head,
                        blocks: Blocks::ONE,
                    };
                    let q = &data.q[t * d_head..][..d_head];
                    attend(
                        q,
                        keys,
                        values,
                        sinks[head],
                        t + 1,
                        self.heads.scores,
                        &mut weights,
                        out,
                    );
                }
                out
            })
            .collect();
        let mut output = vec![0f32; q.len()];
        for (task, block) in outputs.iter().enumerate() {
            let first = task % self.heads.count * d_head;
            scatter_add(block, &mut output, task, self, width, first);
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
            head_gradients(&data, &grad, sink_values[head], self.heads)
        };
        let gradients: Vec<GradientsOfHead> = rows::with_two(q, keys_values, |q, keys_values| {
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
            let head = task % self.heads.count;
            let (kv_width, kv_first) = (self.heads.kv_width(), self.heads.kv_head(head) * d_head);
            scatter_add(&gradient.q, &mut grad_q, task, self, width, head * d_head);
            scatter_add(
                &gradient.k,
                &mut grad_kv,
                task,
                self,
                2 * kv_width,
                kv_first,
            );
            scatter_add(
                &gradient.v,
                &mut grad_kv,
                task,
                self,
                2 * kv_width,
                kv_width + kv_first,
            );
            grad_sinks[task % self.heads.count] += gradient.sink;
        }
        Ok((
            Some(Tensor::from_vec(grad_q, q.shape(), q.device())?),
            Some(Tensor::from_vec(grad_kv, keys_values.shape(), q.device())?),
            Some(Tensor::from_vec(grad_sinks, sinks.shape(), q.device())?),
        ))
    }
}

/// Adds one head's `[length, d_head]` block at channel `first` of rows of `stride` channels.
fn scatter_add(
    block: &[f32],
    rows: &mut [f32],
    task: usize,
    op: &CausalAttention,
    stride: usize,
    first: usize,
) {
    let sequence = task / op.heads.count;
    let d_head = op.heads.d_head;
    for (t, values) in block.chunks_exact(d_head).enumerate() {
        let start = (sequence * op.length + t) * stride + first;
        for (sum, value) in rows[start..start + d_head].iter_mut().zip(values) {
            *sum += value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::kernel::Scores;
    use super::*;
    use candle_core::{Device, Var};

    fn noise(shape: (usize, usize), seed: u32) -> Result<Tensor> {
        let values =
            (0..shape.0 * shape.1).map(|i| ((i as f32 + 1.7) * (seed as f32 + 0.37)).sin());
        Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)
    }

    #[test]
    fn kernel_and_composed_version_agree_in_value_and_gradient() -> Result<()> {
        let plain = |d_head| Heads::plain(3, d_head);
        let scores = Scores {
            scale: 0.3,
            soft_cap: Some(1.5),
            window: Some(21),
        };
        let shared = Heads {
            count: 6,
            kv_count: 2,
            d_head: 16,
            scores,
        };
        let windowed = Heads {
            scores: Scores {
                soft_cap: None,
                window: Some(1),
                ..scores
            },
            ..shared
        };
        for (heads, length) in [
            (plain(16), 70),
            (plain(8), 5),
            (plain(32), 33),
            (shared, 70),
            (windowed, 40),
        ] {
            let widths = [heads.width(), heads.kv_width(), heads.kv_width()];
            let vars: Vec<Var> = (0u32..)
                .zip(widths)
                .map(|(seed, width)| Var::from_tensor(&noise((2 * length, width), seed)?))
                .collect::<Result<_>>()?;
            let sinks: Vec<f32> = (0..heads.count)
                .map(|head| head as f32 * 0.7 - 1.0)
                .collect();
            let sinks = Var::new(sinks, &Device::Cpu)?;
            let weights = noise((2 * length, heads.width()), 9)?;
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
                assert!((a - b).abs() < 3e-5, "{heads:?}: {a} {b}");
            }
        }
        Ok(())
    }
}
