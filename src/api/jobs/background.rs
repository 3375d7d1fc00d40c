//! What goes on beside the requests: workers that carry jobs out, and the one that serves what was trained.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::uploads::Uploads;
use crate::jobs::artifact_store::{ArtifactStore, ArtifactStoreError};
use crate::jobs::process::old_folders;
use crate::jobs::store::Store;
use crate::jobs::worker::Worker;
use crate::serving::service::Service;
use crate::serving::trained::TrainedModels;
use crate::settings::Settings;

const A_DAY: Duration = Duration::from_secs(24 * 3600);
/// How often new models are looked for.
const LOOK: Duration = Duration::from_millis(500);

/// The jobs of one server.
pub struct Jobs {
    pub store: Store,
    pub artifacts: ArtifactStore,
    pub uploads: Uploads,
    /// Which of the store's models are served here.
    pub trained: Arc<TrainedModels>,
    /// One estimate at a time.
    pub estimates: Semaphore,
    pub settings: Settings,
    /// Has threads of its own: neither requests nor the engine wait for a job.
    runtime: Option<Runtime>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Jobs {
    /// Opens the store that the settings name.
    pub fn open(settings: &Settings) -> Result<Self, ArtifactStoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("jobs")
            .enable_all()
            .build()?;
        let opening = async {
            tokio::fs::create_dir_all(&settings.data_dir).await?;
            // What a server that was killed has left.
            for place in ["uploads", "models", "models/circuits"] {
                for (name, folder) in old_folders(&settings.data_dir.join(place), A_DAY)? {
                    if name.starts_with('.') {
                        tokio::fs::remove_dir_all(folder).await?;
                    }
                }
            }
            let store = Store::of(settings).await?;
            let artifacts = ArtifactStore::of(settings, &store).await?;
            Ok::<_, ArtifactStoreError>((store, artifacts))
        };
        // On a thread of its own: this one may be another runtime's.
        let (store, artifacts) = std::thread::scope(|scope| {
            let opened = scope.spawn(|| runtime.block_on(opening)).join();
            opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        Ok(Jobs {
            store,
            artifacts,
            uploads: Uploads::new(settings.data_dir.join("uploads")),
            trained: Arc::new(TrainedModels::new(settings.data_dir.join("models"))),
            estimates: Semaphore::new(1),
            settings: settings.clone(),
            runtime: Some(runtime),
            stop: watch::Sender::new(false),
            tasks: Mutex::new(Vec::new()),
        })
    }

    /// Starts workers and the one that serves their results, for as long as the server is there.
    pub fn start(&self, service: &Arc<Service>) -> std::io::Result<()> {
        let Some(runtime) = &self.runtime else {
            return Ok(());
        };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for number in 0..self.settings.jobs.workers {
            let worker = Worker::of(&self.store, &self.artifacts, &self.settings, number)?;
            let stop = self.stop.subscribe();
            tasks.push(runtime.spawn(async move { worker.run(stop).await }));
        }
        let kept_up = keep_up(
            Arc::downgrade(service),
            self.trained.clone(),
            self.store.clone(),
            self.artifacts.clone(),
        );
        let stop = self.stop.subscribe();
        tasks.push(runtime.spawn(async move {
            tokio::select! {
                () = kept_up => {}
                () = told(stop) => {}
            }
        }));
        Ok(())
    }

    /// Tells workers and followers that the server stops: running jobs write a checkpoint and are given back.
    pub fn begin_to_stop(&self) {
        self.stop.send_replace(true);
    }

    /// Is set when the server stops.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Waits until running jobs are given back.
    pub async fn stop(&self) {
        self.begin_to_stop();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a worker did not come to its end");
            }
        }
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        // Waiting is not allowed wherever this may be dropped.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn told(mut stop: watch::Receiver<bool>) {
    // An error says that nobody is left to tell.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Serves what the store has, and no more what it has no longer.
async fn keep_up(
    service: Weak<Service>,
    trained: Arc<TrainedModels>,
    store: Store,
    artifacts: ArtifactStore,
) {
    // What does not change is said once.
    let mut said = None;
    while let Some(service) = service.upgrade() {
        let problem = trained.update(&service, &store, &artifacts).await.err();
        let problem = problem.map(|error| error.to_string());
        if let Some(problem) = problem.as_ref().filter(|_| problem != said) {
            tracing::warn!(problem, "trained models cannot be brought up to date");
        }
        said = problem;
        service.drop_idle().await;
        drop(service);
        tokio::time::sleep(LOOK).await;
    }
}
