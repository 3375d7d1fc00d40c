//! Linear layers of inference, stored by columns: dense and sparse.
//!
//! `y = W x + b` for rows `x [rows, in]`, `y [rows, out]`. A column is what one input channel adds to all
//! outputs. Storing columns lets a channel that AbsTopK switched off cost nothing, and fixes the order of
//! every sum: bias, then the inputs in ascending order, whatever the batch and whatever the storage. Skipped
//! zeros change no sum, so a sparse layer gives the dense layer's bits. A dense layer may hold its weights as its file
//! does, in sixteen bits or quantised ([`StoredMatrix`]); it gives the bits of the same weights in float32.

mod block_bits;
mod halves;
mod kernels;
mod panels;
mod quantised;
mod stored;
mod width;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use self::kernels::add_active;
use self::panels::Panels;
pub use self::stored::StoredMatrix;
use self::width::PANEL;
use super::rows;

/// A matrix with at most this share of nonzero weights is stored sparse.
pub const SPARSE_BELOW: f64 = 0.2;

/// The weights of one linear layer, ready for inference on the CPU.
#[derive(Debug)]
pub struct Columns {
    inputs: usize,
    outputs: usize,
    /// `[outputs]`, zeros where the layer has no bias; as many more as fill the last panel.
    bias: Vec<f32>,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Dense(Panels),
    /// The nonzero weights column after column; `starts[c]..starts[c + 1]` are column `c`'s.
    Sparse {
        starts: Vec<u32>,
        outputs: OutputIndices,
        weights: Vec<f32>,
    },
}

/// Which output each stored weight belongs to; two bytes do for up to 65,536 outputs.
#[derive(Debug)]
enum OutputIndices {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

impl Columns {
    /// From `weight [out, in]` and `bias [out]` in float32; sparse if few enough weights are nonzero.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        Self::stored(&StoredMatrix::Plain(weight.clone()), bias)
    }

    /// The same of a matrix as its file has it; what is dense stays as it is.
    pub fn stored(weight: &StoredMatrix, bias: Option<&Tensor>) -> Result<Self> {
        let (outputs, inputs) = weight.shape()?;
        // A negative zero would survive skipped zeros but not added ones; plus zero survives both.
        let mut bias: Vec<f32> = match bias {
            Some(bias) => rows::to_vec(bias)?.into_iter().map(|b| b + 0.0).collect(),
            None => vec![0.0; outputs],
        };
        if bias.len() != outputs {
            bail!(
                "a layer of {outputs} outputs was given a bias of {}",
                bias.len()
            )
        }
        bias.resize(outputs.next_multiple_of(PANEL), 0.0);
        let storage = match weight {
            // Nobody quantises a sparse matrix.
            StoredMatrix::Quantised(_) => Storage::Dense(Panels::stored(weight)?),
            StoredMatrix::Plain(plain) => {
                let single = plain.to_dtype(DType::F32)?;
                let by_column = rows::to_vec(&single.t()?.contiguous()?)?;
                let nonzero = by_column.iter().filter(|w| **w != 0.0).count();
                let sparse = (nonzero as f64) <= SPARSE_BELOW * by_column.len() as f64;
                if sparse && nonzero <= u32::MAX as usize {
                    Self::sparse(&by_column, outputs)
                } else if plain.dtype() == DType::F32 {
                    Storage::Dense(Panels::of_columns(&by_column, inputs, outputs))
                } else {
                    Storage::Dense(Panels::stored(weight)?)
                }
            }
        };
        Ok(Columns {
            inputs,
            outputs,
            bias,
            storage,
        })
    }

    fn sparse(by_column: &[f32], n_outputs: usize) -> Storage {
        let mut starts = vec![0u32];
        let (mut indices, mut weights) = (Vec::new(), Vec::new());
        for column in by_column.chunks_exact(n_outputs) {
            for (output, &weight) in column.iter().enumerate() {
                if weight != 0.0 {
                    indices.push(output as u32);
                    weights.push(weight);
                }
            }
            starts.push(weights.len() as u32);
        }
        weights.shrink_to_fit();
        let outputs = if n_outputs <= 1 << 16 {
            OutputIndices::Narrow(indices.into_iter().map(|index| index as u16).collect())
        } else {
            indices.shrink_to_fit();
            OutputIndices::Wide(indices)
        };
        Storage::Sparse {
            starts,
            outputs,
            weights,
        }
    }

    /// Outputs and inputs.
    pub fn shape(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    /// Whether the weights are stored sparse.
    pub fn is_sparse(&self) -> bool {
        matches!(self.storage, Storage::Sparse { .. })
    }

    /// How many weights are stored, zeros of a dense layer included.
    pub fn stored_weights(&self) -> usize {
        match &self.storage {
            Storage::Dense(_) => self.inputs * self.outputs,
            Storage::Sparse { weights, .. } => weights.len(),
        }
    }

    /// The bytes read to multiply one row whose `active` inputs are nonzero.
    pub fn bytes_touched(&self, active: impl Iterator<Item = usize>) -> usize {
        let bias = 4 * self.outputs;
        bias + match &self.storage {
            Storage::Dense(panels) => active.count() * panels.bytes_per_input(),
            Storage::Sparse {
                starts, outputs, ..
            } => {
                let index = match outputs {
                    OutputIndices::Narrow(_) => 2,
                    OutputIndices::Wide(_) => 4,
                };
                active
                    .map(|c| (starts[c + 1] - starts[c]) as usize * (4 + index) + 8)
                    .sum()
            }
        }
    }

    /// `x [rows, in] -> [rows, out]`; gradients flow to `x`.
    pub fn forward(self: &Arc<Self>, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(ColumnsOp(self.clone()))
    }

    /// The weights of one input that are not zero, each with its output, in ascending order.
    pub fn weights_of_input(&self, input: usize) -> Vec<(usize, f32)> {
        match &self.storage {
            Storage::Dense(panels) => nonzero(panels.of_input(input, self.outputs)),
            Storage::Sparse {
                starts,
                outputs,
                weights,
            } => (starts[input] as usize..starts[input + 1] as usize)
                .map(|index| (outputs.get(index), weights[index]))
                .collect(),
        }
    }

    /// The weights of one output that are not zero, each with its input, in ascending order.
    pub fn weights_of_output(&self, output: usize) -> Vec<(usize, f32)> {
        match &self.storage {
            Storage::Dense(panels) => nonzero(panels.of_output(output)),
            Storage::Sparse {
                starts,
                outputs,
                weights,
            } => (0..self.inputs)
                .filter_map(|input| {
                    let mut column = starts[input] as usize..starts[input + 1] as usize;
                    let index = column.find(|&index| outputs.get(index) == output)?;
                    Some((input, weights[index]))
                })
                .collect(),
        }
    }

    /// The weights of some outputs, `[ids, in]` for `ids [rows]`: an embedding's rows, where it is held as a layer.
    pub fn select_outputs(&self, ids: &Tensor) -> Result<Tensor> {
        let chosen: Vec<u32> = ids.to_vec1()?;
        let mut values = Vec::with_capacity(chosen.len() * self.inputs);
        for &output in &chosen {
            let output = output as usize;
            if output >= self.outputs {
                bail!("there is no output {output}; there are {}", self.outputs)
            }
            match &self.storage {
                Storage::Dense(panels) => values.extend(panels.of_output(output)),
                Storage::Sparse { .. } => {
                    let begin = values.len();
                    values.resize(begin + self.inputs, 0.0);
                    for (input, weight) in self.weights_of_output(output) {
                        values[begin + input] = weight;
                    }
                }
            }
        }
        Tensor::from_vec(values, (chosen.len(), self.inputs), ids.device())
    }

    /// `grad [rows, out] -> [rows, in]`: the gradient of the layer's input, given that of its output.
    fn transposed(&self, grad: &[f32], n_rows: usize) -> Vec<f32> {
        let mut grad_x = vec![0f32; n_rows * self.inputs];
        rows::map_rows(
            grad,
            self.outputs,
            &mut grad_x,
            self.inputs,
            |_, grad, grad_x| match &self.storage {
                Storage::Dense(panels) => panels.add_transposed(grad, grad_x),
                Storage::Sparse {
                    starts,
                    outputs,
                    weights,
                } => {
                    for (sum, column) in grad_x.iter_mut().zip(starts.windows(2)) {
                        *sum = (column[0] as usize..column[1] as usize)
                            .map(|index| weights[index] * grad[outputs.get(index)])
                            .sum();
                    }
                }
            },
        );
        grad_x
    }

    /// The layer on plain rows.
    pub fn multiply(&self, x: &[f32], y: &mut [f32]) {
        match &self.storage {
            Storage::Dense(panels) => panels.multiply(x, &self.bias, self.outputs, y),
            Storage::Sparse {
                starts,
                outputs,
                weights,
            } => {
                rows::map_rows(x, self.inputs, y, self.outputs, |_, x, y| {
                    y.copy_from_slice(&self.bias[..self.outputs]);
                    match outputs {
                        OutputIndices::Narrow(indices) => {
                            add_active(x, starts, indices, weights, y)
                        }
                        OutputIndices::Wide(indices) => add_active(x, starts, indices, weights, y),
                    }
                });
            }
        }
    }
}

impl OutputIndices {
    fn get(&self, index: usize) -> usize {
        match self {
            OutputIndices::Narrow(indices) => usize::from(indices[index]),
            OutputIndices::Wide(indices) => indices[index] as usize,
        }
    }
}

struct ColumnsOp(Arc<Columns>);

impl CustomOp1 for ColumnsOp {
    fn name(&self) -> &'static str {
        "columns"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n_rows, inputs) = layout.shape().dims2()?;
        if inputs != self.0.inputs {
            bail!(
                "a linear layer of {} inputs was given rows of {inputs}",
                self.0.inputs
            )
        }
        let mut output = vec![0f32; n_rows * self.0.outputs];
        self.0.multiply(rows::values(storage, layout)?, &mut output);
        Ok((
            CpuStorage::F32(output),
            Shape::from((n_rows, self.0.outputs)),
        ))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let n_rows = x.dim(0)?;
        let grad = grad.contiguous()?;
        let grad_x = rows::with_values(&grad, |grad| self.0.transposed(grad, n_rows))?;
        let grad_x = Tensor::from_vec(grad_x, (n_rows, self.0.inputs), x.device())?;
        Ok(Some(grad_x))
    }
}

/// Weights with their places, without zeros.
fn nonzero(weights: Vec<f32>) -> Vec<(usize, f32)> {
    let weights = weights.into_iter().enumerate();
    weights.filter(|(_, weight)| *weight != 0.0).collect()
}
