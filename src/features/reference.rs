//! What every channel of a sparse model does over reference text, and an excerpt of that text.
//!
//! `reference.safetensors` of a pair's directory holds, for a place called `P`, `P.mean`, `P.std`, `P.max`,
//! `P.min` and `P.density` (the share of tokens at which a channel is not zero), each f32 `[channels]`, and
//! `P.tokens` i64 `[1]`. `text` u32 `[sequences, length]` holds token ids to take examples from. Without the file
//! everything works that needs no statistics; what does says so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::measured::MeasuredGroups;
use crate::artifacts::ArtifactError;
use crate::artifacts::tensors::{self, FloatPrecision};
use crate::models::config::TransformerConfig;
use crate::models::location::Location;
use crate::numerics::rows;

/// The file in a pair's directory.
pub const REFERENCE_FILE: &str = "reference.safetensors";
const TEXT: &str = "text";
const TOKENS: &str = "tokens";

/// Why a file of statistics cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error("{}: {problem}", path.display())]
    Invalid { path: PathBuf, problem: String },
}

/// The statistics of all places that were measured.
#[derive(Debug, Clone, Default)]
pub struct ReferenceStatistics {
    places: BTreeMap<Location, LocationStatistics>,
    pub text: Option<ReferenceText>,
    /// What was measured over the text since.
    pub measured: Arc<MeasuredGroups>,
    /// The same of the pair's dense model, which has no statistics of its own.
    pub measured_dense: Arc<MeasuredGroups>,
}

/// One place's statistics, each `[channels]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LocationStatistics {
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
    pub max: Vec<f32>,
    pub min: Vec<f32>,
    pub density: Vec<f32>,
    /// How many tokens they were taken over.
    pub tokens: usize,
}

/// Text to look at, as token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceText {
    /// Sequences end to end.
    pub tokens: Vec<u32>,
    /// Tokens a sequence.
    pub length: usize,
}

impl ReferenceStatistics {
    /// Those in a pair's directory, held against the sparse model they describe; none where there is no file.
    pub fn read(directory: &Path, config: &TransformerConfig) -> Result<Self, ReferenceError> {
        let path = directory.join(REFERENCE_FILE);
        if !path.is_file() {
            return Ok(Self::default());
        }
        let tensors = tensors::read(&path, FloatPrecision::Single)?;
        Self::from_tensors(&tensors, config)
            .map_err(|problem| ReferenceError::Invalid { path, problem })
    }

    fn from_tensors(
        tensors: &BTreeMap<String, Tensor>,
        config: &TransformerConfig,
    ) -> Result<Self, String> {
        let mut places = BTreeMap::new();
        for place in Location::all(config.n_layers) {
            if let Some(statistics) = LocationStatistics::from_tensors(tensors, place, config)? {
                places.insert(place, statistics);
            }
        }
        let text = match tensors.get(TEXT) {
            Some(tensor) => Some(ReferenceText::from_tensor(tensor, config)?),
            None => None,
        };
        Ok(ReferenceStatistics {
            places,
            text,
            measured: Arc::default(),
            measured_dense: Arc::default(),
        })
    }

    /// Writes [`REFERENCE_FILE`] into a pair's directory.
    pub fn write(&self, directory: &Path) -> Result<(), ReferenceError> {
        let path = directory.join(REFERENCE_FILE);
        let named = self.to_tensors().map_err(|error| ReferenceError::Invalid {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        Ok(tensors::write(&path, &named)?)
    }

    fn to_tensors(&self) -> candle_core::Result<BTreeMap<String, Tensor>> {
        let device = &Device::Cpu;
        let mut tensors = BTreeMap::new();
        for (place, statistics) in &self.places {
            for (part, values) in PARTS.into_iter().zip(statistics.parts()) {
                tensors.insert(
                    format!("{place}.{part}"),
                    Tensor::new(values.as_slice(), device)?,
                );
            }
            let tokens = Tensor::new(&[statistics.tokens as i64], device)?;
            tensors.insert(format!("{place}.{TOKENS}"), tokens);
        }
        if let Some(text) = &self.text {
            let shape = (text.tokens.len() / text.length, text.length);
            let tensor = Tensor::from_slice(&text.tokens, shape, device)?;
            tensors.insert(TEXT.to_owned(), tensor);
        }
        Ok(tensors)
    }

    /// The statistics of one place, where it was measured.
    pub fn place(&self, place: Location) -> Option<&LocationStatistics> {
        self.places.get(&place)
    }

    /// Adds or replaces one place's statistics.
    pub fn insert(&mut self, place: Location, statistics: LocationStatistics) {
        self.places.insert(place, statistics);
    }
}

const PARTS: [&str; 5] = ["mean", "std", "max", "min", "density"];

impl LocationStatistics {
    /// In the order of [`PARTS`].
    fn parts(&self) -> [&Vec<f32>; 5] {
        [&self.mean, &self.std, &self.max, &self.min, &self.density]
    }

    fn from_tensors(
        tensors: &BTreeMap<String, Tensor>,
        place: Location,
        config: &TransformerConfig,
    ) -> Result<Option<Self>, String> {
        let expected = place.width(config);
        let read = |part: &str| -> Result<Option<Vec<f32>>, String> {
            let name = format!("{place}.{part}");
            let Some(tensor) = tensors.get(&name) else {
                return Ok(None);
            };
            if tensor.dims() != [expected] {
                let found = tensor.dims();
                return Err(format!("{name} has shape {found:?}, expected [{expected}]"));
            }
            let values = rows::to_vec(tensor).map_err(|error| format!("{name}: {error}"))?;
            match values.iter().all(|value| value.is_finite()) {
                true => Ok(Some(values)),
                false => Err(format!("{name} holds numbers that are not finite")),
            }
        };
        let mut parts = Vec::new();
        for part in PARTS {
            parts.extend(read(part)?);
        }
        let Ok([mean, std, max, min, density]) = <[Vec<f32>; 5]>::try_from(parts.clone()) else {
            return match parts.is_empty() {
                true => Ok(None),
                false => Err(format!(
                    "{place} has some of {}, but not all",
                    PARTS.join(", ")
                )),
            };
        };
        let name = format!("{place}.{TOKENS}");
        let tokens = tensors
            .get(&name)
            .and_then(|tensor| tensor.to_vec1::<i64>().ok())
            .and_then(|tokens| usize::try_from(*tokens.first()?).ok())
            .ok_or_else(|| format!("{name} must be one i64, the number of tokens"))?;
        Ok(Some(LocationStatistics {
            mean,
            std,
            max,
            min,
            density,
            tokens,
        }))
    }

    /// The channels that vary over reference text.
    pub fn live_channels(&self) -> impl Iterator<Item = usize> {
        let varies = self.std.iter().enumerate().filter(|(_, std)| **std > 0.0);
        varies.map(|(channel, _)| channel)
    }
}

impl ReferenceText {
    /// The text in a file like [`REFERENCE_FILE`], for a model with the vocabulary that it was cut for.
    pub fn read(path: &Path, config: &TransformerConfig) -> Result<Self, ReferenceError> {
        let tensors = tensors::read(path, FloatPrecision::Single)?;
        let text = match tensors.get(TEXT) {
            Some(tensor) => Self::from_tensor(tensor, config),
            None => Err(format!("has no tensor {TEXT}")),
        };
        text.map_err(|problem| ReferenceError::Invalid {
            path: path.to_owned(),
            problem,
        })
    }

    fn from_tensor(tensor: &Tensor, config: &TransformerConfig) -> Result<Self, String> {
        let invalid = |problem: String| format!("{TEXT}: {problem}");
        let (_, length) = tensor.dims2().map_err(|_| {
            invalid(format!(
                "shape {:?} is not [sequences, length]",
                tensor.dims()
            ))
        })?;
        let tokens = tensor
            .flatten_all()
            .and_then(|tensor| tensor.to_vec1::<u32>())
            .map_err(|error| invalid(error.to_string()))?;
        if !(1..=config.context_length).contains(&length) {
            let context = config.context_length;
            return Err(invalid(format!(
                "sequences of {length} tokens; the model takes 1 to {context}"
            )));
        }
        match tokens.iter().find(|&&id| id as usize >= config.vocab_size) {
            Some(id) => Err(invalid(format!("there is no token {id}"))),
            None => Ok(ReferenceText { tokens, length }),
        }
    }
}
