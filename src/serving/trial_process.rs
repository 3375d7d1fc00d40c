//! Trying something in a process of its own before it is served, and what its end says.
//!
//! The process is this program's own `causeway trial`, or `causeway convert` where a file has to be another before. It
//! bounds its memory itself; here its time is bounded and what it says is read, up to a limit.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::trial::Tried;

/// Bytes of what the process says that are kept, of each of its two outputs.
const KEPT: u64 = 1 << 16;
/// Characters of it that are told to callers.
const TOLD: usize = 2000;
/// What the program says before an error.
const ERROR: &str = "causeway: ";

/// How things are tried.
#[derive(Debug, Clone)]
pub struct TrialProcess {
    /// The program whose `trial` is run.
    pub program: PathBuf,
    /// `limits.max_model_mib` of the settings.
    pub max_model_mib: u64,
    /// `limits.load_seconds` of the settings.
    pub seconds: u64,
}

/// Why something is not served.
#[derive(Debug, thiserror::Error)]
pub enum TrialFailure {
    /// Something is wrong with it.
    #[error("{0}")]
    Refused(String),
    #[error(
        "it did not answer one token within {0} seconds (limits.load_seconds) in the process that tried it"
    )]
    Slow(u64),
    #[error(
        "the process that tried it did not survive it ({status}), as when more memory or a deeper stack is taken than \
         its sizes account for: {said}"
    )]
    Died { status: ExitStatus, said: String },
    /// It could not be tried.
    #[error("it could not be tried: {0}")]
    System(#[from] io::Error),
}

impl TrialProcess {
    /// Tries the pair or model in `directory`; `pickles` says whether pickled checkpoints are read.
    pub async fn run(&self, directory: &Path, pickles: bool) -> Result<Tried, TrialFailure> {
        let mut command = self.command("trial", directory);
        command.args(pickles.then_some("--pickles"));
        let output = self.output(command).await?;
        let tried = serde_json::from_slice(&output).map_err(io::Error::from)?;
        Ok(tried)
    }

    /// Writes the model in a GGUF file as safetensors into `folder`, which must not exist yet.
    pub async fn convert(&self, file: &Path, folder: &Path) -> Result<(), TrialFailure> {
        let mut command = self.command("convert", file);
        command.arg(folder);
        self.output(command).await.map(drop)
    }

    /// One of this program's commands on `path`, told its bounds.
    fn command(&self, name: &str, path: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(name)
            .arg(path)
            .args(["--max-model-mib", &self.max_model_mib.to_string()])
            .args(["--seconds", &self.seconds.to_string()])
            // One thread takes as many seconds of the processor as pass.
            .env("RAYON_NUM_THREADS", "1")
            // What the allocator sets aside in advance would count as taken.
            .env("MIMALLOC_ARENA_RESERVE", "0")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// What a command that does its work says on its standard output.
    async fn output(&self, mut command: Command) -> Result<Vec<u8>, TrialFailure> {
        let mut child = command.spawn()?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let ended = async {
            let (output, errors) = tokio::join!(beginning(output), beginning(errors));
            Ok::<_, io::Error>((child.wait().await?, output?, errors?))
        };
        let limit = Duration::from_secs(self.seconds);
        let (status, output, errors) = tokio::time::timeout(limit, ended)
            .await
            .map_err(|_| TrialFailure::Slow(self.seconds))??;
        if status.success() {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&errors);
        let told = said.split_once(ERROR).map(|(_, error)| error);
        Err(match (status.code(), told) {
            (Some(1), Some(error)) => TrialFailure::Refused(shortened(error)),
            _ if is_out_of_time(status) => TrialFailure::Slow(self.seconds),
            _ => TrialFailure::Died {
                status,
                said: shortened(&said),
            },
        })
    }
}

/// Whether the system ended a process that had used its seconds of the processor.
fn is_out_of_time(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    status.signal() == Some(libc::SIGXCPU)
}

fn shortened(text: &str) -> String {
    text.trim().chars().take(TOLD).collect()
}

/// The first bytes of an output; the others are read and forgotten, so that nobody waits to write them.
async fn beginning(output: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut output) = output {
        (&mut output).take(KEPT).read_to_end(&mut kept).await?;
        tokio::io::copy(&mut output, &mut tokio::io::sink()).await?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// The outcome of a trial whose program is this shell script.
    async fn outcome(script: &str) -> Result<Tried, TrialFailure> {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("program");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("a script");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("its mode");
        let trial = TrialProcess {
            program,
            max_model_mib: 7,
            seconds: 2,
        };
        trial.run(Path::new("some/where"), false).await
    }

    #[tokio::test]
    async fn the_end_of_the_process_is_told_in_words() {
        let tried = outcome(r#"echo '{"fingerprints": ["'$1-$2-$3-$4-$5-$6-$7'"]}'"#).await;
        let tried = tried.expect("it answers").fingerprints;
        assert_eq!(tried, ["trial-some/where---max-model-mib-7---seconds-2-"]);

        let refused = outcome("echo 'causeway: tensor x holds NaN' >&2; exit 1").await;
        assert!(
            matches!(&refused, Err(TrialFailure::Refused(problem)) if problem == "tensor x holds NaN"),
            "{refused:?}"
        );
        let died = outcome("echo 'memory allocation failed' >&2; kill -ABRT $$").await;
        assert!(
            matches!(&died, Err(TrialFailure::Died { said, .. }) if said == "memory allocation failed"),
            "{died:?}"
        );
        // More than a pipe holds, and no end.
        let long = outcome("yes >&2 & yes | head -c 10000000; wait").await;
        assert!(matches!(long, Err(TrialFailure::Slow(2))), "{long:?}");
        let busy = outcome("kill -XCPU $$").await;
        assert!(matches!(busy, Err(TrialFailure::Slow(2))), "{busy:?}");
        let trial = TrialProcess {
            program: "/no/such/program".into(),
            max_model_mib: 1,
            seconds: 1,
        };
        let absent = trial.run(Path::new("x"), false).await;
        assert!(matches!(absent, Err(TrialFailure::System(_))), "{absent:?}");
    }
}
