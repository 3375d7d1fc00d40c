//! GGUF files: a header of keys and values, and tensors of many types.
//!
//! What the header claims is held against bounds before it is read. Tensors come out as float32 or as they are, a caller's
//! bound on their bytes being held first.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::gguf_file::Content;
pub use candle_core::quantized::gguf_file::Value as HeaderValue;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};

use super::tensors::FloatPrecision;
use super::{gguf_header, regular};

/// The element types that are read, by the names that llama.cpp gives them.
pub const TYPES: [(&str, GgmlDType); 13] = [
    ("F32", GgmlDType::F32),
    ("F16", GgmlDType::F16),
    ("BF16", GgmlDType::BF16),
    ("Q4_0", GgmlDType::Q4_0),
    ("Q4_1", GgmlDType::Q4_1),
    ("Q5_0", GgmlDType::Q5_0),
    ("Q5_1", GgmlDType::Q5_1),
    ("Q8_0", GgmlDType::Q8_0),
    ("Q2_K", GgmlDType::Q2K),
    ("Q3_K", GgmlDType::Q3K),
    ("Q4_K", GgmlDType::Q4K),
    ("Q5_K", GgmlDType::Q5K),
    ("Q6_K", GgmlDType::Q6K),
];

/// A tensor as it was read.
#[derive(Debug)]
pub enum GgufTensor {
    /// In float32, float16 or bfloat16.
    Float(Tensor),
    Quantised(Arc<QTensor>),
}

/// An open file with its header.
pub struct GgufFile {
    pub content: Content,
    /// Bytes.
    pub length: u64,
    reader: BufReader<File>,
}

impl GgufFile {
    pub fn read(path: &Path) -> Result<Self, String> {
        let (file, length) = regular::open(path).map_err(|error| error.to_string())?;
        let mut reader = BufReader::new(file);
        gguf_header::check(&mut reader, length)?;
        let content = Content::read(&mut reader).map_err(known_types)?;
        Ok(GgufFile {
            content,
            length,
            reader,
        })
    }

    pub fn has(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// The names of the tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.content.tensor_infos.keys().map(String::as_str)
    }

    /// The values of a tensor of at most `most` of them; none where there is no such tensor.
    pub fn values(&mut self, name: &str, most: usize) -> Result<Option<Vec<f32>>, String> {
        match self.content.tensor_infos.get(name) {
            None => return Ok(None),
            Some(info) if count(info.shape.dims()) > most as u64 => {
                return Err(format!("{name} has more than {most} values"));
            }
            Some(_) => {}
        }
        let tensor = self.tensor(name)?;
        let values = tensor.flatten_all().and_then(|tensor| tensor.to_vec1());
        values.map(Some).map_err(|error| format!("{name}: {error}"))
    }

    /// Every tensor of a wanted name, which may take `most_bytes` together as float32. As stored, matrices stay as they are;
    /// vectors become float32 in any case.
    pub fn tensors(
        &mut self,
        wanted: impl Fn(&str) -> bool,
        most_bytes: u64,
        precision: FloatPrecision,
    ) -> Result<BTreeMap<String, GgufTensor>, String> {
        let infos = self.content.tensor_infos.iter();
        let infos = infos.filter(|(name, _)| wanted(name));
        let sizes = infos.map(|(name, info)| (name.clone(), count(info.shape.dims())));
        let sizes: BTreeMap<String, u64> = sizes.collect();
        let total = sizes
            .values()
            .fold(0u64, |sum, size| sum.saturating_add(*size));
        let total = total.saturating_mul(size_of::<f32>() as u64);
        if total > most_bytes {
            return Err(format!(
                "its tensors take {total} bytes as float32; those of its configuration take at most {most_bytes}"
            ));
        }
        let mut tensors = BTreeMap::new();
        for name in sizes.into_keys() {
            let tensor = match precision {
                FloatPrecision::Single => GgufTensor::Float(self.tensor(&name)?),
                FloatPrecision::AsStored => self.as_stored(&name)?,
            };
            tensors.insert(name, tensor);
        }
        Ok(tensors)
    }

    fn tensor(&mut self, name: &str) -> Result<Tensor, String> {
        let tensor = self.content.tensor(&mut self.reader, name, &Device::Cpu);
        let tensor = tensor.and_then(|tensor| tensor.dequantize(&Device::Cpu));
        tensor.map_err(|error| format!("{name}: {error}"))
    }

    fn as_stored(&mut self, name: &str) -> Result<GgufTensor, String> {
        let stored = self.content.tensor(&mut self.reader, name, &Device::Cpu);
        let tensor = stored.and_then(|stored| {
            let single = |stored: &QTensor| stored.dequantize(&Device::Cpu);
            let half = |half| single(&stored)?.to_dtype(half).map(GgufTensor::Float);
            match (stored.rank(), stored.dtype()) {
                (2, GgmlDType::F16) => half(DType::F16),
                (2, GgmlDType::BF16) => half(DType::BF16),
                (2, dtype) if dtype != GgmlDType::F32 => {
                    Ok(GgufTensor::Quantised(Arc::new(stored)))
                }
                _ => single(&stored).map(GgufTensor::Float),
            }
        });
        tensor.map_err(|error| format!("{name}: {error}"))
    }
}

/// How many values a shape has.
fn count(shape: &[usize]) -> u64 {
    shape
        .iter()
        .fold(1u64, |count, &size| count.saturating_mul(size as u64))
}

/// Says which types are read where the reader does not know one.
pub(super) fn known_types(error: candle_core::Error) -> String {
    let error = error.to_string();
    if error.contains("dtype") {
        let known: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
        return format!(
            "{error}; tensors of the types {} are read",
            known.join(", ")
        );
    }
    error
}
