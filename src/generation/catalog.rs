//! What is loaded: models by id, and the bridges that join them with their features.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::request::EngineError;
use crate::artifacts::{ArtifactError, atomic, hexadecimal};
use crate::bridge::Bridge;
use crate::bridge::pair::{PairError, PairFiles};
use crate::bridge::record::BridgeRecord;
use crate::features::registry::Feature;
use crate::interventions::nearest::suggestion;
use crate::interventions::plan::Joined;
use crate::interventions::reference::{ReferenceError, ReferenceStatistics};
use crate::models::chat_template::{ChatTemplate, ChatTemplateError};
use crate::models::layers::Purpose;
use crate::models::layout::{LayoutError, ModelFiles, ReadLimits};
use crate::models::location::Place;
use crate::models::tokenizer::{Tokenizer, TokenizerError};
use crate::models::transformer::Transformer;
use crate::numerics::rows;

const FEATURES_FILE: &str = "features.json";
const LARGEST_FEATURES_FILE: u64 = 8 << 20;

/// Why something could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    ChatTemplate(#[from] ChatTemplateError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    #[error("{}: {problem}", path.display())]
    Invalid { path: PathBuf, problem: String },
}

/// Which side of a bridge a model can stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    Dense,
    Sparse,
}

/// A model that answers.
#[derive(Debug)]
pub struct LoadedModel {
    pub id: String,
    pub kind: ModelKind,
    pub transformer: Transformer,
    pub tokenizer: Arc<Tokenizer>,
    /// How conversations are written out for it, where its maker says so.
    pub chat_template: Option<Arc<ChatTemplate>>,
    pub parameters: usize,
    pub nonzeros: usize,
    /// Sha256 of its configuration and weights, in hexadecimal.
    pub fingerprint: String,
}

/// A bridge between two loaded models.
#[derive(Debug, Clone)]
pub struct LoadedBridge {
    pub id: String,
    /// The ids of its models.
    pub dense: String,
    pub sparse: String,
    pub bridge: Bridge,
    pub record: BridgeRecord,
    pub features: BTreeMap<String, Feature>,
    pub reference: Arc<ReferenceStatistics>,
    pub fingerprint: String,
}

/// A bridge with both its models, ready to be added. Reading one takes no catalog, so it need not hold up the
/// engine.
#[derive(Debug)]
pub struct LoadedPair {
    pub dense: LoadedModel,
    pub sparse: LoadedModel,
    pub bridge: LoadedBridge,
}

impl LoadedPair {
    /// Reads a pair's directory.
    pub fn read(directory: &Path) -> Result<Self, CatalogError> {
        Self::read_within(directory, ReadLimits::NONE)
    }

    /// The same of a pair neither of whose models may exceed `limits`.
    pub fn read_within(directory: &Path, limits: ReadLimits) -> Result<Self, CatalogError> {
        let files = PairFiles::read_within(directory, limits)?;
        let bridge = load_bridge(&files, directory)?;
        let (dense_path, sparse_path) = (directory.join("dense"), directory.join("sparse"));
        let dense = load(
            files.dense,
            &bridge.dense,
            Some(ModelKind::Dense),
            &dense_path,
        )?;
        let sparse = load(
            files.sparse,
            &bridge.sparse,
            Some(ModelKind::Sparse),
            &sparse_path,
        )?;
        Ok(LoadedPair {
            dense,
            sparse,
            bridge,
        })
    }
}

/// A bridge with both its models, kept for as long as a request needs them.
#[derive(Debug, Clone)]
pub struct JoinedModels {
    pub bridge: Arc<LoadedBridge>,
    pub dense: Arc<LoadedModel>,
    pub sparse: Arc<LoadedModel>,
}

impl JoinedModels {
    pub fn view(&self) -> Joined<'_> {
        Joined {
            id: &self.bridge.id,
            dense: &self.dense.transformer,
            sparse: &self.sparse.transformer,
            bridge: &self.bridge.bridge,
            record: &self.bridge.record,
            features: &self.bridge.features,
            reference: &self.bridge.reference,
        }
    }
}

/// Everything the engine can answer with.
#[derive(Debug, Default)]
pub struct Catalog {
    pub models: BTreeMap<String, Arc<LoadedModel>>,
    pub bridges: BTreeMap<String, Arc<LoadedBridge>>,
}

/// `features.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FeaturesFile {
    features: Vec<Feature>,
}

impl Catalog {
    pub fn new() -> Self {
        Self::default()
    }

    /// Loads a pair's directory: both models, the bridge, its features and statistics. Nothing is added unless
    /// everything fits.
    pub fn load_pair(&mut self, directory: &Path) -> Result<(), CatalogError> {
        self.insert_pair(LoadedPair::read(directory)?, directory)
    }

    /// Adds a pair read from `directory`. A model that is there already must be the same one.
    pub fn insert_pair(&mut self, pair: LoadedPair, directory: &Path) -> Result<(), CatalogError> {
        let LoadedPair {
            dense,
            sparse,
            bridge,
        } = pair;
        let invalid = |problem: String| CatalogError::Invalid {
            path: directory.to_path_buf(),
            problem,
        };
        if dense.id == sparse.id {
            return Err(invalid(format!("both models are called {:?}", dense.id)));
        }
        if self.bridges.contains_key(&bridge.id) {
            return Err(invalid(format!(
                "a bridge called {:?} is loaded already",
                bridge.id
            )));
        }
        for model in [&dense, &sparse] {
            if let Some(loaded) = self.models.get(&model.id)
                && (loaded.fingerprint != model.fingerprint || loaded.kind != model.kind)
            {
                return Err(invalid(format!(
                    "another model called {:?} is loaded already",
                    model.id
                )));
            }
        }
        for model in [dense, sparse] {
            self.models
                .entry(model.id.clone())
                .or_insert_with(|| Arc::new(model));
        }
        self.bridges.insert(bridge.id.clone(), Arc::new(bridge));
        Ok(())
    }

    /// Loads one model's directory under an id.
    pub fn load_model(&mut self, id: &str, directory: &Path) -> Result<(), CatalogError> {
        self.insert_model(LoadedModel::read(id, directory)?, directory)
    }

    /// Adds a model read from `directory`.
    pub fn insert_model(
        &mut self,
        model: LoadedModel,
        directory: &Path,
    ) -> Result<(), CatalogError> {
        if self.models.contains_key(&model.id) {
            let problem = format!("a model called {:?} is loaded already", model.id);
            return Err(CatalogError::Invalid {
                path: directory.to_path_buf(),
                problem,
            });
        }
        self.models.insert(model.id.clone(), Arc::new(model));
        Ok(())
    }

    /// Takes a bridge away, and those of its models that no other bridge joins.
    pub fn remove_pair(&mut self, bridge: &str) {
        let Some(removed) = self.bridges.remove(bridge) else {
            return;
        };
        for model in [&removed.dense, &removed.sparse] {
            let joins = |other: &Arc<LoadedBridge>| other.dense == *model || other.sparse == *model;
            if !self.bridges.values().any(joins) {
                self.models.remove(model);
            }
        }
    }

    /// Takes a model away.
    pub fn remove_model(&mut self, id: &str) {
        self.models.remove(id);
    }

    /// The model of that id.
    pub fn model(&self, id: &str) -> Result<&Arc<LoadedModel>, EngineError> {
        self.models.get(id).ok_or_else(|| {
            let near = suggestion(id, self.models.keys().map(String::as_str));
            EngineError::NotFound {
                message: format!("there is no model {id:?}{near}"),
                param: Some("model".into()),
            }
        })
    }

    /// The bridge that a request for `model` means: the one it names, or the model's only one. None where the
    /// model has no bridge and none was named.
    pub fn bridge_of(
        &self,
        model: &LoadedModel,
        named: Option<&str>,
    ) -> Result<Option<&Arc<LoadedBridge>>, EngineError> {
        let invalid = |message: String| EngineError::Invalid {
            message,
            param: Some("steer.bridge".into()),
        };
        let fits = |bridge: &&Arc<LoadedBridge>| match model.kind {
            ModelKind::Dense => bridge.dense == model.id,
            ModelKind::Sparse => bridge.sparse == model.id,
        };
        if let Some(name) = named {
            let Some(bridge) = self.bridges.get(name) else {
                let near = suggestion(name, self.bridges.keys().map(String::as_str));
                return Err(invalid(format!("there is no bridge {name:?}{near}")));
            };
            return match fits(&bridge) {
                true => Ok(Some(bridge)),
                false => Err(invalid(format!(
                    "bridge {name:?} does not join model {:?}",
                    model.id
                ))),
            };
        }
        let fitting: Vec<&Arc<LoadedBridge>> = self.bridges.values().filter(fits).collect();
        match fitting.as_slice() {
            [] => Ok(None),
            [only] => Ok(Some(only)),
            several => {
                let names: Vec<&str> = several.iter().map(|bridge| bridge.id.as_str()).collect();
                let message = format!(
                    "model {:?} has several bridges; name one of {}",
                    model.id,
                    names.join(", ")
                );
                Err(invalid(message))
            }
        }
    }

    /// A bridge with its models.
    pub fn joined(&self, bridge: &Arc<LoadedBridge>) -> Result<JoinedModels, EngineError> {
        Ok(JoinedModels {
            dense: self.model(&bridge.dense)?.clone(),
            sparse: self.model(&bridge.sparse)?.clone(),
            bridge: bridge.clone(),
        })
    }
}

impl LoadedModel {
    /// Reads a model's directory. A model with an AbsTopK or mostly zero weights counts as sparse.
    pub fn read(id: &str, directory: &Path) -> Result<Self, CatalogError> {
        Self::read_within(id, directory, ReadLimits::NONE)
    }

    /// The same of a model that may not exceed `limits`.
    pub fn read_within(
        id: &str,
        directory: &Path,
        limits: ReadLimits,
    ) -> Result<Self, CatalogError> {
        load(
            ModelFiles::read_within(directory, limits)?,
            id,
            None,
            directory,
        )
    }

    /// A model from its tensors. `kind` is taken from the weights where it is not known.
    pub fn new(
        id: &str,
        files: &ModelFiles,
        kind: Option<ModelKind>,
        tokenizer: Arc<Tokenizer>,
    ) -> candle_core::Result<Self> {
        let (mut parameters, mut nonzeros) = (0, 0);
        for tensor in files.tensors.values() {
            parameters += tensor.elem_count();
            nonzeros += rows::with_values(tensor, |values| {
                values.iter().filter(|value| **value != 0.0).count()
            })?;
        }
        let sparse = files.config.active_fraction.is_some() || 2 * nonzeros < parameters;
        let guessed = if sparse {
            ModelKind::Sparse
        } else {
            ModelKind::Dense
        };
        let config = serde_json::to_vec(&files.config).map_err(candle_core::Error::wrap)?;
        Ok(LoadedModel {
            id: id.to_owned(),
            kind: kind.unwrap_or(guessed),
            transformer: Transformer::new(
                files.config.clone(),
                &files.tensors,
                Purpose::Inference,
            )?,
            tokenizer,
            chat_template: None,
            parameters,
            nonzeros,
            fingerprint: fingerprint(&config, &files.tensors)?,
        })
    }
}

fn load(
    files: ModelFiles,
    id: &str,
    kind: Option<ModelKind>,
    directory: &Path,
) -> Result<LoadedModel, CatalogError> {
    let Some(json) = &files.tokenizer else {
        let problem = "has no tokenizer.json; a model cannot be served without".to_owned();
        return Err(CatalogError::Invalid {
            path: directory.to_path_buf(),
            problem,
        });
    };
    let tokenizer = Arc::new(Tokenizer::from_bytes(json)?);
    Ok(LoadedModel {
        chat_template: ChatTemplate::read(directory)?.map(Arc::new),
        ..LoadedModel::new(id, &files, kind, tokenizer)?
    })
}

fn load_bridge(files: &PairFiles, directory: &Path) -> Result<LoadedBridge, CatalogError> {
    let record = files.record.clone();
    let config = &files.sparse.config;
    let features_path = directory.join(FEATURES_FILE);
    let features = match features_path.is_file() {
        true => {
            let invalid = |problem: String| CatalogError::Invalid {
                path: features_path.clone(),
                problem,
            };
            let json = atomic::read_small(&features_path, LARGEST_FEATURES_FILE)?;
            let file: FeaturesFile =
                serde_json::from_slice(&json).map_err(|error| invalid(error.to_string()))?;
            let mut features = BTreeMap::new();
            for feature in file.features {
                check_feature(&feature, files).map_err(&invalid)?;
                let name = feature.name.clone();
                if features.insert(name.clone(), feature).is_some() {
                    return Err(invalid(format!("has two features called {name:?}")));
                }
            }
            features
        }
        false => BTreeMap::new(),
    };
    Ok(LoadedBridge {
        id: record.id.to_string(),
        dense: record.dense.to_string(),
        sparse: record.sparse.to_string(),
        bridge: files.bridge()?,
        fingerprint: fingerprint(&[], &files.tensors)?,
        record,
        features,
        reference: Arc::new(ReferenceStatistics::read(directory, config)?),
    })
}

/// Whether a feature's place and channels are the sparse model's.
fn check_feature(feature: &Feature, files: &PairFiles) -> Result<(), String> {
    let config = &files.sparse.config;
    let of = |problem: String| format!("feature {:?}: {problem}", feature.name);
    let place =
        Place::parse(&feature.node, config.n_layers).map_err(|error| of(error.to_string()))?;
    let width = place.width(config);
    let channels: BTreeSet<usize> = feature.channels.iter().map(|entry| entry.channel).collect();
    if channels.is_empty() || channels.len() != feature.channels.len() {
        return Err(of("names no channel, or one of them twice".into()));
    }
    match channels.iter().find(|&&channel| channel >= width) {
        Some(channel) => Err(of(format!(
            "{place} has {width} channels; {channel} is none of them"
        ))),
        None => Ok(()),
    }
}

/// Sha256 of a text and named tensors.
fn fingerprint(text: &[u8], tensors: &BTreeMap<String, Tensor>) -> candle_core::Result<String> {
    let mut hash = Sha256::new();
    hash.update(text);
    for (name, tensor) in tensors {
        hash.update(name.as_bytes());
        rows::with_values(tensor, |values| {
            for block in values.chunks(1 << 14) {
                let bytes: Vec<u8> = block.iter().flat_map(|value| value.to_le_bytes()).collect();
                hash.update(&bytes);
            }
        })?;
    }
    Ok(hexadecimal(&hash.finalize()))
}
