//! A matrix as its file has it.

use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::{DType, Device, Result, Tensor, bail};

use super::quantised::is_kept;
use super::width::PANEL;

/// A matrix `[out, in]`.
#[derive(Debug, Clone)]
pub enum StoredMatrix {
    /// In float32, float16 or bfloat16.
    Plain(Tensor),
    /// Quantised matrices one below the other.
    Quantised(Vec<Arc<QTensor>>),
}

impl StoredMatrix {
    /// Outputs and inputs.
    pub fn shape(&self) -> Result<(usize, usize)> {
        match self {
            StoredMatrix::Plain(tensor) => tensor.dims2(),
            StoredMatrix::Quantised(parts) => {
                let mut shape = (0, 0);
                for part in parts {
                    let (outputs, inputs) = part.shape().dims2()?;
                    shape = (shape.0 + outputs, inputs);
                }
                Ok(shape)
            }
        }
    }

    /// The largest size of a tensor of any shape; 0 where it has no values.
    pub fn widest(&self) -> usize {
        let of = |dims: &[usize]| match dims.contains(&0) {
            true => 0,
            false => dims.iter().copied().max().unwrap_or(0),
        };
        match self {
            StoredMatrix::Plain(tensor) => of(tensor.dims()),
            StoredMatrix::Quantised(parts) => {
                let parts = parts.iter().map(|part| of(part.shape().dims()));
                parts.max().unwrap_or(0)
            }
        }
    }

    /// The matrix in float32.
    pub fn to_float32(&self) -> Result<Tensor> {
        match self {
            StoredMatrix::Plain(tensor) => tensor.to_dtype(DType::F32),
            StoredMatrix::Quantised(parts) => {
                let parts = parts.iter().map(|part| part.dequantize(&Device::Cpu));
                Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
            }
        }
    }

    /// Matrices one below the other: as they are where they are alike, else in float32.
    pub fn stacked(parts: Vec<StoredMatrix>) -> Result<Self> {
        if parts.len() < 2 {
            let first = parts.into_iter().next();
            return first.ok_or_else(|| candle_core::Error::msg("there is nothing to stack"));
        }
        let plain = |part: &StoredMatrix| match part {
            StoredMatrix::Plain(tensor) => Some(tensor.clone()),
            StoredMatrix::Quantised(_) => None,
        };
        let plain: Option<Vec<Tensor>> = parts.iter().map(plain).collect();
        if let Some(plain) = plain {
            return Tensor::cat(&plain, 0).map(StoredMatrix::Plain);
        }
        let quantised = |part: &StoredMatrix| match part {
            StoredMatrix::Quantised(parts) => Some(parts.clone()),
            StoredMatrix::Plain(_) => None,
        };
        let quantised: Option<Vec<Vec<Arc<QTensor>>>> = parts.iter().map(quantised).collect();
        if let Some(quantised) = quantised {
            return Ok(StoredMatrix::Quantised(quantised.concat()));
        }
        let all = parts.iter().map(StoredMatrix::to_float32);
        Tensor::cat(&all.collect::<Result<Vec<_>>>()?, 0).map(StoredMatrix::Plain)
    }

    /// Some of the outputs.
    pub fn outputs(&self, places: Range<usize>) -> Result<Self> {
        let (outputs, inputs) = self.shape()?;
        if places.start > places.end || places.end > outputs {
            bail!("a matrix of {outputs} outputs has no outputs {places:?}")
        }
        let parts = match self {
            StoredMatrix::Plain(tensor) => {
                return tensor
                    .narrow(0, places.start, places.len())
                    .map(StoredMatrix::Plain);
            }
            StoredMatrix::Quantised(parts) => parts,
        };
        let mut chosen = Vec::new();
        let mut first = 0;
        for part in parts {
            let rows = part.shape().dims2()?.0;
            let begin = places.start.max(first) - first;
            let end = places.end.min(first + rows).saturating_sub(first);
            first += rows;
            if begin == 0 && end == rows {
                chosen.push(part.clone());
            } else if begin < end {
                // A row is a whole number of blocks.
                let bytes = part.data()?;
                let row = bytes.len() / rows.max(1);
                let bytes = &bytes[begin * row..end * row];
                let dims = vec![end - begin, inputs];
                chosen.push(Arc::new(qtensor_from_ggml(
                    part.dtype(),
                    bytes,
                    dims,
                    &Device::Cpu,
                )?));
            }
        }
        Ok(StoredMatrix::Quantised(chosen))
    }

    /// The same matrix, in float32 where a layer could not hold it as it is.
    pub fn kept(self) -> Result<Self> {
        let can_be_held = match &self {
            StoredMatrix::Plain(tensor) => {
                matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16)
            }
            StoredMatrix::Quantised(parts) => {
                let mut held = true;
                for (index, part) in parts.iter().enumerate() {
                    let (outputs, inputs) = part.shape().dims2()?;
                    let last = index + 1 == parts.len();
                    held &= is_kept(part.dtype(), inputs);
                    held &= last || outputs.is_multiple_of(PANEL);
                }
                held
            }
        };
        match can_be_held {
            true => Ok(self),
            false => Ok(StoredMatrix::Plain(self.to_float32()?)),
        }
    }
}

impl From<Tensor> for StoredMatrix {
    fn from(tensor: Tensor) -> Self {
        StoredMatrix::Plain(tensor)
    }
}
