//! Following a training: a progress bar for people, JSON lines for programs.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::TrainingError;
use crate::artifacts::ArtifactError;

/// The name of the file that programs follow a training by.
pub const METRICS: &str = "metrics.jsonl";

/// One training's bar and its `metrics.jsonl`.
pub struct Progress {
    bar: ProgressBar,
    path: PathBuf,
    metrics: File,
    started: Instant,
    tokens: usize,
    /// The step of the last checkpoint that a run before this one told of.
    told_checkpoint: Option<usize>,
}

impl Progress {
    /// Follows a training from `first_step` on. Lines of later steps, left by a run that ended after its last
    /// checkpoint, are dropped, so that no step is told twice.
    pub fn new(directory: &Path, first_step: usize, steps: usize) -> Result<Self, TrainingError> {
        let kept = keep_before(directory, first_step)?;
        let path = directory.join(METRICS);
        let metrics = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(failed(&path))?;
        let bar = ProgressBar::new(steps as u64).with_position(first_step as u64);
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {elapsed}<{eta} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        // A look at where it is, or the steps so far would count as made in no time.
        bar.tick();
        bar.reset_eta();
        Ok(Progress {
            told_checkpoint: last_checkpoint(&kept),
            bar,
            path,
            metrics,
            started: Instant::now(),
            tokens: 0,
        })
    }

    /// Tells of one finished step.
    pub fn step(
        &mut self,
        step: usize,
        tokens: usize,
        terms: &[(String, f32)],
    ) -> Result<(), TrainingError> {
        self.tokens += tokens;
        let rate = self.tokens as f64 / self.started.elapsed().as_secs_f64();
        let shown: Vec<String> = terms
            .iter()
            .map(|(name, value)| format!("{name} {value:.3}"))
            .collect();
        self.bar.set_position(step as u64 + 1);
        self.bar
            .set_message(format!("{rate:.0} tok/s {}", shown.join(" ")));
        let mut line = Map::new();
        line.insert("step".into(), json!(step));
        line.insert("tokens_per_second".into(), json!(rate.round()));
        line.extend(
            terms
                .iter()
                .map(|(name, value)| (name.clone(), json!(value))),
        );
        self.line(&Value::Object(line))
    }

    /// Tells of an evaluation after a step.
    pub fn evaluation(
        &mut self,
        step: usize,
        results: &[(String, f32)],
    ) -> Result<(), TrainingError> {
        let mut line = Map::new();
        line.insert("step".into(), json!(step));
        line.insert("evaluation".into(), json!(true));
        line.extend(
            results
                .iter()
                .map(|(name, value)| (name.clone(), json!(value))),
        );
        let line = Value::Object(line);
        self.bar.suspend(|| tracing::info!("{line}"));
        self.line(&line)
    }

    /// Tells that the checkpoint after a step is safe, unless a run before this one told it.
    pub fn checkpoint(&mut self, step: usize) -> Result<(), TrainingError> {
        let line = json!({"step": step, "checkpoint": true}).to_string();
        match self.told_checkpoint == Some(step) {
            true => Ok(()),
            false => writeln!(self.metrics, "{line}").map_err(failed(&self.path)),
        }
    }

    /// Makes what was told outlast the machine: a checkpoint must not know more than the metrics.
    pub fn sync(&self) -> Result<(), TrainingError> {
        self.metrics.sync_data().map_err(failed(&self.path))
    }

    pub fn finish(&self) {
        self.bar.finish();
    }

    fn line(&mut self, line: &Value) -> Result<(), TrainingError> {
        writeln!(self.metrics, "{line}").map_err(failed(&self.path))
    }
}

/// Tells that the result is in its place; what comes now is its evaluation.
pub fn tell_trained(directory: &Path, steps: usize) -> Result<(), TrainingError> {
    let path = directory.join(METRICS);
    let mut file = OpenOptions::new()
        .append(true)
        .open(&path)
        .map_err(failed(&path))?;
    let line = json!({"step": steps.saturating_sub(1), "trained": true}).to_string();
    writeln!(file, "{line}").map_err(failed(&path))
}

/// Leaves only the lines of the steps before `first_step`, and returns them.
pub fn keep_before(directory: &Path, first_step: usize) -> Result<String, TrainingError> {
    let path = directory.join(METRICS);
    let kept = lines_before(&path, first_step);
    crate::artifacts::atomic::write(&path, kept.as_bytes())?;
    Ok(kept)
}

fn last_checkpoint(lines: &str) -> Option<usize> {
    let lines = lines.lines().rev();
    let mut told = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let checkpoint = told.find(|line| line["checkpoint"] == true)?;
    checkpoint["step"].as_u64().map(|step| step as usize)
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> TrainingError + '_ {
    move |error| ArtifactError::io("write", path)(error).into()
}

fn lines_before(path: &Path, step: usize) -> String {
    let Ok(file) = File::open(path) else {
        return String::new();
    };
    let mut kept = String::new();
    for line in BufReader::new(file).lines().map_while(Result::ok) {
        let told = serde_json::from_str::<Value>(&line)
            .ok()
            .and_then(|line| line["step"].as_u64());
        if told.is_some_and(|told| (told as usize) < step) {
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    kept
}
