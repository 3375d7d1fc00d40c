//! The trained models that this server serves: those that the store has, brought from the artifact store.
//!
//! Every server looks for itself, so that a model is served everywhere soon after its job has ended, and nowhere soon
//! after it was deleted, whichever server was asked. The files of a model are in a folder called by their content.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::library::{Entry, Trained};
use super::service::{Service, ServiceError};
use super::trained_circuits::TrainedCircuits;
use crate::jobs::artifact_store::{ArtifactStore, ArtifactStoreError};
use crate::jobs::store::artifacts::TrainedModel;
use crate::jobs::store::{Store, StoreError};

/// When a model that could not be brought is tried again.
const REST: Duration = Duration::from_secs(30);

/// Below the folder of models: where circuits are brought.
pub const CIRCUITS: &str = "circuits";

/// What keeps a server's models and circuits those of the store.
pub struct TrainedModels {
    folder: PathBuf,
    circuits: TrainedCircuits,
    /// Those that could not be served, by id; one update at a time.
    refused: Mutex<BTreeMap<String, Refusal>>,
}

/// Why a model is not served.
struct Refusal {
    artifact: String,
    /// When it is tried again; never what is wrong with the model itself.
    again: Option<Instant>,
}

/// Why it is not known what is to be served.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl TrainedModels {
    /// Brings models into folders below `folder`.
    pub fn new(folder: PathBuf) -> Self {
        TrainedModels {
            circuits: TrainedCircuits::new(folder.join(CIRCUITS)),
            folder,
            refused: Mutex::default(),
        }
    }

    /// Serves what the store has now, and gives up what it has no longer.
    pub async fn update(
        &self,
        service: &Arc<Service>,
        store: &Store,
        artifacts: &ArtifactStore,
    ) -> Result<(), UpdateError> {
        let mut refused = self.refused.lock().await;
        let models = store.models().await?;
        let known = service.library.trained();
        for (id, trained) in &known {
            let same = |model: &TrainedModel| model.id == *id && model.artifact == trained.artifact;
            if !models.iter().any(same) {
                service.give_up(id).await?;
            }
        }
        let known = service.library.trained();
        for model in &models {
            let wait = refused
                .get(&model.id)
                .filter(|refusal| refusal.artifact == model.artifact)
                .is_some_and(|refusal| refusal.again.is_none_or(|again| again > Instant::now()));
            if known.contains_key(&model.id) || wait {
                continue;
            }
            match self.serve(service, artifacts, model).await {
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
        let circuits = store.circuits().await?;
        self.circuits.update(service, &circuits, artifacts).await;
        Ok(())
    }

    /// Serves a model; otherwise what is wrong, and when it may be tried again.
    async fn serve(
        &self,
        service: &Arc<Service>,
        artifacts: &ArtifactStore,
        model: &TrainedModel,
    ) -> Result<(), (String, Option<Instant>)> {
        let later = Some(Instant::now() + REST);
        let never = |problem: &str| (problem.to_owned(), None);
        if service.library.is_own(&model.id) {
            return Err(never("this server has another model or pair of that id"));
        }
        let folder = self.folder.join(&model.artifact);
        match artifacts.get(&model.artifact, &folder).await {
            Ok(()) => {}
            Err(error @ (ArtifactStoreError::Damaged { .. } | ArtifactStoreError::Gone(_))) => {
                return Err(never(&error.to_string()));
            }
            Err(error) => return Err((error.to_string(), later)),
        }
        let entry = Entry::of(folder).ok_or_else(|| never("it is neither a model nor a pair"))?;
        let artifact = model.artifact.clone();
        let trained = Trained { artifact, entry };
        service.library.add_trained(&model.id, trained);
        let taken = service.take_into_service(&model.id).await;
        taken.map(drop).map_err(|error| {
            service.library.remove_trained(&model.id);
            match error {
                // What is wrong with it stays so; what was wrong with this server may pass.
                ServiceError::CannotLoad(problem) => never(&problem),
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
