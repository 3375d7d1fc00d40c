//! The process that a job's training runs in: this program's own `train` or `prune`, apart from everything that serves.
//!
//! It ends with the worker that started it, however that ends, because it watches its standard input; a word there asks
//! it to write a checkpoint and end. Its priority and threads are set here; its memory is watched by the worker.
//!
//! It runs in a directory of its attempt, with what the job begins with below `inputs/`: a process that a frozen worker
//! left behind reads and writes where nobody else does.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use super::job::Failure;
use super::spec::JobSpec;
use crate::memory;
use crate::numerics::device::DeviceChoice;
use crate::settings::JobSettings;
use crate::training::checkpoint::is_whole;
use crate::training::exit::TrainingExit;
use crate::training::progress::{METRICS, keep_before};
use crate::training::run::STOP;

const CHECKPOINTS: &str = "checkpoints";
/// The end of what a process said is told when it fails.
const TOLD_BYTES: usize = 2000;

/// A training that runs.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pub directory: PathBuf,
    /// Since when it has been asked to end.
    asked: Option<Instant>,
}

/// How a training's process ended.
#[derive(Debug)]
pub enum End {
    /// With its result in place.
    Done,
    /// As it was asked to, after a checkpoint.
    Early,
    Failed(Failure),
}

impl Process {
    /// Starts or goes on with a job's training in the directory of its attempt.
    pub fn start(
        program: &Path,
        spec: &JobSpec,
        directory: &Path,
        settings: &JobSettings,
        device: DeviceChoice,
    ) -> io::Result<Self> {
        // The training forgets what it told after its checkpoint; whoever reads along must not have read it before.
        let first_step = steps(&directory.join(CHECKPOINTS)).first().copied();
        keep_before(directory, first_step.unwrap_or(0)).map_err(io::Error::other)?;
        let child = training(program, spec, directory, settings, device)?
            .current_dir(directory)
            .args(["--resume", "--attended"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(fs::File::create(log(directory))?)
            .spawn()?;
        Ok(Process {
            child,
            directory: directory.to_owned(),
            asked: None,
        })
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> io::Result<Option<End>> {
        Ok(self.child.try_wait()?.map(|status| match status.code() {
            Some(0) => End::Done,
            Some(code) if TrainingExit::of_code(code) == Some(TrainingExit::Early) => End::Early,
            _ => End::Failed(self.failure(status)),
        }))
    }

    /// Asks it to write a checkpoint and end, if it has not been asked; since when it has.
    pub async fn ask_to_end(&mut self) -> Instant {
        if let (None, Some(input)) = (self.asked, self.child.stdin.as_mut()) {
            // It may be about to end by itself.
            let _ = input.write_all(STOP.as_bytes()).await;
        }
        *self.asked.get_or_insert_with(Instant::now)
    }

    /// Ends it now.
    pub async fn kill(&mut self) -> io::Result<()> {
        self.child.kill().await
    }

    /// What is wrong with the memory that it takes, if it takes more than the settings allow.
    pub fn takes_too_much(&self, settings: &JobSettings) -> Option<String> {
        let used = memory::resident_mib(&self.child.id()?.to_string())?;
        too_much_memory(used, settings.most_memory_mib())
    }

    /// Why a training that ended with `status` failed.
    fn failure(&self, status: ExitStatus) -> Failure {
        let said = fs::read(log(&self.directory)).unwrap_or_default();
        let message = explanation(&said, status);
        Failure {
            code: code(status).to_owned(),
            message,
            param: None,
        }
    }
}

/// The command that carries a job's recipe out, which writes into `directory` and ends when what this returns is dropped.
pub fn training(
    program: &Path,
    spec: &JobSpec,
    directory: &Path,
    settings: &JobSettings,
    device: DeviceChoice,
) -> io::Result<Command> {
    let recipe = spec.recipe.clone().into_directory(directory);
    let text = recipe.to_toml().map_err(io::Error::other)?;
    let path = directory.join("recipe.toml");
    fs::write(&path, text)?;
    let mut command = Command::new(program);
    command
        .args(recipe.command())
        .arg("--recipe")
        .arg(&path)
        .args(["--nice", &settings.nice.to_string()])
        .args(recipe.takes_device().then(|| format!("--device={device}")))
        .args(
            recipe
                .takes_device()
                .then(|| format!("--dtype={}", settings.dtype)),
        )
        .env("RAYON_NUM_THREADS", settings.threads.to_string())
        .kill_on_drop(true);
    Ok(command)
}

/// What is wrong with a training's memory, if anything is; `limit` is in MiB.
pub fn too_much_memory(used_mib: u64, limit: u64) -> Option<String> {
    (used_mib > limit).then(|| {
        format!(
            "the training took {used_mib} MiB of memory; at most {limit} are allowed (jobs.memory_mib). A smaller batch \
             takes less"
        )
    })
}

/// Why a training failed that ended with `status`, by what it said last.
pub fn explanation(said: &[u8], status: ExitStatus) -> String {
    let end = &said[said.len().saturating_sub(TOLD_BYTES)..];
    let end = String::from_utf8_lossy(end);
    let end = end.trim();
    let told = end.lines().rfind(|line| line.starts_with("causeway: "));
    match told {
        Some(line) => line.trim_start_matches("causeway: ").to_owned(),
        None if status.signal() == Some(libc::SIGKILL) => {
            "the training's process was killed, as the system does when memory runs out".to_owned()
        }
        None => format!("the training's process ended with {status}: {end}"),
    }
}

fn log(directory: &Path) -> PathBuf {
    directory.join("log")
}

/// What programs call a failure.
fn code(status: ExitStatus) -> &'static str {
    // What a process is sent that writes past its limit.
    if status.signal() == Some(libc::SIGXFSZ) {
        return "disk_full";
    }
    match (status.code(), status.code().and_then(TrainingExit::of_code)) {
        (_, Some(TrainingExit::DiskFull)) => "disk_full",
        (_, Some(TrainingExit::Diverged)) => "diverged",
        (Some(1), _) => "training_failed",
        _ => "crashed",
    }
}

/// Makes the directory of an attempt, with nothing in it.
pub fn prepare(work: &Path, job: &str, attempt: i64) -> io::Result<PathBuf> {
    let directory = work.join(job).join(attempt.to_string());
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(directory.join(CHECKPOINTS))?;
    Ok(directory)
}

/// Where a training in `directory` has the checkpoint after `step` steps.
pub fn checkpoint(directory: &Path, step: i64) -> PathBuf {
    directory.join(CHECKPOINTS).join(format!("step-{step}"))
}

/// Makes a checkpoint that was brought the one to go on from: the metrics up to it came with it.
pub fn go_on_from(directory: &Path, step: i64) -> io::Result<()> {
    fs::rename(
        checkpoint(directory, step).join(METRICS),
        directory.join(METRICS),
    )
}

/// A checkpoint with the metrics up to it, in a folder that the training does not touch; none where the training has
/// replaced it by newer ones.
pub fn set_aside(directory: &Path, step: i64) -> io::Result<Option<PathBuf>> {
    let aside = directory.join("aside").join(step.to_string());
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::create_dir_all(&aside)?;
    let linked = link_all(&checkpoint(directory, step), &aside);
    let copied = linked.and_then(|()| fs::copy(directory.join(METRICS), aside.join(METRICS)));
    match copied {
        // Else the training was removing it.
        Ok(_) if is_whole(&aside) => Ok(Some(aside)),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(_) | Err(_) => {
            fs::remove_dir_all(&aside)?;
            Ok(None)
        }
    }
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

/// A checkpoint's files are never changed, only replaced, so that two folders can have the same.
fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::hard_link(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Removes what an attempt has left behind; what is not there needs no removing.
pub fn clean(work: &Path, job: &str, attempt: i64) -> io::Result<()> {
    let of_job = work.join(job);
    match fs::remove_dir_all(of_job.join(attempt.to_string())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Another attempt may have its folder there.
    let _ = fs::remove_dir(of_job);
    Ok(())
}

/// The folders in `folder` by name to which nothing was added for so long.
pub fn old_folders(folder: &Path, unused_for: Duration) -> io::Result<Vec<(String, PathBuf)>> {
    let mut old = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(old),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
        if let (Ok(name), true) = (entry.file_name().into_string(), age > unused_for) {
            old.push((name, entry.path()));
        }
    }
    Ok(old)
}
