//! What is claimed of a server that was treated badly, and whether it holds.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::http::Target;

/// How long a server may take until nothing of its clients is left.
const SETTLING: Duration = Duration::from_secs(5);

/// Prints claims and remembers whether all hold.
pub struct Checks {
    pub all_hold: bool,
}

impl Checks {
    pub fn new() -> Self {
        Checks { all_hold: true }
    }

    pub fn check(&mut self, holds: bool, claim: &str) {
        println!("{}: {claim}", if holds { "PASS" } else { "FAIL" });
        self.all_hold &= holds;
    }

    /// Nothing runs or waits any more, the cache is empty, and the engine answers.
    pub async fn is_idle_again(&mut self, target: &Target) {
        let started = Instant::now();
        let gauges = loop {
            match gauges(target).await {
                Ok(gauges) if gauges != [0.0; 3] && started.elapsed() < SETTLING => {
                    sleep(Duration::from_millis(50)).await;
                }
                read => break read,
            }
        };
        let idle = gauges.as_ref().is_ok_and(|gauges| *gauges == [0.0; 3]);
        let claim = format!(
            "idle within {} s: requests running, waiting, cache usage are {gauges:?} after {:.1} s",
            SETTLING.as_secs(),
            started.elapsed().as_secs_f64()
        );
        self.check(idle, &claim);
        let ready = target.get("/readyz").await.map(|(status, _)| status);
        self.check(
            matches!(ready, Ok(200)),
            &format!("/readyz answers {ready:?}"),
        );
    }
}

/// Requests running, requests waiting, the share of the cache in use.
async fn gauges(target: &Target) -> io::Result<[f64; 3]> {
    let (_, text) = target.get("/metrics").await?;
    let gauge = |name: &str| {
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.ok_or_else(|| io::Error::other(format!("/metrics has no {name}")))
    };
    Ok([
        gauge("causeway_requests_running")?,
        gauge("causeway_requests_waiting")?,
        gauge("causeway_kv_cache_usage_ratio")?,
    ])
}
