//! The MLP's nonlinearities with their gradients: GELU (exact and tanh), ReLU, SiLU.
//!
//! Any shape in, the same shape out. The exact GELU is `x * Phi(x)` with the error function, as the released
//! sparse checkpoints were trained; GPT-2 used the tanh approximation.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use multiversion::multiversion;

use super::{exponential, rows};

/// `x * Phi(x)`, `Phi` the normal distribution's cumulative probability.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.contiguous()?.apply_op1(GeluErf)
    } else {
        x.gelu_erf()
    }
}

/// GPT-2's approximation, `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    x.gelu()
}

/// `max(x, 0)`.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.relu()
}

/// `x / (1 + exp(-x))`.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    x.silu()
}

struct GeluErf;

impl CustomOp1 for GeluErf {
    fn name(&self) -> &'static str {
        "gelu-erf"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = rows::values(storage, layout)?;
        let width = rows::width(layout)?;
        let mut output = vec![0f32; values.len()];
        rows::map_rows(values, width, &mut output, width, |_, row, out| {
            gelu_row(row, out)
        });
        Ok((CpuStorage::F32(output), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut output = vec![0f32; x.elem_count()];
        let width = x.dims().last().copied().unwrap_or(1);
        rows::with_two(x, grad, |values, grads| {
            rows::map_rows(values, width, &mut output, width, |row, x, out| {
                gelu_gradient_row(x, &grads[row * width..][..width], out)
            })
        })?;
        Ok(Some(Tensor::from_vec(output, x.shape(), x.device())?))
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn gelu_row(row: &[f32], out: &mut [f32]) {
    for (o, &x) in out.iter_mut().zip(row) {
        *o = 0.5 * x * (1.0 + exponential::erf(x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn gelu_gradient_row(row: &[f32], grad: &[f32], out: &mut [f32]) {
    for ((o, &x), &g) in out.iter_mut().zip(row).zip(grad) {
        *o = g * gelu_slope(x);
    }
}

/// The same with the gradient in place: `grad` times the GELU's derivative at `row`.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn gelu_gradient_in_place(row: &[f32], grad: &mut [f32]) {
    for (g, &x) in grad.iter_mut().zip(row) {
        *g *= gelu_slope(x);
    }
}

#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    const INVERSE_SQRT_TAU: f32 = 0.398_942_3;
    let cumulative = 0.5 * (1.0 + exponential::erf(x * std::f32::consts::FRAC_1_SQRT_2));
    let density = INVERSE_SQRT_TAU * exponential::exp(-0.5 * x * x);
    cumulative + x * density
}
