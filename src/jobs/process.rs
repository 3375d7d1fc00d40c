//! The process that a job's training runs in: this program's own `train`, apart from everything that serves.
//!
//! It ends with the worker that started it, however that ends, because it watches its standard input. Its priority and
//! threads are set here; its memory is watched by the worker. What it writes lies in a directory of its attempt: a
//! process that a frozen worker left behind writes where nobody looks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use tokio::process::{Child, Command};

use super::job::Failure;
use super::spec::JobSpec;
use crate::settings::JobSettings;
use crate::training::progress::{METRICS, keep_before};

/// The end of what a process said is told when it fails.
const TOLD_BYTES: usize = 2000;

/// A training that runs.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pub directory: PathBuf,
}

impl Process {
    /// Starts or goes on with a job's training in the directory of its attempt.
    pub fn start(
        program: &Path,
        spec: &JobSpec,
        directory: &Path,
        settings: &JobSettings,
    ) -> io::Result<Self> {
        let recipe = spec.recipe.clone().into_directory(directory);
        let text = recipe.to_toml().map_err(io::Error::other)?;
        let path = directory.join("recipe.toml");
        fs::write(&path, text)?;
        // The training forgets what it told after its checkpoint; whoever reads along must not have read it before.
        let first_step = steps(&directory.join("checkpoints")).first().copied();
        keep_before(directory, first_step.unwrap_or(0)).map_err(io::Error::other)?;
        let child = Command::new(program)
            .args(["train", recipe.command(), "--resume", "--attended"])
            .args(["--nice", &settings.nice.to_string(), "--recipe"])
            .arg(&path)
            .env("RAYON_NUM_THREADS", settings.threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(fs::File::create(log(directory))?)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Process {
            child,
            directory: directory.to_owned(),
        })
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Ends it now.
    pub async fn kill(&mut self) -> io::Result<()> {
        self.child.kill().await
    }

    /// Its resident memory in MiB, where the system tells.
    pub fn memory_mib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()?)).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib / 1024)
    }

    /// Why a training that ended with `status` failed.
    pub fn failure(&self, status: ExitStatus) -> Failure {
        let said = fs::read(log(&self.directory)).unwrap_or_default();
        let said =
            String::from_utf8_lossy(&said[said.len().saturating_sub(TOLD_BYTES)..]).into_owned();
        let said = said.trim();
        let told = said.lines().rfind(|line| line.starts_with("causeway: "));
        let message = match told {
            Some(line) => line.trim_start_matches("causeway: ").to_owned(),
            None => format!("the training's process ended with {status}: {said}"),
        };
        Failure {
            code: code(&message, status).to_owned(),
            message,
            param: None,
        }
    }
}

fn log(directory: &Path) -> PathBuf {
    directory.join("log")
}

/// What programs call a failure.
fn code(message: &str, status: ExitStatus) -> &'static str {
    // ENOSPC, EFBIG, EDQUOT: errors reach the message through many layers, their number stays.
    let full = ["(os error 28)", "(os error 27)", "(os error 122)"];
    let diverged = message.contains("lower the learning rate or clip harder");
    match status.code() {
        _ if full.iter().any(|number| message.contains(number)) => "disk_full",
        Some(1) if diverged => "diverged",
        Some(1) => "training_failed",
        _ => "crashed",
    }
}

/// Makes the directory of an attempt, with the newest checkpoint of those before it.
pub fn prepare(work: &Path, job: &str, attempt: i64) -> io::Result<PathBuf> {
    let of_job = work.join(job);
    let directory = of_job.join(attempt.to_string());
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(directory.join("checkpoints"))?;
    // An attempt whose process still runs may take its checkpoints away meanwhile.
    for before in (0..attempt)
        .rev()
        .map(|before| of_job.join(before.to_string()))
    {
        for step in steps(&before.join("checkpoints")) {
            let name = format!("step-{step}");
            let to = directory.join("checkpoints").join(&name);
            if link_all(&before.join("checkpoints").join(&name), &to).is_ok() {
                fs::copy(before.join(METRICS), directory.join(METRICS))?;
                return Ok(directory);
            }
            if to.exists() {
                fs::remove_dir_all(&to)?;
            }
        }
    }
    Ok(directory)
}

/// The steps of the checkpoints in a directory, newest first.
fn steps(checkpoints: &Path) -> Vec<usize> {
    let entries = fs::read_dir(checkpoints).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut steps: Vec<usize> = names
        .filter_map(|name| name.strip_prefix("step-")?.parse().ok())
        .collect();
    steps.sort_unstable_by(|left, right| right.cmp(left));
    steps
}

/// A checkpoint's files are never changed, only replaced, so that two attempts can have the same.
fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::hard_link(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Removes what a job's attempts have left behind; what is not there needs no removing.
pub fn clean(work: &Path, job: &str) -> io::Result<()> {
    match fs::remove_dir_all(work.join(job)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
