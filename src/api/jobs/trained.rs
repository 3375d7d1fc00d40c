//! Deleting what jobs have trained.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::api::error::ErrorBody;
use crate::api::state::State;
use crate::jobs::artifact_store::ArtifactStoreError;

/// A model, or another result of a job, that is no more.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelDeleted {
    pub id: String,
    /// `model`, or `circuit`.
    #[schema(example = "model")]
    pub object: &'static str,
    pub deleted: bool,
}

/// Deletes a model, a pair or a circuit that a job has made; its id is free then. Requests in progress are finished; other servers of the same
/// store follow within seconds.
#[utoipa::path(delete, path = "/v1/models/{id}", tag = "models", operation_id = "deleteModel",
    params(("id" = String, Path, description = "The model's id")),
    responses(
        (status = 200, description = "It is deleted", body = ModelDeleted),
        (status = 400, description = "It is not a job's result: code `not_trained`; or half of a pair, which is deleted \
            as one: code `in_use`", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody)
    ))]
pub async fn delete(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let id = id.into_inner();
    let circuits = state.jobs.store.circuits().await?;
    let object = match circuits.iter().any(|circuit| circuit.id == id) {
        true => "circuit",
        false => "model",
    };
    if !state.jobs.store.remove_model(&id).await? {
        if state.service.library.trained().contains_key(&id) {
            // Somebody else has just deleted it.
            state.service.give_up(&id).await?;
            return Err(not_found(&id));
        }
        return Err(not_trained(&state, &id, "deleted"));
    }
    state.service.give_up(&id).await?;
    Ok(HttpResponse::Ok().json(ModelDeleted {
        id,
        object,
        deleted: true,
    }))
}

/// Why a model that is no job's result is not `done` (deleted, say).
pub fn not_trained(state: &State, id: &str, done: &str) -> ApiError {
    let snapshot = state.snapshot();
    let model = match snapshot.model(id) {
        Ok(model) => model,
        Err(error) => return error.into(),
    };
    let trained = state.service.library.trained();
    let mut bridges = snapshot.bridges_of(&model.id);
    let pair = bridges.find(|bridge| trained.contains_key(bridge.record.id.as_str()));
    let (message, code) = match pair {
        Some(bridge) => (
            format!(
                "{id:?} belongs to the pair {:?}, which is {done} as one",
                bridge.record.id.as_str()
            ),
            "in_use",
        ),
        None => (
            format!(
                "{id:?} is served by the server's settings; only what jobs have trained can be {done}"
            ),
            "not_trained",
        ),
    };
    ApiError::Invalid {
        message,
        param: None,
        code: Some(code),
    }
}

fn not_found(id: &str) -> ApiError {
    ApiError::NotFound {
        message: format!("there is no model {id:?}"),
        param: None,
        code: Some("model_not_found"),
    }
}

impl From<ArtifactStoreError> for ApiError {
    fn from(error: ArtifactStoreError) -> Self {
        match error {
            ArtifactStoreError::Record(error) => error.into(),
            error => ApiError::storage(error),
        }
    }
}
