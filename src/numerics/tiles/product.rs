//! Products of a weight matrix with a tile: `y = W x + b` and `x' = W^T y'`.
//!
//! `W [outputs, inputs]`, `x [inputs][width]`, `y [outputs][width]`. A matrix with few nonzero weights is kept as lists
//! of them, by output and by input, and costs as many scaled additions; one with many is multiplied whole. The weight
//! gradient `y' x^T` is whole in either case, because a weight that is zero must be able to come back.

use gemm::Parallelism;

use super::processor::{Instructions, LANES, Processor};
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

    /// Only the entries whose other end is kept.
    fn of(&self, kept: &[bool]) -> Self {
        let mut restricted = Lists {
            starts: vec![0],
            entries: Vec::new(),
        };
        for index in 0..self.starts.len() - 1 {
            let line = self.line(index).iter();
            restricted
                .entries
                .extend(line.filter(|entry| kept[entry.at as usize]));
            restricted.starts.push(restricted.entries.len() as u32);
        }
        restricted
    }
}

impl WeightMatrix {
    /// From a row-major matrix; how it is kept follows from how many of its weights are zero.
    pub fn new(weights: &[f32], outputs: usize, inputs: usize) -> Self {
        let _timed = Part::Preparation.begin();
        let nonzero = weights.iter().filter(|&&weight| weight != 0.0).count();
        let is_sparse = (nonzero as f64) < SPARSE_BELOW * weights.len() as f64;
        let kind = match is_sparse {
            true => {
                let (by_output, by_input) = lists(weights, outputs, inputs, nonzero);
                Storage::Lists {
                    by_output,
                    by_input,
                }
            }
            false => Storage::Whole(weights.to_vec()),
        };
        WeightMatrix {
            outputs,
            inputs,
            kind,
        }
    }

    /// The matrix as a masked pass multiplies by it: forward without the inputs that are not kept, backward without the
    /// outputs that are not, whose gradients are zero. Second, what the inputs that are not kept add to each output when
    /// they are at `held`. None where everything is kept.
    pub fn restricted(
        &self,
        kept_inputs: &[bool],
        held: &[f32],
        kept_outputs: &[bool],
    ) -> Option<(Self, Vec<f32>)> {
        if kept_inputs.iter().chain(kept_outputs).all(|kept| *kept) {
            return None;
        }
        let all;
        let (by_output, by_input) = match &self.kind {
            Storage::Lists {
                by_output,
                by_input,
            } => (by_output, by_input),
            Storage::Whole(weights) => {
                all = lists(weights, self.outputs, self.inputs, weights.len());
                (&all.0, &all.1)
            }
        };
        let added = (0..self.outputs).map(|output| {
            let entries = by_output.line(output).iter();
            let held_entries = entries.filter(|entry| !kept_inputs[entry.at as usize]);
            held_entries
                .map(|entry| entry.weight * held[entry.at as usize])
                .sum()
        });
        let added = added.collect();
        let restricted = WeightMatrix {
            outputs: self.outputs,
            inputs: self.inputs,
            kind: Storage::Lists {
                by_output: by_output.of(kept_inputs),
                by_input: by_input.of(kept_outputs),
            },
        };
        Some((restricted, added))
    }

    /// `y = W x + b`; without a bias `y = W x`.
    pub fn forward(
        &self,
        cpu: Processor,
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
    pub fn backward(&self, cpu: Processor, grad_y: &[f32], width: usize, grad_x: &mut [f32]) {
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

/// The nonzero weights of a matrix by output and by input.
fn lists(weights: &[f32], outputs: usize, inputs: usize, nonzero: usize) -> (Lists, Lists) {
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
    (by_output, Lists { starts, entries })
}

/// `out[line] = bias[line] + sum of weight * x[at]` over the entries of each line, 128 tokens at a time.
fn scaled_rows(
    cpu: Processor,
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
            let most = match cpu.instructions() {
                Instructions::Avx512 => 8,
                // As many as there are registers for.
                Instructions::Avx2 => 4,
            };
            let groups = match ((width - first) / LANES).min(most) {
                8 => 8,
                4..=7 => 4,
                2 | 3 => 2,
                _ => 1,
            };
            // SAFETY: `Processor` proves the instructions; every row that an entry names lies in `x`, every line in
            // `out`, as asserted above, and `first + groups * LANES <= width`.
            unsafe {
                match (cpu.instructions(), groups) {
                    (Instructions::Avx512, 8) => columns::<8>(lists, x, width, first, bias, out),
                    (Instructions::Avx512, 4) => columns::<4>(lists, x, width, first, bias, out),
                    (Instructions::Avx512, 2) => columns::<2>(lists, x, width, first, bias, out),
                    (Instructions::Avx512, _) => columns::<1>(lists, x, width, first, bias, out),
                    (Instructions::Avx2, 4) => {
                        narrow_columns::<4>(lists, x, width, first, bias, out)
                    }
                    (Instructions::Avx2, 2) => {
                        narrow_columns::<2>(lists, x, width, first, bias, out)
                    }
                    (Instructions::Avx2, _) => {
                        narrow_columns::<1>(lists, x, width, first, bias, out)
                    }
                }
            }
            first += groups * LANES;
        }
    }
}

/// [`columns`] for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn narrow_columns<const G: usize>(
    lists: &Lists,
    x: &[f32],
    width: usize,
    first: usize,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    for line in 0..lists.starts.len() - 1 {
        let start = bias.map_or(0.0, |bias| bias[line]);
        let mut sums = [[start; LANES]; G];
        for entry in lists.line(line) {
            let row = &x[entry.at as usize * width + first..][..G * LANES];
            for (sum, values) in sums.iter_mut().zip(row.chunks_exact(LANES)) {
                for (sum, value) in sum.iter_mut().zip(values) {
                    *sum = entry.weight.mul_add(*value, *sum);
                }
            }
        }
        let row = &mut out[line * width + first..][..G * LANES];
        for (out, sum) in row.chunks_exact_mut(LANES).zip(&sums) {
            out.copy_from_slice(sum);
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
