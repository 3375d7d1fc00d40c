//! What goes on beside the requests: workers that carry jobs out, and the one that takes results into service.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use actix_web::web;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::library;
use crate::api::state::State;
use crate::jobs::store::{Store, StoreError};
use crate::jobs::worker::Worker;
use crate::settings::Settings;

/// How often finished jobs are looked for.
const LOOK: Duration = Duration::from_millis(500);

/// The jobs of one server.
pub struct Jobs {
    pub store: Store,
    /// Where uploaded text is.
    pub files: PathBuf,
    /// The longest file that is taken, in bytes.
    pub max_file_bytes: u64,
    settings: Settings,
    /// Has threads of its own: neither requests nor the engine wait for a job.
    runtime: Option<Runtime>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Jobs {
    /// Opens the store that the settings name.
    pub fn open(settings: &Settings) -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("jobs")
            .enable_all()
            .build()?;
        let opening = async {
            tokio::fs::create_dir_all(&settings.data_dir).await?;
            Store::of(settings).await
        };
        // On a thread of its own: this one may be another runtime's.
        let store = std::thread::scope(|scope| {
            let opened = scope.spawn(|| runtime.block_on(opening)).join();
            opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        Ok(Jobs {
            store,
            files: settings.data_dir.join("files"),
            max_file_bytes: settings.jobs.max_file_bytes,
            settings: settings.clone(),
            runtime: Some(runtime),
            stop: watch::Sender::new(false),
            tasks: Mutex::new(Vec::new()),
        })
    }

    /// Starts workers and the one that takes their results into service, for as long as the server is there.
    pub fn start(&self, state: &Arc<State>) -> std::io::Result<()> {
        let Some(runtime) = &self.runtime else {
            return Ok(());
        };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for number in 0..self.settings.jobs.workers {
            let worker = Worker::of(&self.store, &self.settings, number)?;
            let stop = self.stop.subscribe();
            tasks.push(runtime.spawn(async move { worker.run(told(stop)).await }));
        }
        let (stop, state) = (self.stop.subscribe(), Arc::downgrade(state));
        tasks.push(runtime.spawn(async move {
            tokio::select! {
                () = take_results_in(state) => {}
                () = told(stop) => {}
            }
        }));
        Ok(())
    }

    /// Gives running jobs back and waits until that is done.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
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

/// Takes every result into service, once, from the first ever on.
async fn take_results_in(state: Weak<State>) {
    let mut since = 0;
    while let Some(state) = state.upgrade().map(web::Data::from) {
        match state.jobs.store.succeeded(since).await {
            Ok(results) => {
                for result in results {
                    since = since.max(result.finished_at + 1);
                    match library::take_into_service(&state, &result.output).await {
                        Ok(_) => {}
                        Err(error) => {
                            error.log();
                            tracing::error!(model = result.output, %error, "a job's result cannot be served");
                        }
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "finished jobs cannot be looked for"),
        }
        drop(state);
        tokio::time::sleep(LOOK).await;
    }
}
