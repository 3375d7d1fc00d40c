//! `/v1/models/{id}/archive`: what a job has trained, to take away.

use actix_web::body::SizedStream;
use actix_web::http::header::{ContentDisposition, DispositionParam, DispositionType};
use actix_web::{HttpResponse, web};

use super::trained::not_trained;
use crate::api::ApiError;
use crate::api::error::ErrorBody;
use crate::api::state::State;
use crate::jobs::archive::archive;

/// The files of a model, a pair or a circuit that a job has made, as a tar archive: a folder with its id, in the form that
/// `causeway eval`, `causeway serve --pair` and `--model`, and `causeway circuits show` take, with its recipe.
#[utoipa::path(get, path = "/v1/models/{id}/archive", tag = "models", operation_id = "downloadModel",
    params(("id" = String, Path, description = "The model's id")),
    responses(
        (status = 200, description = "The archive", body = String, content_type = "application/x-tar"),
        (status = 400, description = "It is not a job's result: code `not_trained`; or half of a pair, which is \
            downloaded as one: code `in_use`", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody)
    ))]
pub async fn download(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let id = id.into_inner();
    let results = state.jobs.store.results().await?;
    let Some(model) = results.into_iter().find(|model| model.id == id) else {
        return Err(not_trained(&state, &id, "downloaded"));
    };
    let seconds = (model.created_at / 1000).unsigned_abs();
    let archive = archive(&state.jobs.artifacts, &model.artifact, &id, seconds).await?;
    let disposition = ContentDisposition {
        disposition: DispositionType::Attachment,
        parameters: vec![DispositionParam::Filename(format!("{id}.tar"))],
    };
    Ok(HttpResponse::Ok()
        .content_type("application/x-tar")
        .insert_header(disposition)
        .body(SizedStream::new(archive.bytes, archive.pieces)))
}
