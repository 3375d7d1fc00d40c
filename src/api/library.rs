//! `/v1/library`: the pairs and models that can be served, and taking them into service and out of it while
//! everything else goes on. For keys of the role `admin`.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiError;
use super::error::ErrorBody;
use super::state::State;
use crate::serving::library::{EntryKind, SkippedFolder};
use crate::serving::service::ServiceError;
use crate::serving::snapshot::Snapshot;

/// Something that can be served.
#[derive(Debug, Serialize, ToSchema)]
pub struct LibraryEntry {
    #[schema(example = "tinypython")]
    pub id: String,
    #[schema(example = "library.entry")]
    pub object: &'static str,
    pub kind: EntryKind,
    /// Whether it is served now.
    pub loaded: bool,
}

/// All entries, by their ids.
#[derive(Debug, Serialize, ToSchema)]
pub struct LibraryList {
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<LibraryEntry>,
    /// Folders of the library that cannot be served, by their names.
    pub skipped: Vec<SkippedFolder>,
}

fn described(served: &Snapshot, id: String, kind: EntryKind) -> LibraryEntry {
    LibraryEntry {
        loaded: served.has(&id, kind),
        id,
        object: "library.entry",
        kind,
    }
}

/// Everything that can be served.
#[utoipa::path(get, path = "/v1/library", tag = "library", operation_id = "listLibrary",
    responses((status = 200, description = "The entries", body = LibraryList)))]
pub async fn list(state: web::Data<State>) -> Result<HttpResponse, ApiError> {
    let looked = state.service.clone();
    let found = web::block(move || (looked.library.entries(), looked.library.skipped())).await;
    let (entries, skipped) = found.map_err(ApiError::internal)?;
    let served = state.snapshot();
    let data = entries
        .into_iter()
        .map(|(id, entry)| described(&served, id, entry.kind))
        .collect();
    Ok(HttpResponse::Ok().json(LibraryList {
        object: "list",
        data,
        skipped,
    }))
}

/// Takes an entry into service. One that is served already stays as it is.
#[utoipa::path(post, path = "/v1/library/{id}/load", tag = "library", operation_id = "loadEntry",
    params(("id" = String, Path, description = "The entry's id", example = "tinypython")),
    responses(
        (status = 200, description = "It is served", body = LibraryEntry),
        (status = 400, description = "Its files are damaged, do not fit what is served, hold a pickle, or do not give a token \
            within `limits.max_model_mib` and `limits.load_seconds`: code `cannot_load`",
            body = ErrorBody),
        (status = 404, description = "The library has no such entry: code `entry_not_found`", body = ErrorBody),
        (status = 503, description = "The engine is not running", body = ErrorBody)
    ))]
pub async fn load(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let id = id.into_inner();
    let kind = state.service.take_into_service(&id).await?;
    Ok(HttpResponse::Ok().json(described(&state.snapshot(), id, kind)))
}

/// Takes an entry out of service. A pair takes those of its models along that no other pair joins. Requests in
/// progress are finished.
#[utoipa::path(post, path = "/v1/library/{id}/unload", tag = "library", operation_id = "unloadEntry",
    params(("id" = String, Path, description = "The entry's id", example = "tinypython")),
    responses(
        (status = 200, description = "It is not served any more", body = LibraryEntry),
        (status = 400, description = "A pair that is served needs the model: code `in_use`", body = ErrorBody),
        (status = 404, description = "The library has no such entry: code `entry_not_found`", body = ErrorBody),
        (status = 503, description = "The engine is not running", body = ErrorBody)
    ))]
pub async fn unload(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let id = id.into_inner();
    let kind = state.service.unload(&id).await?;
    Ok(HttpResponse::Ok().json(described(&state.snapshot(), id, kind)))
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let message = error.to_string();
        let invalid = |code| ApiError::Invalid {
            message: message.clone(),
            param: None,
            code: Some(code),
        };
        match error {
            ServiceError::NoEntry { .. } => ApiError::NotFound {
                message,
                param: None,
                code: Some("entry_not_found"),
            },
            ServiceError::CannotLoad(_) => invalid("cannot_load"),
            ServiceError::InUse { .. } => invalid("in_use"),
            ServiceError::Engine(error) => error.into(),
            ServiceError::Failed(problem) => ApiError::Internal(problem),
        }
    }
}
