//! AbsTopK, norms, and products with sparse matrices.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use causeway::numerics::abs_top_k::keep_largest;
use causeway::numerics::columns::Columns;
use causeway::numerics::kernels::{LANES, WARPS};
use causeway::numerics::norm::{layer_norm, rms_norm};
use causeway::numerics::softmax;

use super::emulation::{Emulation, Launch};
use super::values::{
    Element, Noise, assert_alone_as_in_batch, assert_near, assert_same, assert_same_numbers,
    bytes_of_rows, picked,
};

fn words(width: usize) -> usize {
    width.div_ceil(LANES as usize)
}

/// A row's k largest by the oracle.
fn kept(row: &[f32], k: usize) -> Vec<f32> {
    let mut out = vec![0.0; row.len()];
    keep_largest(row, k, &mut out);
    out
}

fn top_k_launch<E: Element>(x: &[E], rows: usize, width: usize, k: usize) -> Launch {
    Launch::new(format!("abs_top_k_{}", E::SUFFIX), [rows, 1, 1])
        .shared(4 * (width + words(width)))
        .input(x)
        .output::<E>(rows * width)
        .output::<u32>(rows * words(width))
        .output::<i32>(rows * k)
        .output::<E>(rows * k)
        .output::<u32>(rows)
        .count(width)
        .count(k)
}

pub fn abs_top_k<E: Element>(emulation: &mut Emulation) {
    let mut noise = Noise::new(1);
    for (rows, width) in [(1, 1), (5, 2), (257, 33), (5, 256), (5, 1000), (5, 8192)] {
        let x = E::all(&noise.rows(rows, width));
        let grad = E::all(&noise.many(rows * width));
        for k in [0, 1, width / 4, width - 1, width, width + 3] {
            if rows == 257 && ![0, width / 4, width].contains(&k) {
                continue;
            }
            let what = format!("AbsTopK of {rows} x {width}, k {k}");
            let mut left = emulation.run(&top_k_launch(&x, rows, width, k));
            let (y, mask) = (left.take::<E>(), left.take::<u32>());
            let (indices, values) = (left.take::<i32>(), left.take::<E>());
            let counts = left.take::<u32>();
            let mut expected_grad = Vec::new();
            for row in 0..rows {
                let of_row = row * width..(row + 1) * width;
                let expected = kept(&E::values(&x[of_row.clone()]), k);
                assert_same(&E::values(&y[of_row.clone()]), &expected, &what);
                let mask = &mask[row * words(width)..][..words(width)];
                let listed: Vec<usize> = (0..width).filter(|&i| expected[i] != 0.0).collect();
                for i in 0..width {
                    let passes = mask[i / 32] >> (i % 32) & 1 == 1;
                    assert_eq!(passes, k >= width || expected[i] != 0.0, "{what}, mask {i}");
                    let grad = grad[row * width + i];
                    expected_grad.push(if passes { grad } else { E::of(0.0) });
                }
                assert_eq!(counts[row] as usize, listed.len(), "{what}");
                for place in 0..k {
                    let (index, value) = (indices[row * k + place], values[row * k + place]);
                    match listed.get(place) {
                        Some(&channel) => {
                            assert_eq!(index, channel as i32, "{what}");
                            assert_same(&[value], &[y[row * width + channel]], &what);
                        }
                        None => {
                            assert_eq!(index, -1, "{what}");
                            assert_same(&[value], &[E::of(0.0)], &what);
                        }
                    }
                }
            }
            let backward = Launch::new(format!("abs_top_k_backward_{}", E::SUFFIX), [3, 1, 1])
                .input(&grad)
                .input(&mask)
                .output::<E>(rows * width)
                .count(rows)
                .count(width);
            let found = emulation.run(&backward).take::<E>();
            assert_same(&found, &expected_grad, &format!("gradient of {what}"));
        }
    }
    // Nothing but the values is wanted.
    let x = E::all(&noise.rows(64, 70));
    assert_alone_as_in_batch(64, "AbsTopK", |rows| {
        let launch = Launch::new(format!("abs_top_k_{}", E::SUFFIX), [rows.len(), 1, 1])
            .shared(4 * (70 + words(70)))
            .input(&picked(&x, 70, rows))
            .output::<E>(rows.len() * 70);
        let launch = launch.null().null().null().null().count(70).count(17);
        bytes_of_rows(&emulation.run(&launch).take::<E>(), 70)
    });
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    None = 0,
    Rms = 1,
    Layer = 2,
}

const EPSILON: f32 = 1e-5;

fn norm_launch<E: Element>(x: &[E], gain: &[f32], bias: Option<&[f32]>, kind: Kind) -> Launch {
    let width = gain.len();
    Launch::new(format!("norm_{}", E::SUFFIX), [x.len() / width, 1, 1])
        .shared(4 * width)
        .input(x)
        .input(gain)
        .optional(bias)
        .output::<E>(x.len())
        .count(width)
        .count(width)
        .number(EPSILON)
        .count(kind as usize)
}

fn norm_oracle(x: &[f32], gain: &[f32], bias: Option<&[f32]>, kind: Kind) -> Vec<f32> {
    let width = gain.len();
    let tensor = |values: &[f32], shape: &[usize]| {
        Tensor::from_slice(values, shape, &Device::Cpu).expect("a tensor")
    };
    let x = tensor(x, &[x.len() / width, width]);
    let gain = tensor(gain, &[width]);
    let bias = bias.map(|bias| tensor(bias, &[width]));
    let y = match kind {
        Kind::None => Ok(x),
        Kind::Rms => rms_norm(&x, &gain, EPSILON),
        Kind::Layer => layer_norm(&x, &gain, bias.as_ref(), EPSILON),
    };
    let y = y.and_then(|y| y.flatten_all()?.to_vec1());
    y.expect("a norm")
}

pub fn norm<E: Element>(emulation: &mut Emulation) {
    let mut noise = Noise::new(2);
    for (rows, width) in [(1, 1), (6, 2), (257, 33), (6, 1000), (6, 8192)] {
        let mut x = noise.rows(rows, width);
        if rows > 5 {
            // Squares that overflow, and a row of zeros.
            x[0] = 1e30;
            x[5 * width..].fill(0.0);
        }
        let x = E::all(&x);
        let (gain, bias) = (noise.many(width), noise.many(width));
        for (kind, bias) in [
            (Kind::Rms, None),
            (Kind::Layer, None),
            (Kind::Layer, Some(bias.as_slice())),
        ] {
            let found = emulation
                .run(&norm_launch(&x, &gain, bias, kind))
                .take::<E>();
            let expected = norm_oracle(&E::values(&x), &gain, bias, kind);
            let what = format!("norm {} of {rows} x {width}", kind as usize);
            assert_near(&found, &expected, 4e-6, &what);
        }
    }
    let x = E::all(&noise.finite_rows(64, 300));
    let gain = noise.many(300);
    // Into rows of more channels, the others of which stay.
    let launch = Launch::new(format!("norm_{}", E::SUFFIX), [64, 1, 1])
        .shared(4 * 300)
        .input(&x)
        .input(&gain)
        .null()
        .changed(&[E::of(7.0); 64 * 303])
        .count(300)
        .count(303)
        .number(EPSILON)
        .count(Kind::Rms as usize);
    let wide = emulation.run(&launch).take::<E>();
    let own = norm_launch(&x, &gain, None, Kind::Rms);
    let narrow = emulation.run(&own).take::<E>();
    for (wide, narrow) in wide.chunks_exact(303).zip(narrow.chunks_exact(300)) {
        assert_same(&wide[..300], narrow, "norm into wider rows");
        assert_same(&wide[300..], &[E::of(7.0); 3], "beside a norm");
    }
    assert_alone_as_in_batch(64, "norm", |rows| {
        let launch = norm_launch(&picked(&x, 300, rows), &gain, None, Kind::Layer);
        bytes_of_rows(&emulation.run(&launch).take::<E>(), 300)
    });
}

/// A sparse matrix `[outputs, inputs]` in the layouts of both kernels.
struct Matrix<E> {
    inputs: usize,
    outputs: usize,
    panel: usize,
    dense: Vec<f32>,
    bias: Vec<f32>,
    /// By columns within panels.
    column_starts: Vec<u32>,
    column_outputs: Vec<u16>,
    column_weights: Vec<E>,
    /// By rows.
    row_starts: Vec<u32>,
    row_inputs: Vec<u16>,
    row_weights: Vec<E>,
}

impl<E: Element> Matrix<E> {
    fn random(noise: &mut Noise, inputs: usize, outputs: usize, panel: usize) -> Self {
        let mut dense = vec![0.0; inputs * outputs];
        for weight in &mut dense {
            if noise.below(8) == 0 {
                *weight = E::of(noise.one()).value();
            }
        }
        let (mut column_starts, mut column_outputs, mut column_weights) =
            (Vec::new(), Vec::new(), Vec::new());
        for first in (0..outputs).step_by(panel) {
            for input in 0..inputs {
                column_starts.push(column_weights.len() as u32);
                for output in first..outputs.min(first + panel) {
                    let weight = dense[output * inputs + input];
                    if weight != 0.0 {
                        column_outputs.push((output - first) as u16);
                        column_weights.push(E::of(weight));
                    }
                }
            }
            column_starts.push(column_weights.len() as u32);
        }
        let (mut row_starts, mut row_inputs, mut row_weights) = (vec![0], Vec::new(), Vec::new());
        for row in dense.chunks_exact(inputs) {
            for (input, &weight) in row.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
                row_inputs.push(input as u16);
                row_weights.push(E::of(weight));
            }
            row_starts.push(row_weights.len() as u32);
        }
        Matrix {
            inputs,
            outputs,
            panel,
            dense,
            bias: noise.many(outputs),
            column_starts,
            column_outputs,
            column_weights,
            row_starts,
            row_inputs,
            row_weights,
        }
    }

    /// `norm_top_k_product`: what entered the product, and what came out.
    fn decode(
        &self,
        emulation: &mut Emulation,
        x: &[E],
        gain: &[f32],
        (kind, k): (Kind, usize),
    ) -> (Vec<E>, Vec<E>) {
        let rows = x.len() / self.inputs;
        let panels = self.outputs.div_ceil(self.panel);
        let launch = Launch::new(
            format!("norm_top_k_product_{}", E::SUFFIX),
            [rows, panels, 1],
        )
        .shared(4 * (self.inputs + WARPS as usize * self.panel))
        .input(x)
        .input(gain)
        .null()
        .input(&self.column_starts)
        .input(&self.column_outputs)
        .input(&self.column_weights)
        .input(&self.bias)
        .output::<E>(rows * self.inputs)
        .output::<E>(rows * self.outputs)
        .count(self.inputs)
        .count(self.outputs)
        .count(self.panel)
        .number(EPSILON)
        .count(kind as usize)
        .count(k);
        let mut left = emulation.run(&launch);
        (left.take(), left.take())
    }

    /// `sparse_product` behind `transpose`.
    fn product(&self, emulation: &mut Emulation, x: &[E]) -> Vec<E> {
        let rows = x.len() / self.inputs;
        let stride = rows + 3;
        let (across, down) = (self.inputs.div_ceil(32), rows.div_ceil(32));
        let transposed = Launch::new(format!("transpose_{}", E::SUFFIX), [across, down, 1])
            .input(x)
            .changed(&vec![E::of(f32::NAN); self.inputs * stride])
            .count(rows)
            .count(self.inputs)
            .count(stride);
        let by_channel = emulation.run(&transposed).take::<E>();
        for (channel, values) in by_channel.chunks_exact(stride).enumerate() {
            let expected: Vec<E> = (0..rows)
                .map(|row| x[row * self.inputs + channel])
                .collect();
            assert_same(&values[..rows], &expected, "transposed");
            assert!(values[rows..].iter().all(|value| value.value().is_nan()));
        }
        let grid = [self.outputs.div_ceil(32), down, 1];
        let product = Launch::new(format!("sparse_product_{}", E::SUFFIX), grid)
            .input(&by_channel)
            .input(&self.row_starts)
            .input(&self.row_inputs)
            .input(&self.row_weights)
            .input(&self.bias)
            .output::<E>(rows * self.outputs)
            .count(rows)
            .count(self.inputs)
            .count(self.outputs)
            .count(stride);
        emulation.run(&product).take()
    }

    fn oracle(&self, x: &[f32]) -> Vec<f32> {
        let shape = (self.outputs, self.inputs);
        let weight = Tensor::from_slice(&self.dense, shape, &Device::Cpu).expect("a matrix");
        let bias = Tensor::from_slice(&self.bias, self.outputs, &Device::Cpu).expect("a bias");
        let columns = Arc::new(Columns::new(&weight, Some(&bias)).expect("columns"));
        let mut y = vec![0.0; x.len() / self.inputs * self.outputs];
        columns.multiply(x, &mut y);
        y
    }
}

pub fn sparse_products<E: Element>(emulation: &mut Emulation) {
    let mut noise = Noise::new(3);
    for (rows, inputs, outputs, panel) in [
        (1, 1, 1, 1),
        (6, 64, 100, 32),
        (65, 33, 40, 40),
        (33, 257, 300, 128),
        (2, 2048, 1030, 1024),
        (1, 8192, 64, 64),
    ] {
        let matrix = Matrix::<E>::random(&mut noise, inputs, outputs, panel);
        let x = E::all(&noise.rows(rows, inputs));
        let gain = noise.many(inputs);
        for (kind, k) in [
            (Kind::Rms, inputs / 4),
            (Kind::Layer, 1),
            (Kind::None, inputs),
            (Kind::Rms, 0),
        ] {
            let what = format!(
                "product {rows} x {inputs} x {outputs}, norm {}, k {k}",
                kind as usize
            );
            let (active, y) = matrix.decode(emulation, &x, &gain, (kind, k));
            // Fused or not, the same channels stay.
            let normed = match kind {
                Kind::None => x.clone(),
                _ => emulation
                    .run(&norm_launch(&x, &gain, None, kind))
                    .take::<E>(),
            };
            let active_values = E::values(&active);
            for (found, normed) in active_values
                .chunks_exact(inputs)
                .zip(E::values(&normed).chunks_exact(inputs))
            {
                assert_same(found, &kept(normed, k), &what);
            }
            assert_near(&y, &matrix.oracle(&active_values), 4e-5, &what);
            let found = matrix.product(emulation, &active);
            assert_same_numbers(&found, &y, &format!("{what}, by rows as by columns"));
        }
    }
    let matrix = Matrix::<E>::random(&mut noise, 130, 70, 32);
    let (x, gain) = (E::all(&noise.finite_rows(64, 130)), noise.many(130));
    assert_alone_as_in_batch(64, "product by columns", |rows| {
        let x = picked(&x, 130, rows);
        let (_, y) = matrix.decode(emulation, &x, &gain, (Kind::Rms, 32));
        bytes_of_rows(&y, 70)
    });
    assert_alone_as_in_batch(64, "product by rows", |rows| {
        bytes_of_rows(&matrix.product(emulation, &picked(&x, 130, rows)), 70)
    });
}

/// By `dense_decode` or `dense_tile`.
fn dense_product<E: Element>(
    emulation: &mut Emulation,
    kernel: &str,
    x: &[f32],
    weights: &[E],
    bias: Option<&[f32]>,
    (inputs, outputs): (usize, usize),
) -> Vec<f32> {
    let rows = x.len() / inputs;
    let (across, down) = match kernel {
        "dense_decode" => (32, 4),
        _ => (64, 64),
    };
    let grid = [outputs.div_ceil(across), rows.div_ceil(down), 1];
    let launch = Launch::new(format!("{kernel}_{}", E::SUFFIX), grid)
        .input(x)
        .input(weights)
        .optional(bias)
        .output::<f32>(rows * outputs)
        .count(rows)
        .count(inputs)
        .count(outputs);
    emulation.run(&launch).take()
}

pub fn dense_products<E: Element>(emulation: &mut Emulation) {
    let mut noise = Noise::new(12);
    for (rows, inputs, outputs) in [
        (1, 1, 1),
        (4, 8192, 3),
        (5, 33, 40),
        (65, 257, 70),
        (257, 40, 33),
    ] {
        let x = noise.finite_rows(rows, inputs);
        let weights = E::all(&noise.many(inputs * outputs));
        let bias = noise.many(outputs);
        let bias = (rows != 5).then_some(bias.as_slice());
        let tensor = |values: &[f32], shape: (usize, usize)| {
            Tensor::from_slice(values, shape, &Device::Cpu).expect("a matrix")
        };
        let values = tensor(&E::values(&weights), (inputs, outputs));
        let y = tensor(&x, (rows, inputs)).matmul(&values);
        let y = y.and_then(|y| match bias {
            Some(bias) => y.broadcast_add(&Tensor::new(bias, &Device::Cpu)?),
            None => Ok(y),
        });
        let expected = y
            .and_then(|y| y.flatten_all()?.to_vec1())
            .expect("a product");
        let shape = (inputs, outputs);
        let what = format!("dense product {rows} x {inputs} x {outputs}");
        let decoded = dense_product(emulation, "dense_decode", &x, &weights, bias, shape);
        assert_near(&decoded, &expected, 1e-5 * (inputs as f32).sqrt(), &what);
        let tiled = dense_product(emulation, "dense_tile", &x, &weights, bias, shape);
        assert_same(&tiled, &decoded, &format!("{what}, by tiles"));
    }
    // Among 64 rows by tiles, alone by segments.
    let (x, weights) = (noise.many(64 * 300), E::all(&noise.many(300 * 70)));
    assert_alone_as_in_batch(64, "dense product", |rows| {
        let kernel = match rows.len() {
            1 => "dense_decode",
            _ => "dense_tile",
        };
        let x = picked(&x, 300, rows);
        bytes_of_rows(
            &dense_product(emulation, kernel, &x, &weights, None, (300, 70)),
            70,
        )
    });
}

pub fn draws(emulation: &mut Emulation) {
    let mut noise = Noise::new(13);
    for (rows, vocabulary) in [(1, 1), (7, 63), (40, 300), (5, 8192)] {
        let mut logits: Vec<f32> = noise
            .many(rows * vocabulary)
            .iter()
            .map(|x| (6.0 * x).round() * 0.7)
            .collect();
        if rows == 7 {
            logits[3 * vocabulary + 5] = f32::NAN;
            logits[4 * vocabulary + 6] = f32::NEG_INFINITY;
        }
        let inverse = |row: usize| [0.0, 1.0, 3.0, 200.0][row % 4];
        let inverses: Vec<f32> = (0..rows).map(inverse).collect();
        let shares: Vec<f64> = (0..rows)
            .map(|row| match row {
                0..4 => 0.0,
                4..8 => 1.0 - f64::EPSILON / 2.0,
                _ => f64::from(noise.one().abs()),
            })
            .collect();
        let launch = Launch::new("draw_f32", [rows, 1, 1])
            .shared(4 * vocabulary.div_ceil(64))
            .input(&logits)
            .input(&inverses)
            .input(&shares)
            .output::<i32>(rows)
            .count(vocabulary);
        let found = emulation.run(&launch).take::<i32>();
        for (row, logits) in logits.chunks_exact(vocabulary).enumerate() {
            let expected = match softmax::largest(logits) {
                _ if logits.iter().any(|logit| !logit.is_finite()) => None,
                Some((token, _)) if inverses[row] == 0.0 => Some(token),
                Some((_, top)) => {
                    let weights = softmax::weights(logits, top, inverses[row]);
                    softmax::at_share(&weights, shares[row])
                }
                None => None,
            };
            let expected = expected.map_or(-1, |token| token as i32);
            assert_eq!(found[row], expected, "draw {row} of {vocabulary}");
        }
    }
}
