//! Directions as control vectors: files that llama.cpp and repeng write and read, taken in and given out.

use actix_web::http::header::{ContentDisposition, DispositionParam, DispositionType};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use utoipa::IntoParams;

use super::direction_wire::DirectionObject;
use super::directions::{check_free, dense_model, measured, register, texts};
use super::lookup::find_direction;
use super::naming::{check_description, checked_name};
use crate::api::ApiError;
use crate::api::body::FileBody;
use crate::api::error::ErrorBody;
use crate::api::state::State;
use crate::artifacts::control_vector::ControlVector;
use crate::artifacts::hexadecimal;
use crate::features::control_vector::{FileLayers, file, parts};
use crate::features::direction::{DirectionSource, NamedDirection};

/// What to make of a control vector's file.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ImportQuery {
    /// The dense model that it steers.
    pub model: String,
    /// The feature's name: 1 to 64 of a-z, 0-9, `.`, `_` and `-`, not yet used in the model.
    pub id: String,
    /// For people.
    pub description: Option<String>,
    /// Added to the file's numbers: `direction.N` then acts at the output of block N + `layer_offset`, counted from 0. 0,
    /// the default, is what llama.cpp does and repeng means; files of llama.cpp's own generator are one block late, which
    /// -1 makes up for.
    #[param(default = 0)]
    pub layer_offset: Option<i64>,
    /// Only the file's directions `A:B`, both included; all unless said.
    pub layers: Option<String>,
}

/// Which model a direction belongs to.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// The model; needed where more than one has a direction of this id.
    pub model: Option<String>,
}

/// Registers a control vector as one direction of several sites. The body is the GGUF file itself, of the architecture
/// `controlvector` with float32 `direction.N`, which acts at the output of block N, counted from 0: at `{N+1}.resid_in`, or
/// `final_resid` behind the last. An edit `{"feature": ID, "op": "add", "value": SCALE}` adds it as llama.cpp does: SCALE
/// times each vector, at every token.
#[utoipa::path(post, path = "/v1/features/control_vector", tag = "features", operation_id = "importControlVector",
    params(ImportQuery),
    request_body(content = String, description = "The file", content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "The direction", body = DirectionObject),
        (status = 400, description = "The file is no control vector, or not one of this model: code `invalid_file`; or a \
            parameter is wrong; a name already used has the code `already_exists`, more directions than are kept the code \
            `over_budget`", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 415, description = "The body is not sent as `application/octet-stream`: code \
            `unsupported_media_type`", body = ErrorBody),
        (status = 503, description = "Too many examinations wait: code `overloaded`", body = ErrorBody),
        (status = 504, description = "Measuring it took longer than it may: code `deadline_exceeded`", body = ErrorBody)
    ))]
pub async fn import(
    http: HttpRequest,
    state: web::Data<State>,
    query: web::Query<ImportQuery>,
    body: FileBody,
) -> Result<HttpResponse, ApiError> {
    let query = query.into_inner();
    let card = dense_model(&state, &query.model)?;
    let name = checked_name(&query.id, "id")?;
    let description = query.description.unwrap_or_default();
    check_description(&description, "description")?;
    check_free(&state, &card, name.as_str(), "id")?;
    let layers = FileLayers {
        offset: query.layer_offset.unwrap_or(0),
        range: query.layers.as_deref().map(range).transpose()?,
    };
    let (width, n_layers) = (card.config.d_model, card.config.n_layers);
    // A header can take many times its bytes: one file is read at a time, as are long bodies.
    let turn = state.parsing.acquire().await.map_err(ApiError::internal)?;
    let read = web::block(move || {
        let wrong = |problem| ApiError::invalid_with_code("file", "invalid_file", problem);
        let file = ControlVector::from_bytes(&body.0, width, n_layers).map_err(wrong)?;
        let parts = parts(&file, layers, n_layers).map_err(wrong)?;
        let sha256 = hexadecimal(&Sha256::digest(&body.0));
        Ok::<_, ApiError>((file.model_hint, parts, sha256))
    });
    let (model_hint, parts, sha256) = read.await.map_err(ApiError::internal)??;
    drop(turn);
    let texts = texts(&state, &card, None).await?;
    let direction = NamedDirection {
        name: name.to_string(),
        description,
        source: DirectionSource::ControlVector {
            model_hint,
            layer_offset: layers.offset,
            sha256,
        },
        parts: measured(&http, &state, &card, parts, texts, "file").await?,
    };
    let object = register(&state, &card, direction, "id").await?;
    Ok(HttpResponse::Created().json(object))
}

/// `A:B`.
fn range(text: &str) -> Result<(usize, usize), ApiError> {
    let ends = text.split_once(':');
    let ends = ends.and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    ends.filter(|(first, last)| first <= last).ok_or_else(|| {
        let message = "layers is written A:B with whole numbers A and B, A not above B, such as 1:12; both are included";
        ApiError::invalid("layers", message)
    })
}

/// A direction as a control vector's file, which llama.cpp adds to the same streams: its `direction.N` is what is at
/// `{N+1}.resid_in`.
#[utoipa::path(get, path = "/v1/features/{id}/control_vector", tag = "features",
    operation_id = "exportControlVector",
    params(("id" = String, Path, description = "The direction's name"), ExportQuery),
    responses(
        (status = 200, description = "The file", body = String, content_type = "application/octet-stream"),
        (status = 400, description = "One of its sites is not in such a file: code `not_exportable`; it is no direction: \
            code `not_a_direction`; or which model is meant is not clear", body = ErrorBody),
        (status = 404, description = "There is no such direction: code `feature_not_found`", body = ErrorBody)
    ))]
pub async fn export(
    state: web::Data<State>,
    id: web::Path<String>,
    query: web::Query<ExportQuery>,
) -> Result<HttpResponse, ApiError> {
    let found = find_direction(&state, &id, query.model.as_deref())?;
    let card = state.snapshot().model(&found.model)?;
    let direction = &found.direction;
    let hint = match &direction.source {
        DirectionSource::ControlVector {
            model_hint: Some(hint),
            ..
        } => hint.clone(),
        _ => found.model.clone(),
    };
    let file = file(direction, hint, card.config.n_layers);
    let file = file.map_err(|problem| ApiError::Invalid {
        message: problem,
        param: None,
        code: Some("not_exportable"),
    })?;
    let bytes = file.to_bytes().map_err(ApiError::internal)?;
    let disposition = ContentDisposition {
        disposition: DispositionType::Attachment,
        parameters: vec![DispositionParam::Filename(format!(
            "{}.gguf",
            direction.name
        ))],
    };
    Ok(HttpResponse::Ok()
        .content_type("application/octet-stream")
        .insert_header(disposition)
        .body(bytes))
}
