//! A worker: takes the oldest job, carries it out, takes the next.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::following::Metrics;
use super::job::{Claim, Failure, Job, Level, NewEvent, Wish};
use super::process::{self, Process};
use super::publishing::publish;
use super::store::claims::Outcome;
use super::store::{Store, StoreError};
use crate::settings::{JobSettings, Settings};

/// How often a training is looked at, and the store for a job.
const LOOK: Duration = Duration::from_millis(300);
/// A process that is killed by somebody else is started anew this often without a new checkpoint.
const MOST_CRASHES: usize = 3;

/// One worker.
#[derive(Debug, Clone)]
pub struct Worker {
    pub name: String,
    pub store: Store,
    pub settings: JobSettings,
    /// Where attempts have their directories.
    pub work: PathBuf,
    /// Where results are published.
    pub library: PathBuf,
    /// This program, which trains.
    pub program: PathBuf,
}

/// Why a worker leaves a job alone.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    System(#[from] std::io::Error),
}

/// What comes of an attempt.
enum Ended {
    Outcome(Outcome),
    /// Its process was killed; it may go on from its last checkpoint.
    Crashed(Failure),
}

impl Worker {
    /// Number `number` of this process.
    pub fn of(store: &Store, settings: &Settings, number: usize) -> std::io::Result<Self> {
        let id = uuid::Uuid::new_v4().simple();
        Ok(Worker {
            name: format!("{}-{number}-{id}", std::process::id()),
            store: store.clone(),
            settings: settings.jobs.clone(),
            work: std::path::absolute(settings.data_dir.join("jobs"))?,
            library: std::path::absolute(&settings.library)?,
            program: std::env::current_exe()?,
        })
    }

    fn lease(&self) -> Duration {
        Duration::from_secs(self.settings.lease_seconds)
    }

    /// Works until `stop` is done; a job that runs then is given back.
    pub async fn run(&self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            let taken = match self.store.claim(&self.name, self.lease()).await {
                Ok(taken) => taken,
                Err(error) => {
                    tracing::error!(%error, "no job could be taken");
                    None
                }
            };
            match taken {
                Some((claim, job)) => {
                    tokio::select! {
                        () = self.carry_out(&claim, &job) => {}
                        () = &mut stop => {
                            // Its process has ended with the future that held it.
                            let event = message(&claim, "released", "the worker stops; another goes on");
                            if let Err(error) = self.store.finish(&claim, &Outcome::Released, &event).await {
                                tracing::warn!(job = claim.job, %error, "a job could not be given back");
                            }
                            return;
                        }
                    }
                }
                None => {
                    tokio::select! {
                        () = tokio::time::sleep(LOOK) => {}
                        () = &mut stop => return,
                    }
                }
            }
        }
    }

    async fn carry_out(&self, claim: &Claim, job: &Job) {
        tracing::info!(job = job.id, attempt = claim.attempt, "a job begins");
        let done = self.attempt(claim, job).await;
        match done {
            Ok(()) => tracing::info!(job = job.id, "a job is done with"),
            Err(Interruption::Store(StoreError::Lost)) => {
                tracing::warn!(
                    job = job.id,
                    attempt = claim.attempt,
                    "a job was taken over"
                );
            }
            Err(error) => {
                // The lease lapses, and the job is taken again: by this worker when the trouble is over.
                tracing::error!(job = job.id, %error, "a job was interrupted");
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    async fn attempt(&self, claim: &Claim, job: &Job) -> Result<(), Interruption> {
        let begun = message(
            claim,
            "begun",
            &format!("attempt {} on {}", claim.attempt, self.name),
        );
        self.store.tell(claim, self.lease(), &[begun], None).await?;
        let directory = process::prepare(&self.work, &job.id, claim.attempt)?;
        let mut crashes = 0;
        let outcome = loop {
            let checkpoints = self.store.checkpoints(&job.id).await?.len();
            match self.train(claim, job, &directory).await? {
                Ended::Outcome(outcome) => break outcome,
                Ended::Crashed(failure) => {
                    let further = self.store.checkpoints(&job.id).await?.len() > checkpoints;
                    crashes = if further { 1 } else { crashes + 1 };
                    if crashes == MOST_CRASHES {
                        break Outcome::Failed(failure);
                    }
                    let text = format!("{}; going on from the last checkpoint", failure.message);
                    let key = format!("crashed-{}", uuid::Uuid::new_v4());
                    let event = NewEvent {
                        level: Level::Warn,
                        ..message(claim, &key, &text)
                    };
                    self.store.tell(claim, self.lease(), &[event], None).await?;
                }
            }
        };
        if let Outcome::Succeeded { .. } = outcome {
            // Nobody else's by now.
            self.store.renew(claim, self.lease()).await?;
            let result = directory.join(job.spec.recipe.result());
            publish(&result, &self.library, job.spec.output.as_str())?;
        }
        let event = farewell(claim, job, &outcome);
        self.store.finish(claim, &outcome, &event).await?;
        if !matches!(outcome, Outcome::Paused | Outcome::Released) {
            process::clean(&self.work, &job.id)?;
        }
        Ok(())
    }

    /// Runs the training's process to its end, or until somebody wants something else.
    async fn train(
        &self,
        claim: &Claim,
        job: &Job,
        directory: &std::path::Path,
    ) -> Result<Ended, Interruption> {
        let batches = job.spec.recipe.batches();
        let mut metrics = Metrics::of(directory, (batches.sequences * batches.length) as i64);
        let mut process = Process::start(&self.program, &job.spec, directory, &self.settings)?;
        loop {
            let ended = process.ended()?;
            // After the look at the process: what it wrote last is read before its end is acted on.
            let wish = self.follow(claim, &mut metrics).await?;
            if let Some(status) = ended {
                return Ok(match status.success() {
                    true => Ended::Outcome(Outcome::Succeeded {
                        results: figures(&metrics),
                    }),
                    false => ending(&process, status),
                });
            }
            let wanted = match wish {
                Some(Wish::Cancel) => Some(Outcome::Cancelled),
                Some(Wish::Pause) => Some(Outcome::Paused),
                _ => self.too_large(&process).map(Outcome::Failed),
            };
            if let Some(outcome) = wanted {
                process.kill().await?;
                return Ok(Ended::Outcome(outcome));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Tells the store what is new, which also keeps the lease.
    async fn follow(
        &self,
        claim: &Claim,
        metrics: &mut Metrics,
    ) -> Result<Option<Wish>, Interruption> {
        loop {
            let news = metrics.news()?;
            let wish = self
                .store
                .tell(claim, self.lease(), &news.events, news.position)
                .await?;
            for (step, figures) in &news.checkpoints {
                self.store
                    .checkpoint(claim, self.lease(), *step, figures)
                    .await?;
            }
            if news.events.is_empty() {
                return Ok(wish);
            }
        }
    }

    fn too_large(&self, process: &Process) -> Option<Failure> {
        let limit = self.settings.memory_mib;
        let used = process
            .memory_mib()
            .filter(|&used| limit > 0 && used > limit)?;
        Some(Failure {
            code: "out_of_memory".to_owned(),
            message: format!(
                "the training took {used} MiB of memory; at most {limit} are allowed. A smaller batch takes less"
            ),
            param: None,
        })
    }
}

fn ending(process: &Process, status: std::process::ExitStatus) -> Ended {
    let failure = process.failure(status);
    match failure.code.as_str() {
        "crashed" => Ended::Crashed(failure),
        _ => Ended::Outcome(Outcome::Failed(failure)),
    }
}

fn figures(metrics: &Metrics) -> std::collections::BTreeMap<String, f64> {
    let numbers = metrics.evaluation.iter();
    numbers
        .filter_map(|(name, value)| Some((name.clone(), Value::as_f64(value)?)))
        .collect()
}

fn message(claim: &Claim, key: &str, text: &str) -> NewEvent {
    NewEvent {
        key: format!("{}:{key}", claim.attempt),
        level: Level::Info,
        message: text.to_owned(),
        metrics: None,
    }
}

fn farewell(claim: &Claim, job: &Job, outcome: &Outcome) -> NewEvent {
    let text = match outcome {
        Outcome::Succeeded { .. } => format!("{} is published", job.spec.output),
        Outcome::Failed(failure) => failure.message.clone(),
        Outcome::Cancelled => "cancelled".to_owned(),
        Outcome::Paused => "paused".to_owned(),
        Outcome::Released => "released".to_owned(),
    };
    let level = match outcome {
        Outcome::Failed(_) => Level::Error,
        _ => Level::Info,
    };
    NewEvent {
        level,
        ..message(claim, "ended", &text)
    }
}
