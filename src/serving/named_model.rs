//! What requests call a model: the id of one, or the full name of a preset, which is a model with a `steer` field that
//! was kept for it.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::preset_store::{Preset, SEPARATOR};
use super::snapshot::{ModelCard, NotServed, ServedPair, Snapshot, shortened};
use crate::artifacts::hexadecimal;
use crate::interventions::nearest::suggestion;

/// A model, or one with a preset.
#[derive(Debug, Clone)]
pub struct NamedModel {
    pub card: Arc<ModelCard>,
    pub preset: Option<Arc<Preset>>,
}

impl NamedModel {
    /// The name that was asked for.
    pub fn name(&self) -> String {
        match &self.preset {
            Some(preset) => preset.name(),
            None => self.card.id.clone(),
        }
    }
}

impl Snapshot {
    /// What a request calls a model: `MODEL`, or `MODEL@PRESET`.
    pub fn named_model(&self, name: &str) -> Result<NamedModel, NotServed> {
        let Some((id, preset)) = name.split_once(SEPARATOR) else {
            let (card, preset) = (self.model(name)?, None);
            return Ok(NamedModel { card, preset });
        };
        let card = self.models.get(id).cloned();
        let message = match (card, self.presets.get(name).cloned()) {
            (Some(card), preset @ Some(_)) => return Ok(NamedModel { card, preset }),
            (None, Some(kept)) => format!(
                "preset {:?} is of a model {:?}, which is not served",
                kept.name(),
                kept.model.as_str()
            ),
            (_, None) => self.no_preset(id, preset),
        };
        Err(NotServed::Model { message })
    }

    /// All that can be asked: the models by their ids, and after them the presets of those models by their names.
    pub fn named_models(&self) -> impl Iterator<Item = NamedModel> {
        let models = self.models.values();
        let models = models.map(|card| NamedModel {
            card: card.clone(),
            preset: None,
        });
        let presets = self.presets.values().filter_map(|preset| {
            let card = self.models.get(preset.model.as_str())?.clone();
            let preset = Some(preset.clone());
            Some(NamedModel { card, preset })
        });
        models.chain(presets)
    }

    /// Says that a model has no such preset, or is none itself, and which are called nearly so.
    pub fn no_preset(&self, model: &str, id: &str) -> String {
        let presets = self.presets.values();
        let of_model = presets.filter(|preset| preset.model.as_str() == model);
        let known: Vec<&str> = of_model.map(|preset| preset.id.as_str()).collect();
        if known.is_empty() && !self.models.contains_key(model) {
            return self.no_model(model);
        }
        let near = suggestion(&shortened(id), known);
        let (model, id) = (shortened(model), shortened(id));
        format!("model {model:?} has no preset {id:?}{near}")
    }
}

/// What changes an answer that the request does not: the build, the model with its chat template, what it computes on, the
/// preset, and the bridge.
pub fn system_fingerprint(named: &NamedModel, bridge: Option<&ServedPair>) -> String {
    let model = &named.card;
    let mut hasher = Sha256::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    hasher.update(&model.fingerprint);
    hasher.update(&model.device);
    hasher.update(model.matrices.to_string());
    hasher.update(bridge.map_or("", |bridge| &bridge.fingerprint));
    let template = model.chat_template.as_ref();
    hasher.update(template.map_or("", |template| template.source()));
    if let Some(preset) = &named.preset {
        hasher.update(preset.fingerprint());
    }
    format!("fp_{}", hexadecimal(&hasher.finalize()[..8]))
}
