//! Rotary positions: pairs of channels of every head turned by an angle of the row's own, with the gradient.
//!
//! `x [rows, heads * d_head] -> the same`. Of each head the first `2 * pairs` channels are turned:
//! `(a, b) -> (a cos - b sin, b cos + a sin)`; the rest goes through. The gradient turns the other way.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};

use super::{kernels, rows};

/// Cosines and sines of every row's angles, `[rows, pairs]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Turns {
    pub pairs: usize,
    pub cosines: Vec<f32>,
    pub sines: Vec<f32>,
}

/// How a head's channels are paired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pairing {
    pub d_head: usize,
    /// Channel `2i` is turned with `2i + 1`, not `i` with `i + pairs`.
    pub neighbours: bool,
}

impl Pairing {
    #[inline(always)]
    fn of(self, pair: usize, pairs: usize) -> (usize, usize) {
        match self.neighbours {
            true => (2 * pair, 2 * pair + 1),
            false => (pair, pair + pairs),
        }
    }
}

/// Turns every head of every row.
pub fn rotate(x: &Tensor, turns: &Arc<Turns>, pairing: Pairing) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    if turns.cosines.len() != rows * turns.pairs
        || !width.is_multiple_of(pairing.d_head)
        || 2 * turns.pairs > pairing.d_head
    {
        bail!(
            "{rows} rows of {width} channels cannot be turned by {} angles, {} a row",
            turns.cosines.len(),
            turns.pairs
        )
    }
    if kernels::run_on(x.device()) && !x.track_op() {
        let on_device =
            |angles: &[f32]| Tensor::from_slice(angles, (rows, turns.pairs), x.device());
        let (cosines, sines) = (on_device(&turns.cosines)?, on_device(&turns.sines)?);
        let Pairing { d_head, neighbours } = pairing;
        return kernels::operations::rotate(x, &cosines, &sines, d_head, neighbours);
    }
    if !x.device().is_cpu() {
        return composed(x, turns, pairing);
    }
    x.contiguous()?.apply_op1(Rotate {
        turns: turns.clone(),
        pairing,
        back: false,
    })
}

struct Rotate {
    turns: Arc<Turns>,
    pairing: Pairing,
    /// Turn the other way.
    back: bool,
}

impl Rotate {
    fn turn(&self, values: &[f32], width: usize) -> Vec<f32> {
        let Turns {
            pairs,
            cosines,
            sines,
        } = &*self.turns;
        let mut output = vec![0f32; values.len()];
        rows::map_rows(values, width, &mut output, width, |row, x, out| {
            let at = row * pairs..(row + 1) * pairs;
            let (cosines, sines) = (&cosines[at.clone()], &sines[at]);
            let heads = x.chunks_exact(self.pairing.d_head);
            for (x, out) in heads.zip(out.chunks_exact_mut(self.pairing.d_head)) {
                out[2 * pairs..].copy_from_slice(&x[2 * pairs..]);
                for (pair, (&cosine, &sine)) in cosines.iter().zip(sines).enumerate() {
                    let sine = if self.back { -sine } else { sine };
                    let (a, b) = self.pairing.of(pair, *pairs);
                    out[a] = x[a] * cosine - x[b] * sine;
                    out[b] = x[b] * cosine + x[a] * sine;
                }
            }
        });
        output
    }
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let output = self.turn(rows::values(storage, layout)?, rows::width(layout)?);
        Ok((CpuStorage::F32(output), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let width = grad.dim(D::Minus1)?;
        let back = Rotate {
            turns: self.turns.clone(),
            pairing: self.pairing,
            back: !self.back,
        };
        let output = rows::with_values(grad, |grad| back.turn(grad, width))?;
        Ok(Some(Tensor::from_vec(output, grad.shape(), grad.device())?))
    }
}

/// The same out of candle's operations, for devices without a kernel of ours.
fn composed(x: &Tensor, turns: &Turns, pairing: Pairing) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (pairs, d_head) = (turns.pairs, pairing.d_head);
    let angles = |values: &[f32]| {
        let shape = match pairing.neighbours {
            true => (rows, 1, pairs, 1),
            false => (rows, 1, 1, pairs),
        };
        Tensor::from_slice(values, shape, x.device())
    };
    let (cosines, sines) = (angles(&turns.cosines)?, angles(&turns.sines)?);
    let x = x.reshape((rows, width / d_head, d_head))?;
    let turned = x.narrow(2, 0, 2 * pairs)?;
    let heads = width / d_head;
    // The two of a pair lie along the last axis, or along the one before it.
    let (shape, axis) = match pairing.neighbours {
        true => ((rows, heads, pairs, 2), 3),
        false => ((rows, heads, 2, pairs), 2),
    };
    let both = turned.contiguous()?.reshape(shape)?;
    let (a, b) = (both.narrow(axis, 0, 1)?, both.narrow(axis, 1, 1)?);
    let new_a = (a.broadcast_mul(&cosines)? - b.broadcast_mul(&sines)?)?;
    let new_b = (b.broadcast_mul(&cosines)? + a.broadcast_mul(&sines)?)?;
    let turned = Tensor::cat(&[&new_a, &new_b], axis)?.reshape((rows, heads, 2 * pairs))?;
    let rest = x.narrow(2, 2 * pairs, d_head - 2 * pairs)?;
    Tensor::cat(&[&turned, &rest.contiguous()?], 2)?.reshape((rows, width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn kernel_and_composed_version_agree_in_value_and_gradient() -> Result<()> {
        let (rows, heads, pairs) = (3, 2, 3);
        for (d_head, neighbours) in [(6, false), (10, false), (6, true), (8, true)] {
            let pairing = Pairing { d_head, neighbours };
            let angles: Vec<f32> = (0..rows * pairs).map(|i| i as f32 * 0.37).collect();
            let turns = Arc::new(Turns {
                pairs,
                cosines: angles.iter().map(|angle| angle.cos()).collect(),
                sines: angles.iter().map(|angle| angle.sin()).collect(),
            });
            let values = (0..rows * heads * d_head).map(|i| (i as f32 * 0.7).sin());
            let x = Var::from_tensor(
                &Tensor::from_iter(values, &Device::Cpu)?.reshape((rows, heads * d_head))?,
            )?;
            let weights = (0..rows * heads * d_head).map(|i| (i as f32 * 1.3).cos());
            let weights =
                Tensor::from_iter(weights, &Device::Cpu)?.reshape((rows, heads * d_head))?;
            let mut outcomes = Vec::new();
            for y in [rotate(&x, &turns, pairing)?, composed(&x, &turns, pairing)?] {
                let grads = (&y * &weights)?.sum_all()?.backward()?;
                let mut all = rows::to_vec(&y)?;
                all.extend(rows::to_vec(grads.get(&x).expect("a gradient"))?);
                outcomes.push(all);
            }
            for (one, other) in outcomes[0].iter().zip(&outcomes[1]) {
                assert!(
                    (one - other).abs() < 1e-6,
                    "{d_head} {neighbours}: {one} {other}"
                );
            }
            // A turn keeps the length.
            let norm = |values: &[f32]| values.iter().map(|x| x * x).sum::<f32>();
            let half = outcomes[0].len() / 2;
            let before = rows::to_vec(&x)?;
            assert!((norm(&outcomes[0][..half]) - norm(&before)).abs() < 1e-4);
        }
        Ok(())
    }
}
