//! The linear map that takes one stream to another with the least squared error.
//!
//! `W, b` minimising `sum_rows |W x + b - y|^2 + ridge |W|^2` from accumulated moments, so that any number of
//! rows `x [rows, in]`, `y [rows, out]` can be added. Solved by Cholesky's factorisation in float64.

use candle_core::{Device, Result, Tensor, bail};

use crate::numerics::rows;

/// Moments of the rows seen so far.
pub struct LeastSquares {
    inputs: usize,
    outputs: usize,
    count: f64,
    /// Sums of `x` and `y`.
    sum_x: Vec<f64>,
    sum_y: Vec<f64>,
    /// `sum x x^T [in, in]` and `sum x y^T [in, out]`.
    xx: Vec<f64>,
    xy: Vec<f64>,
}

impl LeastSquares {
    pub fn new(inputs: usize, outputs: usize) -> Self {
        LeastSquares {
            inputs,
            outputs,
            count: 0.0,
            sum_x: vec![0.0; inputs],
            sum_y: vec![0.0; outputs],
            xx: vec![0.0; inputs * inputs],
            xy: vec![0.0; inputs * outputs],
        }
    }

    /// Adds rows `x [rows, in]` with what they should become, `y [rows, out]`.
    pub fn add(&mut self, x: &Tensor, y: &Tensor) -> Result<()> {
        let (n_rows, inputs) = x.dims2()?;
        if inputs != self.inputs || y.dims2()? != (n_rows, self.outputs) {
            bail!(
                "expected rows of {} and {} values",
                self.inputs,
                self.outputs
            )
        }
        let add = |total: &mut [f64], part: Tensor| -> Result<()> {
            for (total, part) in total.iter_mut().zip(rows::to_vec(&part)?) {
                *total += f64::from(part);
            }
            Ok(())
        };
        self.count += n_rows as f64;
        add(&mut self.sum_x, x.sum(0)?)?;
        add(&mut self.sum_y, y.sum(0)?)?;
        add(&mut self.xx, x.t()?.matmul(x)?)?;
        add(&mut self.xy, x.t()?.matmul(y)?)
    }

    /// The map's `W [out, in]` and `b [out]`. `ridge` is relative to the inputs' mean variance.
    pub fn solve(&self, ridge: f64) -> Result<(Tensor, Tensor)> {
        let (n, m) = (self.inputs, self.outputs);
        if self.count < 2.0 {
            bail!("a map cannot be fitted to {} rows", self.count)
        }
        let mean_x: Vec<f64> = self.sum_x.iter().map(|sum| sum / self.count).collect();
        let mean_y: Vec<f64> = self.sum_y.iter().map(|sum| sum / self.count).collect();
        let mut covariance = self.xx.clone();
        for (row, values) in covariance.chunks_exact_mut(n).enumerate() {
            for (column, value) in values.iter_mut().enumerate() {
                *value -= self.count * mean_x[row] * mean_x[column];
            }
        }
        let variance = (0..n).map(|i| covariance[i * n + i]).sum::<f64>() / n as f64;
        for i in 0..n {
            covariance[i * n + i] += ridge * variance + f64::MIN_POSITIVE;
        }
        let mut cross = self.xy.clone();
        for (row, values) in cross.chunks_exact_mut(m).enumerate() {
            for (column, value) in values.iter_mut().enumerate() {
                *value -= self.count * mean_x[row] * mean_y[column];
            }
        }
        factorise(&mut covariance, n)?;
        substitute(&covariance, n, &mut cross, m);
        let bias: Vec<f32> = (0..m)
            .map(|o| (mean_y[o] - (0..n).map(|i| cross[i * m + o] * mean_x[i]).sum::<f64>()) as f32)
            .collect();
        let by_input: Vec<f32> = cross.iter().map(|&value| value as f32).collect();
        let weight = Tensor::from_vec(by_input, (n, m), &Device::Cpu)?
            .t()?
            .contiguous()?;
        Ok((weight, Tensor::from_vec(bias, m, &Device::Cpu)?))
    }
}

/// Replaces the lower triangle of a symmetric positive matrix by its Cholesky factor.
fn factorise(a: &mut [f64], n: usize) -> Result<()> {
    for j in 0..n {
        for i in j..n {
            let products: f64 = (0..j).map(|k| a[i * n + k] * a[j * n + k]).sum();
            let rest = a[i * n + j] - products;
            if i > j {
                a[i * n + j] = rest / a[j * n + j];
            } else if rest > 0.0 {
                a[j * n + j] = rest.sqrt();
            } else {
                bail!("the inputs of the map do not vary; more rows or a larger ridge are needed")
            }
        }
    }
    Ok(())
}

/// Replaces `b [n, m]` by the solution of `L L^T x = b`.
fn substitute(l: &[f64], n: usize, b: &mut [f64], m: usize) {
    for column in 0..m {
        for i in 0..n {
            let done: f64 = (0..i).map(|k| l[i * n + k] * b[k * m + column]).sum();
            b[i * m + column] = (b[i * m + column] - done) / l[i * n + i];
        }
        for i in (0..n).rev() {
            let done: f64 = (i + 1..n).map(|k| l[k * n + i] * b[k * m + column]).sum();
            b[i * m + column] = (b[i * m + column] - done) / l[i * n + i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    #[test]
    fn a_linear_map_is_found_again() -> Result<()> {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut noise = |shape: (usize, usize)| {
            let values = (0..shape.0 * shape.1).map(|_| rng.random_range(-1.0..1.0f32));
            Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)
        };
        let (x, weight) = (noise((200, 5))?, noise((3, 5))?);
        let bias = Tensor::new(&[0.5f32, -2.0, 7.0], &Device::Cpu)?;
        let y = x.matmul(&weight.t()?)?.broadcast_add(&bias)?;
        let mut fit = LeastSquares::new(5, 3);
        for half in 0..2 {
            fit.add(
                &x.narrow(0, half * 100, 100)?,
                &y.narrow(0, half * 100, 100)?,
            )?;
        }
        let (found, offset) = fit.solve(1e-9)?;
        for (a, b) in [(found, weight), (offset, bias)] {
            for (a, b) in rows::to_vec(&a)?.iter().zip(rows::to_vec(&b)?) {
                assert!((a - b).abs() < 1e-3, "{a} {b}");
            }
        }
        Ok(())
    }
}
