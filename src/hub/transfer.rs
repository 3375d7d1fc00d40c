//! One file from a hub to the disk. A connection that breaks is made anew, and the file goes on where it was.

use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use tokio::sync::watch;

use super::client::{FileTrouble, HubClient, RemoteFile};
use super::error::HubError;
use super::name::CommitHash;
use crate::artifacts::partial_file::{Announced, PartialFile};

const BLOCK: usize = 1 << 18;
/// Before the first new connection; doubled before each further one that brought nothing.
const FIRST_REST: Duration = Duration::from_millis(250);
const LONGEST_REST: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_millis(50);

/// How far something that is being brought has come, for those who watch it or end it.
#[derive(Debug)]
pub struct Transfer {
    done: AtomicU64,
    total: AtomicU64,
    commit: OnceLock<CommitHash>,
    stop: watch::Sender<Option<Stop>>,
}

/// What becomes of what has arrived when a transfer is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It is kept for whoever wants the same again.
    Keep,
    Forget,
}

impl Default for Transfer {
    fn default() -> Self {
        Transfer {
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            commit: OnceLock::new(),
            stop: watch::Sender::new(None),
        }
    }
}

impl Transfer {
    /// Bytes that are there.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes in all; none before they are known.
    pub fn total(&self) -> Option<u64> {
        Some(self.total.load(Ordering::Relaxed)).filter(|total| *total > 0)
    }

    /// The commit that its files are of; none before it is known.
    pub fn commit(&self) -> Option<&CommitHash> {
        self.commit.get()
    }

    /// Tells the commit, once.
    pub(super) fn set_commit(&self, commit: &CommitHash) {
        let _ = self.commit.set(commit.clone());
    }

    pub(super) fn set_total(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    /// Ends it as soon as it looks.
    pub fn stop(&self, what: Stop) {
        self.stop.send_replace(Some(what));
    }

    /// Whether what has arrived is to be removed.
    pub fn is_forgotten(&self) -> bool {
        *self.stop.borrow() == Some(Stop::Forget)
    }

    /// Waits until it is to end.
    pub async fn stopped(&self) {
        // It cannot be dropped while it is waited for.
        let _ = self.stop.subscribe().wait_for(Option::is_some).await;
    }

    /// An error once it is to end.
    pub fn go_on(&self) -> Result<(), HubError> {
        match *self.stop.borrow() {
            Some(_) => Err(HubError::Stopped),
            None => Ok(()),
        }
    }

    fn rest(&self, time: Duration) -> Result<(), HubError> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.go_on()?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Brings a file to `path` and tells its sha256. A connection may break `retries` times in a row.
pub fn bring(
    hub: &HubClient,
    remote: &RemoteFile,
    path: &Path,
    announced: &Announced,
    retries: u32,
    transfer: &Transfer,
) -> Result<String, HubError> {
    let mut file = PartialFile::begin(path, announced.clone())?;
    transfer.done.fetch_add(file.length(), Ordering::Relaxed);
    let (mut breaks, mut rest) = (0, FIRST_REST);
    while file.missing() > 0 {
        transfer.go_on()?;
        let before = file.length();
        let problem = match more(hub, remote, &mut file, announced, transfer) {
            Ok(()) if file.missing() == 0 => break,
            Ok(()) => "the connection ended before the file did".to_owned(),
            Err(FileTrouble::Passing(problem)) => problem,
            Err(FileTrouble::Final(error)) => return Err(error),
        };
        if file.length() > before {
            (breaks, rest) = (0, FIRST_REST);
        }
        breaks += 1;
        if breaks > retries {
            return Err(HubError::Broken {
                file: remote.to_string(),
                problem,
                tries: breaks,
            });
        }
        tracing::warn!(file = %remote, problem, at = file.length(), "a download goes on on a new connection");
        transfer.rest(rest)?;
        rest = (rest * 2).min(LONGEST_REST);
    }
    Ok(file.finish()?)
}

/// Brings what one connection gives.
fn more(
    hub: &HubClient,
    remote: &RemoteFile,
    file: &mut PartialFile,
    announced: &Announced,
    transfer: &Transfer,
) -> Result<(), FileTrouble> {
    let from = file.length();
    let mut response = hub.bytes(remote, from, announced)?;
    let range = response.headers().get(CONTENT_RANGE);
    let range = range.and_then(|range| range.to_str().ok());
    let goes_on = response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")));
    if from > 0 && !goes_on {
        file.restart().map_err(HubError::from)?;
        transfer.done.fetch_sub(from, Ordering::Relaxed);
    }
    if !(goes_on || response.status() == StatusCode::OK) {
        let problem = format!("it answered {} to a range", response.status());
        return Err(FileTrouble::Passing(problem));
    }
    let mut block = vec![0u8; BLOCK];
    loop {
        transfer.go_on()?;
        let count = match response.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) => return Err(FileTrouble::Passing(error.to_string())),
        };
        file.append(&block[..count]).map_err(HubError::from)?;
        transfer.done.fetch_add(count as u64, Ordering::Relaxed);
    }
}
