//! What is served, as plain data: one card a model and one a bridge, made while they are loaded. Listing them,
//! checking a request's names and tokenising need no word from the engine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::ApiError;
use crate::artifacts::hexadecimal;
use crate::bridge::record::BridgeRecord;
use crate::generation::catalog::{Catalog, LoadedBridge, LoadedModel, ModelKind};
use crate::interventions::nearest::suggestion;
use crate::interventions::reference::ReferenceStatistics;
use crate::models::chat_template::ChatTemplate;
use crate::models::config::TransformerConfig;
use crate::models::tokenizer::Tokenizer;

/// All that is served.
#[derive(Debug, Default, Clone)]
pub struct Inventory {
    pub models: BTreeMap<String, Arc<ModelCard>>,
    pub bridges: BTreeMap<String, Arc<BridgeCard>>,
}

/// One model.
#[derive(Debug)]
pub struct ModelCard {
    pub id: String,
    pub sparse: bool,
    pub config: TransformerConfig,
    pub tokenizer: Arc<Tokenizer>,
    pub chat_template: Option<Arc<ChatTemplate>>,
    pub parameters: usize,
    pub nonzeros: usize,
    /// Seconds since 1970.
    pub loaded: u64,
    /// A hash of its configuration and weights.
    pub fingerprint: String,
    pub provenance: Provenance,
}

/// One bridge.
#[derive(Debug)]
pub struct BridgeCard {
    pub record: BridgeRecord,
    pub fingerprint: String,
    pub provenance: Provenance,
    /// What single channels of the sparse model do over reference text, where that was measured.
    pub statistics: Arc<ReferenceStatistics>,
}

/// What a manifest says of where something came from.
pub type Provenance = BTreeMap<String, serde_json::Value>;

impl Inventory {
    /// Cards of everything in a catalog. Those of `before` stay as they are; `provenance` is of the new ones, by id.
    pub fn of(
        catalog: &Catalog,
        before: &Inventory,
        provenance: &BTreeMap<String, Provenance>,
    ) -> Self {
        let loaded = unix_seconds();
        let of = |id: &str| provenance.get(id).cloned().unwrap_or_default();
        let model = |model: &LoadedModel| ModelCard {
            id: model.id.clone(),
            sparse: model.kind == ModelKind::Sparse,
            config: model.transformer.config.clone(),
            tokenizer: model.tokenizer.clone(),
            chat_template: model.chat_template.clone(),
            parameters: model.parameters,
            nonzeros: model.nonzeros,
            loaded,
            fingerprint: model.fingerprint.clone(),
            provenance: of(&model.id),
        };
        let bridge = |bridge: &LoadedBridge| BridgeCard {
            record: bridge.record.clone(),
            fingerprint: bridge.fingerprint.clone(),
            provenance: of(&bridge.id),
            statistics: bridge.reference.clone(),
        };
        Inventory {
            models: catalog
                .models
                .iter()
                .map(|(id, loaded)| {
                    let known = before.models.get(id).cloned();
                    (id.clone(), known.unwrap_or_else(|| Arc::new(model(loaded))))
                })
                .collect(),
            bridges: catalog
                .bridges
                .iter()
                .map(|(id, loaded)| {
                    let known = before.bridges.get(id).cloned();
                    (
                        id.clone(),
                        known.unwrap_or_else(|| Arc::new(bridge(loaded))),
                    )
                })
                .collect(),
        }
    }

    /// The model that a request names in its field `model`.
    pub fn model(&self, id: &str) -> Result<Arc<ModelCard>, ApiError> {
        self.models.get(id).cloned().ok_or_else(|| {
            let near = suggestion(&shortened(id), self.models.keys().map(String::as_str));
            ApiError::NotFound {
                message: format!("there is no model {:?}{near}", shortened(id)),
                param: Some("model".to_owned()),
                code: Some("model_not_found"),
            }
        })
    }

    /// The bridge of this id; `param` is the field that names it, where a body or a query does.
    pub fn bridge(&self, id: &str, param: Option<&str>) -> Result<Arc<BridgeCard>, ApiError> {
        self.bridges.get(id).cloned().ok_or_else(|| {
            let near = suggestion(&shortened(id), self.bridges.keys().map(String::as_str));
            let message = format!("there is no bridge {:?}{near}", shortened(id));
            match param {
                Some(param) => ApiError::invalid_with_code(param, "bridge_not_found", message),
                None => ApiError::NotFound {
                    message,
                    param: None,
                    code: Some("bridge_not_found"),
                },
            }
        })
    }

    /// The bridge that a body names, or the only one there is.
    pub fn bridge_or_only(
        &self,
        id: Option<&str>,
        param: &str,
    ) -> Result<Arc<BridgeCard>, ApiError> {
        if let Some(id) = id {
            return self.bridge(id, Some(param));
        }
        let mut bridges = self.bridges.values();
        match (bridges.next(), bridges.next()) {
            (Some(only), None) => Ok(only.clone()),
            (None, _) => Err(ApiError::invalid_with_code(
                param,
                "bridge_not_found",
                "no bridge is served",
            )),
            _ => {
                let ids: Vec<&str> = self.bridges.keys().map(String::as_str).collect();
                Err(ApiError::invalid(
                    param,
                    format!("say which bridge is meant: {}", ids.join(", ")),
                ))
            }
        }
    }

    /// The bridges that join this model to another, as its dense or its sparse side.
    pub fn bridges_of<'a>(&'a self, model: &str) -> impl Iterator<Item = &'a Arc<BridgeCard>> {
        self.bridges
            .values()
            .filter(move |bridge| bridge.joins(model))
    }

    /// The bridge that the edits of a request for `model` go over: the one it names, or the model's only one.
    pub fn bridge_for(&self, model: &str, named: Option<&str>) -> Option<Arc<BridgeCard>> {
        let mut bridges = self
            .bridges_of(model)
            .filter(|bridge| named.is_none_or(|named| bridge.record.id.as_str() == named));
        let first = bridges.next()?.clone();
        bridges.next().is_none().then_some(first)
    }
}

impl BridgeCard {
    fn joins(&self, model: &str) -> bool {
        self.record.dense.as_str() == model || self.record.sparse.as_str() == model
    }
}

/// What changes an answer that the request does not: the build, the model with its chat template, and the bridge.
pub fn system_fingerprint(model: &ModelCard, bridge: Option<&BridgeCard>) -> String {
    let mut hasher = Sha256::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    hasher.update(&model.fingerprint);
    hasher.update(bridge.map_or("", |bridge| &bridge.fingerprint));
    let template = model.chat_template.as_ref();
    hasher.update(template.map_or("", |template| template.source()));
    format!("fp_{}", hexadecimal(&hasher.finalize()[..8]))
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A name from a request, short enough to be said back.
pub fn shortened(name: &str) -> String {
    name.chars().take(80).collect()
}
