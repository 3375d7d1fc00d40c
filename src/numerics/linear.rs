//! The linear layer of training: `y = x W^T + b` with its gradients.
//!
//! `x [rows, in]`, `W [out, in]`, `b [out]`, `y [rows, out]`. One operation instead of a matrix product and a
//! broadcast sum, because candle's backward pass computes the gradient of both factors always: a frozen layer
//! (the dense model while a bridge is trained) would pay for weight gradients nobody reads.
//! Inference uses [`super::columns`], whose rows do not depend on their neighbours.
//!
//! On a device the product and its gradients may be taken in bfloat16 ([`multiply_in`]): both factors are rounded, the result
//! and the weights themselves stay float32.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::dense_product::{Matrix, add_product, all_threads};
use super::device::MatrixType;
use super::{kernels, rows};

/// Whether products on devices are rounded.
static ROUNDED: AtomicBool = AtomicBool::new(false);

/// Says what this process takes the products of training in on a device; a training has a process of its own.
pub fn multiply_in(matrices: MatrixType) {
    ROUNDED.store(matrices == MatrixType::Bfloat16, Ordering::Relaxed);
}

/// `x W^T + b`. A `frozen` layer passes gradients to `x` only.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, frozen: bool) -> Result<Tensor> {
    if !x.device().is_cpu() || kernels::run_on(x.device()) {
        let weight = if frozen {
            weight.detach()
        } else {
            weight.clone()
        };
        let product = match ROUNDED.load(Ordering::Relaxed) {
            false => x.matmul(&weight.t()?)?,
            true => {
                let weight = weight.to_dtype(DType::BF16)?;
                let product = x.to_dtype(DType::BF16)?.matmul(&weight.t()?)?;
                product.to_dtype(DType::F32)?
            }
        };
        return match bias {
            Some(bias) if frozen => product.broadcast_add(&bias.detach()),
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        };
    }
    let op = LinearOp {
        frozen,
        has_bias: bias.is_some(),
    };
    // A layer without bias still needs a third argument; its weight stands in and is not read.
    x.contiguous()?
        .apply_op3(weight, bias.unwrap_or(weight), op)
}

struct LinearOp {
    frozen: bool,
    has_bias: bool,
}

impl CustomOp3 for LinearOp {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n_rows, n_in) = x_layout.shape().dims2()?;
        let (n_out, weight_in) = weight_layout.shape().dims2()?;
        if weight_in != n_in {
            bail!("a linear layer of {weight_in} inputs was given rows of {n_in}")
        }
        let x = rows::values(x, x_layout)?;
        let weight = rows::values(weight, weight_layout)?;
        let mut output = vec![0f32; n_rows * n_out];
        if self.has_bias {
            let bias = rows::values(bias, bias_layout)?;
            for row in output.chunks_exact_mut(n_out) {
                row.copy_from_slice(bias);
            }
        }
        add_product(
            &mut output,
            Matrix {
                values: x,
                rows: n_rows,
                columns: n_in,
                transposed: false,
            },
            Matrix {
                values: weight,
                rows: n_in,
                columns: n_out,
                transposed: true,
            },
            all_threads(),
        );
        Ok((CpuStorage::F32(output), Shape::from((n_rows, n_out))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        _result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((n_rows, n_in), (n_out, _)) = (x.dims2()?, weight.dims2()?);
        let tensor =
            |values: Vec<f32>, shape: &[usize]| Tensor::from_vec(values, shape, x.device());
        let mut grad_x = vec![0f32; n_rows * n_in];
        rows::with_two(grad, weight, |grad, weight| {
            let grad = Matrix {
                values: grad,
                rows: n_rows,
                columns: n_out,
                transposed: false,
            };
            let weight = Matrix {
                values: weight,
                rows: n_out,
                columns: n_in,
                transposed: false,
            };
            add_product(&mut grad_x, grad, weight, all_threads())
        })?;
        let grad_x = tensor(grad_x, &[n_rows, n_in])?;
        if self.frozen {
            return Ok((Some(grad_x), None, None));
        }
        let mut grad_weight = vec![0f32; n_out * n_in];
        let grad_bias = rows::with_two(grad, x, |grad, x| {
            let by_output = Matrix {
                values: grad,
                rows: n_out,
                columns: n_rows,
                transposed: true,
            };
            let x = Matrix {
                values: x,
                rows: n_rows,
                columns: n_in,
                transposed: false,
            };
            add_product(&mut grad_weight, by_output, x, all_threads());
            let bias = self.has_bias.then(|| rows::sum_over_rows(grad, n_out));
            bias.map(|bias| tensor(bias, &[n_out])).transpose()
        })??;
        Ok((
            Some(grad_x),
            Some(tensor(grad_weight, &[n_out, n_in])?),
            grad_bias,
        ))
    }
}
