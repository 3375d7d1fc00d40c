//! Workers that are killed, frozen and starved: every job runs to one result, the one an undisturbed worker makes.

use std::process::Command;
use std::time::Duration;

use causeway::jobs::job::{Job, Status, Wish};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::installation::{Database, Installation, Worker, databases};

const STEPS: usize = 200;

/// How often a worker is killed: `TEST_KILLS=50` for the long form.
fn kills() -> usize {
    let asked = std::env::var("TEST_KILLS").ok();
    asked.map_or(5, |kills| kills.parse().expect("a number of kills"))
}

async fn undisturbed(installation: &Installation, output: &str, steps: usize) -> Job {
    let job = installation.create(output, steps).await;
    let _worker = installation.worker();
    let job = installation.ended(&job.id).await;
    installation.is_complete(&job).await;
    job
}

#[tokio::test]
async fn a_killed_worker_s_job_goes_on_as_if_nothing_had_been() {
    for database in databases() {
        let installation = Installation::new(database).await;
        // Long enough that kills find it at work.
        let steps = STEPS.max(kills() * 80);
        undisturbed(&installation, "calm", steps).await;
        let starts: [(_, Start); 2] = [
            ("worker", Installation::worker),
            ("server", Installation::server),
        ];
        for (output, start) in starts {
            let id = installation.create(output, steps).await.id;
            let met_at_work = kill_again_and_again(&installation, &id, start).await;
            assert!(met_at_work > 0, "the job was done before the first kill");
            let _worker = start(&installation);
            let job = installation.ended(&id).await;
            installation.is_complete(&job).await;
            let same = installation.weights(output).await == installation.weights("calm").await;
            assert!(same, "{database:?} {output}");
        }
    }
}

/// How a process that carries out jobs begins.
type Start = fn(&Installation) -> Worker;

/// Kills whoever has the job at random moments; how often the job was at work then.
async fn kill_again_and_again(installation: &Installation, id: &str, start: Start) -> usize {
    let mut random = StdRng::seed_from_u64(7);
    let mut met_at_work = 0;
    for _ in 0..kills() {
        let before = installation.job(id).await;
        let mut worker = start(installation);
        // A lease has to lapse first.
        loop {
            let now = installation.job(id).await;
            if now.status.is_final() {
                return met_at_work;
            }
            if now.attempt > before.attempt {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1200))).await;
        met_at_work += usize::from(installation.job(id).await.status == Status::Running);
        worker.0.kill().unwrap();
        worker.0.wait().unwrap();
    }
    met_at_work
}

#[tokio::test]
async fn a_frozen_worker_changes_nothing_when_it_wakes() {
    for database in databases() {
        let installation = Installation::new(database).await;
        let jobs = if database == Database::Postgres {
            40
        } else {
            6
        };
        let mut ids = Vec::new();
        for number in 0..jobs {
            ids.push(installation.create(&format!("job{number}"), 8).await.id);
        }
        let sleeper = installation.worker();
        let other = installation.worker();
        let running = |job: &Job| job.status == Status::Running;
        while !running(&installation.job(&ids[0]).await) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sleeper.signal("-STOP");
        tokio::time::sleep(Duration::from_millis(2500)).await;
        sleeper.signal("-CONT");
        for id in &ids {
            let job = installation.ended(id).await;
            installation.is_complete(&job).await;
        }
        drop(other);
        let weights = installation.weights("job0").await;
        for id in &ids {
            let own = installation.weights(&id["ftjob-".len()..]).await;
            assert!(own == weights, "{id}");
        }
    }
}

#[tokio::test]
async fn a_paused_job_goes_on_where_it_was() {
    let installation = Installation::new(Database::Sqlite).await;
    undisturbed(&installation, "calm", STEPS).await;
    let job = installation.create("paused", STEPS).await;
    let _worker = installation.worker();
    while installation.job(&job.id).await.step < 8 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    installation.store.wish(&job.id, Wish::Pause).await.unwrap();
    let paused = loop {
        let now = installation.job(&job.id).await;
        if now.status != Status::Running {
            break now;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(paused.status, Status::Paused);
    assert!(paused.step < STEPS as i64 && paused.finished_at.is_none());
    installation
        .store
        .wish(&job.id, Wish::Resume)
        .await
        .unwrap();
    let job = installation.ended(&job.id).await;
    // Nothing was lost: it went on from the step it was at.
    installation.is_complete_with(&job, &[paused.step]).await;
    assert!(installation.weights("paused").await == installation.weights("calm").await);
}

#[tokio::test]
async fn a_cancelled_job_leaves_nothing() {
    let installation = Installation::new(Database::Sqlite).await;
    let job = installation.create("cancelled", 100_000).await;
    let _worker = installation.worker();
    while installation.job(&job.id).await.step < 8 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    installation
        .store
        .wish(&job.id, Wish::Cancel)
        .await
        .unwrap();
    let job = installation.ended(&job.id).await;
    assert_eq!(job.status, Status::Cancelled);
    assert!(installation.store.models().await.unwrap().is_empty());
    // The worker tidies up after it has let go.
    crate::installation::wait_until("its attempts are removed", || {
        !installation.path().join("jobs").join(&job.id).exists()
    });
}

#[tokio::test]
async fn a_worker_that_is_told_to_stop_gives_its_job_back() {
    let installation = Installation::new(Database::Sqlite).await;
    let job = installation.create("given", 100_000).await;
    let mut worker = installation.worker();
    while installation.job(&job.id).await.step < 8 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    worker.signal("-TERM");
    assert!(worker.0.wait().unwrap().success());
    let job = installation.job(&job.id).await;
    assert_eq!(job.status, Status::Queued);
    let checkpoints = installation.store.checkpoints(&job.id).await.unwrap();
    assert_eq!(checkpoints.last().unwrap().step, job.step);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_checkpoint_that_does_not_fit_fails_the_job_with_the_reason() {
    let installation = Installation::new(Database::Sqlite).await;
    let job = installation.create("full", STEPS).await;
    // No file may be longer than a few blocks, as on a full disk; the signal that says so is ignored, as there.
    let program = env!("CARGO_BIN_EXE_causeway");
    let mut command = Command::new("bash");
    command.args([
        "-c",
        "trap '' XFSZ; ulimit -f 900; exec \"$0\" \"$@\"",
        program,
    ]);
    let _worker = installation.command("worker", &mut command);
    let job = installation.ended(&job.id).await;
    assert_eq!(job.status, Status::Failed);
    let failure = job.failure.unwrap();
    assert_eq!(failure.code, "disk_full", "{failure:?}");
}
