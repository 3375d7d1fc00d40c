//! Making and removing presets.

use std::time::Duration;

use actix_web::{HttpResponse, web};

use super::list::no_preset;
use super::wire::{CreatePreset, DeletedPreset, PresetObject};
use crate::api::ApiError;
use crate::api::body::JsonBody;
use crate::api::completions::parameters::check_counterfactuals;
use crate::api::completions::prompt::encode_counterfactuals;
use crate::api::error::ErrorBody;
use crate::api::state::State;
use crate::api::steer_circuits::circuits_of;
use crate::artifacts::ArtifactId;
use crate::generation::request::GenerationRequest;
use crate::interventions::request::{
    CounterfactualPrompt, Destination, EditRequest, SteerRequest, Strength,
};
use crate::serving::preset_store::{Preset, PresetError};
use crate::serving::snapshot::{ModelCard, unix_seconds};

/// The longest description, in characters.
const LONGEST_DESCRIPTION: usize = 10_000;

/// Keeps a `steer` field, which every request that names the model `MODEL@PRESET` is then answered with. It is checked
/// as it would be in a request, but for what the prompts decide, and is kept in the server's data directory.
#[utoipa::path(post, path = "/v1/presets", tag = "presets", operation_id = "createPreset",
    request_body(content = CreatePreset, example = json!({
        "id": "single_quotes", "model": "tinypython", "description": "Closes strings with single quotes.",
        "steer": {"edits": [{"feature": "quote_type", "op": "set", "value": 8, "unit": "std"}]}
    })),
    responses(
        (status = 201, description = "The preset", body = PresetObject),
        (status = 400, description = "A field is wrong, or its steering could be applied to no prompt: `param` names the \
            field; an id already used has the code `already_exists`, more or longer presets than are kept the code \
            `over_budget`", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 503, description = "The engine is not running: code `not_ready`; or too much waits: code `overloaded`",
            body = ErrorBody),
        (status = 507, description = "There is no room on the server's disk: code `disk_full`", body = ErrorBody)
    ))]
pub async fn create(
    state: web::Data<State>,
    body: JsonBody<CreatePreset>,
) -> Result<HttpResponse, ApiError> {
    let CreatePreset {
        id,
        model,
        steer,
        description,
    } = body.0;
    let id: ArtifactId = id
        .parse()
        .map_err(|error| ApiError::invalid("id", format!("{error}")))?;
    let card = state.snapshot().model(&model)?;
    let description = description.unwrap_or_default();
    if description.chars().count() > LONGEST_DESCRIPTION {
        let message = format!("a description has at most {LONGEST_DESCRIPTION} characters");
        return Err(ApiError::invalid("description", message));
    }
    check_choices(&steer)?;
    check_counterfactuals(Some(&steer), &state.limits)?;
    check_edits(&state, &card, steer.clone()).await?;
    let model: ArtifactId = card.id.parse().map_err(ApiError::internal)?;
    let preset = Preset::new(model, id, description, unix_seconds(), steer);
    let kept = state.service.presets.add(preset).await?;
    state.service.renew_presets();
    Ok(HttpResponse::Created().json(PresetObject::of(&kept, &state.snapshot())))
}

/// Removes a preset. Requests in progress are finished.
#[utoipa::path(delete, path = "/v1/presets/{id}", tag = "presets", operation_id = "deletePreset",
    params(("id" = String, Path, description = "The preset's full name, `MODEL@PRESET`",
        example = "tinypython@single_quotes")),
    responses(
        (status = 200, description = "It is gone", body = DeletedPreset),
        (status = 404, description = "There is no such preset: code `preset_not_found`", body = ErrorBody)
    ))]
pub async fn delete(
    state: web::Data<State>,
    name: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let removed = state.service.presets.remove(&name).await?;
    let removed = removed.ok_or_else(|| no_preset(&state.snapshot(), &name))?;
    state.service.renew_presets();
    Ok(HttpResponse::Ok().json(DeletedPreset {
        id: removed.id.to_string(),
        object: "preset",
        model: removed.model.to_string(),
        deleted: true,
    }))
}

/// Refuses what would make several choices of a sample, for clients count them, and what fits one number of prompts
/// only.
fn check_choices(steer: &SteerRequest) -> Result<(), ApiError> {
    if steer.variants.as_ref().is_some_and(|arms| arms.len() > 1) {
        let message = "a preset makes one choice of each sample: name one arm";
        return Err(ApiError::invalid("steer.variants", message));
    }
    for (index, edit) in steer.edits.iter().enumerate() {
        if matches!(edit.strength, Some(Strength::Sweep(_))) {
            let message =
                "a preset makes one choice of each sample: give one strength, not a list of them";
            let param = format!("steer.edits[{index}].strength");
            return Err(ApiError::invalid(param, message));
        }
        if has_prompt_each(edit) {
            let message = "a preset is for any number of prompts: give one counterfactual for all of them, not a list";
            let param = format!("steer.edits[{index}].to.prompt");
            return Err(ApiError::invalid(param, message));
        }
    }
    Ok(())
}

/// Whether an edit has a counterfactual for each prompt of a request.
fn has_prompt_each(edit: &EditRequest) -> bool {
    use CounterfactualPrompt::{Text, Texts, TokenLists, Tokens};
    match &edit.to {
        Some(Destination::Counterfactual(to)) => match &to.prompt {
            Some(Texts(_) | TokenLists(_)) => true,
            Some(Text(_) | Tokens(_)) | None => false,
        },
        Some(Destination::Ablation(_)) | None => false,
    }
}

/// Refuses what a request with this field would be refused for, whatever its prompt.
async fn check_edits(state: &State, card: &ModelCard, steer: SteerRequest) -> Result<(), ApiError> {
    let snapshot = state.snapshot();
    let bridge = snapshot.bridge_for(&card.id, steer.bridge.as_deref(), "steer.bridge")?;
    let steer = encode_counterfactuals(steer, card, state, false).await?;
    let pair = match &bridge {
        Some(bridge) => Some(bridge.pair().await?),
        None => None,
    };
    let asked = GenerationRequest {
        pair,
        circuits: circuits_of(&snapshot, Some(&steer), &[]),
        steer: Some(steer),
        first_token_within: Some(Duration::from_secs(state.limits.first_token_seconds)),
        ..GenerationRequest::of_prompts(card.model().await?, Vec::new(), false)
    };
    Ok(state.engine.check_edits(asked).await?)
}

impl From<PresetError> for ApiError {
    fn from(error: PresetError) -> Self {
        let message = error.to_string();
        match error {
            PresetError::Exists { .. } => {
                ApiError::invalid_with_code("id", "already_exists", message)
            }
            PresetError::Full(_) | PresetError::NoRoom { .. } => ApiError::Invalid {
                message,
                param: None,
                code: Some("over_budget"),
            },
            PresetError::TooLong(_) => ApiError::invalid_with_code("steer", "over_budget", message),
            error => ApiError::storage(error),
        }
    }
}
