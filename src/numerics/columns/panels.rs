//! A dense layer's weights in panels of 64 outputs, in float32 or as their file has them.
//!
//! `[panels, inputs, 64]`, zeros after the last output. What a few rows need of a panel lies together and stays in the
//! nearest cache while they take turns. Weights that are no float32 are decoded a piece of a panel at a time, and every row
//! meets the piece before the next one is decoded; for a row by itself a weight goes from its bits into the sum.

use candle_core::{DType, Result, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::halves::{from_bf16, from_f16};
use super::kernels::{add_to_four, multiply_add, panels_by_row, panels_by_rows};
use super::quantised::QuantisedPanels;
use super::stored::StoredMatrix;
use super::width::{PANEL, ROWS_TOGETHER};

/// Weights of one layer above which a single row is worth several threads.
const ROW_WORTH_THREADS: usize = 1 << 18;
/// Products of a batch above which it is worth several threads.
const BATCH_WORTH_THREADS: usize = 1 << 21;
/// Inputs that are decoded at once.
const PIECE: usize = 32;

/// The weights of a layer that is not sparse.
#[derive(Debug)]
pub struct Panels {
    inputs: usize,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Float32(Vec<f32>),
    Float16(Vec<u16>),
    BFloat16(Vec<u16>),
    Quantised(QuantisedPanels),
}

type Piece = [[f32; PANEL]; PIECE];

impl Panels {
    /// From `W^T [in, out]` in float32.
    pub fn of_columns(by_column: &[f32], inputs: usize, outputs: usize) -> Self {
        let mut panels = Vec::with_capacity(outputs.next_multiple_of(PANEL) * inputs);
        for first in (0..outputs).step_by(PANEL) {
            let last = (first + PANEL).min(outputs);
            for column in by_column.chunks_exact(outputs) {
                panels.extend_from_slice(&column[first..last]);
                panels.resize(panels.len() + first + PANEL - last, 0.0);
            }
        }
        Panels {
            inputs,
            values: Values::Float32(panels),
        }
    }

    /// From a matrix `[out, in]` of another type, which stays as it is.
    pub fn stored(matrix: &StoredMatrix) -> Result<Self> {
        let (_, inputs) = matrix.shape()?;
        let values = match matrix {
            StoredMatrix::Plain(tensor) => match tensor.dtype() {
                DType::F16 => {
                    let rows = tensor.to_vec2()?;
                    Values::Float16(half_panels(&rows, inputs, |value: half::f16| {
                        value.to_bits()
                    }))
                }
                DType::BF16 => {
                    let rows = tensor.to_vec2()?;
                    Values::BFloat16(half_panels(&rows, inputs, |value: half::bf16| {
                        value.to_bits()
                    }))
                }
                other => bail!("a matrix of {other:?} is not kept"),
            },
            StoredMatrix::Quantised(parts) => {
                let parts: Vec<_> = parts.iter().map(AsRef::as_ref).collect();
                Values::Quantised(QuantisedPanels::new(&parts)?)
            }
        };
        Ok(Panels { inputs, values })
    }

    /// Rows `x [rows, in]` become `y [rows, out]`; `bias` has a value for every place of every panel.
    pub fn multiply(&self, x: &[f32], bias: &[f32], outputs: usize, y: &mut [f32]) {
        match &self.values {
            Values::Float32(panels) => self.multiply_float32(panels, x, bias, outputs, y),
            _ => self.multiply_decoded(x, bias, outputs, y),
        }
    }

    /// Few rows: the weights are what takes time, so threads divide the panels. More: they divide the rows.
    fn multiply_float32(
        &self,
        panels: &[f32],
        x: &[f32],
        bias: &[f32],
        outputs: usize,
        y: &mut [f32],
    ) {
        let inputs = self.inputs;
        let size = inputs * PANEL;
        let n_rows = y.len() / outputs;
        let products = n_rows * inputs * outputs;
        if n_rows < ROWS_TOGETHER {
            for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
                if inputs * outputs < ROW_WORTH_THREADS {
                    panels_by_row(x, panels, bias, y);
                    continue;
                }
                let share = outputs
                    .div_ceil(rayon::current_num_threads())
                    .next_multiple_of(2 * PANEL);
                let shares = y.par_chunks_mut(share).enumerate();
                shares.for_each(|(index, y)| {
                    let first = index * share;
                    let panels = &panels[first / PANEL * size..];
                    panels_by_row(x, panels, &bias[first..], y);
                });
            }
        } else if products < BATCH_WORTH_THREADS {
            panels_by_rows(x, panels, bias, inputs, outputs, y);
        } else {
            // Twice as many shares as threads: a thread that is held up leaves its second to the others.
            let share = n_rows
                .div_ceil(2 * rayon::current_num_threads())
                .next_multiple_of(ROWS_TOGETHER);
            let shares = y.par_chunks_mut(share * outputs);
            let shares = shares.zip(x.par_chunks(share * inputs));
            shares.for_each(|(y, x)| {
                panels_by_rows(x, panels, bias, inputs, outputs, y);
            });
        }
    }

    /// Threads divide the panels, so that each weight is decoded once whatever the rows.
    fn multiply_decoded(&self, x: &[f32], bias: &[f32], outputs: usize, y: &mut [f32]) {
        let n_rows = y.len() / outputs;
        let (bias, _) = bias.as_chunks::<PANEL>();
        let products = n_rows * self.inputs * outputs;
        let worth_threads = products >= ROW_WORTH_THREADS;
        let threads = if worth_threads {
            rayon::current_num_threads()
        } else {
            1
        };
        // Twice as many shares as threads, for a thread that is held up.
        let share = match threads {
            1 => bias.len(),
            threads => bias.len().div_ceil(2 * threads),
        };
        let of_share = |(index, bias): (usize, &[[f32; PANEL]])| {
            self.sums_of_panels(x, index * share, bias, n_rows)
        };
        let sums: Vec<Vec<[f32; PANEL]>> = match threads {
            1 => bias.chunks(share).enumerate().map(of_share).collect(),
            _ => bias.par_chunks(share).enumerate().map(of_share).collect(),
        };
        let panels = sums.iter().flat_map(|sums| sums.chunks_exact(n_rows));
        for (panel, sums) in panels.enumerate() {
            let place = panel * PANEL..((panel + 1) * PANEL).min(outputs);
            for (y, sums) in y.chunks_exact_mut(outputs).zip(sums) {
                y[place.clone()].copy_from_slice(&sums[..place.len()]);
            }
        }
    }

    /// The sums of all rows in the panels from `first` on, as many as there are biases: `[panels, rows, 64]`.
    fn sums_of_panels(
        &self,
        x: &[f32],
        first: usize,
        bias: &[[f32; PANEL]],
        n_rows: usize,
    ) -> Vec<[f32; PANEL]> {
        let mut sums = Vec::with_capacity(bias.len() * n_rows);
        for bias in bias {
            sums.resize(sums.len() + n_rows, *bias);
        }
        let mut piece: Piece = [[0.0; PANEL]; PIECE];
        for (index, sums) in sums.chunks_mut(n_rows).enumerate() {
            let panel = first + index;
            let (fours, others) = sums.as_chunks_mut::<ROWS_TOGETHER>();
            let fours_end = fours.len() * ROWS_TOGETHER;
            if !fours.is_empty() {
                for begin in (0..self.inputs).step_by(PIECE) {
                    let place = begin..(begin + PIECE).min(self.inputs);
                    let piece = &mut piece[..place.len()];
                    self.decode(panel, begin, piece);
                    for (four, sums) in fours.iter_mut().enumerate() {
                        let x = std::array::from_fn(|row| {
                            let row = four * ROWS_TOGETHER + row;
                            &x[row * self.inputs..][place.clone()]
                        });
                        add_to_four(x, piece, sums);
                    }
                }
            }
            let rows = x.chunks_exact(self.inputs).skip(fours_end);
            for (x, sums) in rows.zip(others) {
                self.add_to_row(panel, x, sums);
            }
        }
        sums
    }

    /// Adds to the sums of one row what its inputs add in a panel.
    fn add_to_row(&self, panel: usize, x: &[f32], sums: &mut [f32; PANEL]) {
        let size = self.inputs * PANEL;
        let place = panel * size..(panel + 1) * size;
        match &self.values {
            Values::Float32(panels) => {
                let bias = *sums;
                panels_by_row(x, &panels[place], &bias, sums);
            }
            Values::Float16(panels) => add_f16_to_row(x, &panels[place], sums),
            Values::BFloat16(panels) => add_bf16_to_row(x, &panels[place], sums),
            Values::Quantised(panels) => panels.add_to_row(panel, x, sums),
        }
    }

    /// The float32 weights of a panel's inputs from `first` on.
    fn decode(&self, panel: usize, first: usize, out: &mut [[f32; PANEL]]) {
        let begin = (panel * self.inputs + first) * PANEL;
        let place = begin..begin + out.len() * PANEL;
        match &self.values {
            Values::Float32(panels) => out.as_flattened_mut().copy_from_slice(&panels[place]),
            Values::Float16(panels) => decode_f16(&panels[place], out.as_flattened_mut()),
            Values::BFloat16(panels) => decode_bf16(&panels[place], out.as_flattened_mut()),
            Values::Quantised(panels) => panels.decode(panel, first, out),
        }
    }

    /// The weights of a panel in pieces of inputs, the first input of each said.
    fn pieces(&self, panel: usize, mut each: impl FnMut(usize, &[[f32; PANEL]])) {
        let mut piece: Piece = [[0.0; PANEL]; PIECE];
        for first in (0..self.inputs).step_by(PIECE) {
            let piece = &mut piece[..PIECE.min(self.inputs - first)];
            self.decode(panel, first, piece);
            each(first, piece);
        }
    }

    /// The weights of one output, `[in]`.
    pub fn of_output(&self, output: usize) -> Vec<f32> {
        let mut weights = Vec::with_capacity(self.inputs);
        let place = output % PANEL;
        match &self.values {
            // Without the other outputs of the panel.
            Values::Float32(panels) => {
                let panel = &panels[output / PANEL * self.inputs * PANEL..];
                let columns = panel.chunks_exact(PANEL).take(self.inputs);
                weights.extend(columns.map(|column| column[place]));
            }
            _ => self.pieces(output / PANEL, |_, piece| {
                weights.extend(piece.iter().map(|column| column[place]));
            }),
        }
        weights
    }

    /// The weights of one input, `[out]`.
    pub fn of_input(&self, input: usize, outputs: usize) -> Vec<f32> {
        let mut weights = Vec::with_capacity(outputs.next_multiple_of(PANEL));
        let first = input / PIECE * PIECE;
        let mut piece: Piece = [[0.0; PANEL]; PIECE];
        let piece = &mut piece[..PIECE.min(self.inputs - first)];
        for panel in 0..outputs.div_ceil(PANEL) {
            self.decode(panel, first, piece);
            weights.extend(piece[input - first]);
        }
        weights.truncate(outputs);
        weights
    }

    /// Adds to `grad_x [in]` what the gradient of one row's outputs says of its inputs.
    pub fn add_transposed(&self, grad: &[f32], grad_x: &mut [f32]) {
        for (panel, grad) in grad.chunks(PANEL).enumerate() {
            self.pieces(panel, |first, piece| {
                for (sum, column) in grad_x[first..].iter_mut().zip(piece) {
                    *sum += dot(grad, column);
                }
            });
        }
    }

    /// The bytes that are read for one input of a row.
    pub fn bytes_per_input(&self) -> usize {
        let panels = |values: usize| values / self.inputs.max(1);
        match &self.values {
            Values::Float32(values) => 4 * panels(values.len()),
            Values::Float16(values) | Values::BFloat16(values) => 2 * panels(values.len()),
            Values::Quantised(panels) => panels.bytes_per_input(self.inputs),
        }
    }
}

/// `[rows of in]` in panels.
fn half_panels<T: Copy>(rows: &[Vec<T>], inputs: usize, bits: impl Fn(T) -> u16) -> Vec<u16> {
    let mut panels = vec![0; rows.len().next_multiple_of(PANEL) * inputs];
    for (output, row) in rows.iter().enumerate() {
        let panel = &mut panels[output / PANEL * PANEL * inputs..];
        for (input, &value) in row.iter().enumerate() {
            panel[input * PANEL + output % PANEL] = bits(value);
        }
    }
    panels
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn add_f16_to_row(x: &[f32], bits: &[u16], sums: &mut [f32; PANEL]) {
    let mut all = *sums;
    for (&x, bits) in x.iter().zip(bits.as_chunks::<PANEL>().0) {
        for lane in 0..PANEL {
            all[lane] = multiply_add!(x, from_f16(bits[lane]), all[lane]);
        }
    }
    *sums = all;
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn add_bf16_to_row(x: &[f32], bits: &[u16], sums: &mut [f32; PANEL]) {
    let mut all = *sums;
    for (&x, bits) in x.iter().zip(bits.as_chunks::<PANEL>().0) {
        for lane in 0..PANEL {
            all[lane] = multiply_add!(x, from_bf16(bits[lane]), all[lane]);
        }
    }
    *sums = all;
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn decode_f16(bits: &[u16], out: &mut [f32]) {
    for (out, &bits) in out.iter_mut().zip(bits) {
        *out = from_f16(bits);
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn decode_bf16(bits: &[u16], out: &mut [f32]) {
    for (out, &bits) in out.iter_mut().zip(bits) {
        *out = from_bf16(bits);
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
