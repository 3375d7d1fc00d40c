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
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::manifest::FileName;
use super::{ArtifactError, atomic, regular};

/// What becomes of half-precision and double-precision tensors when read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatPrecision {
    /// Every floating-point tensor becomes f32; integers stay as they are.
    Single,
    /// Every tensor keeps the type it is stored in.
    AsStored,
}

/// Which tensors of a file are read.
#[derive(Debug, Clone, Copy)]
pub struct Selection {
    /// Whether a tensor of that name is passed over. Its type need not be one that is known here.
    pub passed_over: fn(&str) -> bool,
    /// The most bytes that the tensors that are read may take together.
    pub most_bytes: u64,
}

impl Selection {
    /// Every tensor, however large.
    pub const ALL: Self = Selection {
        passed_over: |_| false,
        most_bytes: u64::MAX,
    };
}

/// The longest header that is read, and the longest index of several files. A hundred bytes a tensor are usual.
const LONGEST_HEADER: u64 = 8 << 20;
/// No file has more tensors.
const MOST_TENSORS: usize = 1 << 16;
/// No tensor has more dimensions.
const MOST_DIMENSIONS: usize = 8;
/// The header's entry that is not a tensor.
const METADATA: &str = "__metadata__";

/// One tensor's entry in the header. `data_offsets` count from the end of the header.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The tensors' entries by name, read without what the header says beside them.
struct Entries(BTreeMap<String, Entry>);

/// The names, types and shapes of a file's tensors, checked against its length.
struct Header {
    /// Where the tensors' bytes begin.
    data_start: u64,
    /// In the order of their bytes; without a type those that are passed over.
    entries: Vec<(String, Option<DType>, Entry)>,
}

/// Reads every tensor of a safetensors file.
pub fn read(
    path: &Path,
    precision: FloatPrecision,
) -> Result<BTreeMap<String, Tensor>, ArtifactError> {
    read_selected(path, precision, Selection::ALL)
}

/// Reads the tensors of a safetensors file that `selection` names.
pub fn read_selected(
    path: &Path,
    precision: FloatPrecision,
    selection: Selection,
) -> Result<BTreeMap<String, Tensor>, ArtifactError> {
    let (mut file, file_length) = regular::open(path)?;
    let header = Header::read(&mut file, file_length, path, selection.passed_over)?;
    header.check_size(path, precision, selection.most_bytes)?;
    let mut tensors = BTreeMap::new();
    let mut bytes = Vec::new();
    for (name, dtype, entry) in header.entries {
        let (start, end) = entry.data_offsets;
        let Some(dtype) = dtype else {
            continue;
        };
        bytes.clear();
        // The header's check has bounded this by the file's length.
        bytes.resize((end - start) as usize, 0);
        file.seek(SeekFrom::Start(header.data_start + start))
            .and_then(|_| file.read_exact(&mut bytes))
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

/// Reads the selected tensors of the file `name` in `directory`, or of the several files that `<name>.index.json`
/// lists. Also returns the path read, the index's where there is one, for errors.
pub fn read_sharded(
    directory: &Path,
    name: &str,
    precision: FloatPrecision,
    selection: Selection,
) -> Result<(PathBuf, BTreeMap<String, Tensor>), ArtifactError> {
    let single = directory.join(name);
    let index_path = directory.join(format!("{name}.index.json"));
    if single.is_file() || !index_path.is_file() {
        let tensors = read_selected(&single, precision, selection)?;
        return Ok((single, tensors));
    }
    let json = atomic::read_small(&index_path, LONGEST_HEADER)?;
    let index: ShardIndex = serde_json::from_slice(&json)
        .map_err(|error| ArtifactError::damaged(&index_path, "the index", error.to_string()))?;
    let shards: BTreeSet<&FileName> = index.weight_map.values().collect();
    let mut tensors = BTreeMap::new();
    let mut left = selection;
    for shard in shards {
        for (name, tensor) in read_selected(&shard.under(directory), precision, left)? {
            if index.weight_map.get(&name) != Some(shard) {
                let problem = format!("is in {shard}; the index does not say so");
                return Err(ArtifactError::damaged(&index_path, name, problem));
            }
            let taken = (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
            left.most_bytes = left.most_bytes.saturating_sub(taken);
            tensors.insert(name, tensor);
        }
    }
    let mut listed = index.weight_map.iter();
    match listed.find(|(name, _)| !tensors.contains_key(*name) && !(selection.passed_over)(name)) {
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

/// The product of a shape's sizes, or none where it exceeds `most`. Neither does any size of a shape that has no
/// elements exceed it, nor their product without the zeros: a tensor's strides are products too.
pub(super) fn element_count(shape: &[usize], most: usize) -> Option<usize> {
    let count = shape
        .iter()
        .try_fold(1usize, |count, &size| count.checked_mul(size.max(1)))?;
    let empty = shape.contains(&0);
    (count <= most).then_some(if empty { 0 } else { count })
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;

        impl<'de> Visitor<'de> for Tensors {
            type Value = Entries;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object with an entry for each tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if entries.len() == MOST_TENSORS {
                        return Err(A::Error::custom(format!(
                            "it has more than {MOST_TENSORS} tensors"
                        )));
                    }
                    let entry = map
                        .next_value::<Entry>()
                        .map_err(|error| A::Error::custom(format!("{name}: {error}")))?;
                    if entries.contains_key(&name) {
                        return Err(A::Error::custom(format!("{name} is there twice")));
                    }
                    entries.insert(name, entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Tensors)
    }
}

impl Header {
    fn read(
        file: &mut File,
        file_length: u64,
        path: &Path,
        passed_over: fn(&str) -> bool,
    ) -> Result<Self, ArtifactError> {
        let damaged = |problem: String| ArtifactError::damaged(path, "the header", problem);
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
        let Entries(entries) =
            serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
        let data_start = 8 + length;
        let data_length = file_length - data_start;
        let mut checked = Vec::with_capacity(entries.len());
        for (name, entry) in entries {
            let dtype = check_entry(&entry, data_length, file_length, passed_over(&name))
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

    /// Refuses tensors that take more than `most_bytes` together, as they will be held.
    fn check_size(
        &self,
        path: &Path,
        precision: FloatPrecision,
        most_bytes: u64,
    ) -> Result<(), ArtifactError> {
        let size = |(_, dtype, entry): &(String, Option<DType>, Entry)| -> u64 {
            let Some(dtype) = dtype else {
                return 0;
            };
            let stored = entry.data_offsets.1 - entry.data_offsets.0;
            match precision {
                FloatPrecision::Single if dtype.is_float() => {
                    stored / dtype.size_in_bytes() as u64 * DType::F32.size_in_bytes() as u64
                }
                _ => stored,
            }
        };
        let total = self
            .entries
            .iter()
            .map(size)
            .fold(0u64, u64::saturating_add);
        if total > most_bytes {
            let problem = format!("take {total} bytes; at most {most_bytes} can belong here");
            return Err(ArtifactError::damaged(path, "the tensors", problem));
        }
        Ok(())
    }
}

/// Checks one tensor's range against its shape and the data's length. None is the type of one that is passed over,
/// whose shape does not matter.
fn check_entry(
    entry: &Entry,
    data_length: u64,
    file_length: u64,
    passed_over: bool,
) -> Result<Option<DType>, String> {
    let (start, end) = entry.data_offsets;
    if start > end || end > data_length {
        return Err(format!(
            "declares bytes {start}..{end}; the data has {data_length}"
        ));
    }
    if passed_over {
        return Ok(None);
    }
    let Some(dtype) = dtype_of(&entry.dtype) else {
        let known: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
        let known = known.join(", ");
        let dtype: String = entry.dtype.chars().take(40).collect();
        return Err(format!("has type {dtype:?}; this reader knows {known}"));
    };
    let dimensions = entry.shape.len();
    if dimensions > MOST_DIMENSIONS {
        return Err(format!(
            "has {dimensions} dimensions; {MOST_DIMENSIONS} are the most"
        ));
    }
    // A tensor without elements takes no bytes; its sizes must be plausible all the same, for others follow them.
    let most = usize::try_from(file_length).unwrap_or(usize::MAX);
    let needed = element_count(&entry.shape, most)
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
    Ok(Some(dtype))
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
