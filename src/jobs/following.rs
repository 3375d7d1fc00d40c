//! What a training's `metrics.jsonl` says, as events of its job.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value};

use super::job::{Level, NewEvent};
use super::store::claims::Position;
use crate::training::progress::METRICS;

/// At most this much of the file is read at once.
const MOST_BYTES: u64 = 1 << 20;
/// A step's time is a mean over about so many.
const STEPS_OF_A_MEAN: f64 = 20.0;

/// A training's metrics, read as they are written.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    read: u64,
    trained_tokens: i64,
    tokens_a_step: i64,
    /// Steps done at the last look, and when that was.
    last: Option<(i64, Instant)>,
    step_milliseconds: f64,
    /// What the last step told.
    terms: Map<String, Value>,
    /// Figures of the last evaluation.
    pub evaluation: Map<String, Value>,
    /// No step follows: a model is in its place, and is being evaluated; a circuit is being worked out.
    pub trained: bool,
}

/// What is new.
#[derive(Debug, Default)]
pub struct News {
    pub events: Vec<NewEvent>,
    pub position: Option<Position>,
    /// Steps at which a checkpoint was written, with the figures of their step.
    pub checkpoints: Vec<(i64, Value)>,
}

impl Metrics {
    /// Of a training in `directory` that takes so many tokens a step.
    pub fn of(directory: &Path, tokens_a_step: i64) -> Self {
        Metrics {
            path: directory.join(METRICS),
            read: 0,
            trained_tokens: 0,
            tokens_a_step,
            last: None,
            step_milliseconds: 0.0,
            terms: Map::new(),
            evaluation: Map::new(),
            trained: false,
        }
    }

    /// Whole lines that were written since the last time; a file that is not there yet says nothing.
    pub fn news(&mut self) -> std::io::Result<News> {
        let mut news = News::default();
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(news),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
        let whole = bytes
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        self.read += whole as u64;
        for line in bytes[..whole].split(|&byte| byte == b'\n') {
            if let Ok(Value::Object(line)) = serde_json::from_slice(line) {
                self.line(line, &mut news);
            }
        }
        if let Some(position) = &mut news.position {
            self.pace(position.step);
            position.step_milliseconds = self.step_milliseconds;
        }
        Ok(news)
    }

    fn line(&mut self, mut line: Map<String, Value>, news: &mut News) {
        let Some(step) = line.get("step").and_then(Value::as_i64) else {
            return;
        };
        // People count from 1.
        let done = step + 1;
        line.insert("step".into(), done.into());
        let flagged = |line: &mut Map<String, Value>, name: &str| line.remove(name).is_some();
        if flagged(&mut line, "checkpoint") {
            news.events.push(event(
                "checkpoint",
                done,
                format!("checkpoint after step {done}"),
                None,
            ));
            let told = self.terms.get("step") == line.get("step");
            let mut figures = if told { self.terms.clone() } else { line };
            figures.remove("step");
            news.checkpoints.push((done, Value::Object(figures)));
            return;
        }
        if flagged(&mut line, "trained") {
            self.trained = true;
            let text = "the last step is done; what came of it is being evaluated".to_owned();
            news.events.push(event("trained", done, text, None));
            return;
        }
        if flagged(&mut line, "evaluation") {
            self.evaluation = line.clone();
            self.evaluation.remove("step");
            news.events.push(event(
                "evaluation",
                done,
                format!("evaluation after step {done}"),
                Some(Value::Object(line)),
            ));
            return;
        }
        // Differs from run to run; everything else of a step does not.
        line.remove("tokens_per_second");
        self.terms = line.clone();
        self.trained_tokens = done * self.tokens_a_step;
        news.position = Some(Position {
            step: done,
            trained_tokens: self.trained_tokens,
            step_milliseconds: self.step_milliseconds,
        });
        news.events.push(event(
            "step",
            done,
            format!("step {done}"),
            Some(Value::Object(line)),
        ));
    }

    /// Takes the time since the last look into the mean. The first look says nothing: what was written before it may be
    /// of another attempt.
    fn pace(&mut self, done: i64) {
        let now = Instant::now();
        if let Some((before, at)) = self.last
            && done > before
        {
            let steps = (done - before) as f64;
            let took = (now - at).as_secs_f64() * 1000.0 / steps;
            let share = 1.0 - (1.0 - 1.0 / STEPS_OF_A_MEAN).powf(steps);
            self.step_milliseconds = match self.step_milliseconds {
                0.0 => took,
                mean => mean + (took - mean) * share,
            };
        }
        self.last = Some((done, now));
    }
}

fn event(kind: &str, step: i64, message: String, metrics: Option<Value>) -> NewEvent {
    NewEvent {
        key: format!("{kind}:{step}"),
        level: Level::Info,
        message,
        metrics,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn whole_lines_become_events_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut metrics = Metrics::of(directory.path(), 10);
        assert!(metrics.news().expect("nothing").events.is_empty());
        let mut file = File::create(directory.path().join("metrics.jsonl")).expect("a file");
        file.write_all(b"{\"step\":0,\"loss\":2.5,\"tokens_per_second\":7}\n{\"step\":1,\"lo")
            .expect("written");
        let news = metrics.news().expect("news");
        let keys: Vec<&str> = news.events.iter().map(|event| event.key.as_str()).collect();
        assert_eq!(keys, ["step:1"]);
        assert_eq!(
            news.events[0].metrics,
            Some(serde_json::json!({"step": 1, "loss": 2.5}))
        );
        file.write_all(b"ss\":2.0}\n{\"step\":1,\"evaluation\":true,\"held_out\":3}\n{\"step\":1,\"checkpoint\":true}\n")
            .expect("written");
        let news = metrics.news().expect("news");
        let keys: Vec<&str> = news.events.iter().map(|event| event.key.as_str()).collect();
        assert_eq!(keys, ["step:2", "evaluation:2", "checkpoint:2"]);
        assert_eq!(news.position.expect("a position").trained_tokens, 20);
        assert_eq!(news.checkpoints, [(2, serde_json::json!({"loss": 2.0}))]);
        assert_eq!(metrics.evaluation["held_out"], 3);
    }
}
