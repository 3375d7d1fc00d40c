//! A dense linear layer on a device: `x [rows, inputs] -> [rows, outputs]` in float32, with the bias.
//!
//! The matrix is stored transposed, in float32 or bfloat16. Its product has one order of sums for any number of rows
//! (`dense_product.cu`), so that a row has the same bits alone and in a batch. A matrix that is held in bfloat16 for speed
//! multiplies many rows by the library's product instead, which rounds them to bfloat16 and takes the device's matrix units.

use candle_core::{DType, Result, Tensor, bail};

use super::LANES;
use super::launch::{Launch, unwritten};

/// Rows of a block of `dense_decode`.
const ROWS_OF_BLOCK: usize = 4;
/// With more rows a tile of them reads each weight once.
const FEW_ROWS: usize = 16;
/// Rows and outputs of a block of `dense_tile`.
const TILE: usize = 64;

/// The weights on their device.
#[derive(Debug, Clone)]
pub struct DenseMatrix {
    /// `[inputs, outputs]`.
    transposed: Tensor,
    /// `[outputs]` in float32.
    bias: Option<Tensor>,
    /// Many rows are rounded as the weights are.
    rounds_rows: bool,
}

impl DenseMatrix {
    /// Of `weight [outputs, inputs]` in float32 or bfloat16; `rounds_rows` lets a product of many rows be one of bfloat16.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, rounds_rows: bool) -> Result<Self> {
        Ok(DenseMatrix {
            transposed: weight.t()?.contiguous()?,
            bias: bias.cloned(),
            rounds_rows: rounds_rows && weight.dtype() == DType::BF16,
        })
    }

    /// Outputs and inputs.
    pub fn shape(&self) -> Result<(usize, usize)> {
        let (inputs, outputs) = self.transposed.dims2()?;
        Ok((outputs, inputs))
    }

    /// The weights of one input `[outputs]`, in float32.
    pub fn of_input(&self, input: usize) -> Result<Tensor> {
        self.transposed.narrow(0, input, 1)?.to_dtype(DType::F32)
    }

    /// The weights of one output `[inputs]`, in float32.
    pub fn of_output(&self, output: usize) -> Result<Tensor> {
        self.transposed.narrow(1, output, 1)?.to_dtype(DType::F32)
    }

    /// `x [rows, inputs] -> [rows, outputs]`. Where somebody asks for gradients it is candle's product.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (rows, inputs) = x.dims2()?;
        let (outputs, expected) = self.shape()?;
        if inputs != expected {
            bail!("a layer of {expected} inputs was given rows of {inputs}")
        }
        if x.track_op() {
            let y = x.matmul(&self.transposed.to_dtype(DType::F32)?)?;
            return match &self.bias {
                Some(bias) => y.broadcast_add(bias),
                None => Ok(y),
            };
        }
        if rows > FEW_ROWS && self.rounds_rows {
            let y = x.to_dtype(DType::BF16)?.matmul(&self.transposed)?;
            let y = y.to_dtype(DType::F32)?;
            return match &self.bias {
                Some(bias) => y.broadcast_add(bias),
                None => Ok(y),
            };
        }
        let (name, grid) = match rows <= FEW_ROWS {
            true => (
                "dense_decode",
                [
                    outputs.div_ceil(LANES as usize),
                    rows.div_ceil(ROWS_OF_BLOCK),
                    1,
                ],
            ),
            false => (
                "dense_tile",
                [outputs.div_ceil(TILE), rows.div_ceil(TILE), 1],
            ),
        };
        let y = unwritten((rows, outputs), DType::F32, x.device())?;
        Launch::new(name, self.transposed.dtype(), grid)?
            .read(&x)?
            .read(&self.transposed)?
            .optional(self.bias.as_ref())?
            .written(&y)?
            .count(rows)?
            .count(inputs)?
            .count(outputs)?
            .run(x.device())?;
        Ok(y)
    }
}
