//! Requests under way: one client's completion from its arrival to its end, and the two ways in which many come.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::http::{Answer, Target};
use crate::workload::{Ask, Workload};

pub const COMPLETIONS: &str = "/v1/completions";
/// Longer than a server's own deadline.
const PATIENCE: Duration = Duration::from_secs(330);

/// What became of a request.
pub struct Outcome {
    /// From when it was due; a client that is late itself is counted as the server's.
    pub total: Duration,
    pub end: End,
}

pub enum End {
    Answered(Completion),
    Refused {
        status: u16,
        says_when_to_retry: bool,
    },
    /// There was no whole answer.
    Failed(String),
}

/// A whole answer.
#[derive(Default)]
pub struct Completion {
    pub tokens: usize,
    /// When the first text came; of streams only.
    pub first_token: Option<Duration>,
    /// Between the pieces of a stream.
    pub gaps: Vec<Duration>,
}

/// Sends requests at random times, `rate` a second, whatever becomes of them; returns when all have ended.
pub async fn open_loop(
    target: &Arc<Target>,
    workload: &mut Workload,
    rate: f64,
    time: Duration,
) -> Vec<Outcome> {
    let started = Instant::now();
    let mut due = started + workload.pause(rate);
    let mut clients = JoinSet::new();
    while due < started + time {
        sleep_until(due).await;
        clients.spawn(complete(target.clone(), workload.ask(), due));
        due += workload.pause(rate);
    }
    clients.join_all().await
}

/// Keeps so many requests under way; returns what ended within `time`, once it has gone on for `warm_up`.
pub async fn closed_loop(
    target: &Arc<Target>,
    workload: &mut Workload,
    clients: usize,
    warm_up: Duration,
    time: Duration,
) -> Vec<Outcome> {
    let begin = Instant::now() + warm_up;
    let mut running = JoinSet::new();
    let mut outcomes = Vec::new();
    for _ in 0..clients {
        running.spawn(complete(target.clone(), workload.ask(), Instant::now()));
    }
    while let Some(ended) = running.join_next().await {
        let now = Instant::now();
        if now < begin + time {
            running.spawn(complete(target.clone(), workload.ask(), now));
            if now >= begin {
                outcomes.push(ended.expect("a client"));
            }
        }
    }
    outcomes
}

/// One client's request, from when it was due.
pub async fn complete(target: Arc<Target>, ask: Arc<Ask>, due: Instant) -> Outcome {
    let end = match timeout(PATIENCE, answer(&target, &ask, due)).await {
        Ok(Ok(end)) => end,
        Ok(Err(error)) => End::Failed(error.to_string()),
        Err(_) => End::Failed(format!("no end within {} s", PATIENCE.as_secs())),
    };
    Outcome {
        total: due.elapsed(),
        end,
    }
}

async fn answer(target: &Target, ask: &Ask, due: Instant) -> io::Result<End> {
    let mut answer = target.send("POST", COMPLETIONS, &ask.body).await?;
    if answer.status != 200 {
        while answer.piece().await?.is_some() {}
        return Ok(End::Refused {
            status: answer.status,
            says_when_to_retry: answer.says_when_to_retry,
        });
    }
    match ask.streams {
        true => streamed(&mut answer, due).await,
        false => whole(&mut answer).await,
    }
}

async fn whole(answer: &mut Answer) -> io::Result<End> {
    let mut text = Vec::new();
    while let Some(piece) = answer.piece().await? {
        text.extend(piece);
    }
    let answer: Value = serde_json::from_slice(&text)?;
    Ok(match tokens(&answer) {
        Some(tokens) => End::Answered(Completion {
            tokens,
            ..Completion::default()
        }),
        None => End::Failed("an answer without usage".to_owned()),
    })
}

fn tokens(answer: &Value) -> Option<usize> {
    Some(answer["usage"]["completion_tokens"].as_u64()? as usize)
}

async fn streamed(answer: &mut Answer, due: Instant) -> io::Result<End> {
    let mut completion = Completion::default();
    let mut events = Events::default();
    let (mut before, mut done) = (None, false);
    while let Some(piece) = answer.piece().await? {
        for data in events.read(&piece) {
            if data == "[DONE]" {
                done = true;
                continue;
            }
            let event: Value = serde_json::from_str(&data)?;
            if let Some(error) = event.get("error") {
                return Ok(End::Failed(format!(
                    "a stream ended with {}",
                    error["code"]
                )));
            }
            if let Some(tokens) = tokens(&event) {
                completion.tokens = tokens;
                continue;
            }
            let now = Instant::now();
            completion.first_token.get_or_insert(now - due);
            completion.gaps.extend(before.map(|before| now - before));
            before = Some(now);
        }
    }
    Ok(match done {
        true => End::Answered(completion),
        false => End::Failed("a stream ended without [DONE]".to_owned()),
    })
}

/// Server-sent events out of the pieces they come in.
#[derive(Default)]
pub struct Events {
    unread: Vec<u8>,
}

impl Events {
    /// The data of the events that are complete with this piece.
    pub fn read(&mut self, piece: &[u8]) -> Vec<String> {
        self.unread.extend(piece);
        let mut found = Vec::new();
        while let Some(end) = self.unread.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.unread.drain(..end + 2).collect();
            let event = String::from_utf8_lossy(&event);
            found.extend(
                event
                    .trim_end()
                    .strip_prefix("data: ")
                    .map(ToOwned::to_owned),
            );
        }
        found
    }
}
