//! Showing a job's events as they happen.

use std::io::{BufRead, BufReader};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::server::address;
use super::shown::Job;
use crate::cli::asking::{Server, Trouble, innermost, say};

/// What a line of a stream of events is.
#[derive(Debug, PartialEq, Eq)]
enum Line<'l> {
    /// An event's JSON.
    Event(&'l str),
    Done,
    Comment,
    /// Between events, or nothing that belongs in such a stream.
    Other,
}

impl<'l> Line<'l> {
    fn of(text: &'l str) -> Self {
        match text.strip_prefix("data:").map(str::trim) {
            Some("[DONE]") => Line::Done,
            Some(json) => Line::Event(json),
            None if text.starts_with(':') => Line::Comment,
            None => Line::Other,
        }
    }
}

/// One thing that happened to a job.
#[derive(Debug, Deserialize)]
struct Event {
    id: String,
    level: String,
    message: String,
    /// Figures by name.
    #[serde(default)]
    data: Map<String, Value>,
}

impl Event {
    /// The step that it tells the end of, if that is all it tells.
    fn step(&self) -> Option<u64> {
        let step = self.data.get("step")?.as_u64()?;
        (self.message == format!("step {step}")).then_some(step)
    }

    fn line(&self) -> String {
        let level = Some(self.level.as_str()).filter(|level| *level != "info");
        let terms = Some(terms(&self.data)).filter(|terms| !terms.is_empty());
        let parts = [level, Some(&self.message), terms.as_deref()];
        parts.into_iter().flatten().collect::<Vec<_>>().join(": ")
    }
}

/// The figures, the loss before the others.
fn terms(data: &Map<String, Value>) -> String {
    let figures = data.iter().filter(|(name, _)| *name != "step");
    let (mut terms, others): (Vec<_>, Vec<_>) = figures.partition(|(name, _)| *name == "loss");
    terms.extend(others);
    let shown = terms.into_iter().map(|(name, value)| match value.as_f64() {
        Some(value) => format!("{name} {value:.3}"),
        None => format!("{name} {value}"),
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// Shows a job's events: steps as a bar, everything else as lines above it. The bar hides where there is no terminal.
pub struct Follower {
    pub bar: ProgressBar,
    /// The id of the last event.
    after: Option<String>,
    /// Connections that broke one after the other, before anything was heard.
    pub breaks: u32,
}

impl Follower {
    pub fn of(job: &Job) -> Self {
        let bar = ProgressBar::new(job.steps).with_position(job.step);
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {elapsed}<{eta} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        // A look at where it is, or the steps so far would count as made in no time.
        bar.tick();
        bar.reset_eta();
        Follower {
            bar,
            after: None,
            breaks: 0,
        }
    }

    /// Shows what happens until the job has ended.
    pub fn listen(&mut self, server: &Server, id: &str) -> Result<(), Trouble> {
        let mut address = address(&server.url, &[id, "events"]);
        address.query_pairs_mut().append_pair("stream", "true");
        if let Some(after) = &self.after {
            address.query_pairs_mut().append_pair("after", after);
        }
        let response = server.send(server.client.get(address))?;
        for line in BufReader::new(response).lines() {
            let line = line.map_err(|error| Trouble::Broken(innermost(error)))?;
            match Line::of(&line) {
                Line::Done => return Ok(()),
                Line::Event(json) => self.show(serde_json::from_str(json)?)?,
                // Time goes by on the bar.
                Line::Comment => self.bar.tick(),
                Line::Other => continue,
            }
            self.breaks = 0;
        }
        Err(Trouble::Broken("it ended before the job did".to_owned()))
    }

    fn show(&mut self, event: Event) -> Result<(), Trouble> {
        match event.step() {
            Some(step) => {
                // What was before this began is told first; the bar is further already.
                let reached = self.bar.position().max(step);
                self.bar.set_position(reached);
                self.bar.set_message(terms(&event.data));
            }
            None => self.bar.suspend(|| say(&event.line()))?,
        }
        self.after = Some(event.id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_stream_is_read_line_by_line() {
        assert_eq!(Line::of("data: {\"id\": 1}"), Line::Event("{\"id\": 1}"));
        assert_eq!(Line::of("data: [DONE]"), Line::Done);
        assert_eq!(Line::of(": still here"), Line::Comment);
        assert_eq!(["", "<html>"].map(Line::of), [Line::Other, Line::Other]);
        let event = |level: &str, message: &str, data: Value| -> Event {
            let event = json!({"id": "e", "level": level, "message": message, "data": data});
            serde_json::from_value(event).expect("an event")
        };
        let figures = json!({"step": 4, "kept_fraction": 0.5, "loss": 2.0});
        assert_eq!(event("info", "step 4", figures.clone()).step(), Some(4));
        let evaluation = event("info", "evaluation", figures);
        assert_eq!(evaluation.step(), None);
        assert_eq!(
            evaluation.line(),
            "evaluation: loss 2.000 kept_fraction 0.500"
        );
        assert_eq!(event("warn", "killed", json!({})).line(), "warn: killed");
    }
}
