//! A step of the optimizer where weights and gradients are on a device: nothing of it comes to the host.

use candle_core::{Device, Result, Tensor, bail};

use super::{AdamW, StepGradients, StepRates};
use crate::numerics::kernels::training::{
    Clipping, MaskSearch, Moving, ProtectedLines, adamw, clipped,
};
use crate::training::parameters::Parameter;
use crate::training::recipe::Clip;
use crate::training::weight_mask::{Protect, kept_count};

/// One parameter's moments, in its shape.
pub(super) struct DeviceMoments {
    mean: Tensor,
    square: Tensor,
}

impl DeviceMoments {
    pub fn zeros(parameter: &Parameter) -> Result<Self> {
        let zeros = || parameter.var.as_tensor().detach().zeros_like();
        Ok(DeviceMoments {
            mean: zeros()?,
            square: zeros()?,
        })
    }

    /// The mean and the square of a checkpoint.
    pub fn of([mean, square]: [&Tensor; 2], parameter: &Parameter) -> Result<Self> {
        // Copies: they are changed where they stand.
        let moved = |tensor: &Tensor| tensor.to_device(parameter.var.device())?.copy();
        Ok(DeviceMoments {
            mean: moved(mean)?,
            square: moved(square)?,
        })
    }

    pub fn on_host(&self) -> Result<[Tensor; 2]> {
        // Copies, as further steps change what is here.
        let copied = |tensor: &Tensor| tensor.copy()?.to_device(&Device::Cpu);
        Ok([copied(&self.mean)?, copied(&self.square)?])
    }
}

/// A step that has begun.
pub(super) struct Step<'s> {
    pub optimizer: &'s AdamW,
    pub gradients: &'s StepGradients<'s>,
    pub rates: &'s StepRates,
}

impl Step<'_> {
    /// Changes the parameters and their moments; returns the gradient's norm before clipping, `[1]`.
    pub fn run(&self, parameters: &[Parameter], moments: &[DeviceMoments]) -> Result<Tensor> {
        let Some(first) = parameters.first() else {
            bail!("there is nothing to train")
        };
        if self.gradients.by_passes.is_some() {
            bail!("gradients that the CPU's passes have added up are not on a device")
        }
        let gradient = |parameter: &Parameter| self.gradients.by_candle.get(&parameter.var);
        let all: Vec<Tensor> = parameters.iter().filter_map(gradient).cloned().collect();
        let count = parameters.iter().map(|one| one.var.elem_count()).sum();
        let clipping = match self.optimizer.recipe.clip {
            Clip::Norm { at } => Clipping::Norm(at),
            Clip::Rms { at } => Clipping::Rms(at),
            Clip::NormaliseRms { to } => Clipping::NormaliseRms(to),
        };
        let clipped = clipped(&all, count, clipping, first.var.device())?;
        for (parameter, moments) in parameters.iter().zip(moments) {
            let weights = parameter.var.as_tensor();
            let mask = match (self.rates.kept_fraction, parameter.masked) {
                (Some(fraction), Some(protect)) => {
                    let keep = kept_count(fraction, weights.elem_count());
                    keep.map(|keep| (keep, protect))
                }
                _ => None,
            };
            let search = match mask {
                Some((keep, _)) => Some(MaskSearch::begin(keep, weights.device())?),
                None => None,
            };
            let lines = match mask {
                Some((_, protect)) => protected_lines(weights, protect)?,
                None => None,
            };
            let mut counted = false;
            if let Some(gradient) = gradient(parameter) {
                let moving = Moving {
                    weights,
                    mean: &moments.mean,
                    square: &moments.square,
                };
                let begun = search.as_ref().filter(|_| lines.is_none());
                counted = begun.is_some();
                let numbers = self.optimizer.numbers(parameter, self.rates);
                adamw(moving, gradient, &clipped.scale, numbers, begun)?;
            }
            if let Some(search) = search {
                search.apply(weights, lines, counted)?;
            }
        }
        Ok(clipped.norm)
    }
}

/// The lines of a matrix `[rows, columns]`, or of a vector that is one row, in which weights are protected.
fn protected_lines(weights: &Tensor, protect: Protect) -> Result<Option<ProtectedLines>> {
    let columns = weights.dim(candle_core::D::Minus1)?;
    let rows = weights.elem_count() / columns.max(1);
    Ok(match protect {
        Protect::None | Protect::Rows(0) | Protect::Columns(0) => None,
        Protect::Rows(each) => Some(ProtectedLines {
            lines: rows,
            length: columns,
            line_stride: columns,
            stride: 1,
            each,
        }),
        Protect::Columns(each) => Some(ProtectedLines {
            lines: columns,
            length: rows,
            line_stride: 1,
            stride: columns,
            each,
        }),
    })
}
