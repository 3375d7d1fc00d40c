//! RMSNorm and LayerNorm with their gradients.
//!
//! `[rows, width] -> [rows, width]`; the gain (and, for a LayerNorm, the bias) is `[width]`. RMSNorm divides by
//! the root mean square and so leaves zeros zero; LayerNorm subtracts the mean first. Sums run over the row
//! in lanes of fixed width, the same for every batch.

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor};
use multiversion::multiversion;

use super::kernels::operations::{self, NormKind};
use super::lanes::{LANES, Lanes};
use super::{kernels, rows};

/// `x / sqrt(mean(x^2) + epsilon) * gain`.
pub fn rms_norm(x: &Tensor, gain: &Tensor, epsilon: f32) -> Result<Tensor> {
    if kernels::run_on(x.device()) && !x.track_op() {
        return operations::norm(x, gain, None, epsilon, NormKind::Rms);
    }
    if x.device().is_cpu() {
        let op = NormOp {
            epsilon,
            centre: false,
        };
        return x.contiguous()?.apply_op2(gain, op);
    }
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    // Zero, unless the squares overflow: see `statistics`.
    let overflow = (&mean_square * 0.0)?;
    let divisor = ((mean_square + epsilon as f64)?.sqrt()? + overflow)?;
    x.broadcast_div(&divisor)?.broadcast_mul(gain)
}

/// `(x - mean) / sqrt(variance + epsilon) * gain + bias`.
pub fn layer_norm(
    x: &Tensor,
    gain: &Tensor,
    bias: Option<&Tensor>,
    epsilon: f32,
) -> Result<Tensor> {
    if kernels::run_on(x.device()) && !x.track_op() {
        return operations::norm(x, gain, bias, epsilon, NormKind::Layer);
    }
    let scaled = if x.device().is_cpu() {
        let op = NormOp {
            epsilon,
            centre: true,
        };
        x.contiguous()?.apply_op2(gain, op)?
    } else {
        rms_norm(
            &x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
            gain,
            epsilon,
        )?
    };
    match bias {
        Some(bias) => scaled.broadcast_add(bias),
        None => Ok(scaled),
    }
}

struct NormOp {
    epsilon: f32,
    /// Subtract the row's mean first: LayerNorm.
    centre: bool,
}

impl CustomOp2 for NormOp {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gain: &CpuStorage,
        gain_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (values, gain) = (rows::values(x, x_layout)?, rows::values(gain, gain_layout)?);
        let width = rows::width(x_layout)?;
        let mut output = vec![0f32; values.len()];
        rows::map_rows(values, width, &mut output, width, |_, row, out| {
            normalise(row, gain, self.epsilon, self.centre, out)
        });
        Ok((CpuStorage::F32(output), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        _result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = x.dim(D::Minus1)?;
        let gains = rows::to_vec(gain)?;
        let mut grad_x = vec![0f32; x.elem_count()];
        let mut grad_gain = vec![0f32; width];
        rows::with_two(x, grad, |values, grads| {
            rows::map_rows(values, width, &mut grad_x, width, |index, row, out| {
                let grad = &grads[index * width..][..width];
                normalise_gradient(row, grad, &gains, self.epsilon, self.centre, out)
            });
            for (row, grad) in values.chunks_exact(width).zip(grads.chunks_exact(width)) {
                gain_gradient(row, grad, self.epsilon, self.centre, &mut grad_gain);
            }
        })?;
        Ok((
            Some(Tensor::from_vec(grad_x, x.shape(), x.device())?),
            Some(Tensor::from_vec(grad_gain, gain.shape(), x.device())?),
        ))
    }
}

/// The root mean square of a row as the norms divide by it, `sqrt(mean(x^2) + epsilon)`.
pub fn root_mean_square(row: &[f32], epsilon: f32) -> f32 {
    1.0 / statistics(row, epsilon, false).1
}

/// A sum in lanes, then across them: one order for every caller.
#[inline(always)]
fn lane_sum(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let groups = row.chunks_exact(LANES);
    let rest: f32 = groups.remainder().iter().map(|&x| term(x)).sum();
    let mut total = Lanes::splat(0.0);
    for group in groups {
        total = total + Lanes::load(group).map(&term);
    }
    total.sum() + rest
}

/// The mean (zero unless centred) and the inverse of the root mean square deviation from it.
///
/// NaN for a row whose squares overflow: the inverse of infinity is zero, and a row of zeros would look sound to
/// everything behind.
#[inline(always)]
fn statistics(row: &[f32], epsilon: f32, centre: bool) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = if centre {
        lane_sum(row, |x| x) / count
    } else {
        0.0
    };
    let mean_square = lane_sum(row, |x| (x - mean) * (x - mean)) / count;
    let inverse = match mean_square.is_infinite() {
        true => f32::NAN,
        false => 1.0 / (mean_square + epsilon).sqrt(),
    };
    (mean, inverse)
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn normalise(row: &[f32], gain: &[f32], epsilon: f32, centre: bool, out: &mut [f32]) {
    let (mean, inverse) = statistics(row, epsilon, centre);
    for ((o, &x), &g) in out.iter_mut().zip(row).zip(gain) {
        *o = (x - mean) * inverse * g;
    }
}

/// With `n = (x - mean) * inverse` and `u = grad * gain`: `inverse * (u - n * mean(u n) [- mean(u)])`.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn normalise_gradient(
    row: &[f32],
    grad: &[f32],
    gain: &[f32],
    epsilon: f32,
    centre: bool,
    out: &mut [f32],
) {
    let (mean, inverse) = statistics(row, epsilon, centre);
    let count = row.len() as f32;
    for ((o, &g), &gain) in out.iter_mut().zip(grad).zip(gain) {
        *o = g * gain;
    }
    let mean_u = if centre {
        lane_sum(out, |u| u) / count
    } else {
        0.0
    };
    let mut products = Lanes::splat(0.0);
    let (us, xs) = (out.chunks_exact(LANES), row.chunks_exact(LANES));
    let rest = xs.remainder().iter();
    let rest: f32 = us
        .remainder()
        .iter()
        .zip(rest)
        .map(|(&u, &x)| u * (x - mean))
        .sum();
    for (u, x) in us.zip(xs) {
        products = products + Lanes::load(u).zip(Lanes::load(x), |u, x| u * (x - mean));
    }
    let products = products.sum() + rest;
    let slope = products * inverse * inverse / count;
    for (o, &x) in out.iter_mut().zip(row) {
        *o = inverse * (*o - mean_u - (x - mean) * slope);
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn gain_gradient(row: &[f32], grad: &[f32], epsilon: f32, centre: bool, total: &mut [f32]) {
    let (mean, inverse) = statistics(row, epsilon, centre);
    for ((t, &x), &g) in total.iter_mut().zip(row).zip(grad) {
        *t += g * (x - mean) * inverse;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn a_row_whose_squares_overflow_has_no_norm() {
        let x = Tensor::new(&[[1e30f32, 1.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let gain = Tensor::new(&[1f32, 1.0], &Device::Cpu).unwrap();
        for y in [
            rms_norm(&x, &gain, 1e-6).unwrap(),
            layer_norm(&x, &gain, None, 1e-6).unwrap(),
        ] {
            let y = y.to_vec2::<f32>().unwrap();
            assert!(y[0].iter().all(|y| y.is_nan()), "{y:?}");
            assert!(y[1].iter().all(|y| y.is_finite()), "{y:?}");
        }
    }
}
