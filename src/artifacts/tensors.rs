//! Safetensors files: an 8-byte header length, a JSON header, then the tensors' bytes one after another.
//!
//! The header is believed only where it agrees with the file: every tensor's range must lie inside the data,
//! have exactly the size that its shape and type call for, and the ranges must cover the data without gap or
//! overlap. So no more is allocated than the file holds. Tensors are read one at a time.
//! Format: <https://github.com/huggingface/safetensors#format>.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::manifest::FileName;
use super::{ArtifactError, atomic};

/// What becomes of half-precision and double-precision tensors when read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatPrecision {
    /// Every floating-point tensor becomes f32; integers stay as they are.
    Single,
    /// Every tensor keeps the type it is stored in.
    AsStored,
}

/// The longest header that is read; the format's own limit.
const LONGEST_HEADER: u64 = 100_000_000;
/// The header's entry that is not a tensor.
const METADATA: &str = "__metadata__";

/// One tensor's entry in the header. `data_offsets` count from the end of the header.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The names, types and shapes of a file's tensors, checked against its length.
struct Header {
    /// Where the tensors' bytes begin.
    data_start: u64,
    /// In the order of their bytes.
    entries: Vec<(String, DType, Entry)>,
}

/// Reads every tensor of a safetensors file.
pub fn read(
    path: &Path,
    precision: FloatPrecision,
) -> Result<BTreeMap<String, Tensor>, ArtifactError> {
    let mut file = File::open(path).map_err(ArtifactError::io("open", path))?;
    let header = Header::read(&mut file, path)?;
    file.seek(SeekFrom::Start(header.data_start))
        .map_err(ArtifactError::io("read", path))?;
    let mut tensors = BTreeMap::new();
    let mut bytes = Vec::new();
    for (name, dtype, entry) in header.entries {
        let (start, end) = entry.data_offsets;
        bytes.clear();
        // The header's check has bounded this by the file's length.
        bytes.resize((end - start) as usize, 0);
        file.read_exact(&mut bytes)
            .map_err(ArtifactError::io("read", path))?;
        let tensor = Tensor::from_raw_buffer(&bytes, dtype, &entry.shape, &Device::Cpu)
            .and_then(|tensor| convert(tensor, precision))
            .map_err(ArtifactError::tensor(path, &name))?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// The index of tensors spread over several files, `<name>.index.json`.
#[derive(Deserialize)]
struct ShardIndex {
    /// From a tensor's name to the file that holds it.
    weight_map: BTreeMap<String, FileName>,
}

/// Reads the tensors of the file `name` in `directory`, or of the several files that `<name>.index.json`
/// lists. Also returns the path read, the index's where there is one, for errors.
pub fn read_sharded(
    directory: &Path,
    name: &str,
    precision: FloatPrecision,
) -> Result<(PathBuf, BTreeMap<String, Tensor>), ArtifactError> {
    let single = directory.join(name);
    let index_path = directory.join(format!("{name}.index.json"));
    if single.is_file() || !index_path.is_file() {
        let tensors = read(&single, precision)?;
        return Ok((single, tensors));
    }
    let json = atomic::read_small(&index_path, LONGEST_HEADER)?;
    let index: ShardIndex = serde_json::from_slice(&json)
        .map_err(|error| ArtifactError::damaged(&index_path, "the index", error.to_string()))?;
    let shards: BTreeSet<&FileName> = index.weight_map.values().collect();
    let mut tensors = BTreeMap::new();
    for shard in shards {
        for (name, tensor) in read(&shard.under(directory), precision)? {
            if index.weight_map.get(&name) != Some(shard) {
                let problem = format!("is in {shard}; the index does not say so");
                return Err(ArtifactError::damaged(&index_path, name, problem));
            }
            tensors.insert(name, tensor);
        }
    }
    match index
        .weight_map
        .iter()
        .find(|(name, _)| !tensors.contains_key(*name))
    {
        None => Ok((index_path, tensors)),
        Some((name, shard)) => {
            let problem = format!("is not in {shard}, where the index has it");
            Err(ArtifactError::damaged(&index_path, name, problem))
        }
    }
}

/// Writes `tensors` as a safetensors file in one step.
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<(), ArtifactError> {
    let mut ordered: Vec<(&String, &Tensor)> = tensors.iter().collect();
    // Wide types first, so that every tensor begins at a multiple of its element's size.
    ordered.sort_by_key(|(name, tensor)| (usize::MAX - tensor.dtype().size_in_bytes(), *name));
    let mut header = serde_json::Map::new();
    let mut offset = 0u64;
    for (name, tensor) in &ordered {
        let Some(dtype) = dtype_name(tensor.dtype()) else {
            let problem = format!("cannot store tensors of type {:?}", tensor.dtype());
            return Err(ArtifactError::damaged(path, name.as_str(), problem));
        };
        let end = offset + (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
        let entry = serde_json::json!({
            "dtype": dtype, "shape": tensor.dims(), "data_offsets": [offset, end],
        });
        header.insert((*name).clone(), entry);
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    atomic::write_with(path, |file| {
        let io = ArtifactError::io("write", path);
        let mut write_header = || {
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(header.as_bytes())
        };
        write_header().map_err(io)?;
        for (name, tensor) in ordered {
            let tensor = tensor
                .to_device(&Device::Cpu)
                .and_then(|tensor| tensor.contiguous())
                .map_err(ArtifactError::tensor(path, name))?;
            file.write_all(&safetensors::View::data(&tensor))
                .map_err(ArtifactError::io("write", path))?;
        }
        Ok(())
    })
}

/// Applies `precision` to a tensor.
pub(super) fn convert(tensor: Tensor, precision: FloatPrecision) -> candle_core::Result<Tensor> {
    match precision {
        FloatPrecision::Single if tensor.dtype().is_float() => tensor.to_dtype(DType::F32),
        _ => Ok(tensor),
    }
}

/// The product of a shape's sizes, or none where it exceeds what can be addressed. Zeros are left out of that
/// check, for a tensor's strides are products too.
pub(super) fn element_count(shape: &[usize]) -> Option<usize> {
    let count = shape
        .iter()
        .try_fold(1usize, |count, &size| count.checked_mul(size.max(1)))?;
    Some(if shape.contains(&0) { 0 } else { count })
}

impl Header {
    fn read(file: &mut File, path: &Path) -> Result<Self, ArtifactError> {
        let damaged = |problem: String| ArtifactError::damaged(path, "the header", problem);
        let file_length = file
            .metadata()
            .map_err(ArtifactError::io("read", path))?
            .len();
        if file_length < 8 {
            let problem = format!("the file has {file_length} bytes; a header length takes 8");
            return Err(damaged(problem));
        }
        let mut length = [0u8; 8];
        file.read_exact(&mut length)
            .map_err(ArtifactError::io("read", path))?;
        let length = u64::from_le_bytes(length);
        if length > file_length - 8 || length > LONGEST_HEADER {
            return Err(damaged(format!(
                "declares {length} bytes; the file has {file_length} and a header at most {LONGEST_HEADER}"
            )));
        }
        let mut json = vec![0u8; length as usize];
        file.read_exact(&mut json)
            .map_err(ArtifactError::io("read", path))?;
        let mut entries: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&json).map_err(|error| damaged(format!("{error}")))?;
        entries.remove(METADATA);
        let data_start = 8 + length;
        let data_length = file_length - data_start;
        let mut checked = Vec::with_capacity(entries.len());
        for (name, entry) in entries {
            let entry: Entry = serde_json::from_value(entry)
                .map_err(|error| ArtifactError::damaged(path, &name, error.to_string()))?;
            let dtype = check_entry(&entry, data_length)
                .map_err(|problem| ArtifactError::damaged(path, &name, problem))?;
            checked.push((name, dtype, entry));
        }
        checked.sort_by_key(|(_, _, entry)| entry.data_offsets);
        let mut expected = 0;
        for (name, _, entry) in &checked {
            let (start, end) = entry.data_offsets;
            if start != expected {
                let problem = format!(
                    "begins at byte {start} of the data; the one before it ends at {expected}"
                );
                return Err(ArtifactError::damaged(path, name, problem));
            }
            expected = end;
        }
        if expected != data_length {
            return Err(damaged(format!(
                "describes {expected} bytes of tensors; the file holds {data_length}"
            )));
        }
        Ok(Header {
            data_start,
            entries: checked,
        })
    }
}

/// Checks one tensor's range against its shape and the data's length.
fn check_entry(entry: &Entry, data_length: u64) -> Result<DType, String> {
    let Some(dtype) = dtype_of(&entry.dtype) else {
        let known: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
        let known = known.join(", ");
        return Err(format!(
            "has type {:?}; this reader knows {known}",
            entry.dtype
        ));
    };
    let (start, end) = entry.data_offsets;
    if start > end || end > data_length {
        return Err(format!(
            "declares bytes {start}..{end}; the data has {data_length}"
        ));
    }
    let needed = element_count(&entry.shape)
        .and_then(|count| count.checked_mul(dtype.size_in_bytes()))
        .map(|size| size as u64);
    if needed != Some(end - start) {
        return Err(format!(
            "has {} bytes, which is not the size of shape {:?} of {}",
            end - start,
            entry.shape,
            entry.dtype
        ));
    }
    Ok(dtype)
}

/// The element types read and written, by the names the format gives them.
const TYPES: [(&str, DType); 8] = [
    ("F64", DType::F64),
    ("F32", DType::F32),
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("I64", DType::I64),
    ("I32", DType::I32),
    ("U32", DType::U32),
    ("U8", DType::U8),
];

fn dtype_of(name: &str) -> Option<DType> {
    let mut types = TYPES.iter();
    types
        .find(|(known, _)| *known == name)
        .map(|(_, dtype)| *dtype)
}

fn dtype_name(dtype: DType) -> Option<&'static str> {
    let mut types = TYPES.iter();
    types
        .find(|(_, known)| *known == dtype)
        .map(|(name, _)| *name)
}
