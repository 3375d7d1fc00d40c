//! `causeway worker`: carries out trainings that were asked for over the API, apart from what serves.

use std::path::PathBuf;

use clap::Args;
use tokio::sync::watch;

use super::serve::told_to_stop;
use crate::jobs::artifact_store::ArtifactStore;
use crate::jobs::store::Store;
use crate::jobs::worker::Worker;
use crate::settings::Settings;
use crate::telemetry::Telemetry;

/// Carry out the trainings that a server was asked for, until told to stop.
#[derive(Debug, Args)]
pub struct WorkerArguments {
    /// Settings, a TOML file: `jobs.database` and `[artifacts]` must be the server's.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where this worker's trainings run; for jobs in SQLite the server's.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Jobs at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
}

impl WorkerArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let mut settings = Settings::read(self.config.as_deref(), std::env::vars())?;
        settings.data_dir = self.data_dir.unwrap_or(settings.data_dir);
        settings.check()?;
        let _telemetry = Telemetry::start(&settings.telemetry)?;
        std::fs::create_dir_all(&settings.data_dir)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let store = Store::of(&settings).await?;
            let artifacts = ArtifactStore::of(&settings, &store).await?;
            let stop = watch::Sender::new(false);
            let mut workers = Vec::new();
            for number in 0..self.jobs {
                let worker = Worker::of(&store, &artifacts, &settings, number.into())?;
                let stop = stop.subscribe();
                workers.push(tokio::spawn(async move { worker.run(stop).await }));
            }
            tracing::info!(jobs = self.jobs, "waiting for jobs");
            let signal = told_to_stop().await?;
            tracing::info!(signal, "stopping: jobs are given back");
            stop.send_replace(true);
            for worker in workers {
                worker.await?;
            }
            Ok(())
        })
    }
}
