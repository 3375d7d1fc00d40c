//! Why a model was not brought, said so that its reader knows what to do.

use super::name::{HubId, Revision};
use crate::artifacts::{ArtifactError, is_full};

/// Why a model was not brought.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(
        "nothing is asked of any hub (hub.offline): bring the model's files here in another way and name their directory"
    )]
    Offline,
    #[error("{endpoint} cannot be asked: {problem}")]
    Unreachable { endpoint: String, problem: String },
    /// It needs somebody who may.
    #[error("{endpoint} does not let {what} be read{said}: {advice}")]
    Closed {
        endpoint: String,
        what: String,
        said: String,
        advice: &'static str,
    },
    #[error("{endpoint} has no {what}{said}")]
    NotFound {
        endpoint: String,
        what: String,
        said: String,
    },
    /// It answered, but in no way that is expected.
    #[error("{endpoint} answered {status} when asked for {what}{said}")]
    Answer {
        endpoint: String,
        what: String,
        status: u16,
        said: String,
    },
    /// What it said makes no sense, or does not fit what it said before.
    #[error("what {endpoint} says of {what} makes no sense: {problem}")]
    Senseless {
        endpoint: String,
        what: String,
        problem: String,
    },
    /// The connection broke too often.
    #[error(
        "{file} did not arrive: {problem} ({tries} times in a row, hub.retries); what has arrived of it is kept for a day"
    )]
    Broken {
        file: String,
        problem: String,
        tries: u32,
    },
    #[error(
        "{id} at {revision} takes {mib} MiB; one model may take {most_mib} (hub.max_download_mib)"
    )]
    TooLarge {
        id: HubId,
        revision: Revision,
        mib: u64,
        most_mib: u64,
    },
    #[error("{mib} MiB are still to come, and the disk has {free_mib} free")]
    NoRoom { mib: u64, free_mib: u64 },
    /// There is no model in it that could be served.
    #[error("{id} cannot be served: {problem}")]
    NoModel { id: HubId, problem: String },
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error("it was cancelled")]
    Stopped,
}

impl HubError {
    /// For programs: what kind of error it is.
    pub fn code(&self) -> &'static str {
        match self {
            HubError::Offline => "hub_offline",
            HubError::Unreachable { .. } | HubError::Broken { .. } => "hub_unreachable",
            HubError::Closed { .. } => "hub_access_denied",
            HubError::NotFound { .. } => "hub_not_found",
            HubError::Answer { .. } | HubError::Senseless { .. } => "hub_error",
            HubError::TooLarge { .. } => "too_large",
            HubError::NoRoom { .. } => "disk_full",
            HubError::NoModel { .. } => "cannot_load",
            HubError::Artifact(error) if is_full(error) => "disk_full",
            HubError::Artifact(ArtifactError::Io { .. }) => "internal_error",
            HubError::Artifact(_) => "hub_damaged",
            HubError::Stopped => "cancelled",
        }
    }
}
