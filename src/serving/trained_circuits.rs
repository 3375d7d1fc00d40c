//! The circuits that jobs have found, brought from the artifact store: every server looks for itself, as for trained
//! models. A circuit is read from its artifact's folder into memory, and the folder is removed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::service::Service;
use crate::circuits::circuit::Circuit;
use crate::circuits::directory;
use crate::jobs::artifact_store::{ArtifactStore, ArtifactStoreError};
use crate::jobs::store::artifacts::TrainedModel;

/// When a circuit that could not be brought is tried again.
const REST: Duration = Duration::from_secs(30);

/// What keeps a server's circuits those of the store.
pub struct TrainedCircuits {
    folder: PathBuf,
    /// By id; one update at a time.
    known: Mutex<BTreeMap<String, Known>>,
}

/// A circuit that was looked for.
struct Known {
    artifact: String,
    /// When it is looked for again; none where it is served, or where it never can be.
    again: Option<Instant>,
}

impl TrainedCircuits {
    /// Brings circuits through folders below `folder`.
    pub fn new(folder: PathBuf) -> Self {
        TrainedCircuits {
            folder,
            known: Mutex::default(),
        }
    }

    /// Serves `circuits`, those that the store has now, and gives up those that it has no longer.
    pub async fn update(
        &self,
        service: &Arc<Service>,
        circuits: &[TrainedModel],
        artifacts: &ArtifactStore,
    ) {
        let mut known = self.known.lock().await;
        known.retain(|id, known| {
            let mut circuits = circuits.iter();
            let is_there =
                circuits.any(|circuit| circuit.id == *id && circuit.artifact == known.artifact);
            if !is_there {
                service.give_up_circuit(id);
            }
            is_there
        });
        for circuit in circuits {
            let waits = known
                .get(&circuit.id)
                .is_some_and(|known| known.again.is_none_or(|again| again > Instant::now()));
            if waits {
                continue;
            }
            let again = match self.bring(artifacts, circuit).await {
                Ok(found) => {
                    service.serve_circuit(found);
                    None
                }
                Err((problem, again)) => {
                    let id = &circuit.id;
                    tracing::error!(circuit = id, problem, "a circuit cannot be served");
                    again
                }
            };
            let artifact = circuit.artifact.clone();
            known.insert(circuit.id.clone(), Known { artifact, again });
        }
    }

    /// A circuit as it was kept, under the id that its job has; otherwise what is wrong, and when it may be tried again.
    async fn bring(
        &self,
        artifacts: &ArtifactStore,
        circuit: &TrainedModel,
    ) -> Result<Circuit, (String, Option<Instant>)> {
        let later = Some(Instant::now() + REST);
        let folder = self.folder.join(&circuit.artifact);
        match artifacts.get(&circuit.artifact, &folder).await {
            Ok(()) => {}
            Err(error @ (ArtifactStoreError::Damaged { .. } | ArtifactStoreError::Gone(_))) => {
                return Err((error.to_string(), None));
            }
            Err(error) => return Err((error.to_string(), later)),
        }
        let of = folder.clone();
        let read = tokio::task::spawn_blocking(move || directory::read(&of)).await;
        let read = read.map_err(|error| (error.to_string(), later))?;
        if let Err(error) = tokio::fs::remove_dir_all(&folder).await {
            tracing::warn!(path = %folder.display(), %error, "a circuit's files are still there");
        }
        let mut found = read.map_err(|error| (error.to_string(), None))?;
        found.id = circuit
            .id
            .parse()
            .map_err(|error| (format!("{error}"), None))?;
        Ok(found)
    }
}
