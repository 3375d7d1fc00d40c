//! `GET /v1/models`: the dense and the sparse models that are served, and their presets.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiError;
use super::error::ErrorBody;
use super::state::State;
use crate::documented::documented;
use crate::interventions::request::SteerRequest;
use crate::models::location::Site;
use crate::serving::named_model::NamedModel;
use crate::serving::snapshot::Snapshot;

/// One model: OpenAI's object and what is particular to these models. A preset is told as the model that it steers, but
/// for its `id`, `created`, `kind`, `base_model` and `steer`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Model {
    /// What requests call it; of a preset `MODEL@PRESET`.
    #[schema(example = "tinypython")]
    pub id: String,
    #[schema(example = "model")]
    pub object: &'static str,
    /// When it was loaded, or the preset made, in seconds since 1970.
    pub created: u64,
    #[schema(example = "causeway")]
    pub owned_by: &'static str,
    pub kind: ModelKind,
    /// The model that a preset steers; null of a model itself.
    #[schema(required = true)]
    pub base_model: Option<String>,
    /// The `steer` field that a preset's answers are made with; null of a model itself.
    #[schema(required = true)]
    pub steer: Option<SteerRequest>,
    pub n_layers: usize,
    /// Channels of the residual stream.
    pub d_model: usize,
    pub n_heads: usize,
    /// Neurons of an MLP.
    pub d_mlp: usize,
    /// Token ids run from 0 to one less.
    pub vocab_size: usize,
    /// The longest sequence, prompt and completion, in tokens.
    pub context_length: usize,
    pub parameters: usize,
    /// The parameters that are not zero.
    pub nonzeros: usize,
    /// The residual sites, in the order of the forward pass.
    pub sites: Vec<String>,
    /// The first of `ends`; null where there is none.
    #[schema(required = true)]
    pub end_of_text: Option<u32>,
    /// The ids of the tokens that end a completion: those of `eos_token_id` in the model's `generation_config.json` or
    /// else its `config.json`, or else of `<|endoftext|>`.
    pub ends: Vec<u32>,
    /// Whether it has a chat template, and so answers at `/v1/chat/completions`.
    pub chat: bool,
    /// The bridges that join it to another model, by their ids.
    pub bridges: Vec<String>,
    /// The bridge that is meant where a request names none: the first of the model's that came into service. Null
    /// where it has none.
    #[schema(required = true, example = "tinypython")]
    pub default_bridge: Option<String>,
    /// Whether its weights are in memory. Those of a job's result are read when they are first asked for, and dropped
    /// when nobody asks for a while.
    pub in_memory: bool,
    /// Changes with the model's files.
    pub fingerprint: String,
    /// What it computes on: `cpu`, or a CUDA device by its number.
    #[schema(example = "cpu")]
    pub device: String,
    /// What its dense matrices are multiplied in there: `float32`, or on a CUDA device that the settings say so for
    /// `bfloat16`.
    #[schema(example = "float32")]
    pub dtype: String,
    /// What its maker recorded: recipe, data, time.
    #[schema(value_type = Object)]
    pub provenance: BTreeMap<String, serde_json::Value>,
}

documented! {
    /// What answers under an id.
    #[derive(Debug, Serialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum ModelKind {
        /// A model none of whose weights is fixed at zero.
        Dense,
        /// A model almost all of whose weights are zero.
        Sparse,
        /// A model with a `steer` field that was kept for it.
        Preset,
    }
}

/// All models, by their ids, and after them their presets, by theirs.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<Model>,
}

fn model(named: &NamedModel, snapshot: &Snapshot) -> Model {
    let NamedModel { card, preset } = named;
    let config = &card.config;
    Model {
        id: named.name(),
        object: "model",
        created: preset.as_ref().map_or(card.loaded, |preset| preset.created),
        owned_by: "causeway",
        kind: match preset {
            Some(_) => ModelKind::Preset,
            None if card.sparse => ModelKind::Sparse,
            None => ModelKind::Dense,
        },
        base_model: preset.as_ref().map(|_| card.id.clone()),
        steer: preset.as_ref().map(|preset| preset.steer.clone()),
        n_layers: config.n_layers,
        d_model: config.d_model,
        n_heads: config.n_heads,
        d_mlp: config.d_mlp,
        vocab_size: config.vocab_size,
        context_length: config.context_length,
        parameters: card.parameters,
        nonzeros: card.nonzeros,
        sites: Site::all(config.n_layers)
            .map(|site| site.to_string())
            .collect(),
        end_of_text: card.tokenizer.ends().first().copied(),
        ends: card.tokenizer.ends().to_vec(),
        chat: card.chat_template.is_some(),
        bridges: snapshot
            .bridges_of(&card.id)
            .map(|bridge| bridge.record.id.to_string())
            .collect(),
        default_bridge: snapshot
            .default_bridge(&card.id)
            .map(|bridge| bridge.record.id.to_string()),
        in_memory: card.weights.in_memory(),
        fingerprint: card.fingerprint.clone(),
        device: card.device.clone(),
        dtype: card.matrices.to_string(),
        provenance: card.provenance.clone(),
    }
}

/// All models, dense and sparse, and the presets of those models. Bridges are at `/v1/bridges`.
#[utoipa::path(get, path = "/v1/models", tag = "models", operation_id = "listModels",
    responses((status = 200, description = "The models", body = ModelList)))]
pub async fn list(state: web::Data<State>) -> HttpResponse {
    let snapshot = &state.snapshot();
    let data = snapshot.named_models();
    let data = data.map(|named| model(&named, snapshot)).collect();
    HttpResponse::Ok().json(ModelList {
        object: "list",
        data,
    })
}

/// One model.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "models", operation_id = "retrieveModel",
    params(("id" = String, Path, description = "The model's id, or a preset's full name", example = "tinypython")),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody)
    ))]
pub async fn retrieve(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let snapshot = state.snapshot();
    let named = snapshot.named_model(&id)?;
    Ok(HttpResponse::Ok().json(model(&named, &snapshot)))
}
