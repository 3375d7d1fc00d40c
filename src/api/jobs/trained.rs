//! The trained models that this server serves: those that the store has, brought from the artifact store.
//!
//! Every server looks for itself, so that a model is served everywhere soon after its job has ended, and nowhere soon
//! after it was deleted, whichever server was asked. The files of a model are in a folder called by their content.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use actix_web::{HttpResponse, web};
use serde::Serialize;
use tokio::sync::Mutex;
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::api::error::ErrorBody;
use crate::api::library::{self, Entry, Trained};
use crate::api::state::State;
use crate::jobs::artifact_store::ArtifactStoreError;
use crate::jobs::store::artifacts::TrainedModel;

/// What keeps a server's models those of the store.
pub struct TrainedModels {
    folder: PathBuf,
    /// Artifacts that cannot be served, by the id they would have; one update at a time.
    refused: Mutex<BTreeMap<String, String>>,
}

/// A model that is no more.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelDeleted {
    pub id: String,
    #[schema(example = "model")]
    pub object: &'static str,
    pub deleted: bool,
}

impl TrainedModels {
    /// Brings models into folders below `folder`.
    pub fn new(folder: PathBuf) -> Self {
        TrainedModels {
            folder,
            refused: Mutex::default(),
        }
    }

    /// Serves what the store has now, and gives up what it has no longer.
    pub async fn update(&self, state: &web::Data<State>) -> Result<(), ApiError> {
        let mut refused = self.refused.lock().await;
        let models = state.jobs.store.models().await?;
        let known = state.library.trained();
        for (id, trained) in &known {
            let same = |model: &TrainedModel| model.id == *id && model.artifact == trained.artifact;
            if !models.iter().any(same) {
                library::give_up(state, id).await?;
            }
        }
        let known = state.library.trained();
        for model in &models {
            if known.contains_key(&model.id) || refused.get(&model.id) == Some(&model.artifact) {
                continue;
            }
            if let Err(error) = self.serve(state, model).await {
                error.log();
                tracing::error!(model = model.id, %error, "a trained model cannot be served");
                // What is wrong with it stays so; what was wrong with this server may pass.
                if let ApiError::Invalid { .. } = error {
                    refused.insert(model.id.clone(), model.artifact.clone());
                }
            }
        }
        self.remove_all_but(&models).await;
        Ok(())
    }

    async fn serve(&self, state: &web::Data<State>, model: &TrainedModel) -> Result<(), ApiError> {
        let folder = self.folder.join(&model.artifact);
        state.jobs.artifacts.get(&model.artifact, &folder).await?;
        let entry = Entry::of(folder).ok_or_else(|| ApiError::Invalid {
            message: format!("the result of {} is neither a model nor a pair", model.job),
            param: None,
            code: Some("cannot_load"),
        })?;
        let artifact = model.artifact.clone();
        state
            .library
            .add_trained(&model.id, Trained { artifact, entry });
        let taken = library::take_into_service(state, &model.id).await;
        if taken.is_err() {
            state.library.remove_trained(&model.id);
        }
        taken.map(drop)
    }

    /// Removes the folders of models that there are no more.
    async fn remove_all_but(&self, models: &[TrainedModel]) {
        let wanted: BTreeSet<&str> = models.iter().map(|model| model.artifact.as_str()).collect();
        let Ok(mut folders) = tokio::fs::read_dir(&self.folder).await else {
            return;
        };
        while let Ok(Some(folder)) = folders.next_entry().await {
            let name = folder.file_name();
            let is_wanted = name
                .to_str()
                .is_some_and(|name| name.starts_with('.') || wanted.contains(name));
            if !is_wanted && let Err(error) = tokio::fs::remove_dir_all(folder.path()).await {
                tracing::warn!(path = %folder.path().display(), %error, "a deleted model's files are still there");
            }
        }
    }
}

/// Deletes a model, or a pair, that a job has trained. Requests in progress are finished; other servers of the same
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
    if !state.jobs.store.remove_model(&id).await? {
        let inventory = state.inventory();
        let model = inventory.model(&id)?;
        let trained = state.library.trained();
        let mut bridges = inventory.bridges_of(&model.id);
        let pair = bridges.find(|bridge| trained.contains_key(bridge.record.id.as_str()));
        let (message, code) = match pair {
            Some(bridge) => (
                format!(
                    "{id:?} belongs to the pair {:?}; delete that",
                    bridge.record.id.as_str()
                ),
                "in_use",
            ),
            None => (
                format!(
                    "{id:?} is served by the server's settings; only what jobs have trained can be deleted"
                ),
                "not_trained",
            ),
        };
        return Err(ApiError::Invalid {
            message,
            param: None,
            code: Some(code),
        });
    }
    state.jobs.trained.update(&state).await?;
    Ok(HttpResponse::Ok().json(ModelDeleted {
        id,
        object: "model",
        deleted: true,
    }))
}

impl From<ArtifactStoreError> for ApiError {
    fn from(error: ArtifactStoreError) -> Self {
        match error {
            ArtifactStoreError::Record(error) => error.into(),
            error => ApiError::internal(error),
        }
    }
}
