//! Products of a weight matrix with a tile: `y = W x + b` and `x' = W^T y'`.
//!
//! `W [outputs, inputs]`, `x [inputs][width]`, `y [outputs][width]`. A matrix with few nonzero weights is kept as lists
//! of them, by output and by input, and costs as many scaled additions; one with many is multiplied whole. The weight
//! gradient `y' x^T` is whole in either case, because a weight that is zero must be able to come back.

use gemm::Parallelism;

use super::processor::{Avx512, LANES};
use crate::numerics::dense_product::{Matrix, add_product};
use crate::numerics::parts::Part;

/// Below this share of nonzero weights the lists are faster than the whole matrix.
const SPARSE_BELOW: f64 = 0.3;

/// A weight matrix as a training step multiplies by it.
#[derive(Debug)]
pub struct WeightMatrix {
    pub outputs: usize,
    pub inputs: usize,
    kind: Storage,
}

#[derive(Debug)]
enum Storage {
    /// `[outputs, inputs]`.
    Whole(Vec<f32>),
    Lists {
        by_output: Lists,
        by_input: Lists,
    },
}

/// For each line of a matrix its nonzero weights, each with where it stands in the line.
#[derive(Debug, Default)]
struct Lists {
    /// Line `i` has the entries `starts[i]..starts[i + 1]`.
    starts: Vec<u32>,
    entries: Vec<Nonzero>,
}

#[derive(Debug, Clone, Copy)]
struct Nonzero {
    at: u32,
    weight: f32,
}

impl Lists {
    fn line(&self, index: usize) -> &[Nonzero] {
        &self.entries[self.starts[index] as usize..self.starts[index + 1] as usize]
    }
}

impl WeightMatrix {
    /// From a row-major matrix; how it is kept follows from how many of its weights are zero.
    pub fn new(weights: &[f32], outputs: usize, inputs: usize) -> Self {
        let _timed = Part::Preparation.begin();
        let nonzero = weights.iter().filter(|&&weight| weight != 0.0).count();
        let is_sparse = (nonzero as f64) < SPARSE_BELOW * weights.len() as f64;
        let kind = match is_sparse {
            true => lists(weights, outputs, inputs, nonzero),
            false => Storage::Whole(weights.to_vec()),
        };
        WeightMatrix {
            outputs,
            inputs,
            kind,
        }
    }

    /// `y = W x + b`; without a bias `y = W x`.
    pub fn forward(
        &self,
        cpu: Avx512,
        x: &[f32],
        width: usize,
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) {
        let _timed = Part::Products.begin();
        match &self.kind {
            Storage::Lists { by_output, .. } => scaled_rows(cpu, by_output, x, width, bias, y),
            Storage::Whole(weights) => {
                match bias {
                    Some(bias) => {
                        for (row, &bias) in y.chunks_exact_mut(width).zip(bias) {
                            row.fill(bias);
                        }
                    }
                    None => y.fill(0.0),
                }
                let left = Matrix {
                    values: weights,
                    rows: self.outputs,
                    columns: self.inputs,
                    transposed: false,
                };
                let right = Matrix {
                    values: x,
                    rows: self.inputs,
                    columns: width,
                    transposed: false,
                };
                add_product(y, left, right, Parallelism::None);
            }
        }
    }

    /// `x' = W^T y'`.
    pub fn backward(&self, cpu: Avx512, grad_y: &[f32], width: usize, grad_x: &mut [f32]) {
        let _timed = Part::Products.begin();
        match &self.kind {
            Storage::Lists { by_input, .. } => {
                scaled_rows(cpu, by_input, grad_y, width, None, grad_x)
            }
            Storage::Whole(weights) => {
                grad_x.fill(0.0);
                let left = Matrix {
                    values: weights,
                    rows: self.inputs,
                    columns: self.outputs,
                    transposed: true,
                };
                let right = Matrix {
                    values: grad_y,
                    rows: self.outputs,
                    columns: width,
                    transposed: false,
                };
                add_product(grad_x, left, right, Parallelism::None);
            }
        }
    }
}

/// `W' += y' x^T` for the outputs that `grad_weights` and `grad_y` hold: `[outputs, inputs]`. Where one of the two has
/// few values that are not zero, [`super::outer`] is faster.
pub fn add_weight_gradient(grad_weights: &mut [f32], grad_y: &[f32], x: &[f32], width: usize) {
    let (outputs, inputs) = (grad_y.len() / width, x.len() / width);
    let left = Matrix {
        values: grad_y,
        rows: outputs,
        columns: width,
        transposed: false,
    };
    let right = Matrix {
        values: x,
        rows: width,
        columns: inputs,
        transposed: true,
    };
    add_product(grad_weights, left, right, Parallelism::None);
}

/// `b' += sum over tokens of y'`.
pub fn add_bias_gradient(grad_bias: &mut [f32], grad_y: &[f32], width: usize) {
    for (sum, row) in grad_bias.iter_mut().zip(grad_y.chunks_exact(width)) {
        let mut lanes = [0f32; LANES];
        for group in row.chunks_exact(LANES) {
            for (lane, value) in lanes.iter_mut().zip(group) {
                *lane += value;
            }
        }
        *sum += lanes.iter().sum::<f32>();
    }
}

fn lists(weights: &[f32], outputs: usize, inputs: usize, nonzero: usize) -> Storage {
    let mut by_output = Lists {
        starts: Vec::with_capacity(outputs + 1),
        entries: Vec::with_capacity(nonzero),
    };
    let mut counts = vec![0u32; inputs + 1];
    by_output.starts.push(0);
    for row in weights.chunks_exact(inputs) {
        for (group, values) in row.chunks(LANES).enumerate() {
            if values.iter().all(|&weight| weight == 0.0) {
                continue;
            }
            for (offset, &weight) in values.iter().enumerate() {
                if weight != 0.0 {
                    let at = group * LANES + offset;
                    counts[at + 1] += 1;
                    by_output.entries.push(Nonzero {
                        at: at as u32,
                        weight,
                    });
                }
            }
        }
        by_output.starts.push(by_output.entries.len() as u32);
    }
    for index in 0..inputs {
        counts[index + 1] += counts[index];
    }
    let starts = counts.clone();
    let mut entries = vec![Nonzero { at: 0, weight: 0.0 }; by_output.entries.len()];
    for output in 0..outputs {
        for entry in by_output.line(output) {
            let place = &mut counts[entry.at as usize];
            entries[*place as usize] = Nonzero {
                at: output as u32,
                weight: entry.weight,
            };
            *place += 1;
        }
    }
    Storage::Lists {
        by_output,
        by_input: Lists { starts, entries },
    }
}

/// `out[line] = bias[line] + sum of weight * x[at]` over the entries of each line, 128 tokens at a time.
fn scaled_rows(
    _cpu: Avx512,
    lists: &Lists,
    x: &[f32],
    width: usize,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let lines = lists.starts.len() - 1;
    assert!(width.is_multiple_of(LANES) && out.len() == lines * width);
    let most = lists
        .entries
        .iter()
        .map(|entry| entry.at as usize + 1)
        .max()
        .unwrap_or(0);
    assert!(x.len() >= most * width);
    #[cfg(target_arch = "x86_64")]
    {
        let mut first = 0;
        while first < width {
            let groups = ((width - first) / LANES).min(8);
            // SAFETY: `Avx512` proves the instructions; every row that an entry names lies in `x`, every line in
            // `out`, as asserted above, and `first + groups * LANES <= width`.
            unsafe {
                match groups {
                    8 => columns::<8>(lists, x, width, first, bias, out),
                    4..=7 => columns::<4>(lists, x, width, first, bias, out),
                    2 | 3 => columns::<2>(lists, x, width, first, bias, out),
                    _ => columns::<1>(lists, x, width, first, bias, out),
                }
            }
            first += LANES
                * match groups {
                    8 => 8,
                    4..=7 => 4,
                    2 | 3 => 2,
                    _ => 1,
                };
        }
    }
}

/// `G` groups of sixteen tokens from `first` on.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn columns<const G: usize>(
    lists: &Lists,
    x: &[f32],
    width: usize,
    first: usize,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps};
    let (x, out) = (x.as_ptr(), out.as_mut_ptr());
    for line in 0..lists.starts.len() - 1 {
        let start = bias.map_or(0.0, |bias| bias[line]);
        let mut sums = [_mm512_set1_ps(start); G];
        for entry in lists.line(line) {
            let weight = _mm512_set1_ps(entry.weight);
            // SAFETY: see the caller.
            let row = unsafe { x.add(entry.at as usize * width + first) };
            for (group, sum) in sums.iter_mut().enumerate() {
                // SAFETY: see the caller.
                let values = unsafe { _mm512_loadu_ps(row.add(group * LANES)) };
                *sum = _mm512_fmadd_ps(weight, values, *sum);
            }
        }
        for (group, sum) in sums.into_iter().enumerate() {
            // SAFETY: see the caller.
            unsafe { _mm512_storeu_ps(out.add(line * width + first + group * LANES), sum) };
        }
    }
}
