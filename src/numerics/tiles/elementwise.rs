//! What is done to every value of a tile by itself: nonlinearities, masks, sums.

use multiversion::multiversion;

use crate::numerics::activation;
use crate::numerics::parts::Part;

/// The exact GELU of `x`, in `out`.
pub fn gelu(x: &[f32], out: &mut [f32]) {
    let _timed = Part::Elementwise.begin();
    activation::gelu_row(x, out);
}

/// The gradient with respect to `x`, in place of the one with respect to the GELU of `x`.
pub fn gelu_gradient(x: &[f32], grad: &mut [f32]) {
    let _timed = Part::Elementwise.begin();
    activation::gelu_gradient_in_place(x, grad);
}

/// Zeroes the gradient where an AbsTopK let nothing through.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn mask(grad: &mut [f32], kept: &[f32]) {
    for (grad, kept) in grad.iter_mut().zip(kept) {
        *grad = if *kept == 0.0 { 0.0 } else { *grad };
    }
}

/// `sum += values`.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn add(sum: &mut [f32], values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}
