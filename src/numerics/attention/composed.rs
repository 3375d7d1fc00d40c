//! Attention out of candle's operations, for devices without a kernel of ours.

use candle_core::{D, DType, Result, Tensor};

use super::kernel::Heads;

/// As [`causal_attention`](super::causal_attention).
pub fn composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sinks: &Tensor,
    heads: Heads,
    length: usize,
) -> Result<Tensor> {
    let sequences = q.dim(0)? / length;
    let group = heads.count / heads.kv_count;
    // Every query head with a copy of the head that it reads.
    let split = |x: &Tensor, copies: usize| {
        let count = heads.count / copies;
        x.reshape((sequences, length, count, 1, heads.d_head))?
            .broadcast_as((sequences, length, count, copies, heads.d_head))?
            .reshape((sequences, length, heads.count, heads.d_head))?
            .transpose(1, 2)?
            .contiguous()
    };
    let (q, k, v) = (split(q, 1)?, split(k, group)?, split(v, group)?);
    let mut scores = (q.matmul(&k.t()?)? * f64::from(heads.scores.scale))?;
    if let Some(cap) = heads.scores.soft_cap.map(f64::from) {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    let position = Tensor::arange(0u32, length as u32, q.device())?;
    let visible = position
        .reshape((length, 1))?
        .broadcast_ge(&position.reshape((1, length))?)?;
    let visible = match heads.scores.window {
        // `t - j < window`, in numbers that cannot fall below zero.
        Some(window) => {
            let reach = (position.reshape((1, length))? + window as f64)?;
            let near = reach.broadcast_gt(&position.reshape((length, 1))?)?;
            visible.mul(&near)?
        }
        None => visible,
    };
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
