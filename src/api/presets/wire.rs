//! Presets as they are sent and answered.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::interventions::request::SteerRequest;
use crate::serving::preset_store::Preset;
use crate::serving::snapshot::Snapshot;

/// One preset.
#[derive(Debug, Serialize, ToSchema)]
pub struct PresetObject {
    /// What it is called among its model's presets.
    #[schema(example = "single_quotes")]
    pub id: String,
    #[schema(example = "preset")]
    pub object: &'static str,
    /// The model that it steers.
    #[schema(example = "tinypython")]
    pub model: String,
    /// `MODEL@PRESET`: its address, and what requests call the model in order to be answered with it.
    #[schema(example = "tinypython@single_quotes")]
    pub name: String,
    pub description: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Whether its model is served, so that it can be asked.
    pub served: bool,
    pub steer: SteerRequest,
}

/// A page of presets.
#[derive(Debug, Serialize, ToSchema)]
pub struct PresetList {
    #[schema(example = "list")]
    pub object: &'static str,
    /// By their full names.
    pub data: Vec<PresetObject>,
    /// The full name of the last preset of this page; the next page's `after`.
    #[schema(required = true)]
    pub last_id: Option<String>,
    pub has_more: bool,
}

/// Which presets to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PresetQuery {
    /// Those of this model, whether it is served or not.
    #[param(example = "tinypython")]
    pub model: Option<String>,
    /// At most so many.
    #[param(minimum = 1, maximum = 1000, default = 100, example = 10)]
    pub limit: Option<usize>,
    /// Only what comes after the preset of this full name, the `last_id` of the page before.
    pub after: Option<String>,
}

/// A preset to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePreset {
    /// 1 to 64 of a-z, 0-9, `.`, `_` and `-`, no dot first or beside another, not yet used for this model.
    #[schema(pattern = r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?$", max_length = 64)]
    pub id: String,
    /// The id of the dense or sparse model that it steers.
    pub model: String,
    /// The `steer` field of every request to it. It makes one choice of each sample: at most one of `variants` and no
    /// list of strengths; and it is for any number of prompts, so that a prompt in `edits[].to` is one for all.
    pub steer: SteerRequest,
    /// For people.
    #[schema(max_length = 10_000)]
    pub description: Option<String>,
}

/// A preset that is no more.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedPreset {
    pub id: String,
    #[schema(example = "preset")]
    pub object: &'static str,
    pub model: String,
    /// Always true.
    pub deleted: bool,
}

impl PresetObject {
    pub fn of(preset: &Preset, served: &Snapshot) -> Self {
        PresetObject {
            id: preset.id.to_string(),
            object: "preset",
            model: preset.model.to_string(),
            name: preset.name(),
            description: preset.description.clone(),
            created: preset.created,
            served: served.models.contains_key(preset.model.as_str()),
            steer: preset.steer.clone(),
        }
    }
}
