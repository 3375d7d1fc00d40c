//! A worker: takes the oldest job, carries it out, takes the next; and removes what nobody needs any more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::watch;

use super::artifact_store::{ArtifactStore, ArtifactStoreError};
use super::following::Metrics;
use super::job::{Claim, Failure, Job, Level, NewEvent, Wish};
use super::process::{self, End, Process};
use super::spec::{INPUTS, JobSpec, MODEL, ResultKind};
use super::store::claims::{NewCheckpoint, Outcome, held_checkpoints};
use super::store::{Store, StoreError};
use crate::artifacts::{Manifest, atomic, is_full};
use crate::circuits::directory;
use crate::evaluation::training_report;
use crate::numerics::device::DeviceChoice;
use crate::settings::{JobSettings, Settings};

/// Beside a result: what it was trained by. Paths in it begin where the training ran.
const RECIPE: &str = "recipe.toml";
/// How often a training is looked at, and the store for a job.
const LOOK: Duration = Duration::from_millis(300);
/// A process that is killed by somebody else is started anew this often without a new checkpoint.
const MOST_CRASHES: usize = 3;
/// How long a training may take to write a checkpoint and end; it is killed then, and goes on from the one before.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same where the worker itself has been told to stop.
const PATIENCE_OF_A_STOP: Duration = Duration::from_secs(15);
/// A job that is interrupted so often without getting further has failed.
const MOST_INTERRUPTIONS: i64 = 5;
/// How long a worker rests after an interruption, and when the store gives no answer.
const REST: Duration = Duration::from_secs(2);
/// How often what nobody needs is looked for.
const SWEEP: Duration = Duration::from_secs(3600);

/// One worker.
#[derive(Debug, Clone)]
pub struct Worker {
    pub name: String,
    pub store: Store,
    pub artifacts: ArtifactStore,
    pub settings: JobSettings,
    /// What its trainings compute on.
    pub device: DeviceChoice,
    /// Where jobs have their directories.
    pub work: PathBuf,
    /// This program, which trains.
    pub program: PathBuf,
}

/// Why a worker leaves a job alone.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Artifacts(#[from] ArtifactStoreError),
    #[error(transparent)]
    System(#[from] std::io::Error),
    #[error("the worker stops")]
    Stopped,
    #[error("the job is cancelled")]
    Cancelled,
}

impl Interruption {
    /// What of this is the job's end: it would come again.
    fn failure(&self) -> Option<Failure> {
        let code = match self {
            Interruption::Artifacts(error) if error.is_full() => "disk_full",
            Interruption::System(error) if is_full(error) => "disk_full",
            Interruption::Artifacts(
                ArtifactStoreError::Gone(_)
                | ArtifactStoreError::Objects(object_store::Error::NotFound { .. }),
            ) => "inputs_gone",
            Interruption::Artifacts(ArtifactStoreError::Damaged { .. }) => "inputs_damaged",
            _ => return None,
        };
        Some(failure(code, self.to_string()))
    }
}

fn failure(code: &str, message: String) -> Failure {
    Failure {
        code: code.to_owned(),
        message,
        param: None,
    }
}

/// What comes of a training's process.
enum Ended {
    /// Its result is in the attempt's directory, with these held-out figures.
    Done(BTreeMap<String, f64>),
    Outcome(Outcome),
    /// It was killed; it may go on from its last checkpoint.
    Crashed(Failure),
}

/// One attempt at a job.
struct Attempt<'a> {
    worker: &'a Worker,
    claim: &'a Claim,
    job: &'a Job,
    /// Set when the worker is to stop.
    stop: watch::Receiver<bool>,
    directory: PathBuf,
    /// The step of the newest checkpoint that the job holds.
    newest: i64,
}

impl Worker {
    /// Number `number` of this process.
    pub fn of(
        store: &Store,
        artifacts: &ArtifactStore,
        settings: &Settings,
        number: usize,
    ) -> std::io::Result<Self> {
        let id = uuid::Uuid::new_v4().simple();
        Ok(Worker {
            name: format!("{}-{number}-{id}", std::process::id()),
            store: store.clone(),
            artifacts: artifacts.clone(),
            settings: settings.jobs.clone(),
            device: settings.jobs.devices.of_worker(number),
            work: std::path::absolute(settings.data_dir.join("jobs"))?,
            program: std::env::current_exe()?,
        })
    }

    fn lease(&self) -> Duration {
        Duration::from_secs(self.settings.lease_seconds)
    }

    /// Works until `stop` is set; a job that runs then writes a checkpoint and is given back.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        let mut swept: Option<Instant> = None;
        while !*stop.borrow() {
            if swept.is_none_or(|at| at.elapsed() > SWEEP) {
                self.sweep().await;
                swept = Some(Instant::now());
            }
            let taken = match self.store.claim(&self.name, self.lease()).await {
                Ok(taken) => taken,
                Err(error) => {
                    tracing::error!(%error, "no job could be taken");
                    wait(REST, &mut stop).await;
                    None
                }
            };
            match taken {
                Some((claim, job)) => self.carry_out(&claim, &job, &stop).await,
                None => wait(LOOK, &mut stop).await,
            }
        }
    }

    async fn sweep(&self) {
        if let Err(error) = self.tidy().await {
            tracing::warn!(%error, "what ended attempts have left could not be removed");
        }
        match self.artifacts.sweep().await {
            Ok(0) => {}
            Ok(places) => tracing::info!(places, "what nobody needs has been removed"),
            Err(error) => tracing::warn!(%error, "what nobody needs could not be removed"),
        }
    }

    /// Removes the folders of jobs that ended elsewhere, or whose worker was killed, and of estimates whose server was.
    async fn tidy(&self) -> Result<(), Interruption> {
        for (name, folder) in process::old_folders(&self.work, SWEEP)? {
            let job = self.store.job(&name).await?;
            if job.is_none_or(|job| job.status.is_final()) {
                std::fs::remove_dir_all(folder)?;
            }
        }
        Ok(())
    }

    async fn carry_out(&self, claim: &Claim, job: &Job, stop: &watch::Receiver<bool>) {
        tracing::info!(job = job.id, attempt = claim.attempt, "a job begins");
        let mut stop = stop.clone();
        let mut attempt = Attempt {
            worker: self,
            claim,
            job,
            stop: stop.clone(),
            directory: PathBuf::new(),
            newest: 0,
        };
        let ended = match attempt.run().await {
            Ok(outcome) => self.end(claim, job, outcome).await,
            Err(Interruption::Stopped) => self.end(claim, job, Outcome::Released).await,
            Err(Interruption::Cancelled) => self.end(claim, job, Outcome::Cancelled).await,
            Err(error) => {
                let told = self.interrupted(claim, job, error).await;
                wait(REST, &mut stop).await;
                told
            }
        };
        match ended {
            Ok(()) => tracing::info!(job = job.id, "a job is done with"),
            Err(Interruption::Store(StoreError::Lost)) => {
                let attempt = claim.attempt;
                tracing::warn!(job = job.id, attempt, "a job was taken over");
                // The new worker has its own folder.
                if let Err(error) = process::clean(&self.work, &job.id, attempt) {
                    tracing::warn!(job = job.id, %error, "an attempt's files are still there");
                }
            }
            Err(error) => {
                // The lease lapses, and the job is taken again: by this worker when the trouble is over.
                tracing::error!(job = job.id, %error, "a job was interrupted");
            }
        }
    }

    /// Gives a job back that could not be gone on with, for another attempt; or up, where that would come again.
    async fn interrupted(
        &self,
        claim: &Claim,
        job: &Job,
        error: Interruption,
    ) -> Result<(), Interruption> {
        if let Interruption::Store(_) = error {
            // Nothing can be told; the lease lapses.
            return Err(error);
        }
        tracing::error!(job = job.id, %error, "a job was interrupted");
        let before = self.store.interruptions(&job.id).await?;
        let outcome = match error.failure() {
            Some(failure) => Outcome::Failed(failure),
            None if before + 1 >= MOST_INTERRUPTIONS => {
                Outcome::Failed(failure("interrupted", error.to_string()))
            }
            None => Outcome::Released,
        };
        let text = format!("interrupted: {error}");
        let event = NewEvent {
            level: Level::Warn,
            ..message(claim, "interrupted", &text)
        };
        self.store.tell(claim, self.lease(), &[event], None).await?;
        self.end(claim, job, outcome).await
    }

    async fn end(&self, claim: &Claim, job: &Job, outcome: Outcome) -> Result<(), Interruption> {
        let held = self.store.held_by_job(&job.id).await?;
        let farewell = |outcome: &Outcome| farewell(claim, job, outcome);
        let outcome = self.store.finish(claim, outcome, farewell).await?;
        process::clean(&self.work, &job.id, claim.attempt)?;
        if matches!(outcome, Outcome::Succeeded { .. } | Outcome::Cancelled) {
            // Checkpoints are the job's alone; what it began with may be somebody else's.
            for checkpoint in held_checkpoints(&held).into_values() {
                self.artifacts.remove_if_unheld(&checkpoint).await?;
            }
        }
        Ok(())
    }

    /// Does what may take its time, and keeps the lease meanwhile.
    async fn keeping<T>(
        &self,
        claim: &Claim,
        stop: &mut watch::Receiver<bool>,
        work: impl Future<Output = Result<T, Interruption>>,
    ) -> Result<T, Interruption> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = wait(self.lease() / 3, stop) => {
                    if self.store.renew(claim, self.lease()).await? == Some(Wish::Cancel) {
                        return Err(Interruption::Cancelled);
                    }
                }
            }
            if *stop.borrow() {
                // It may be about to be done.
                let done = tokio::time::timeout(PATIENCE_OF_A_STOP, work).await;
                return done.unwrap_or(Err(Interruption::Stopped));
            }
        }
    }
}

impl Attempt<'_> {
    async fn run(&mut self) -> Result<Outcome, Interruption> {
        let (worker, claim, job) = (self.worker, self.claim, self.job);
        let device = match job.spec.recipe.takes_device() {
            true => worker.device,
            false => DeviceChoice::Cpu,
        };
        let (attempt, name) = (claim.attempt, &worker.name);
        let text = format!("attempt {attempt} on {name}, computing on {device}");
        self.say("begun", &text, Level::Info).await?;
        self.directory = process::prepare(&worker.work, &job.id, claim.attempt)?;
        self.newest = self.keeping(self.bring()).await?;
        let mut crashes = 0;
        loop {
            let checkpoints = worker.store.checkpoints(&job.id).await?.len();
            let failure = match self.train().await? {
                Ended::Done(results) => return self.result(results).await,
                Ended::Outcome(outcome) => return Ok(outcome),
                Ended::Crashed(failure) => failure,
            };
            let further = worker.store.checkpoints(&job.id).await?.len() > checkpoints;
            crashes = if further { 1 } else { crashes + 1 };
            if crashes == MOST_CRASHES {
                return Ok(Outcome::Failed(failure));
            }
            let text = format!("{}; going on from the last checkpoint", failure.message);
            let key = format!("crashed-{}", uuid::Uuid::new_v4());
            self.say(&key, &text, Level::Warn).await?;
        }
    }

    /// Brings what the job begins with and its newest checkpoint; that one's step.
    async fn bring(&self) -> Result<i64, Interruption> {
        let (artifacts, job) = (&self.worker.artifacts, &self.job.id);
        let held = self.worker.store.held_by_job(job).await?;
        if !held.contains_key(MODEL) {
            return Err(ArtifactStoreError::Gone(format!("{MODEL} of {job}")).into());
        }
        let checkpoints = held_checkpoints(&held);
        let inputs = self.directory.join(INPUTS);
        for (part, artifact) in &held {
            if !checkpoints
                .values()
                .any(|checkpoint| checkpoint == artifact)
            {
                artifacts.get(artifact, &inputs.join(part)).await?;
            }
        }
        let Some((&step, artifact)) = checkpoints.last_key_value() else {
            return Ok(0);
        };
        let to = process::checkpoint(&self.directory, step);
        artifacts.get(artifact, &to).await?;
        process::go_on_from(&self.directory, step)?;
        let text = format!("going on after step {step}");
        self.say("goes-on", &text, Level::Info).await?;
        Ok(step)
    }

    /// Keeps what the training has made.
    async fn result(&self, results: BTreeMap<String, f64>) -> Result<Outcome, Interruption> {
        let recipe = &self.job.spec.recipe;
        let folder = self.directory.join(recipe.result());
        let results = match recipe.result_kind() {
            ResultKind::Model => results,
            ResultKind::Circuit => figures_of_circuit(&folder)?,
        };
        let put = async {
            let (job, spec) = (self.job.id.clone(), self.job.spec.clone());
            let signed = folder.clone();
            let signing = tokio::task::spawn_blocking(move || sign(&signed, &job, &spec)).await;
            signing.map_err(std::io::Error::other)??;
            Ok(self.worker.artifacts.put(&folder).await?)
        };
        Ok(Outcome::Succeeded {
            artifact: self.keeping(put).await?,
            evaluation: training_report::read(&folder)?,
            results,
        })
    }

    /// Runs the training's process to its end, or until somebody wants something else.
    async fn train(&mut self) -> Result<Ended, Interruption> {
        let worker = self.worker;
        let tokens = self.job.spec.recipe.trained_tokens_a_step();
        let mut metrics = Metrics::of(&self.directory, tokens as i64);
        // A circuit is worked out after the last step: until that is done there is no result to be kept.
        let kind = self.job.spec.recipe.result_kind();
        let is_there = |metrics: &Metrics| metrics.trained && kind == ResultKind::Model;
        let (spec, settings) = (&self.job.spec, &worker.settings);
        let device = worker.device;
        let mut process = Process::start(&worker.program, spec, &self.directory, settings, device)?;
        let mut asked_for = None;
        loop {
            let ended = process.ended()?;
            // After the look at the process: what it wrote last is read before its end is acted on.
            let wish = self.follow(&mut metrics).await?;
            match (ended, asked_for) {
                (Some(End::Done), _) => return Ok(Ended::Done(figures(&metrics))),
                (Some(End::Early), Some((outcome, _))) => return Ok(Ended::Outcome(outcome)),
                (Some(End::Early), None) => return Ok(Ended::Outcome(Outcome::Released)),
                (Some(End::Failed(failure)), _) if is_there(&metrics) => {
                    return self.unevaluated(&metrics, &failure.message).await;
                }
                (Some(End::Failed(failure)), _) if failure.code == "crashed" => {
                    return Ok(Ended::Crashed(failure));
                }
                (Some(End::Failed(failure)), _) => {
                    return Ok(Ended::Outcome(Outcome::Failed(failure)));
                }
                (None, before) => asked_for = before,
            }
            let too_much = process.takes_too_much(settings);
            if let (true, Some(problem)) = (is_there(&metrics), &too_much) {
                process.kill().await?;
                return self.unevaluated(&metrics, problem).await;
            }
            let at_once = match wish {
                Some(Wish::Cancel) => Some(Outcome::Cancelled),
                _ => too_much.map(|problem| Outcome::Failed(failure("out_of_memory", problem))),
            };
            if let Some(outcome) = at_once {
                process.kill().await?;
                return Ok(Ended::Outcome(outcome));
            }
            if *self.stop.borrow() {
                asked_for = Some((Outcome::Released, PATIENCE_OF_A_STOP));
            } else if wish == Some(Wish::Pause) {
                asked_for = Some((Outcome::Paused, PATIENCE));
            }
            if let Some((outcome, patience)) = &asked_for
                && process.ask_to_end().await.elapsed() > *patience
            {
                process.kill().await?;
                return Ok(Ended::Outcome(outcome.clone()));
            }
            match asked_for {
                Some(_) => tokio::time::sleep(LOOK).await,
                None => wait(LOOK, &mut self.stop).await,
            }
        }
    }

    /// The result of a training whose evaluation failed: that is told, and costs nothing else.
    async fn unevaluated(&self, metrics: &Metrics, problem: &str) -> Result<Ended, Interruption> {
        let text = format!("the evaluation was left out: {problem}");
        self.say("unevaluated", &text, Level::Warn).await?;
        Ok(Ended::Done(figures(metrics)))
    }

    /// Tells the store what is new, which also keeps the lease.
    async fn follow(&mut self, metrics: &mut Metrics) -> Result<Option<Wish>, Interruption> {
        let store = &self.worker.store;
        loop {
            let news = metrics.news()?;
            let wish = store
                .tell(self.claim, self.worker.lease(), &news.events, news.position)
                .await?;
            let last = news.checkpoints.last().map(|(step, _)| *step);
            for (step, figures) in &news.checkpoints {
                let artifact = match Some(*step) == last && *step > self.newest {
                    true => self.keep_checkpoint(*step).await?,
                    false => None,
                };
                let checkpoint = NewCheckpoint {
                    step: *step,
                    metrics: figures,
                    artifact: artifact.as_deref(),
                };
                let dropped = store.checkpoint(self.claim, self.worker.lease(), &checkpoint);
                for artifact in dropped.await? {
                    self.worker.artifacts.remove_if_unheld(&artifact).await?;
                }
            }
            if news.events.is_empty() {
                return Ok(wish);
            }
        }
    }

    async fn keep_checkpoint(&mut self, step: i64) -> Result<Option<String>, Interruption> {
        let Some(aside) = process::set_aside(&self.directory, step)? else {
            return Ok(None);
        };
        let put = async { Ok(self.worker.artifacts.put(&aside).await?) };
        let artifact = self.keeping(put).await?;
        std::fs::remove_dir_all(&aside)?;
        self.newest = step;
        Ok(Some(artifact))
    }

    async fn keeping<T>(
        &self,
        work: impl Future<Output = Result<T, Interruption>>,
    ) -> Result<T, Interruption> {
        let mut stop = self.stop.clone();
        self.worker.keeping(self.claim, &mut stop, work).await
    }

    async fn say(&self, key: &str, text: &str, level: Level) -> Result<(), Interruption> {
        let event = NewEvent {
            level,
            ..message(self.claim, key, text)
        };
        let (store, lease) = (&self.worker.store, self.worker.lease());
        store.tell(self.claim, lease, &[event], None).await?;
        Ok(())
    }
}

/// Writes down where a result came from, and how.
fn sign(folder: &Path, job: &str, spec: &JobSpec) -> Result<(), ArtifactStoreError> {
    let provenance = [
        ("job", Some(Value::from(job))),
        ("model", Some(Value::from(spec.model.as_str()))),
        (
            "training_file",
            spec.training_file.as_deref().map(Value::from),
        ),
        ("method", serde_json::to_value(&spec.method).ok()),
    ];
    let provenance = provenance.into_iter();
    let provenance = provenance.filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let recipe = spec.recipe.clone().into_directory(Path::new("."));
    let text = recipe.to_toml().map_err(std::io::Error::other)?;
    atomic::write(&folder.join(RECIPE), text.as_bytes())?;
    let made = match spec.recipe.result_kind() {
        ResultKind::Model => "Trained",
        ResultKind::Circuit => "A circuit, found",
    };
    let (id, description) = (spec.output.clone(), format!("{made} by job {job}"));
    let manifest = Manifest::of_directory(folder, id, description, provenance.collect())?;
    Ok(manifest.write(folder)?)
}

/// Waits, but not longer than until `stop` is set.
async fn wait(time: Duration, stop: &mut watch::Receiver<bool>) {
    let stopped = async {
        // Whoever could tell is gone: nothing more will be told.
        if stop.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    // The time is what it is about; being told earlier is no error.
    let _ = tokio::time::timeout(time, stopped).await;
}

/// What a circuit is found to do, on held-out pairs.
fn figures_of_circuit(folder: &Path) -> std::io::Result<BTreeMap<String, f64>> {
    let circuit = directory::read(folder).map_err(std::io::Error::other)?;
    let figures = circuit.figures;
    let named = [
        ("nodes", figures.nodes as f64),
        ("edges", figures.edges as f64),
        ("task_loss", figures.task_loss),
        ("task_loss_whole", figures.task_loss_whole),
        ("task_loss_without", figures.task_loss_without),
        ("accuracy", figures.accuracy),
    ];
    Ok(named.map(|(name, value)| (name.to_owned(), value)).into())
}

fn figures(metrics: &Metrics) -> BTreeMap<String, f64> {
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
        Outcome::Released => "given back: the worker stops, another goes on".to_owned(),
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
