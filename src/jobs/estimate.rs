//! What a training would cost: a few steps of it, in a process like a job's, that leave nothing behind.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::artifact_store::{ArtifactStore, ArtifactStoreError};
use super::process::{explanation, too_much_memory, training};
use super::spec::{INPUTS, JobSpec};
use crate::memory;
use crate::settings::JobSettings;
use crate::training::run::Cost;

/// How often the memory that it takes is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// The longest measurement.
pub const LONGEST: Duration = Duration::from_secs(300);

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum EstimateError {
    #[error(transparent)]
    Artifacts(#[from] ArtifactStoreError),
    #[error(transparent)]
    System(#[from] std::io::Error),
    #[error("a few steps took longer than {LONGEST:?}")]
    Slow,
    /// The training would fail.
    #[error("{0}")]
    Refused(String),
}

/// Runs a few steps of `spec` in a folder below `work`, with the artifacts that it begins with. They may take half of the
/// memory that the machine has left, and no more than a job may.
pub async fn measure(
    spec: &JobSpec,
    inputs: &BTreeMap<&'static str, String>,
    artifacts: &ArtifactStore,
    settings: &JobSettings,
    work: &Path,
) -> Result<Cost, EstimateError> {
    tokio::fs::create_dir_all(work).await?;
    let folder = tempfile::Builder::new()
        .prefix(".estimate-")
        .tempdir_in(work)?;
    for (part, artifact) in inputs {
        let to = folder.path().join(INPUTS).join(part);
        artifacts.get(artifact, &to).await?;
    }
    let program = std::env::current_exe()?;
    let mut command: Command = training(
        &program,
        spec,
        folder.path(),
        settings,
        settings.devices.of_worker(0),
    )?;
    let child = command
        .current_dir(folder.path())
        .arg("--dry-run")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let half = memory::available_mib().map(|available| available / 2);
    let limit = settings.most_memory_mib().min(half.unwrap_or(u64::MAX));
    let number = child.id().map(|number| number.to_string());
    let too_large = async {
        loop {
            tokio::time::sleep(LOOK).await;
            let used = number.as_deref().and_then(memory::resident_mib);
            if let Some(problem) = used.and_then(|used| too_much_memory(used, limit)) {
                return problem;
            }
        }
    };
    let output = tokio::select! {
        output = child.wait_with_output() => output?,
        problem = too_large => return Err(EstimateError::Refused(problem)),
        () = tokio::time::sleep(LONGEST) => return Err(EstimateError::Slow),
    };
    match output.status.success() {
        true => serde_json::from_slice(&output.stdout)
            .map_err(|error| EstimateError::System(error.into())),
        false => Err(EstimateError::Refused(explanation(
            &output.stderr,
            output.status,
        ))),
    }
}
