//! Linear layers of inference, stored by columns: dense and sparse.
//!
//! `y = W x + b` for rows `x [rows, in]`, `y [rows, out]`. A column is what one input channel adds to all
//! outputs. Storing columns lets a channel that AbsTopK switched off cost nothing, and fixes the order of
//! every sum: bias, then the inputs in ascending order, whatever the batch and whatever the storage. Skipped
//! zeros change no sum, so a sparse layer gives the dense layer's bits.

use std::sync::Arc;

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
    /// `[outputs]`, zeros where the layer has no bias; as many more as fill the last panel.
    bias: Vec<f32>,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    /// `W^T` in panels of outputs: `[panels, inputs, PANEL]`, zeros after the last output. What a few rows need of
    /// a panel lies together and stays in the nearest cache while they take turns.
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
            Self::dense(&by_column, outputs)
        };
        let mut bias = bias;
        bias.resize(outputs.next_multiple_of(PANEL), 0.0);
        Ok(Columns {
            inputs,
            outputs,
            bias,
            storage,
        })
    }

    fn dense(by_column: &[f32], n_outputs: usize) -> Storage {
        let mut panels = Vec::new();
        for first in (0..n_outputs).step_by(PANEL) {
            let last = (first + PANEL).min(n_outputs);
            for column in by_column.chunks_exact(n_outputs) {
                panels.extend_from_slice(&column[first..last]);
                panels.resize(panels.len() + first + PANEL - last, 0.0);
            }
        }
        Storage::Dense(panels)
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

    /// `x [rows, in] -> [rows, out]`; gradients flow to `x`.
    pub fn forward(self: &Arc<Self>, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(ColumnsOp(self.clone()))
    }

    /// The weights of one input that are not zero, each with its output, in ascending order.
    pub fn weights_of_input(&self, input: usize) -> Vec<(usize, f32)> {
        match &self.storage {
            Storage::Dense(panels) => (0..self.outputs)
                .map(|output| (output, panels[self.in_panel(input, output)]))
                .filter(|(_, weight)| *weight != 0.0)
                .collect(),
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
            Storage::Dense(panels) => (0..self.inputs)
                .map(|input| (input, panels[self.in_panel(input, output)]))
                .filter(|(_, weight)| *weight != 0.0)
                .collect(),
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

    /// Where a dense layer's weight is stored.
    fn in_panel(&self, input: usize, output: usize) -> usize {
        (output / PANEL * self.inputs + input) * PANEL + output % PANEL
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
                Storage::Dense(panels) => {
                    let panels = panels.chunks_exact(self.inputs * PANEL);
                    for (panel, grad) in panels.zip(grad.chunks(PANEL)) {
                        for (sum, column) in grad_x.iter_mut().zip(panel.chunks_exact(PANEL)) {
                            *sum += dot(grad, column);
                        }
                    }
                }
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
            Storage::Dense(panels) => self.multiply_dense(panels, x, y),
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

    /// Few rows: the weights are what takes time, so threads divide the panels. More: they divide the rows.
    fn multiply_dense(&self, panels: &[f32], x: &[f32], y: &mut [f32]) {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let size = inputs * PANEL;
        let n_rows = y.len() / outputs;
        let products = n_rows * inputs * outputs;
        if n_rows < ROWS_TOGETHER {
            for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
                if inputs * outputs < ROW_WORTH_THREADS {
                    panels_by_row(x, panels, &self.bias, y);
                    continue;
                }
                let share = outputs
                    .div_ceil(rayon::current_num_threads())
                    .next_multiple_of(2 * PANEL);
                let shares = y.par_chunks_mut(share).enumerate();
                shares.for_each(|(index, y)| {
                    let first = index * share;
                    let panels = &panels[first / PANEL * size..];
                    panels_by_row(x, panels, &self.bias[first..], y);
                });
            }
        } else if products < BATCH_WORTH_THREADS {
            panels_by_rows(x, panels, &self.bias, inputs, outputs, y);
        } else {
            // Twice as many shares as threads: a thread that is held up leaves its second to the others.
            let share = n_rows
                .div_ceil(2 * rayon::current_num_threads())
                .next_multiple_of(ROWS_TOGETHER);
            let shares = y.par_chunks_mut(share * outputs);
            let shares = shares.zip(x.par_chunks(share * inputs));
            shares.for_each(|(y, x)| {
                panels_by_rows(x, panels, &self.bias, inputs, outputs, y);
            });
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

/// Sums of a dot product that are taken side by side, so that no product waits for the one before it.
const SUMS: usize = 8;

/// The sum of products over the length of the shorter one.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let length = left.len().min(right.len());
    let ((left, left_rest), (right, right_rest)) = (
        left[..length].as_chunks::<SUMS>(),
        right[..length].as_chunks::<SUMS>(),
    );
    let mut sums = [0f32; SUMS];
    for (left, right) in left.iter().zip(right) {
        for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
            *sum += left * right;
        }
    }
    let rest = left_rest.iter().zip(right_rest);
    let rest: f32 = rest.map(|(left, right)| left * right).sum();
    sums.iter().sum::<f32>() + rest
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

/// Outputs whose sums stay in registers together.
const PANEL: usize = 64;
/// Rows that share each weight that is read.
const ROWS_TOGETHER: usize = 4;
/// Weights of one layer above which a single row is worth several threads.
const ROW_WORTH_THREADS: usize = 1 << 18;
/// Products of a batch above which it is worth several threads.
const BATCH_WORTH_THREADS: usize = 1 << 21;

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

/// One row against the first panels, as many as `y` has outputs for, skipping inactive inputs.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn panels_by_row(x: &[f32], panels: &[f32], bias: &[f32], y: &mut [f32]) {
    let size = x.len() * PANEL;
    // Two panels at once: the sums of one would wait for each other.
    let pairs = y.chunks_mut(2 * PANEL).zip(bias.chunks(2 * PANEL));
    for ((y, bias), panels) in pairs.zip(panels.chunks(2 * size)) {
        let (left, right) = panels.split_at(size);
        let mut sums = [0f32; 2 * PANEL];
        sums[..bias.len()].copy_from_slice(bias);
        let (left, right) = (left.as_chunks::<PANEL>().0, right.as_chunks::<PANEL>().0);
        let [one, other] = sums.as_chunks_mut::<PANEL>().0 else {
            continue;
        };
        if right.is_empty() {
            for (&x, left) in x.iter().zip(left) {
                if x != 0.0 {
                    for lane in 0..PANEL {
                        one[lane] = multiply_add!(x, left[lane], one[lane]);
                    }
                }
            }
        } else {
            for ((&x, left), right) in x.iter().zip(left).zip(right) {
                if x != 0.0 {
                    for lane in 0..PANEL {
                        one[lane] = multiply_add!(x, left[lane], one[lane]);
                    }
                    for lane in 0..PANEL {
                        other[lane] = multiply_add!(x, right[lane], other[lane]);
                    }
                }
            }
        }
        y.copy_from_slice(&sums[..y.len()]);
    }
}

/// Rows `[rows, inputs]` against all panels.
fn panels_by_rows(
    x: &[f32],
    panels: &[f32],
    bias: &[f32],
    inputs: usize,
    outputs: usize,
    y: &mut [f32],
) {
    let (bias, _) = bias.as_chunks::<PANEL>();
    for ((index, panel), bias) in panels.chunks_exact(inputs * PANEL).enumerate().zip(bias) {
        let place = index * PANEL..((index + 1) * PANEL).min(outputs);
        let blocks = x.chunks(ROWS_TOGETHER * inputs);
        for (x, y) in blocks.zip(y.chunks_mut(ROWS_TOGETHER * outputs)) {
            if x.len() == ROWS_TOGETHER * inputs {
                let sums = panel_by_four(x, panel, bias);
                for (y, sums) in y.chunks_exact_mut(outputs).zip(sums) {
                    y[place.clone()].copy_from_slice(&sums[..place.len()]);
                }
            } else {
                for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
                    panels_by_row(x, panel, bias, &mut y[place.clone()]);
                }
            }
        }
    }
}

/// Four rows, one after another in `x`, against one panel.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn panel_by_four(x: &[f32], panel: &[f32], bias: &[f32; PANEL]) -> [[f32; PANEL]; ROWS_TOGETHER] {
    let inputs = x.len() / ROWS_TOGETHER;
    let (first, rest) = x.split_at(inputs);
    let (second, rest) = rest.split_at(inputs);
    let (third, fourth) = rest.split_at(inputs);
    let (mut a, mut b, mut c, mut d) = (*bias, *bias, *bias, *bias);
    // Without a check in the loop: with one, the sums would go to memory and back at every input.
    let columns = panel.as_chunks::<PANEL>().0.iter();
    let rows = first.iter().zip(second).zip(third).zip(fourth);
    for (column, (((&xa, &xb), &xc), &xd)) in columns.zip(rows) {
        for lane in 0..PANEL {
            a[lane] = multiply_add!(xa, column[lane], a[lane]);
        }
        for lane in 0..PANEL {
            b[lane] = multiply_add!(xb, column[lane], b[lane]);
        }
        for lane in 0..PANEL {
            c[lane] = multiply_add!(xc, column[lane], c[lane]);
        }
        for lane in 0..PANEL {
            d[lane] = multiply_add!(xd, column[lane], d[lane]);
        }
    }
    [a, b, c, d]
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
