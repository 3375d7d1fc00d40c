//! Linear layers of inference, stored by columns: dense and sparse.
//!
//! `y = W x + b` for rows `x [rows, in]`, `y [rows, out]`. A column is what one input channel adds to all
//! outputs. Storing columns lets a channel that AbsTopK switched off cost nothing, and fixes the order of
//! every sum: bias, then the inputs in ascending order, whatever the batch and whatever the storage. Skipped
//! zeros change no sum, so a sparse layer gives the dense layer's bits.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::rows;

/// A matrix with at most this share of nonzero weights is stored sparse.
pub const SPARSE_BELOW: f64 = 0.2;

/// The weights of one linear layer, ready for inference on the CPU.
#[derive(Debug)]
pub struct Columns {
    inputs: usize,
    outputs: usize,
    /// `[outputs]`, zeros where the layer has no bias.
    bias: Vec<f32>,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    /// `W^T`, `[inputs, outputs]`.
    Dense(Vec<f32>),
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
    /// From `weight [out, in]` and `bias [out]`; sparse if few enough weights are nonzero.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let by_column = rows::to_vec(&weight.t()?.contiguous()?)?;
        let nonzero = by_column.iter().filter(|w| **w != 0.0).count();
        let sparse = (nonzero as f64) <= SPARSE_BELOW * by_column.len() as f64;
        // A negative zero would survive skipped zeros but not added ones; plus zero survives both.
        let bias = match bias {
            Some(bias) => rows::to_vec(bias)?.into_iter().map(|b| b + 0.0).collect(),
            None => vec![0.0; outputs],
        };
        if bias.len() != outputs {
            bail!(
                "a layer of {outputs} outputs was given a bias of {}",
                bias.len()
            )
        }
        let storage = if sparse && nonzero <= u32::MAX as usize {
            Self::sparse(&by_column, outputs)
        } else {
            Storage::Dense(by_column)
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
        let outputs = if n_outputs <= 1 << 16 {
            OutputIndices::Narrow(indices.into_iter().map(|index| index as u16).collect())
        } else {
            OutputIndices::Wide(indices)
        };
        Storage::Sparse {
            starts,
            outputs,
            weights,
        }
    }

    /// Whether the weights are stored sparse.
    pub fn is_sparse(&self) -> bool {
        matches!(self.storage, Storage::Sparse { .. })
    }

    /// How many weights are stored, zeros of a dense layer included.
    pub fn stored_weights(&self) -> usize {
        match &self.storage {
            Storage::Dense(weights) | Storage::Sparse { weights, .. } => weights.len(),
        }
    }

    /// The bytes read to multiply one row whose `active` inputs are nonzero.
    pub fn bytes_touched(&self, active: impl Iterator<Item = usize>) -> usize {
        let bias = 4 * self.outputs;
        bias + match &self.storage {
            Storage::Dense(_) => active.count() * self.outputs * 4,
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

    /// `x [rows, in] -> [rows, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1_no_bwd(&ColumnsOp(self))
    }

    /// The layer on plain rows.
    pub fn multiply(&self, x: &[f32], y: &mut [f32]) {
        match &self.storage {
            Storage::Dense(weights) => self.multiply_dense(weights, x, y),
            Storage::Sparse {
                starts,
                outputs,
                weights,
            } => {
                rows::map_rows(x, self.inputs, y, self.outputs, |_, x, y| {
                    y.copy_from_slice(&self.bias);
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

    /// Blocks of rows share each weight that is read; a block of outputs stays in registers.
    fn multiply_dense(&self, weights: &[f32], x: &[f32], y: &mut [f32]) {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let n_rows = y.len() / outputs;
        if n_rows < ROWS_TOGETHER {
            // Few rows: the weights are what is read, so the threads divide the outputs.
            for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
                if inputs * outputs < ROW_WORTH_THREADS {
                    dense_row(x, weights, outputs, 0, &self.bias, y);
                } else {
                    let share = outputs
                        .div_ceil(rayon::current_num_threads())
                        .next_multiple_of(64);
                    y.par_chunks_mut(share)
                        .enumerate()
                        .for_each(|(index, block)| {
                            let first = index * share;
                            let bias = &self.bias[first..first + block.len()];
                            dense_row(x, weights, outputs, first, bias, block);
                        });
                }
            }
            return;
        }
        y.par_chunks_mut(ROWS_TOGETHER * outputs)
            .enumerate()
            .for_each(|(block, y)| {
                let first = block * ROWS_TOGETHER;
                let count = y.len() / outputs;
                let x = &x[first * inputs..][..count * inputs];
                if count == ROWS_TOGETHER {
                    dense_rows(x, weights, inputs, outputs, &self.bias, y);
                } else {
                    for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
                        dense_row(x, weights, outputs, 0, &self.bias, y);
                    }
                }
            });
    }
}

struct ColumnsOp<'a>(&'a Columns);

impl CustomOp1 for ColumnsOp<'_> {
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
}

const ROWS_TOGETHER: usize = 4;
/// Weights of one layer above which a single row is worth several threads.
const ROW_WORTH_THREADS: usize = 1 << 18;

/// `a * b + c`, in one rounding where the machine has it; the same choice for a whole process.
macro_rules! multiply_add {
    ($a:expr, $b:expr, $c:expr) => {
        // A constant on purpose: asked at run time, the question costs far more than the sum.
        if const {
            cfg!(target_arch = "aarch64")
                || multiversion::target::selected_target!().supports_feature_str("fma")
        } {
            $a.mul_add($b, $c)
        } else {
            $a * $b + $c
        }
    };
}

/// One row against outputs `first..first + y.len()` of a dense layer, skipping inactive inputs.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn dense_row(
    x: &[f32],
    weights: &[f32],
    n_outputs: usize,
    first: usize,
    bias: &[f32],
    y: &mut [f32],
) {
    const WIDTH: usize = 128;
    let mut done = 0;
    while done + WIDTH <= y.len() {
        let mut sums = [0f32; WIDTH];
        sums.copy_from_slice(&bias[done..done + WIDTH]);
        for (column, &x) in weights.chunks_exact(n_outputs).zip(x) {
            if x != 0.0 {
                let column = &column[first + done..first + done + WIDTH];
                for lane in 0..WIDTH {
                    sums[lane] = multiply_add!(x, column[lane], sums[lane]);
                }
            }
        }
        y[done..done + WIDTH].copy_from_slice(&sums);
        done += WIDTH;
    }
    let rest = &mut y[done..];
    rest.copy_from_slice(&bias[done..]);
    for (column, &x) in weights.chunks_exact(n_outputs).zip(x) {
        if x != 0.0 {
            for (y, &w) in rest.iter_mut().zip(&column[first + done..]) {
                *y = multiply_add!(x, w, *y);
            }
        }
    }
}

/// Four rows against all outputs of a dense layer.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn dense_rows(
    x: &[f32],
    weights: &[f32],
    n_inputs: usize,
    n_outputs: usize,
    bias: &[f32],
    y: &mut [f32],
) {
    const WIDTH: usize = 64;
    let mut done = 0;
    while done < n_outputs {
        let width = WIDTH.min(n_outputs - done);
        let mut sums = [[0f32; WIDTH]; ROWS_TOGETHER];
        for sums in &mut sums {
            sums[..width].copy_from_slice(&bias[done..done + width]);
        }
        if width == WIDTH {
            for (input, column) in weights.chunks_exact(n_outputs).enumerate() {
                let column = &column[done..done + WIDTH];
                for row in 0..ROWS_TOGETHER {
                    let x = x[row * n_inputs + input];
                    for lane in 0..WIDTH {
                        sums[row][lane] = multiply_add!(x, column[lane], sums[row][lane]);
                    }
                }
            }
        } else {
            for (input, column) in weights.chunks_exact(n_outputs).enumerate() {
                let column = &column[done..done + width];
                for row in 0..ROWS_TOGETHER {
                    let x = x[row * n_inputs + input];
                    for (sum, &w) in sums[row].iter_mut().zip(column) {
                        *sum = multiply_add!(x, w, *sum);
                    }
                }
            }
        }
        for row in 0..ROWS_TOGETHER {
            y[row * n_outputs + done..][..width].copy_from_slice(&sums[row][..width]);
        }
        done += width;
    }
}

/// How many active channels ahead a column is asked for.
const AHEAD: usize = 8;
/// Channels whose active ones are listed at once.
const LISTED: usize = 1024;

/// `y += sum over active inputs of x[c] * column c`.
///
/// The active channels are listed first, without a branch on each. Their columns lie far apart and are short, so
/// the processor cannot foresee them: waiting for memory would take more than half of the time.
#[multiversion(targets("x86_64+avx2+fma"))]
fn add_active<I: Copy + Into<u32>>(
    x: &[f32],
    starts: &[u32],
    indices: &[I],
    weights: &[f32],
    y: &mut [f32],
) {
    let mut list = [0u32; LISTED + 1];
    for (block, channels) in x.chunks(LISTED).enumerate() {
        let mut count = 0;
        for (offset, &x) in channels.iter().enumerate() {
            list[count] = (block * LISTED + offset) as u32;
            count += usize::from(x != 0.0);
        }
        let active = &list[..count];
        for (position, &channel) in active.iter().enumerate() {
            if let Some(&later) = active.get(position + AHEAD) {
                let start = starts[later as usize] as usize;
                prefetch(indices, start, 2);
                prefetch(weights, start, 3);
            }
            let channel = channel as usize;
            let x = x[channel];
            let column = starts[channel] as usize..starts[channel + 1] as usize;
            let (indices, weights) = (&indices[column.clone()], &weights[column]);
            // SAFETY: `Columns::sparse` made every index from an output's position, and `y` has one value for
            // each output. The check would cost as much as the sum.
            let mut add = |index: I, weight: f32| {
                let y = unsafe { y.get_unchecked_mut(index.into() as usize) };
                *y = multiply_add!(x, weight, *y);
            };
            let ((four_indices, last_indices), (four_weights, last_weights)) =
                (indices.as_chunks::<4>(), weights.as_chunks::<4>());
            for (indices, weights) in four_indices.iter().zip(four_weights) {
                for (&index, &weight) in indices.iter().zip(weights) {
                    add(index, weight);
                }
            }
            for (&index, &weight) in last_indices.iter().zip(last_weights) {
                add(index, weight);
            }
        }
    }
}

/// Asks for the first `lines` cache lines of the values from `start` on. A hint: it may be past the end.
#[inline(always)]
fn prefetch<T>(values: &[T], start: usize, lines: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..lines {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = values
            .as_ptr()
            .wrapping_add(start)
            .cast::<i8>()
            .wrapping_add(64 * line);
        // SAFETY: a prefetch reads nothing and faults nowhere, whatever its address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, start, lines);
}
