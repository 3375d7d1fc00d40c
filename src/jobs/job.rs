//! What a job is: plain data and the few ways from one status to another.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::spec::JobSpec;

/// Milliseconds since 1970, by the store's clock.
pub type Milliseconds = i64;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waits for a worker.
    Queued,
    /// A worker holds its lease.
    Running,
    /// Keeps its checkpoints and waits to be resumed.
    Paused,
    Succeeded,
    /// Keeps its checkpoints for a while, and can be resumed that long.
    Failed,
    Cancelled,
}

impl Status {
    pub const ALL: [Status; 6] = [
        Status::Queued,
        Status::Running,
        Status::Paused,
        Status::Succeeded,
        Status::Failed,
        Status::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Status::Queued => "queued",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
        }
    }

    /// Nothing follows, unless a job that failed is resumed.
    pub fn is_final(self) -> bool {
        matches!(self, Status::Succeeded | Status::Failed | Status::Cancelled)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Status::ALL
            .into_iter()
            .find(|status| status.as_str() == text);
        found.ok_or_else(|| format!("no status {text:?}"))
    }
}

/// What somebody wants of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Cancel,
    Pause,
    Resume,
}

/// What a wish comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The job has this status at once.
    Becomes(Status),
    /// The worker that runs it is asked.
    Asks,
    /// It is so already.
    Nothing,
    /// Not from here.
    Refused,
}

impl Wish {
    pub fn as_str(self) -> &'static str {
        match self {
            Wish::Cancel => "cancel",
            Wish::Pause => "pause",
            Wish::Resume => "resume",
        }
    }

    /// The state machine of everything that callers may ask for.
    pub fn step(self, from: Status) -> Step {
        use Status::{Cancelled, Failed, Paused, Queued, Running, Succeeded};
        match (self, from) {
            (Wish::Cancel, Queued | Paused | Failed) => Step::Becomes(Cancelled),
            (Wish::Pause, Queued) => Step::Becomes(Paused),
            (Wish::Resume, Paused | Failed) => Step::Becomes(Queued),
            (Wish::Cancel | Wish::Pause, Running) => Step::Asks,
            // Taken back before the worker has seen it.
            (Wish::Resume, Running) => Step::Asks,
            (Wish::Cancel, Cancelled) | (Wish::Pause, Paused) | (Wish::Resume, Queued) => {
                Step::Nothing
            }
            (_, Succeeded | Cancelled) | (Wish::Pause, Failed) => Step::Refused,
        }
    }
}

/// A job as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub id: String,
    pub spec: JobSpec,
    pub metadata: BTreeMap<String, String>,
    pub status: Status,
    /// What the worker has been asked, while it runs.
    pub wish: Option<Wish>,
    /// How often a worker has taken it.
    pub attempt: i64,
    pub created_at: Milliseconds,
    /// When a worker first took it.
    pub started_at: Option<Milliseconds>,
    pub finished_at: Option<Milliseconds>,
    /// Steps done, of [`JobSpec::steps`].
    pub step: i64,
    pub trained_tokens: i64,
    /// Milliseconds that a step takes, by the last ones.
    pub step_milliseconds: Option<f64>,
    pub failure: Option<Failure>,
    /// Held-out figures by name, of the last evaluation.
    pub results: BTreeMap<String, f64>,
    /// What the result was found to be worth at the end; none before.
    pub evaluation: Option<Value>,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// For programs: `diverged`, `out_of_memory`, `disk_full`, `crashed`, `inputs_gone`, `inputs_damaged`,
    /// `interrupted`, `training_failed`.
    pub code: String,
    pub message: String,
    /// The field of the request at fault, if one is.
    #[schema(required = true)]
    pub param: Option<String>,
}

/// One thing that happened to a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Counts up, within the job.
    pub number: i64,
    pub created_at: Milliseconds,
    pub level: Level,
    pub message: String,
    /// Metrics by name; none for a message.
    pub metrics: Option<Value>,
}

/// An event that is yet to be kept. Of two with the same key the first stays.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    pub key: String,
    pub level: Level,
    pub message: String,
    pub metrics: Option<Value>,
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Info,
    Warn,
    Error,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

/// A checkpoint that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointRecord {
    pub step: i64,
    pub created_at: Milliseconds,
    /// The training's figures at that step.
    pub metrics: Value,
}

/// Training text that was uploaded; its content is beside the store.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredFile {
    pub id: String,
    pub name: String,
    pub bytes: i64,
    pub documents: i64,
    pub sha256: String,
    pub created_at: Milliseconds,
}

/// A worker's hold on a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub job: String,
    pub attempt: i64,
    pub worker: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_stays_as_it_is_unless_it_failed() {
        for status in Status::ALL {
            for wish in [Wish::Cancel, Wish::Pause, Wish::Resume] {
                let step = wish.step(status);
                match status {
                    Status::Succeeded | Status::Cancelled => assert!(
                        matches!(step, Step::Refused | Step::Nothing),
                        "{wish:?} {status}"
                    ),
                    Status::Failed => assert_eq!(step == Step::Refused, wish == Wish::Pause),
                    _ => assert_ne!(step, Step::Refused, "{wish:?} {status}"),
                }
            }
            assert_eq!(status.as_str().parse(), Ok(status));
        }
    }
}
