//! Ten times more than a server can carry.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::checks::Checks;
use crate::http::Target;
use crate::report::Report;
use crate::traffic::{closed_loop, open_loop};
use crate::workload::Workload;

/// Requests under way while the server's capacity is measured.
const CLIENTS: usize = 128;
/// Before anything is measured, so that as many requests end as begin.
const WARM_UP: Duration = Duration::from_secs(5);
const MEASURED: Duration = Duration::from_secs(10);
const TIMES: f64 = 10.0;
/// Memory may rise until here.
const FILLING: Duration = Duration::from_secs(10);
const MOST_GROWTH: f64 = 0.05;

/// Overloads the server for `time` and tells whether it bore it. `process` is where its memory can be read;
/// `bound` is how long it lets a first token take.
pub async fn run(
    target: &Arc<Target>,
    workload: &mut Workload,
    time: Duration,
    process: Option<u32>,
    bound: Duration,
) -> bool {
    let carried = closed_loop(target, workload, CLIENTS, WARM_UP, MEASURED).await;
    let carried = Report::of(&carried, MEASURED);
    println!("What it carries, {CLIENTS} clients at once\n{carried}");
    let rate = TIMES * carried.rate();

    let memory = process.map(|process| tokio::spawn(memory_over(process, time)));
    let started = Instant::now();
    let outcomes = open_loop(target, workload, rate, time).await;
    let report = Report::of(&outcomes, started.elapsed());
    println!("What it does with {rate:.0} requests/s\n{report}");

    let mut checks = Checks::new();
    checks.check(
        carried.failed() + carried.refused() == 0 && report.answered > 0,
        "what it can carry is answered",
    );
    checks.check(
        report.refused() > 0 && report.told_to_retry == report.refused() && report.failed() == 0,
        "all the rest is refused with 429 or 503 and retry-after",
    );
    let late = report.first_tokens.quantile(0.99);
    checks.check(
        late.is_some_and(|late| late < bound),
        &format!(
            "the 99th percentile of first tokens is within {} s",
            bound.as_secs()
        ),
    );
    match memory {
        Some(memory) => match memory.await.expect("a watch") {
            Some((then, most)) => {
                let growth = most as f64 / then as f64 - 1.0;
                let claim = format!(
                    "memory grows by less than {:.0}% after the first {} s: {then} KiB then, {most} KiB at most, \
                     {:+.1}%",
                    100.0 * MOST_GROWTH,
                    FILLING.min(time / 2).as_secs(),
                    100.0 * growth
                );
                checks.check(growth < MOST_GROWTH, &claim);
            }
            None => checks.check(false, "memory can be read"),
        },
        None => println!("not checked: memory, of a server that was not started here"),
    }
    checks.is_idle_again(target).await;
    checks.all_hold
}

/// A process' resident memory after it has filled, and the most from then on, in KiB.
async fn memory_over(process: u32, time: Duration) -> Option<(u64, u64)> {
    let end = Instant::now() + time;
    sleep(FILLING.min(time / 2)).await;
    let then = resident(process)?;
    let mut most = then;
    while Instant::now() < end {
        sleep(Duration::from_millis(250)).await;
        most = most.max(resident(process)?);
    }
    Some((then, most))
}

fn resident(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
