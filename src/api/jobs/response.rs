//! Jobs, their events and their checkpoints in OpenAI's shapes, with what is particular to these trainings.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::evaluation::training_report::Closing;
use crate::jobs::job::{self, Failure, Level, Milliseconds, Status};
use crate::jobs::spec::Method;
use crate::training::run::Cost;

/// A training.
#[derive(Debug, Serialize, ToSchema)]
pub struct FineTuningJob {
    #[schema(example = "ftjob-0a1b2c3d")]
    pub id: String,
    #[schema(example = "fine_tuning.job")]
    pub object: &'static str,
    /// Seconds since 1970, as all times here.
    pub created_at: i64,
    /// When it first began to run; null before.
    #[schema(required = true)]
    pub started_at: Option<i64>,
    #[schema(required = true)]
    pub finished_at: Option<i64>,
    /// While it runs: by the time its last steps took.
    #[schema(required = true)]
    pub estimated_finish: Option<i64>,
    pub status: Status,
    /// What has been asked of a job that runs and is not done yet: `cancel` or `pause`.
    #[schema(required = true)]
    pub asked: Option<&'static str>,
    /// How often a worker has begun or taken it up.
    pub attempt: i64,
    pub model: String,
    /// The id that the result was published under, until somebody deletes it; null before.
    #[schema(required = true)]
    pub fine_tuned_model: Option<String>,
    #[schema(required = true)]
    pub training_file: Option<String>,
    /// Always null.
    #[schema(required = true)]
    pub validation_file: Option<String>,
    /// As it was asked for; in a list its type alone.
    pub method: Method,
    /// Of the training's random draws: `batches.seed` of its method (`search.seed` of a pruning), or the `seed` that took
    /// its place.
    pub seed: u64,
    /// Steps done.
    pub step: i64,
    pub steps: usize,
    /// Always 0 of a pruning, which trains no model.
    pub trained_tokens: i64,
    pub metadata: BTreeMap<String, String>,
    /// Why it failed; null otherwise.
    #[schema(required = true)]
    pub error: Option<Failure>,
    /// Held-out figures of the last evaluation by name: losses and divergences in nats. Of a pruning what its circuit does
    /// (`task_loss` and `accuracy`; `task_loss_whole` of the whole model, `task_loss_without` of the model without it),
    /// and how many `nodes` and `edges` it has.
    pub results: BTreeMap<String, f64>,
    /// What the result was found to be worth at the end, as on its card; null before, in lists, and of a circuit.
    #[schema(required = true, value_type = Option<Closing>)]
    pub evaluation: Option<Value>,
    /// Always empty.
    pub hyperparameters: BTreeMap<String, f64>,
    /// Always empty.
    pub organization_id: &'static str,
    /// Always empty.
    pub result_files: Vec<String>,
}

/// What a training would cost, by a few steps of it on this machine.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobEstimate {
    #[schema(example = "fine_tuning.estimate")]
    pub object: &'static str,
    /// Threads of a training's process here.
    pub threads: usize,
    #[serde(flatten)]
    pub cost: Cost,
}

/// A job that is no more.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobDeleted {
    pub id: String,
    #[schema(example = "fine_tuning.job")]
    pub object: &'static str,
    pub deleted: bool,
}

/// A page of jobs, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobList {
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<FineTuningJob>,
    pub has_more: bool,
}

/// One thing that happened to a job.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobEvent {
    /// `ftevent-` and the event's number within the job.
    #[schema(example = "ftevent-12")]
    pub id: String,
    #[schema(example = "fine_tuning.job.event")]
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: i64,
    pub level: Level,
    pub message: String,
    /// `message`, or `metrics` with `data`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Metrics by name, `step` among them; empty for a message.
    #[schema(value_type = Object)]
    pub data: Value,
}

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobEventList {
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<JobEvent>,
    pub has_more: bool,
}

/// A checkpoint that was written. The last two are kept while the job may go on from them.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobCheckpoint {
    #[schema(example = "ftckpt-200")]
    pub id: String,
    #[schema(example = "fine_tuning.job.checkpoint")]
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: i64,
    pub fine_tuning_job_id: String,
    /// The result's id with the step.
    pub fine_tuned_model_checkpoint: String,
    pub step_number: i64,
    #[schema(value_type = Object)]
    pub metrics: Value,
}

/// All checkpoints of a job, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobCheckpointList {
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<JobCheckpoint>,
    pub has_more: bool,
}

fn seconds(time: Milliseconds) -> i64 {
    time / 1000
}

impl FineTuningJob {
    /// `now` is what the estimate counts from.
    pub fn of(job: job::Job, now: i64) -> Self {
        let left = job.spec.steps() as i64 - job.step;
        let estimated = job
            .step_milliseconds
            .filter(|_| job.status == Status::Running)
            .map(|step| now + (left as f64 * step / 1000.0).ceil() as i64);
        FineTuningJob {
            object: "fine_tuning.job",
            created_at: seconds(job.created_at),
            started_at: job.started_at.map(seconds),
            finished_at: job.finished_at.map(seconds),
            estimated_finish: estimated,
            status: job.status,
            asked: job.wish.map(job::Wish::as_str),
            attempt: job.attempt,
            fine_tuned_model: (job.status == Status::Succeeded)
                .then(|| job.spec.output.to_string()),
            seed: job.spec.recipe.seed(),
            steps: job.spec.steps(),
            model: job.spec.model,
            training_file: job.spec.training_file,
            validation_file: None,
            method: job.spec.method,
            step: job.step,
            trained_tokens: job.trained_tokens,
            metadata: job.metadata,
            error: job.failure,
            results: job.results,
            evaluation: job.evaluation,
            hyperparameters: BTreeMap::new(),
            organization_id: "",
            result_files: Vec::new(),
            id: job.id,
        }
    }
}

impl FineTuningJob {
    /// As it stands in a list: without what may be long.
    pub fn in_list(self) -> Self {
        FineTuningJob {
            method: Method {
                kind: self.method.kind,
                dense: None,
                sparse: None,
                bridge: None,
                prune: None,
            },
            evaluation: None,
            ..self
        }
    }
}

impl JobEvent {
    pub fn of(event: job::Event) -> Self {
        JobEvent {
            id: format!("{EVENT}{}", event.number),
            object: "fine_tuning.job.event",
            created_at: seconds(event.created_at),
            level: event.level,
            message: event.message,
            kind: match event.metrics {
                Some(_) => "metrics",
                None => "message",
            },
            data: event
                .metrics
                .unwrap_or_else(|| Value::Object(Default::default())),
        }
    }
}

/// What an event's id begins with.
pub const EVENT: &str = "ftevent-";

impl JobCheckpoint {
    pub fn of(job: &job::Job, record: job::CheckpointRecord) -> Self {
        JobCheckpoint {
            id: format!("ftckpt-{}", record.step),
            object: "fine_tuning.job.checkpoint",
            created_at: seconds(record.created_at),
            fine_tuning_job_id: job.id.clone(),
            fine_tuned_model_checkpoint: format!("{}:step-{}", job.spec.output, record.step),
            step_number: record.step,
            metrics: record.metrics,
        }
    }
}
