//! A dense model in one GGUF file: its configuration, weights, tokenizer, chat template and what ends a text.
//!
//! Weights of every type in [`TYPES`](crate::artifacts::gguf::TYPES) are read, as float32 or as they are; what is read is
//! bounded by what the configuration calls for, before anything is allocated.

pub mod config;
pub mod metadata;
pub mod tokenizer;
pub mod weights;

use std::path::Path;

use self::config::{Architecture, FromTensors};
use self::metadata::Metadata;
use self::weights::{FACTORS, LONG_FACTORS, SHORT_FACTORS};
use super::layout::ModelFiles;
use super::memory_need::MemoryNeed;
use super::text_bounds::TextBounds;
use crate::artifacts::gguf::GgufFile;
use crate::artifacts::tensors::FloatPrecision;

/// No head has more pairs.
const MOST_FACTORS: usize = 1 << 16;

/// Why a file could not be read as a model.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct GgufError {
    pub path: String,
    pub problem: String,
}

/// Everything that a file says of its model.
#[derive(Debug)]
pub struct GgufModel {
    pub files: ModelFiles,
    pub chat_template: Option<String>,
    pub bounds: TextBounds,
}

/// Reads the model in a file; its weights may take `most_bytes`.
pub fn read(path: &Path, most_bytes: u64) -> Result<GgufModel, GgufError> {
    read_as(path, most_bytes, FloatPrecision::Single)
}

/// The same with weights as they are stored, where that is wanted.
pub fn read_as(
    path: &Path,
    most_bytes: u64,
    precision: FloatPrecision,
) -> Result<GgufModel, GgufError> {
    read_file(path, most_bytes, precision).map_err(|problem| GgufError {
        path: path.display().to_string(),
        problem,
    })
}

fn read_file(path: &Path, most_bytes: u64, precision: FloatPrecision) -> Result<GgufModel, String> {
    let mut file = GgufFile::read(path)?;
    let header = std::mem::take(&mut file.content.metadata);
    let metadata = Metadata(&header);
    let architecture = Architecture::of(&metadata)?;
    let vocabulary = metadata.list("tokenizer.ggml.tokens")?.map(<[_]>::len);
    let mut factors = |name: &str| file.values(name, MOST_FACTORS);
    let short_and_long = match (factors(SHORT_FACTORS)?, factors(LONG_FACTORS)?) {
        (Some(short), Some(long)) => Some((short, long)),
        (None, None) => None,
        _ => return Err(format!("it has one of {SHORT_FACTORS} and {LONG_FACTORS}")),
    };
    let said = FromTensors {
        factors: factors(FACTORS)?,
        short_and_long,
        tied: !file.has("output.weight"),
        biases: file.names().any(|name| name.ends_with(".bias")),
    };
    let config = architecture.config(&metadata, vocabulary, &said)?;
    let need = MemoryNeed::of(&config).weights;
    let held = match precision {
        FloatPrecision::Single => need,
        FloatPrecision::AsStored => need.min(file.length),
    };
    if held > most_bytes {
        return Err(format!(
            "its weights take {held} bytes; they may take {most_bytes}"
        ));
    }
    // A tied matrix by both of its names, at most.
    let most = need.saturating_mul(2);
    let (tensors, quantised) = weights::of_file(&mut file, architecture, &config, most, precision)?;
    let token = |key: &str| -> Result<Option<u32>, String> {
        let id = metadata.size(key)?;
        Ok(id.and_then(|id| u32::try_from(id).ok()))
    };
    let mut ends: Vec<u32> = token("tokenizer.ggml.eos_token_id")?.into_iter().collect();
    // A turn's end, where it is another token.
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        let end = token(key)?.filter(|id| !ends.contains(id));
        ends.extend(end);
    }
    Ok(GgufModel {
        files: ModelFiles {
            config,
            tensors,
            quantised,
            tokenizer: Some(tokenizer::from_metadata(&metadata)?),
        },
        chat_template: metadata.text("tokenizer.chat_template")?.map(str::to_owned),
        bounds: TextBounds {
            beginning: token("tokenizer.ggml.bos_token_id")?,
            ends,
        },
    })
}
