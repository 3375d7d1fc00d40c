//! What is served, as plain data: one card a model and one a bridge, made while they are loaded. Listing them,
//! checking a request's names and tokenising need no word from the engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::ApiError;
use super::nearest;
use crate::artifacts::{ArtifactError, ArtifactId, Manifest};
use crate::bridge::record::BridgeRecord;
use crate::models::config::TransformerConfig;
use crate::models::layout::ModelFiles;
use crate::models::tokenizer::{Tokenizer, TokenizerError};

/// A model with less than this share of its weights nonzero counts as sparse.
const SPARSE_BELOW: f64 = 0.5;

/// All that is served.
#[derive(Debug, Default)]
pub struct Inventory {
    pub models: BTreeMap<String, ModelCard>,
    pub bridges: BTreeMap<String, BridgeCard>,
}

/// One model.
#[derive(Debug)]
pub struct ModelCard {
    pub id: String,
    pub sparse: bool,
    pub config: TransformerConfig,
    /// A model without one takes and gives token ids only.
    pub tokenizer: Option<Arc<Tokenizer>>,
    pub parameters: usize,
    pub nonzeros: usize,
    /// Seconds since 1970.
    pub loaded: u64,
    /// A hash of its files.
    pub fingerprint: String,
    /// What its manifest says of where it came from.
    pub provenance: BTreeMap<String, serde_json::Value>,
}

/// One bridge.
#[derive(Debug)]
pub struct BridgeCard {
    pub record: BridgeRecord,
    pub fingerprint: String,
    pub provenance: BTreeMap<String, serde_json::Value>,
}

/// Why something cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("a weight could not be read: {0}")]
    Weights(#[from] candle_core::Error),
    #[error("two {kind}s are called {id}")]
    Twice { kind: &'static str, id: String },
}

impl Inventory {
    /// Adds a model read from `directory`.
    pub fn add_model(
        &mut self,
        id: &ArtifactId,
        files: &ModelFiles,
        directory: &Path,
    ) -> Result<(), InventoryError> {
        let mut parameters = 0;
        let mut nonzeros = 0;
        for tensor in files.tensors.values() {
            let values = tensor.flatten_all()?.to_vec1::<f32>()?;
            parameters += values.len();
            nonzeros += values.iter().filter(|value| **value != 0.0).count();
        }
        let tokenizer = files.tokenizer.as_deref().map(Tokenizer::from_bytes).transpose()?;
        let (fingerprint, provenance) = origin(id, directory)?;
        let card = ModelCard {
            id: id.to_string(),
            sparse: (nonzeros as f64) < SPARSE_BELOW * parameters as f64,
            config: files.config.clone(),
            tokenizer: tokenizer.map(Arc::new),
            parameters,
            nonzeros,
            loaded: unix_seconds(),
            fingerprint,
            provenance,
        };
        match self.models.insert(id.to_string(), card) {
            None => Ok(()),
            Some(_) => Err(InventoryError::Twice { kind: "model", id: id.to_string() }),
        }
    }

    /// Adds a bridge, whose models are added by themselves.
    pub fn add_bridge(&mut self, record: BridgeRecord, directory: &Path) -> Result<(), InventoryError> {
        let id = record.id.to_string();
        // The pair's directory holds the models too; what tells one bridge from another is all of it.
        let (fingerprint, provenance) = origin(&record.id, directory)?;
        if let Some(model) = self.models.get_mut(record.sparse.as_str()) {
            model.sparse = true;
        }
        let card = BridgeCard { record, fingerprint, provenance };
        match self.bridges.insert(id.clone(), card) {
            None => Ok(()),
            Some(_) => Err(InventoryError::Twice { kind: "bridge", id }),
        }
    }

    /// The model that a request names in its field `model`.
    pub fn model(&self, id: &str) -> Result<&ModelCard, ApiError> {
        self.models.get(id).ok_or_else(|| {
            let near = nearest::suggestion(id, self.models.keys().map(String::as_str));
            ApiError::NotFound {
                message: format!("there is no model {:?}{near}", shortened(id)),
                param: Some("model".to_owned()),
                code: Some("model_not_found"),
            }
        })
    }

    /// The bridge of this id; `param` is the field that names it, where a body or a query does.
    pub fn bridge(&self, id: &str, param: Option<&str>) -> Result<&BridgeCard, ApiError> {
        self.bridges.get(id).ok_or_else(|| {
            let near = nearest::suggestion(id, self.bridges.keys().map(String::as_str));
            let message = format!("there is no bridge {:?}{near}", shortened(id));
            match param {
                Some(param) => ApiError::invalid_with_code(param, "bridge_not_found", message),
                None => ApiError::NotFound { message, param: None, code: Some("bridge_not_found") },
            }
        })
    }

    /// The bridge that a body names, or the only one there is.
    pub fn bridge_or_only(&self, id: Option<&str>, param: &str) -> Result<&BridgeCard, ApiError> {
        if let Some(id) = id {
            return self.bridge(id, Some(param));
        }
        let mut bridges = self.bridges.values();
        match (bridges.next(), bridges.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(ApiError::invalid_with_code(param, "bridge_not_found", "no bridge is served")),
            _ => {
                let ids: Vec<&str> = self.bridges.keys().map(String::as_str).collect();
                Err(ApiError::invalid(param, format!("say which bridge is meant: {}", ids.join(", "))))
            }
        }
    }

    /// The bridges that join this model to another, as its dense or its sparse side.
    pub fn bridges_of<'a>(&'a self, model: &str) -> impl Iterator<Item = &'a BridgeCard> {
        self.bridges.values().filter(move |bridge| bridge.joins(model))
    }

    /// The bridge that the edits of a request for `model` go over: the one it names, or the model's only one.
    pub fn bridge_for(&self, model: &str, named: Option<&str>) -> Option<&BridgeCard> {
        let mut bridges =
            self.bridges_of(model).filter(|bridge| named.is_none_or(|named| bridge.record.id.as_str() == named));
        let first = bridges.next()?;
        bridges.next().is_none().then_some(first)
    }
}

impl ModelCard {
    /// What text becomes for this model.
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>, ApiError> {
        self.tokenizer.clone().ok_or_else(|| {
            ApiError::invalid("prompt", format!("model {} has no tokenizer; give token ids", self.id))
        })
    }
}

impl BridgeCard {
    fn joins(&self, model: &str) -> bool {
        self.record.dense.as_str() == model || self.record.sparse.as_str() == model
    }
}

/// What changes an answer that the request does not: the build, the model and the bridge.
pub fn system_fingerprint(model: &ModelCard, bridge: Option<&BridgeCard>) -> String {
    let mut hasher = Sha256::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    hasher.update(&model.fingerprint);
    hasher.update(bridge.map_or("", |bridge| &bridge.fingerprint));
    format!("fp_{}", hexadecimal(&hasher.finalize()[..8]))
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A hash of all files of a directory, and the provenance its manifest tells where it has one.
fn origin(
    id: &ArtifactId,
    directory: &Path,
) -> Result<(String, BTreeMap<String, serde_json::Value>), ArtifactError> {
    let found = Manifest::of_directory(directory, id.clone(), String::new(), BTreeMap::new())?;
    let mut hasher = Sha256::new();
    for file in &found.files {
        hasher.update(file.name.as_str());
        hasher.update(&file.sha256);
    }
    // A directory without a manifest is served all the same; it only cannot say where it came from.
    let provenance = Manifest::read(directory).map(|manifest| manifest.provenance).unwrap_or_default();
    Ok((hexadecimal(&hasher.finalize()[..16]), provenance))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A name from a request, short enough to be said back.
pub fn shortened(name: &str) -> String {
    name.chars().take(80).collect()
}
