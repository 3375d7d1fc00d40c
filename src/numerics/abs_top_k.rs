//! AbsTopK: keep the `k` entries of a row that are largest in magnitude, set the others to zero.
//!
//! `[rows, width] -> [rows, width]`. Exact: the threshold is found by bisection on the bit patterns of the
//! magnitudes, which order like the numbers themselves; among equals at the threshold the first ones stay.
//! The gradient passes where the result is not zero.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;

use super::{kernels, rows};

/// Keeps the `k` largest-magnitude entries along the last dimension. `k` of the width or more keeps all.
pub fn abs_top_k(x: &Tensor, k: usize) -> Result<Tensor> {
    if k >= x.dim(D::Minus1)? {
        return Ok(x.clone());
    }
    if !kernels::run_on(x.device()) {
        return x.contiguous()?.apply_op1(AbsTopK { k });
    }
    let kept = kernels::operations::abs_top_k(&x.detach(), k)?;
    match x.track_op() {
        // What stays is multiplied by one, and so is its gradient.
        true => x * kept.ne(0f32)?.to_dtype(x.dtype())?,
        false => Ok(kept),
    }
}

struct AbsTopK {
    k: usize,
}

impl CustomOp1 for AbsTopK {
    fn name(&self) -> &'static str {
        "abs-top-k"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let input = rows::values(storage, layout)?;
        let width = rows::width(layout)?;
        let mut output = vec![0f32; input.len()];
        rows::map_rows(input, width, &mut output, width, |_, row, out| {
            keep_largest(row, self.k, out)
        });
        Ok((CpuStorage::F32(output), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let masked = grad.contiguous()?.apply_op2_no_bwd(result, &WhereNonzero)?;
        Ok(Some(masked))
    }
}

/// `grad` where `result` is nonzero, else zero.
struct WhereNonzero;

impl candle_core::CustomOp2 for WhereNonzero {
    fn name(&self) -> &'static str {
        "where-nonzero"
    }

    fn cpu_fwd(
        &self,
        grad: &CpuStorage,
        grad_layout: &Layout,
        result: &CpuStorage,
        result_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let grad = rows::values(grad, grad_layout)?;
        let result = rows::values(result, result_layout)?;
        if grad.len() != result.len() {
            bail!("gradient of {} values for {}", grad.len(), result.len())
        }
        let mut masked = vec![0f32; grad.len()];
        where_nonzero(grad, result, &mut masked);
        Ok((CpuStorage::F32(masked), grad_layout.shape().clone()))
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn where_nonzero(grad: &[f32], result: &[f32], out: &mut [f32]) {
    for ((out, &grad), &result) in out.iter_mut().zip(grad).zip(result) {
        *out = if result == 0.0 { 0.0 } else { grad };
    }
}

/// Writes `row` with all but its `k` largest magnitudes zeroed to `out`.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn keep_largest(row: &[f32], k: usize, out: &mut [f32]) {
    let Some(threshold) = kth_magnitude(row, k) else {
        out.fill(0.0);
        return;
    };
    let mut kept = 0usize;
    for (&x, o) in row.iter().zip(out.iter_mut()) {
        let keep = magnitude_bits(x) >= threshold;
        *o = if keep { x } else { 0.0 };
        kept += usize::from(keep);
    }
    // Several entries can equal the threshold; the last of them go.
    let mut index = row.len();
    while kept > k && index > 0 {
        index -= 1;
        if magnitude_bits(row[index]) == threshold {
            out[index] = 0.0;
            kept -= 1;
        }
    }
}

/// The sign cleared: magnitudes as integers, in the same order.
#[inline(always)]
fn magnitude_bits(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// The bits of the `k`-th largest magnitude; none for `k` of zero.
#[inline(always)]
fn kth_magnitude(row: &[f32], k: usize) -> Option<u32> {
    if k == 0 {
        return None;
    }
    let count = |bits: u32| -> usize {
        let mut total = 0u32;
        for &x in row {
            total += u32::from(magnitude_bits(x) >= bits);
        }
        total as usize
    };
    let largest = row.iter().fold(0u32, |m, &x| m.max(magnitude_bits(x)));
    // Invariant: count(low) >= k > count(high).
    let (mut low, mut high) = (0u32, largest + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let above = count(middle);
        if above == k {
            // Nothing between `middle` and the k-th magnitude can change which entries stay.
            return Some(middle);
        }
        if above > k {
            low = middle;
        } else {
            high = middle;
        }
    }
    Some(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    fn by_sorting(row: &[f32], k: usize) -> Vec<f32> {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].abs().total_cmp(&row[a].abs()).then(a.cmp(&b)));
        let mut out = vec![0.0; row.len()];
        for &index in order.iter().take(k) {
            out[index] = row[index];
        }
        out
    }

    #[test]
    fn agrees_with_a_sort_with_and_without_ties() {
        let mut rng = SmallRng::seed_from_u64(1);
        for case in 0..200 {
            let width = rng.random_range(1..200);
            let row: Vec<f32> = (0..width)
                .map(|_| match case % 3 {
                    0 => rng.random_range(-1.0..1.0f32),
                    1 => rng.random_range(-3..4) as f32,
                    _ => rng.random_range(-1.0..1.0f32).max(0.0),
                })
                .collect();
            let k = rng.random_range(0..=width);
            let mut out = vec![f32::NAN; width];
            keep_largest(&row, k, &mut out);
            assert_eq!(out, by_sorting(&row, k), "k {k} of {row:?}");
        }
    }

    #[test]
    fn the_gradient_passes_only_where_an_entry_stayed() -> Result<()> {
        let x = Var::new(&[[3f32, -1.0, 2.0, -4.0]], &Device::Cpu)?;
        let weights = Tensor::new(&[[1f32, 10.0, 100.0, 1000.0]], &Device::Cpu)?;
        let loss = (abs_top_k(x.as_tensor(), 2)? * weights)?.sum_all()?;
        let grads = loss.backward()?;
        let grad = grads
            .get(x.as_tensor())
            .map(|g| g.to_vec2::<f32>())
            .transpose()?;
        assert_eq!(grad, Some(vec![vec![1.0, 0.0, 0.0, 1000.0]]));
        Ok(())
    }
}
