//! The trained models that this server serves: those that the store has, brought from the artifact store.
//!
//! Every server looks for itself, so that a model is served everywhere soon after its job has ended, and nowhere soon
//! after it was deleted, whichever server was asked. The files of a model are in a folder called by their content.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use actix_web::{HttpResponse, web};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::api::error::ErrorBody;
use crate::api::library::{self, Entry, Trained};
use crate::api::state::State;
use crate::jobs::artifact_store::ArtifactStoreError;
use crate::jobs::store::artifacts::TrainedModel;

/// When a model that could not be brought is tried again.
const REST: Duration = Duration::from_secs(30);

/// What keeps a server's models those of the store.
pub struct TrainedModels {
    folder: PathBuf,
    /// Those that could not be served, by id; one update at a time.
    refused: Mutex<BTreeMap<String, Refusal>>,
}

/// Why a model is not served.
struct Refusal {
    artifact: String,
    /// When it is tried again; never what is wrong with the model itself.
    again: Option<Instant>,
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
            let wait = refused
                .get(&model.id)
                .filter(|refusal| refusal.artifact == model.artifact)
                .is_some_and(|refusal| refusal.again.is_none_or(|again| again > Instant::now()));
            if known.contains_key(&model.id) || wait {
                continue;
            }
            match self.serve(state, model).await {
                Ok(()) => drop(refused.remove(&model.id)),
                Err((problem, again)) => {
                    tracing::error!(
                        model = model.id,
                        problem,
                        "a trained model cannot be served"
                    );
                    let artifact = model.artifact.clone();
                    refused.insert(model.id.clone(), Refusal { artifact, again });
                }
            }
        }
        self.remove_all_but(&models).await;
        Ok(())
    }

    /// Serves a model; otherwise what is wrong, and when it may be tried again.
    async fn serve(
        &self,
        state: &web::Data<State>,
        model: &TrainedModel,
    ) -> Result<(), (String, Option<Instant>)> {
        let later = Some(Instant::now() + REST);
        let never = |problem: &str| (problem.to_owned(), None);
        if state.library.is_own(&model.id) {
            return Err(never("this server has another model or pair of that id"));
        }
        let folder = self.folder.join(&model.artifact);
        match state.jobs.artifacts.get(&model.artifact, &folder).await {
            Ok(()) => {}
            Err(error @ (ArtifactStoreError::Damaged { .. } | ArtifactStoreError::Gone(_))) => {
                return Err(never(&error.to_string()));
            }
            Err(error) => return Err((error.to_string(), later)),
        }
        let entry = Entry::of(folder).ok_or_else(|| never("it is neither a model nor a pair"))?;
        let artifact = model.artifact.clone();
        let trained = Trained { artifact, entry };
        state.library.add_trained(&model.id, trained);
        let taken = library::take_into_service(state, &model.id).await;
        taken.map(drop).map_err(|error| {
            state.library.remove_trained(&model.id);
            error.log();
            match error {
                // What is wrong with it stays so; what was wrong with this server may pass.
                ApiError::Invalid { .. } => never(&error.to_string()),
                error => (error.to_string(), later),
            }
        })
    }

    /// Removes the folders of models that there are no more.
    async fn remove_all_but(&self, models: &[TrainedModel]) {
        let wanted: BTreeSet<&str> = models.iter().map(|model| model.artifact.as_str()).collect();
        let Ok(mut folders) = tokio::fs::read_dir(&self.folder).await else {
            return;
        };
        while let Ok(Some(folder)) = folders.next_entry().await {
            let name = folder.file_name();
            let name = name.to_string_lossy();
            let left = is_sha256(&name) && !wanted.contains(&*name);
            if left && let Err(error) = tokio::fs::remove_dir_all(folder.path()).await {
                tracing::warn!(path = %folder.path().display(), %error, "a deleted model's files are still there");
            }
        }
    }
}

fn is_sha256(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
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
        if state.library.trained().contains_key(&id) {
            // Somebody else has just deleted it.
            library::give_up(&state, &id).await?;
            return Err(not_found(&id));
        }
        return Err(not_trained(&state, &id, "deleted"));
    }
    library::give_up(&state, &id).await?;
    Ok(HttpResponse::Ok().json(ModelDeleted {
        id,
        object: "model",
        deleted: true,
    }))
}

/// Why a model that is no job's result is not `done` (deleted, say).
pub fn not_trained(state: &State, id: &str, done: &str) -> ApiError {
    let inventory = state.inventory();
    let model = match inventory.model(id) {
        Ok(model) => model,
        Err(error) => return error,
    };
    let trained = state.library.trained();
    let mut bridges = inventory.bridges_of(&model.id);
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
