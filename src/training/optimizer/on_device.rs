//! A step of the optimizer where weights and gradients are on a device: nothing of it comes to the host.

use candle_core::{Device, Result, Tensor, bail};

use crate::numerics::kernels::training::{
    AdamwNumbers, Clipping, MaskSearch, Moving, ProtectedLines, adamw, clipped,
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

/// What a step does with one parameter.
pub(super) struct ParameterStep {
    /// None leaves the parameter as it is.
    pub gradient: Option<Tensor>,
    pub numbers: AdamwNumbers,
}

/// Changes the parameters and their moments; returns the gradient's norm before clipping, `[1]`.
pub(super) fn step(
    parameters: &[Parameter],
    moments: &[DeviceMoments],
    steps: &[ParameterStep],
    clip: Clip,
    kept_fraction: Option<f64>,
) -> Result<Tensor> {
    let Some(first) = parameters.first() else {
        bail!("there is nothing to train")
    };
    let gradients = steps.iter().filter_map(|step| step.gradient.clone());
    let count = parameters.iter().map(|one| one.var.elem_count()).sum();
    let clipping = match clip {
        Clip::Norm { at } => Clipping::Norm(at),
        Clip::Rms { at } => Clipping::Rms(at),
        Clip::NormaliseRms { to } => Clipping::NormaliseRms(to),
    };
    let gradients: Vec<Tensor> = gradients.collect();
    let clipped = clipped(&gradients, count, clipping, first.var.device())?;
    for ((parameter, moments), step) in parameters.iter().zip(moments).zip(steps) {
        let weights = parameter.var.as_tensor();
        let mask = match (kept_fraction, parameter.masked) {
            (Some(fraction), Some(protect)) => {
                let keep = kept_count(fraction, weights.elem_count());
                keep.map(|keep| (keep, protect))
            }
            _ => None,
        };
        let (search, lines) = match mask {
            Some((keep, protect)) => (
                Some(MaskSearch::begin(keep, weights.device())?),
                protected_lines(weights, protect)?,
            ),
            None => (None, None),
        };
        let mut counted = false;
        if let Some(gradient) = &step.gradient {
            let moving = Moving {
                weights,
                mean: &moments.mean,
                square: &moments.square,
            };
            let begun = search.as_ref().filter(|_| lines.is_none());
            counted = begun.is_some();
            adamw(moving, gradient, &clipped.scale, step.numbers, begun)?;
        }
        if let Some(search) = search {
            search.apply(weights, lines, counted)?;
        }
    }
    Ok(clipped.norm)
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
