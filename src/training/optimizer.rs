//! AdamW with gradient clipping and the magnitude mask.
//!
//! `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`, `w -= rate (m^ / (sqrt(v^) + epsilon) +
//! decay w)` with bias-corrected `m^`, `v^`; then the mask. The moments are never masked.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::parameters::{Parameter, ParameterGroup, Parameters};
use super::passes::gradients::WeightGradients;
use super::recipe::{Clip, Optimizer as Recipe};
use super::weight_mask::{Protect, keep_fraction};
use crate::numerics::rows;

/// The moments of every parameter and how many steps they have seen.
pub struct AdamW {
    recipe: Recipe,
    steps: usize,
    /// In the order of the parameters.
    moments: Vec<Mutex<Moments>>,
}

struct Moments {
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// The gradients of one step.
pub struct StepGradients<'a> {
    pub by_candle: &'a GradStore,
    /// Those that the passes have added up themselves.
    pub by_passes: Option<&'a WeightGradients>,
}

impl StepGradients<'_> {
    /// Calls `read` with a parameter's gradient; none where it has none.
    fn with_values<T>(
        &self,
        parameter: &Parameter,
        read: impl FnOnce(&[f32]) -> Result<T>,
    ) -> Result<Option<T>> {
        let passes = self
            .by_passes
            .filter(|_| parameter.group == ParameterGroup::Model);
        if let Some(values) = passes.and_then(|passes| passes.get(&parameter.name)) {
            return read(&values).map(Some);
        }
        match self.by_candle.get(&parameter.var) {
            Some(gradient) => rows::with_values(gradient, read)?.map(Some),
            None => Ok(None),
        }
    }
}

/// What one step is told.
pub struct StepRates {
    pub model: f64,
    pub bridge: f64,
    /// The fraction of weights that the mask keeps; none applies no mask.
    pub kept_fraction: Option<f64>,
}

impl AdamW {
    pub fn new(recipe: Recipe, parameters: &Parameters) -> Self {
        let zeros = |parameter: &Parameter| {
            let count = parameter.var.elem_count();
            Mutex::new(Moments {
                mean: vec![0.0; count],
                square: vec![0.0; count],
            })
        };
        AdamW {
            recipe,
            steps: 0,
            moments: parameters.iter().map(zeros).collect(),
        }
    }

    /// Changes every parameter that has a gradient; returns the gradient's norm before clipping.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &StepGradients,
        rates: &StepRates,
    ) -> Result<f64> {
        let parameters = parameters.as_slice();
        let squares: Vec<(f64, usize)> = parameters
            .par_iter()
            .map(|parameter| {
                let square =
                    gradients.with_values(parameter, |values| Ok(sum_of_squares(values)))?;
                Ok((square.unwrap_or(0.0), parameter.var.elem_count()))
            })
            .collect::<Result<_>>()?;
        let norm = squares.iter().map(|(square, _)| square).sum::<f64>().sqrt();
        let count = squares.iter().map(|(_, count)| count).sum::<usize>();
        let scale = clip_scale(self.recipe.clip, norm, count);
        self.steps += 1;
        let corrections = (
            1.0 - self.recipe.beta1.powi(self.steps as i32),
            1.0 - self.recipe.beta2.powi(self.steps as i32),
        );
        parameters
            .par_iter()
            .zip(&self.moments)
            .try_for_each(|(parameter, moments)| {
                let rate = match parameter.group {
                    ParameterGroup::Model => rates.model,
                    ParameterGroup::Bridge => rates.bridge,
                };
                gradients.with_values(parameter, |gradient| {
                    let update = Update {
                        gradient,
                        moments,
                        scale: scale as f32,
                        betas: (self.recipe.beta1 as f32, self.recipe.beta2 as f32),
                        step_size: (rate / corrections.0) as f32,
                        square_scale: (1.0 / corrections.1) as f32,
                        epsilon: self.recipe.epsilon as f32,
                        shrink: match parameter.decays {
                            true => (1.0 - rate * self.recipe.weight_decay) as f32,
                            false => 1.0,
                        },
                    };
                    update.apply(parameter)
                })?;
                match (rates.kept_fraction, parameter.masked) {
                    (Some(fraction), Some(protect)) => Mask { fraction, protect }.apply(parameter),
                    _ => Ok(()),
                }
            })?;
        Ok(norm)
    }

    /// The moments as tensors, for a checkpoint.
    pub fn state(&self, parameters: &Parameters) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (parameter, moments) in parameters.iter().zip(&self.moments) {
            let moments = moments.lock().map_err(|_| lost_moments())?;
            for (kind, values) in [("mean", &moments.mean), ("square", &moments.square)] {
                let tensor = Tensor::from_slice(values, parameter.var.dims(), &Device::Cpu)?;
                state.insert(format!("{kind}.{}", parameter.name), tensor);
            }
        }
        Ok(state)
    }

    /// Takes up the moments of a checkpoint made after `steps` steps.
    pub fn restore(
        &mut self,
        parameters: &Parameters,
        state: &BTreeMap<String, Tensor>,
        steps: usize,
    ) -> Result<()> {
        for (parameter, moments) in parameters.iter().zip(&mut self.moments) {
            let read = |kind: &str| match state.get(&format!("{kind}.{}", parameter.name)) {
                Some(tensor) if tensor.dims() == parameter.var.dims() => rows::to_vec(tensor),
                _ => bail!(
                    "the optimizer's state has no {kind} of {} in its shape",
                    parameter.name
                ),
            };
            let restored = Moments {
                mean: read("mean")?,
                square: read("square")?,
            };
            *moments.get_mut().map_err(|_| lost_moments())? = restored;
        }
        self.steps = steps;
        Ok(())
    }
}

fn lost_moments() -> candle_core::Error {
    candle_core::Error::Msg(
        "a panic in an earlier step left the optimizer's moments half-written".into(),
    )
}

fn clip_scale(clip: Clip, norm: f64, count: usize) -> f64 {
    let rms = norm / (count as f64).sqrt();
    let tiny = f64::MIN_POSITIVE;
    match clip {
        Clip::Norm { at } => (at / norm.max(tiny)).min(1.0),
        Clip::Rms { at } => (at / rms.max(tiny)).min(1.0),
        Clip::NormaliseRms { to } => to / rms.max(tiny),
    }
}

/// In float64, in blocks of fixed length.
fn sum_of_squares(values: &[f32]) -> f64 {
    values
        .chunks(4096)
        .map(|block| f64::from(block_square(block)))
        .sum()
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn block_square(values: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for chunk in values.chunks(16) {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += x * x;
        }
    }
    lanes.iter().sum()
}

/// One parameter's AdamW update.
struct Update<'a> {
    gradient: &'a [f32],
    moments: &'a Mutex<Moments>,
    /// Multiplies the gradient: clipping.
    scale: f32,
    betas: (f32, f32),
    step_size: f32,
    square_scale: f32,
    epsilon: f32,
    /// Multiplies the weight: decay.
    shrink: f32,
}

impl Update<'_> {
    fn apply(&self, parameter: &Parameter) -> Result<()> {
        let tensor = parameter.var.as_tensor();
        if tensor.device().is_cpu() {
            return tensor.inplace_op1(self);
        }
        // On other devices the update runs on the host: the moments stay in one place and one format.
        let host = tensor.to_device(&Device::Cpu)?;
        host.inplace_op1(self)?;
        parameter.var.set(&host.to_device(tensor.device())?)
    }
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, weights: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let gradient = self.gradient;
        let weights = values_mut(weights, layout)?;
        let mut moments = self.moments.lock().map_err(|_| lost_moments())?;
        let Moments { mean, square } = &mut *moments;
        if weights.len() != gradient.len() || weights.len() != mean.len() {
            bail!(
                "{} weights, {} gradients, {} moments",
                weights.len(),
                gradient.len(),
                mean.len()
            )
        }
        adamw_update(self, weights, gradient, mean, square);
        Ok(())
    }
}

fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => bail!("expected contiguous float32 weights"),
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn adamw_update(
    update: &Update,
    weights: &mut [f32],
    gradient: &[f32],
    mean: &mut [f32],
    square: &mut [f32],
) {
    let (beta1, beta2) = update.betas;
    let moments = mean.iter_mut().zip(square.iter_mut());
    for ((weight, &gradient), (mean, square)) in weights.iter_mut().zip(gradient).zip(moments) {
        let gradient = gradient * update.scale;
        *mean = beta1 * *mean + (1.0 - beta1) * gradient;
        *square = beta2 * *square + (1.0 - beta2) * gradient * gradient;
        let denominator = (*square * update.square_scale).sqrt() + update.epsilon;
        *weight = *weight * update.shrink - update.step_size * *mean / denominator;
    }
}

/// The magnitude mask of one parameter.
struct Mask {
    fraction: f64,
    protect: Protect,
}

impl Mask {
    fn apply(&self, parameter: &Parameter) -> Result<()> {
        let tensor = parameter.var.as_tensor();
        if tensor.device().is_cpu() {
            return tensor.inplace_op1(self);
        }
        let host = tensor.to_device(&Device::Cpu)?;
        host.inplace_op1(self)?;
        parameter.var.set(&host.to_device(tensor.device())?)
    }
}

impl InplaceOp1 for Mask {
    fn name(&self) -> &'static str {
        "magnitude-mask"
    }

    fn cpu_fwd(&self, weights: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let columns = rows::width(layout)?;
        keep_fraction(
            values_mut(weights, layout)?,
            columns,
            self.fraction,
            self.protect,
        );
        Ok(())
    }
}
