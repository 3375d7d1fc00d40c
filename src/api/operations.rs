//! `POST /v1/library` and `/v1/library/operations`: models brought from a hub by a running server. For keys of the role
//! `admin`.

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiError;
use super::body::JsonBody;
use super::error::ErrorBody;
use super::state::State;
use crate::artifacts::ArtifactId;
use crate::artifacts::manifest::FileName;
use crate::hub::fetch::WantedModel;
use crate::hub::listing::is_gguf;
use crate::hub::name::{CommitHash, HubId, Revision};
use crate::serving::downloads::{Download, DownloadError, DownloadStatus};

/// A model of the hub that the server's settings name.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddToLibrary {
    /// The model's id on the hub.
    #[schema(
        value_type = String,
        pattern = "^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?$",
        example = "HuggingFaceTB/SmolLM2-135M-Instruct"
    )]
    pub hub_id: HubId,
    /// A branch, a tag or a commit; `main` unless said. It is made a commit first, and every file is of that.
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_][A-Za-z0-9._/-]{0,127}$", example = "main")]
    pub revision: Option<Revision>,
    /// The GGUF file of the repository that is meant; without one the model is brought in Hugging Face's form.
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-][A-Za-z0-9._/-]{0,249}[.][Gg][Gg][Uu][Ff]$")]
    pub file: Option<FileName>,
    /// What it is called here; unless said, its name on the hub in small letters.
    pub id: Option<ArtifactId>,
}

/// A model that is or was being brought.
#[derive(Debug, Serialize, ToSchema)]
pub struct LibraryOperation {
    pub id: String,
    #[schema(example = "library.operation")]
    pub object: &'static str,
    pub status: DownloadStatus,
    /// The id that the model has in the library once it is there.
    #[schema(example = "smollm2-135m-instruct")]
    pub entry: String,
    pub hub_id: String,
    /// What was asked for.
    #[schema(example = "main")]
    pub revision: String,
    /// The GGUF file that is meant; null where none is.
    #[schema(required = true)]
    pub file: Option<String>,
    /// The commit that the revision was; null until that is known.
    #[schema(required = true)]
    pub commit: Option<String>,
    /// Bytes of its files that are there.
    pub bytes_done: u64,
    /// Bytes of its files; null until they are known.
    #[schema(required = true)]
    pub bytes_total: Option<u64>,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Seconds since 1970; null until it has ended.
    #[schema(required = true)]
    pub finished_at: Option<u64>,
    /// Null where nothing went wrong.
    #[schema(required = true)]
    pub error: Option<OperationError>,
}

/// Why a model was not brought.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperationError {
    /// For programs: `hub_unreachable`, `hub_access_denied` (it is gated or private), `hub_not_found`, `hub_error` (the
    /// hub answered what makes no sense), `hub_damaged` (what came is not what was announced), `too_large`,
    /// `cannot_load` (it cannot be served), `already_exists`, `disk_full` or `internal_error`.
    #[schema(example = "hub_access_denied")]
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// Operations, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct LibraryOperationList {
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<LibraryOperation>,
}

impl LibraryOperation {
    fn of(download: &Download) -> Self {
        let state = download.state();
        let wanted = &download.wanted;
        LibraryOperation {
            id: download.id.clone(),
            object: "library.operation",
            status: state.status,
            entry: download.entry.to_string(),
            hub_id: wanted.id.to_string(),
            revision: wanted.revision.to_string(),
            file: wanted.file.as_ref().map(FileName::to_string),
            commit: download.transfer.commit().map(CommitHash::to_string),
            bytes_done: download.transfer.done(),
            bytes_total: download.transfer.total(),
            created_at: download.created,
            finished_at: state.finished,
            error: state.failure.map(|failure| OperationError {
                code: failure.code,
                message: failure.message,
            }),
        }
    }
}

/// Begins to bring a model from the hub into the library. It is an operation that can be watched and cancelled; at its
/// end the model is tried as everything in the library is, and served. Only the model's configuration, tokenizer and
/// safetensors are brought, or the one GGUF file, whose weights become float32.
#[utoipa::path(post, path = "/v1/library", tag = "library", operation_id = "addToLibrary",
    request_body(content = AddToLibrary, example = json!({
        "hub_id": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "main", "id": "smollm2"
    })),
    responses(
        (status = 201, description = "The operation", body = LibraryOperation),
        (status = 400, description = "A field is unknown or wrong; the server brings no models (code `hub_disabled`) or \
            asks nothing of any hub (`hub_offline`); there is something of this id (`already_exists`), or the model is \
            being brought already (`in_progress`)", body = ErrorBody),
        (status = 503, description = "As many models wait as may: `hub.max_waiting`", body = ErrorBody)
    ))]
pub async fn create(
    state: web::Data<State>,
    body: JsonBody<AddToLibrary>,
) -> Result<HttpResponse, ApiError> {
    let request = body.0;
    if let Some(file) = request.file.as_ref().filter(|file| !is_gguf(file)) {
        let message = format!("file is {file}; a single file is a .gguf");
        return Err(ApiError::invalid("file", message));
    }
    let entry = match request.id.or_else(|| request.hub_id.entry_id()) {
        Some(entry) => entry,
        None => {
            let message = "the model's name on the hub makes no id here; give one as `id`";
            return Err(ApiError::invalid("id", message));
        }
    };
    let wanted = WantedModel {
        id: request.hub_id,
        revision: request.revision.unwrap_or_else(Revision::main),
        file: request.file,
    };
    // Looks at the library's directory.
    let begun = web::block(move || {
        let begun = state.downloads.begin(&state.service, wanted, entry);
        begun.map(|download| LibraryOperation::of(&download))
    });
    let operation = begun.await.map_err(ApiError::internal)??;
    Ok(HttpResponse::Created().json(operation))
}

/// The operations since the server's start, the newest first: all that have not ended, and the last hundred that have.
#[utoipa::path(get, path = "/v1/library/operations", tag = "library", operation_id = "listLibraryOperations",
    responses((status = 200, description = "The operations", body = LibraryOperationList)))]
pub async fn list(state: web::Data<State>) -> HttpResponse {
    let all = state.downloads.all();
    let data = all.iter().map(|download| LibraryOperation::of(download));
    HttpResponse::Ok().json(LibraryOperationList {
        object: "list",
        data: data.collect(),
    })
}

/// One operation, with how far it is.
#[utoipa::path(get, path = "/v1/library/operations/{id}", tag = "library", operation_id = "retrieveLibraryOperation",
    params(("id" = String, Path, description = "The operation's id")),
    responses(
        (status = 200, description = "The operation", body = LibraryOperation),
        (status = 404, description = "There is no such operation: code `operation_not_found`", body = ErrorBody)
    ))]
pub async fn retrieve(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let download = state.downloads.find(&id)?;
    Ok(HttpResponse::Ok().json(LibraryOperation::of(&download)))
}

/// Ends an operation and forgets what has arrived. It ends when it next looks: with the next bytes, or after
/// `hub.patience_seconds` where none come.
#[utoipa::path(post, path = "/v1/library/operations/{id}/cancel", tag = "library",
    operation_id = "cancelLibraryOperation",
    params(("id" = String, Path, description = "The operation's id")),
    responses(
        (status = 200, description = "The operation", body = LibraryOperation),
        (status = 400, description = "It has succeeded or failed: code `wrong_status`", body = ErrorBody),
        (status = 404, description = "There is no such operation: code `operation_not_found`", body = ErrorBody)
    ))]
pub async fn cancel(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let download = state.downloads.cancel(&id)?;
    Ok(HttpResponse::Ok().json(LibraryOperation::of(&download)))
}

impl From<DownloadError> for ApiError {
    fn from(error: DownloadError) -> Self {
        let message = error.to_string();
        let invalid = |param: Option<&str>, code| ApiError::Invalid {
            message: message.clone(),
            param: param.map(str::to_owned),
            code: Some(code),
        };
        match error {
            DownloadError::Disabled => invalid(None, "hub_disabled"),
            DownloadError::Offline(_) => invalid(None, "hub_offline"),
            DownloadError::Taken(_) => invalid(Some("id"), "already_exists"),
            DownloadError::UnderWay(..) => invalid(Some("hub_id"), "in_progress"),
            DownloadError::Ended(_) => invalid(None, "wrong_status"),
            DownloadError::Full { most } => ApiError::Downloads { most },
            DownloadError::None(_) => ApiError::NotFound {
                message,
                param: None,
                code: Some("operation_not_found"),
            },
            DownloadError::Thread(error) => ApiError::internal(error),
        }
    }
}
