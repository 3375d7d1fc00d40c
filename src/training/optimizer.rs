//! AdamW with gradient clipping and the magnitude mask.
//!
//! `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`, `w -= rate (m^ / (sqrt(v^) + epsilon) +
//! decay w)` with bias-corrected `m^`, `v^`; then the mask. The moments are never masked. On a device weights, gradients and
//! moments stay there (`on_device`).

mod on_device;

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use self::on_device::{DeviceMoments, ParameterStep};
use super::parameters::{Parameter, ParameterGroup, Parameters};
use super::passes::gradients::WeightGradients;
use super::recipe::{Clip, Optimizer as Recipe};
use super::weight_mask::{Protect, keep_fraction};
use crate::numerics::kernels::training::AdamwNumbers;
use crate::numerics::{kernels, rows};

/// The moments of every parameter and how many steps they have seen.
pub struct AdamW {
    recipe: Recipe,
    steps: usize,
    moments: AllMoments,
}

/// In the order of the parameters.
enum AllMoments {
    OnHost(Vec<Mutex<Moments>>),
    OnDevice(Vec<DeviceMoments>),
}

struct Moments {
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// The norm of a step's gradient before clipping.
pub enum GradientNorm {
    Known(f64),
    /// The device knows it.
    Later(Tensor),
}

impl GradientNorm {
    /// Waits for it.
    pub fn value(&self) -> Result<f64> {
        match self {
            GradientNorm::Known(norm) => Ok(*norm),
            GradientNorm::Later(norm) => norm.squeeze(0)?.to_scalar(),
        }
    }
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
    pub fn new(recipe: Recipe, parameters: &Parameters) -> Result<Self> {
        let first = parameters.as_slice().first();
        let on_device = first.is_some_and(|first| kernels::run_on(first.var.device()));
        let zeros = |parameter: &Parameter| {
            let count = parameter.var.elem_count();
            Mutex::new(Moments {
                mean: vec![0.0; count],
                square: vec![0.0; count],
            })
        };
        let moments = match on_device {
            false => AllMoments::OnHost(parameters.iter().map(zeros).collect()),
            true => {
                let zeros = parameters.iter().map(DeviceMoments::zeros);
                AllMoments::OnDevice(zeros.collect::<Result<_>>()?)
            }
        };
        Ok(AdamW {
            recipe,
            steps: 0,
            moments,
        })
    }

    /// Changes every parameter that has a gradient; returns the gradient's norm before clipping.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &StepGradients,
        rates: &StepRates,
    ) -> Result<GradientNorm> {
        self.steps += 1;
        let parameters = parameters.as_slice();
        let all_moments = match &self.moments {
            AllMoments::OnHost(moments) => moments,
            AllMoments::OnDevice(moments) => {
                if gradients.by_passes.is_some() {
                    bail!("gradients that the CPU's passes have added up are not on a device")
                }
                let of_parameter = |parameter: &Parameter| ParameterStep {
                    gradient: gradients.by_candle.get(&parameter.var).cloned(),
                    numbers: self.numbers(parameter, rates),
                };
                let steps: Vec<ParameterStep> = parameters.iter().map(of_parameter).collect();
                let (clip, kept) = (self.recipe.clip, rates.kept_fraction);
                let norm = on_device::step(parameters, moments, &steps, clip, kept)?;
                return Ok(GradientNorm::Later(norm));
            }
        };
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
        parameters
            .par_iter()
            .zip(all_moments)
            .try_for_each(|(parameter, moments)| {
                gradients.with_values(parameter, |gradient| {
                    let update = Update {
                        gradient,
                        moments,
                        scale: scale as f32,
                        numbers: self.numbers(parameter, rates),
                    };
                    parameter.var.as_tensor().inplace_op1(&update)
                })?;
                match (rates.kept_fraction, parameter.masked) {
                    (Some(fraction), Some(protect)) => {
                        let mask = Mask { fraction, protect };
                        parameter.var.as_tensor().inplace_op1(&mask)
                    }
                    _ => Ok(()),
                }
            })?;
        Ok(GradientNorm::Known(norm))
    }

    /// What the step that has begun multiplies a parameter's numbers by.
    fn numbers(&self, parameter: &Parameter, rates: &StepRates) -> AdamwNumbers {
        let rate = match parameter.group {
            ParameterGroup::Model => rates.model,
            ParameterGroup::Bridge => rates.bridge,
        };
        let correction = |beta: f64| 1.0 - beta.powi(self.steps as i32);
        AdamwNumbers {
            beta1: self.recipe.beta1 as f32,
            beta2: self.recipe.beta2 as f32,
            step: (rate / correction(self.recipe.beta1)) as f32,
            square_scale: (1.0 / correction(self.recipe.beta2)) as f32,
            epsilon: self.recipe.epsilon as f32,
            shrink: match parameter.decays {
                true => (1.0 - rate * self.recipe.weight_decay) as f32,
                false => 1.0,
            },
        }
    }

    /// The moments as tensors, for a checkpoint.
    pub fn state(&self, parameters: &Parameters) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (index, parameter) in parameters.iter().enumerate() {
            let [mean, square] = match &self.moments {
                AllMoments::OnDevice(moments) => moments[index].on_host()?,
                AllMoments::OnHost(moments) => {
                    let moments = moments[index].lock().map_err(|_| lost_moments())?;
                    let shape = parameter.var.dims();
                    let tensor = |values| Tensor::from_slice(values, shape, &Device::Cpu);
                    [tensor(&moments.mean)?, tensor(&moments.square)?]
                }
            };
            state.insert(format!("mean.{}", parameter.name), mean);
            state.insert(format!("square.{}", parameter.name), square);
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
        for (index, parameter) in parameters.iter().enumerate() {
            let read = |kind: &str| match state.get(&format!("{kind}.{}", parameter.name)) {
                Some(tensor) if tensor.dims() == parameter.var.dims() => Ok(tensor),
                _ => bail!(
                    "the optimizer's state has no {kind} of {} in its shape",
                    parameter.name
                ),
            };
            let (mean, square) = (read("mean")?, read("square")?);
            match &mut self.moments {
                AllMoments::OnHost(moments) => {
                    let restored = Moments {
                        mean: rows::to_vec(mean)?,
                        square: rows::to_vec(square)?,
                    };
                    *moments[index].get_mut().map_err(|_| lost_moments())? = restored;
                }
                AllMoments::OnDevice(moments) => {
                    moments[index] = DeviceMoments::of([mean, square], parameter)?;
                }
            }
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
    numbers: AdamwNumbers,
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
    let AdamwNumbers {
        beta1,
        beta2,
        step,
        square_scale,
        epsilon,
        shrink,
    } = update.numbers;
    let moments = mean.iter_mut().zip(square.iter_mut());
    for ((weight, &gradient), (mean, square)) in weights.iter_mut().zip(gradient).zip(moments) {
        let gradient = gradient * update.scale;
        *mean = beta1 * *mean + (1.0 - beta1) * gradient;
        *square = beta2 * *square + (1.0 - beta2) * gradient * gradient;
        let denominator = (*square * square_scale).sqrt() + epsilon;
        *weight = *weight * shrink - step * *mean / denominator;
    }
}

/// The magnitude mask of one parameter.
struct Mask {
    fraction: f64,
    protect: Protect,
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
