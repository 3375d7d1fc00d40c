//! Mostly-zero matrices, stored as their nonzero entries.
//!
//! A weight-sparse model keeps one weight in 64 down to one in 1000, so a dense file is nearly all zeros. A
//! matrix `NAME` of shape `[rows, columns]` with `n` nonzero entries becomes three tensors:
//!
//! - `NAME.values`: f32 `[n]`, the entries in row-major order, exact to the bit;
//! - `NAME.indices`: u8 `[m]`, for each entry its distance from the one before it in the flattened matrix
//!   (from position -1 for the first), seven bits a byte, low bits first, the high bit set on all bytes but
//!   the last: one byte an entry down to a density of about 1/64, two below;
//! - `NAME.shape`: u32 `[2]`.
//!
//! Only f32 matrices between a quarter and 1/4096 dense are stored so. A small damaged file cannot claim a huge
//! matrix: whoever reads it says which shape a matrix must have.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::ArtifactError;
use super::tensors::element_count;

/// A matrix with more than one nonzero entry in this many is stored dense.
const DENSEST: usize = 4;
/// A matrix with less than one nonzero entry in this many is stored dense.
const SPARSEST: usize = 4096;

const VALUES: &str = ".values";
const INDICES: &str = ".indices";
const SHAPE: &str = ".shape";

/// Replaces every mostly-zero f32 matrix by its three tensors; the others stay as they are.
pub fn pack(tensors: &BTreeMap<String, Tensor>) -> candle_core::Result<BTreeMap<String, Tensor>> {
    let mut packed = BTreeMap::new();
    for (name, tensor) in tensors {
        match nonzero_entries(tensor)? {
            Some((indices, values)) => {
                let shape: Vec<u32> = tensor.dims().iter().map(|&size| size as u32).collect();
                let device = &Device::Cpu;
                let (index_bytes, count) = (indices.len(), values.len());
                let values = Tensor::from_vec(values, count, device)?;
                let indices = Tensor::from_vec(indices, index_bytes, device)?;
                packed.insert(format!("{name}{VALUES}"), values);
                packed.insert(format!("{name}{INDICES}"), indices);
                packed.insert(
                    format!("{name}{SHAPE}"),
                    Tensor::from_vec(shape, 2, device)?,
                );
            }
            None => {
                packed.insert(name.clone(), tensor.clone());
            }
        }
    }
    Ok(packed)
}

/// Undoes [`pack`]. `path` is the file the tensors came from, for errors. A matrix must have the shape that `expected`
/// has for its name: its nonzero entries bound its size only loosely.
pub fn unpack<'s>(
    path: &Path,
    mut tensors: BTreeMap<String, Tensor>,
    expected: impl Fn(&str) -> Option<&'s [usize]>,
) -> Result<BTreeMap<String, Tensor>, ArtifactError> {
    let names: Vec<String> = tensors
        .keys()
        .filter_map(|name| Some(name.strip_suffix(INDICES)?.to_owned()))
        .collect();
    for name in names {
        let mut part = |suffix: &str| {
            let part = format!("{name}{suffix}");
            tensors.remove(&part).ok_or_else(|| {
                ArtifactError::damaged(
                    path,
                    part,
                    "is missing; a sparse matrix has all three parts",
                )
            })
        };
        let (indices, values, shape) = (part(INDICES)?, part(VALUES)?, part(SHAPE)?);
        let dense = expand(&indices, &values, &shape, expected(&name))
            .map_err(ArtifactError::tensor(path, &name))?
            .map_err(|problem| ArtifactError::damaged(path, &name, problem))?;
        if tensors.insert(name.clone(), dense).is_some() {
            let problem = "is stored both dense and sparse";
            return Err(ArtifactError::damaged(path, name, problem));
        }
    }
    Ok(tensors)
}

/// The coded distances and the values of a matrix's nonzero entries; none where it is better stored dense.
fn nonzero_entries(tensor: &Tensor) -> candle_core::Result<Option<(Vec<u8>, Vec<f32>)>> {
    if tensor.dtype() != DType::F32 || tensor.rank() != 2 {
        return Ok(None);
    }
    if tensor.dims().iter().any(|&size| size > u32::MAX as usize) {
        return Ok(None);
    }
    let dense = tensor.flatten_all()?.to_vec1::<f32>()?;
    // By its bits, so that a negative zero survives too.
    let is_nonzero = |value: &&f32| value.to_bits() != 0;
    let count = dense.iter().filter(is_nonzero).count();
    if count == 0
        || count.saturating_mul(DENSEST) > dense.len()
        || count.saturating_mul(SPARSEST) < dense.len()
    {
        return Ok(None);
    }
    let mut indices = Vec::with_capacity(count + count / 2);
    let mut values = Vec::with_capacity(count);
    let mut next = 0;
    for (position, value) in dense.into_iter().enumerate() {
        if value.to_bits() != 0 {
            push_coded(&mut indices, position + 1 - next);
            values.push(value);
            next = position + 1;
        }
    }
    Ok(Some((indices, values)))
}

fn push_coded(bytes: &mut Vec<u8>, mut distance: usize) {
    while distance >= 0x80 {
        bytes.push((distance & 0x7f) as u8 | 0x80);
        distance >>= 7;
    }
    bytes.push(distance as u8);
}

/// Takes one coded distance off the front of `bytes`; none where it is cut off or too large.
fn take_coded(bytes: &mut std::slice::Iter<'_, u8>) -> Option<usize> {
    let mut distance = 0usize;
    for shift in (0..usize::BITS - 7).step_by(7) {
        let byte = *bytes.next()?;
        distance |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(distance);
        }
    }
    None
}

/// The dense matrix, or what is wrong with its parts.
fn expand(
    indices: &Tensor,
    values: &Tensor,
    shape: &Tensor,
    expected: Option<&[usize]>,
) -> candle_core::Result<Result<Tensor, String>> {
    let parts = [
        (INDICES, indices, DType::U8),
        (VALUES, values, DType::F32),
        (SHAPE, shape, DType::U32),
    ];
    for (suffix, part, dtype) in parts {
        if part.dtype() != dtype || part.rank() != 1 {
            return Ok(Err(format!(
                "its {suffix} part is {:?} {:?}; it must be one row of {dtype:?}",
                part.dtype(),
                part.dims()
            )));
        }
    }
    let shape: Vec<usize> = shape
        .to_vec1::<u32>()?
        .into_iter()
        .map(|size| size as usize)
        .collect();
    let values = values.to_vec1::<f32>()?;
    let indices = indices.to_vec1::<u8>()?;
    let largest = values.len().saturating_mul(SPARSEST);
    let elements = element_count(&shape, largest).filter(|_| shape.len() == 2);
    let Some(elements) = elements else {
        return Ok(Err(format!(
            "claims shape {shape:?} with {} values; a sparse matrix has two sizes and at most {SPARSEST} \
             entries a value",
            values.len()
        )));
    };
    if expected != Some(shape.as_slice()) {
        let expected = match expected {
            Some(expected) => format!("{expected:?}"),
            None => "none of that name".to_owned(),
        };
        return Ok(Err(format!(
            "has shape {shape:?}; the configuration calls for {expected}"
        )));
    }
    let mut dense = vec![0f32; elements];
    let mut next = 0usize;
    let mut bytes = indices.iter();
    for (number, &value) in values.iter().enumerate() {
        let position = take_coded(&mut bytes)
            .filter(|&distance| distance > 0)
            .and_then(|distance| next.checked_add(distance - 1));
        let entry = position.and_then(|position| Some((position, dense.get_mut(position)?)));
        let Some((position, entry)) = entry else {
            return Ok(Err(format!(
                "the index of value {number} is cut off or beyond the {elements} entries of {shape:?}"
            )));
        };
        *entry = value;
        next = position + 1;
    }
    if bytes.next().is_some() {
        let count = values.len();
        return Ok(Err(format!("has more indices than its {count} values")));
    }
    Tensor::from_vec(dense, shape, &Device::Cpu).map(Ok)
}
