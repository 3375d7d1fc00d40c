//! A GGUF file's weights under their canonical names: in float32, or matrices as the file has them.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Result, Tensor};

use super::config::Architecture;
use super::metadata::Metadata;
use crate::artifacts::gguf::{GgufFile, GgufTensor};
use crate::artifacts::tensors::FloatPrecision;
use crate::models::config::TransformerConfig;
use crate::models::layers::QuantisedMatrices;
use crate::numerics::columns::StoredMatrix;

/// What the frequencies of rotary pairs are divided by; the tensors are none of the model's weights.
pub const FACTORS: &str = "rope_freqs.weight";
pub const SHORT_FACTORS: &str = "rope_factors_short.weight";
pub const LONG_FACTORS: &str = "rope_factors_long.weight";

/// The tensors of the model of this configuration in the file at `path`; they may take `most_bytes` as float32. Those that
/// stay quantised come apart from the others.
pub fn read(
    path: &Path,
    config: &TransformerConfig,
    most_bytes: u64,
    precision: FloatPrecision,
) -> std::result::Result<(BTreeMap<String, Tensor>, QuantisedMatrices), String> {
    let mut file = GgufFile::read(path)?;
    let header = std::mem::take(&mut file.content.metadata);
    let architecture = Architecture::of(&Metadata(&header))?;
    of_file(&mut file, architecture, config, most_bytes, precision)
}

/// The same of an open file.
pub fn of_file(
    file: &mut GgufFile,
    architecture: Architecture,
    config: &TransformerConfig,
    most_bytes: u64,
    precision: FloatPrecision,
) -> std::result::Result<(BTreeMap<String, Tensor>, QuantisedMatrices), String> {
    let is_weight = |name: &str| ![FACTORS, SHORT_FACTORS, LONG_FACTORS].contains(&name);
    let mut stored = BTreeMap::new();
    for (name, tensor) in file.tensors(is_weight, most_bytes, precision)? {
        let matrix = matrix(tensor).map_err(|error| format!("{name}: {error}"))?;
        stored.insert(name, matrix);
    }
    let translated = architecture.names().translate(config, stored);
    let (mut tensors, mut quantised) = (BTreeMap::new(), QuantisedMatrices::new());
    for (name, matrix) in translated.map_err(|error| error.to_string())? {
        match matrix {
            StoredMatrix::Plain(tensor) => {
                tensors.insert(name, tensor);
            }
            StoredMatrix::Quantised(parts) => {
                quantised.insert(name, parts);
            }
        }
    }
    Ok((tensors, quantised))
}

/// A tensor as a layer can hold it.
pub fn matrix(tensor: GgufTensor) -> Result<StoredMatrix> {
    match tensor {
        GgufTensor::Float(tensor) => Ok(StoredMatrix::Plain(tensor)),
        GgufTensor::Quantised(tensor) => StoredMatrix::Quantised(vec![tensor]).kept(),
    }
}
