//! What people are shown of jobs: a table of them, or everything about one.

use std::collections::BTreeMap;

use chrono::DateTime;
use serde::Deserialize;

use crate::jobs::job::Failure;

const HEADINGS: [&str; 6] = ["id", "status", "kind", "model", "step", "age"];

/// What is shown of a job. The texts are the server's: a later one may know more of them.
#[derive(Debug, Deserialize)]
pub struct Job {
    pub id: String,
    created_at: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    estimated_finish: Option<i64>,
    pub status: String,
    asked: Option<String>,
    model: String,
    fine_tuned_model: Option<String>,
    method: Method,
    pub step: u64,
    pub steps: u64,
    trained_tokens: u64,
    error: Option<Failure>,
    /// Null is what JSON has for a figure that is no number.
    #[serde(default)]
    results: BTreeMap<String, Option<f64>>,
}

#[derive(Debug, Deserialize)]
struct Method {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
pub struct JobList {
    pub data: Vec<Job>,
    pub has_more: bool,
}

impl Job {
    fn row(&self, now: i64) -> [String; HEADINGS.len()] {
        let model = self.fine_tuned_model.as_ref().unwrap_or(&self.model);
        let kind = &self.method.kind;
        let step = format!("{}/{}", self.step, self.steps);
        let age = span(now - self.created_at);
        [&self.id, &self.status, kind, model, &step, &age].map(String::clone)
    }

    pub fn summary(&self) -> String {
        match &self.asked {
            Some(asked) => format!("{} {}, asked to {asked}", self.id, self.status),
            None => format!("{} {}", self.id, self.status),
        }
    }

    pub fn failure(&self) -> Option<String> {
        let error = self.error.as_ref()?;
        Some(format!("{} ({})", error.message, error.code))
    }

    /// A line for everything that there is to say.
    pub fn description(&self, now: i64) -> String {
        let past = |time| format!("{} ({} ago)", date(time), span(now - time));
        let coming = |time| format!("{} (in {})", date(time), span(time - now));
        let lines = [
            ("id", Some(self.id.clone())),
            ("status", Some(self.status.clone())),
            ("asked to", self.asked.clone()),
            ("model", Some(self.model.clone())),
            ("kind", Some(self.method.kind.clone())),
            ("result", self.fine_tuned_model.clone()),
            ("step", Some(format!("{}/{}", self.step, self.steps))),
            ("trained tokens", Some(self.trained_tokens.to_string())),
            ("created", Some(past(self.created_at))),
            ("started", self.started_at.map(past)),
            ("finished", self.finished_at.map(past)),
            ("estimated finish", self.estimated_finish.map(coming)),
            ("error", self.failure()),
        ];
        let there = |(name, text): (&str, Option<String>)| Some([name.to_owned(), text?]);
        let mut rows: Vec<[String; 2]> = lines.into_iter().filter_map(there).collect();
        for (name, value) in &self.results {
            let value = value.map_or("no number".to_owned(), |value| format!("{value:.4}"));
            rows.push([name.clone(), value]);
        }
        aligned(&rows)
    }
}

pub fn table(jobs: &[Job], now: i64) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(jobs.iter().map(|job| job.row(now)));
    aligned(&rows)
}

/// Lines with every column as wide as its widest text.
fn aligned<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let line = |row: &[String; COLUMNS]| {
        let texts = row.iter().zip(widths);
        let padded = texts.map(|(text, width)| format!("{text:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// So much time, roughly. None is negative: two machines' clocks differ.
fn span(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{}s", seconds.max(0)),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The date and time of seconds since 1970.
fn date(seconds: i64) -> String {
    match DateTime::from_timestamp(seconds, 0) {
        Some(time) => time.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
        None => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job() -> Job {
        let job = json!({
            "id": "ftjob-1", "created_at": 1_000, "started_at": null, "status": "running", "asked": "pause",
            "model": "dense", "method": {"type": "bridge", "bridge": {}}, "step": 7, "steps": 40,
            "trained_tokens": 70, "results": {"held_out": 2.5, "other": null}, "of a later server": 1
        });
        serde_json::from_value(job).expect("a job")
    }

    #[test]
    fn jobs_are_shown_briefly_and_in_full() {
        let mut done = job();
        done.status = "succeeded".to_owned();
        done.fine_tuned_model = Some("ft-1".to_owned());
        let expected = "id       status     kind    model  step  age\n\
                        ftjob-1  running    bridge  dense  7/40  2m\n\
                        ftjob-1  succeeded  bridge  ft-1   7/40  2m";
        assert_eq!(table(&[job(), done], 1_120), expected);
        assert_eq!(job().summary(), "ftjob-1 running, asked to pause");
        let text = job().description(1_120);
        assert!(text.contains("created         1970-01-01 00:16:40 UTC (2m ago)\n"));
        assert!(text.ends_with("held_out        2.5000\nother           no number"));
        assert!(!text.contains("started") && !text.contains("error"));
    }

    #[test]
    fn times_are_for_people() {
        let spans = [-5, 59, 60, 7_199, 86_399, 200_000].map(span);
        assert_eq!(spans, ["0s", "59s", "1m", "1h", "23h", "2d"]);
        assert_eq!(date(951_868_799), "2000-02-29 23:59:59 UTC");
        assert_eq!(date(4_107_542_400), "2100-03-01 00:00:00 UTC");
    }
}
