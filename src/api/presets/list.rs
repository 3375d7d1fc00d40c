//! Which presets there are.

use std::sync::Arc;

use actix_web::{HttpResponse, web};

use super::wire::{PresetList, PresetObject, PresetQuery};
use crate::api::ApiError;
use crate::api::error::ErrorBody;
use crate::api::state::State;
use crate::serving::preset_store::{Preset, SEPARATOR};
use crate::serving::snapshot::{Snapshot, shortened};

const DEFAULT_LIMIT: usize = 100;
const LARGEST_LIMIT: usize = 1000;

/// All presets, those of models that are not served too.
#[utoipa::path(get, path = "/v1/presets", tag = "presets", operation_id = "listPresets", params(PresetQuery),
    responses(
        (status = 200, description = "A page of presets", body = PresetList),
        (status = 400, description = "A parameter is unknown or out of range, or names nothing", body = ErrorBody)
    ))]
pub async fn list(
    state: web::Data<State>,
    query: web::Query<PresetQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=LARGEST_LIMIT).contains(&limit) {
        let message = format!("limit is {limit}; it must be between 1 and {LARGEST_LIMIT}");
        return Err(ApiError::invalid("limit", message));
    }
    let snapshot = state.snapshot();
    let mut presets: Vec<&Arc<Preset>> = snapshot.presets.values().collect();
    if let Some(model) = &query.model {
        presets.retain(|preset| preset.model.as_str() == model);
        if presets.is_empty() {
            let known = snapshot.model(model);
            known.map_err(|error| ApiError::invalid("model", error.to_string()))?;
        }
    }
    let start = match &query.after {
        None => 0,
        Some(after) => {
            let position = presets.iter().position(|preset| preset.name() == *after);
            1 + position.ok_or_else(|| {
                let message = "no preset of this list has the full name given as `after`";
                ApiError::invalid("after", message)
            })?
        }
    };
    let has_more = presets.len() > start + limit;
    let page = presets.into_iter().skip(start).take(limit);
    let data: Vec<PresetObject> = page
        .map(|preset| PresetObject::of(preset, &snapshot))
        .collect();
    let last_id = data.last().map(|preset| preset.name.clone());
    Ok(HttpResponse::Ok().json(PresetList {
        object: "list",
        data,
        last_id,
        has_more,
    }))
}

/// One preset.
#[utoipa::path(get, path = "/v1/presets/{id}", tag = "presets", operation_id = "retrievePreset",
    params(("id" = String, Path, description = "The preset's full name, `MODEL@PRESET`",
        example = "tinypython@single_quotes")),
    responses(
        (status = 200, description = "The preset", body = PresetObject),
        (status = 404, description = "There is no such preset: code `preset_not_found`", body = ErrorBody)
    ))]
pub async fn retrieve(
    state: web::Data<State>,
    name: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let snapshot = state.snapshot();
    match snapshot.presets.get(&*name) {
        Some(preset) => Ok(HttpResponse::Ok().json(PresetObject::of(preset, &snapshot))),
        None => Err(no_preset(&snapshot, &name)),
    }
}

/// The error of an address whose last part is no preset's full name.
pub fn no_preset(snapshot: &Snapshot, name: &str) -> ApiError {
    let message = match name.split_once(SEPARATOR) {
        Some((model, preset)) => snapshot.no_preset(model, preset),
        None => {
            let name = shortened(name);
            format!("{name:?} is no preset's full name, which is MODEL{SEPARATOR}PRESET")
        }
    };
    ApiError::NotFound {
        message,
        param: None,
        code: Some("preset_not_found"),
    }
}
