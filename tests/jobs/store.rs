//! What the store promises, on every database.

use std::collections::BTreeMap;
use std::time::Duration;

use causeway::jobs::job::{Failure, Level, NewEvent, Status, Wish};
use causeway::jobs::store::artifacts::{Artifact, TrainedModel};
use causeway::jobs::store::claims::{NewCheckpoint, Outcome, Position, held_checkpoints};
use causeway::jobs::store::events::Order;
use causeway::jobs::store::jobs::{NewJob, Query};
use causeway::jobs::store::{Store, StoreError};
use serde_json::Value;

use crate::installation::{Installation, databases, job};

const LONG: Duration = Duration::from_secs(600);

fn written(step: i64, artifact: Option<&str>) -> NewCheckpoint<'_> {
    static METRICS: Value = Value::Null;
    NewCheckpoint {
        step,
        metrics: &METRICS,
        artifact,
    }
}

/// The record of an artifact with no files.
async fn an_artifact(store: &Store, sha256: &str) -> String {
    let artifact = Artifact {
        sha256: sha256.to_owned(),
        place: format!("place of {sha256}"),
        files: Vec::new(),
    };
    let kept = store.add_artifact(&artifact, 0, Duration::ZERO).await;
    assert_eq!(kept.unwrap(), Some(artifact.place));
    sha256.to_owned()
}

fn failure(code: &str) -> Failure {
    Failure {
        code: code.to_owned(),
        message: "x".into(),
        param: None,
    }
}

fn event(key: &str) -> NewEvent {
    NewEvent {
        key: key.to_owned(),
        level: Level::Info,
        message: key.to_owned(),
        metrics: None,
    }
}

#[tokio::test]
async fn a_job_goes_from_hand_to_hand() {
    for database in databases() {
        let installation = Installation::new(database).await;
        let store = &installation.store;
        let created = installation.create("a", 4).await;
        assert_eq!((created.status, created.attempt), (Status::Queued, 0));
        let (first, job) = store.claim("one", Duration::ZERO).await.unwrap().unwrap();
        assert_eq!((job.status, job.attempt), (Status::Running, 1));
        assert!(job.started_at.is_some());
        tokio::time::sleep(Duration::from_millis(20)).await;

        // The lease has lapsed; the next worker has it, and the first one nothing more to say.
        let (second, job) = store.claim("two", LONG).await.unwrap().unwrap();
        assert_eq!((job.id.as_str(), job.attempt), ("ftjob-a", 2));
        assert!(store.claim("three", LONG).await.unwrap().is_none());
        let lost = |result: Result<(), StoreError>| {
            assert!(matches!(result, Err(StoreError::Lost)), "{result:?}")
        };
        lost(store.renew(&first, LONG).await.map(drop));
        lost(
            store
                .tell(&first, LONG, &[event("x")], None)
                .await
                .map(drop),
        );
        lost(
            store
                .checkpoint(&first, LONG, &written(2, None))
                .await
                .map(drop),
        );
        lost(
            store
                .finish(&first, Outcome::Cancelled, |_| event("y"))
                .await
                .map(drop),
        );

        // What is told twice is kept once.
        let position = Position {
            step: 2,
            trained_tokens: 64,
            step_milliseconds: 1.5,
        };
        for _ in 0..2 {
            let told = [event("step:1"), event("step:2")];
            store
                .tell(&second, LONG, &told, Some(position))
                .await
                .unwrap();
            store
                .checkpoint(&second, LONG, &written(2, None))
                .await
                .unwrap();
        }
        let results = BTreeMap::from([("loss".to_owned(), 0.5)]);
        let artifact = an_artifact(store, "result").await;
        let outcome = Outcome::Succeeded {
            results: results.clone(),
            evaluation: None,
            artifact: artifact.clone(),
        };
        store
            .finish(&second, outcome, |_| event("end"))
            .await
            .unwrap();
        lost(store.renew(&second, LONG).await.map(drop));
        let job = store.job("ftjob-a").await.unwrap().unwrap();
        assert_eq!(
            (job.status, job.step, job.results),
            (Status::Succeeded, 2, results)
        );
        assert!(job.finished_at >= job.started_at && job.wish.is_none());
        let keys = |events: Vec<causeway::jobs::job::Event>| -> Vec<String> {
            events.into_iter().map(|event| event.message).collect()
        };
        let oldest = store
            .events("ftjob-a", Order::OldestFirst, None, 10)
            .await
            .unwrap();
        assert_eq!(keys(oldest), ["step:1", "step:2", "end"]);
        let newest = store
            .events("ftjob-a", Order::NewestFirst, Some(3), 1)
            .await
            .unwrap();
        assert_eq!(keys(newest), ["step:2"]);
        assert_eq!(store.checkpoints("ftjob-a").await.unwrap().len(), 1);
        let models = store.models().await.unwrap();
        let published = |model: &TrainedModel| (model.id.clone(), model.artifact.clone());
        assert_eq!(
            models.iter().map(published).collect::<Vec<_>>(),
            [("a".to_owned(), artifact)]
        );
    }
}

#[tokio::test]
async fn wishes_are_granted_at_once_or_by_the_worker() {
    for database in databases() {
        let installation = Installation::new(database).await;
        let store = &installation.store;
        installation.create("a", 4).await;
        let id = "ftjob-a";
        assert_eq!(
            store.wish(id, Wish::Pause).await.unwrap().status,
            Status::Paused
        );
        assert!(store.claim("one", LONG).await.unwrap().is_none());
        assert_eq!(
            store.wish(id, Wish::Resume).await.unwrap().status,
            Status::Queued
        );
        let (claim, _) = store.claim("one", LONG).await.unwrap().unwrap();
        let asked = store.wish(id, Wish::Pause).await.unwrap();
        assert_eq!(
            (asked.status, asked.wish),
            (Status::Running, Some(Wish::Pause))
        );
        assert_eq!(store.renew(&claim, LONG).await.unwrap(), Some(Wish::Pause));
        store.wish(id, Wish::Resume).await.unwrap();
        assert_eq!(store.renew(&claim, LONG).await.unwrap(), None);
        store
            .finish(&claim, Outcome::Paused, |_| event("paused"))
            .await
            .unwrap();
        let cancelled = store.wish(id, Wish::Cancel).await.unwrap();
        assert_eq!(cancelled.status, Status::Cancelled);
        assert!(cancelled.finished_at.is_some());
        let again = store.wish(id, Wish::Cancel).await.unwrap();
        assert_eq!(again.finished_at, cancelled.finished_at);
        let refused = store.wish(id, Wish::Resume).await;
        assert!(
            matches!(refused, Err(StoreError::Refused { .. })),
            "{refused:?}"
        );
        let missing = store.wish("ftjob-b", Wish::Cancel).await;
        assert!(matches!(missing, Err(StoreError::NoSuchJob)), "{missing:?}");
    }
}

#[tokio::test]
async fn names_and_keys_are_taken_once() {
    for database in databases() {
        let installation = Installation::new(database).await;
        let store = &installation.store;
        let keyed = |output: &str, id: &str, request: &str| NewJob {
            id: id.to_owned(),
            idempotency_key: "key".into(),
            request_sha256: request.to_owned(),
            ..job(output, 4)
        };
        let first = store.create(&keyed("a", "one", "x")).await.unwrap();
        assert_eq!(store.create(&keyed("a", "two", "x")).await.unwrap(), first);
        let other = store.create(&keyed("b", "three", "y")).await;
        assert!(matches!(other, Err(StoreError::OtherRequest)), "{other:?}");
        let taken = store.create(&job("a", 4)).await;
        assert!(matches!(taken, Err(StoreError::NameTaken(_))), "{taken:?}");

        // A job that failed leaves its name to the next.
        let (claim, _) = store.claim("one", LONG).await.unwrap().unwrap();
        let failure = failure("crashed");
        store
            .finish(&claim, Outcome::Failed(failure.clone()), |_| event("end"))
            .await
            .unwrap();
        let failed = store.job("one").await.unwrap().unwrap();
        assert_eq!(
            (failed.status, failed.failure),
            (Status::Failed, Some(failure))
        );
        store.create(&job("a", 4)).await.unwrap();
    }
}

#[tokio::test]
async fn lists_are_paged_newest_first() {
    for database in databases() {
        let installation = Installation::new(database).await;
        let store = &installation.store;
        for output in ["a", "b", "c"] {
            installation.create(output, 4).await;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        let ids = |jobs: &[causeway::jobs::job::Job]| -> Vec<String> {
            jobs.iter().map(|job| job.spec.output.to_string()).collect()
        };
        let query = Query {
            limit: 2,
            ..Query::default()
        };
        let (page, more) = store.jobs(&query).await.unwrap();
        assert_eq!((ids(&page), more), (vec!["c".into(), "b".into()], true));
        let after = Some(page[1].id.clone());
        let (page, more) = store
            .jobs(&Query {
                after,
                ..query.clone()
            })
            .await
            .unwrap();
        assert_eq!((ids(&page), more), (vec!["a".into()], false));
        let metadata = BTreeMap::from([("name".to_owned(), "b".to_owned())]);
        let (page, _) = store.jobs(&Query { metadata, ..query }).await.unwrap();
        assert_eq!(ids(&page), ["b"]);
    }
}

#[tokio::test]
async fn many_workers_take_each_job_once() {
    for database in databases() {
        let installation = Installation::new(database).await;
        for number in 0..20 {
            installation.create(&format!("job{number}"), 4).await;
        }
        let mut workers = Vec::new();
        for worker in 0..4 {
            let store = installation.store.clone();
            workers.push(tokio::spawn(async move {
                let mut taken = Vec::new();
                while let Some((_, job)) = store.claim(&format!("w{worker}"), LONG).await.unwrap() {
                    taken.push(job.id);
                }
                taken
            }));
        }
        let mut taken = Vec::new();
        for worker in workers {
            taken.extend(worker.await.unwrap());
        }
        taken.sort();
        assert_eq!(taken.len(), 20);
        taken.dedup();
        assert_eq!(taken.len(), 20, "{database:?}");
    }
}

#[tokio::test]
async fn what_somebody_holds_is_kept_and_nothing_else() {
    for database in databases() {
        let installation = Installation::new(database).await;
        let store = &installation.store;
        let input = an_artifact(store, "input").await;
        let new = NewJob {
            inputs: BTreeMap::from([("model", input)]),
            ..job("a", 4)
        };
        store.create(&new).await.unwrap();
        let (claim, _) = store.claim("one", LONG).await.unwrap().unwrap();
        let mut dropped = Vec::new();
        for step in [2, 4, 10, 12] {
            let artifact = an_artifact(store, &format!("checkpoint {step}")).await;
            let checkpoint = written(step, Some(&artifact));
            dropped.extend(store.checkpoint(&claim, LONG, &checkpoint).await.unwrap());
        }
        // The newest two are left, by number and not by name.
        assert_eq!(dropped, ["checkpoint 2", "checkpoint 4"]);
        let held = store.held_by_job("ftjob-a").await.unwrap();
        assert_eq!(
            held_checkpoints(&held).into_keys().collect::<Vec<_>>(),
            [10, 12]
        );
        assert_eq!(held["model"], "input");
        assert!(store.remove_unheld(LONG).await.unwrap().is_empty());
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut removed = store.remove_unheld(Duration::ZERO).await.unwrap();
        removed.sort();
        assert_eq!(removed, ["place of checkpoint 2", "place of checkpoint 4"]);

        // A job that failed can go on; one that failed long ago, or is cancelled, cannot.
        let failure = failure("disk_full");
        let outcome = Outcome::Failed(failure);
        store
            .finish(&claim, outcome, |_| event("end"))
            .await
            .unwrap();
        assert_eq!(store.give_failed_jobs_up(LONG).await.unwrap(), 0);
        let resumed = store.wish("ftjob-a", Wish::Resume).await.unwrap();
        assert_eq!((resumed.status, resumed.failure), (Status::Queued, None));
        assert_eq!(store.held_by_job("ftjob-a").await.unwrap().len(), 3);
        store.wish("ftjob-a", Wish::Cancel).await.unwrap();
        assert!(store.held_by_job("ftjob-a").await.unwrap().is_empty());
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(store.remove_unheld(Duration::ZERO).await.unwrap().len(), 3);
        assert!(store.places().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_deleted_model_leaves_its_name() {
    for database in databases() {
        let installation = Installation::new(database).await;
        let store = &installation.store;
        store.create(&job("a", 4)).await.unwrap();
        let (claim, _) = store.claim("one", LONG).await.unwrap().unwrap();
        let outcome = Outcome::Succeeded {
            results: BTreeMap::new(),
            evaluation: Some(serde_json::json!({"nonzeros": 3})),
            artifact: an_artifact(store, "result").await,
        };
        store
            .finish(&claim, outcome, |_| event("end"))
            .await
            .unwrap();
        let done = store.job("ftjob-a").await.unwrap().unwrap();
        assert_eq!(done.evaluation, Some(serde_json::json!({"nonzeros": 3})));
        let again = NewJob {
            id: "again".into(),
            ..job("a", 4)
        };
        let taken = store.create(&again).await;
        assert!(matches!(taken, Err(StoreError::NameTaken(_))), "{taken:?}");
        assert!(store.remove_model("a").await.unwrap());
        assert!(!store.remove_model("a").await.unwrap());
        assert!(store.models().await.unwrap().is_empty());
        store.create(&again).await.unwrap();

        // A job that failed finds its name taken when it is to go on.
        store.wish("again", Wish::Cancel).await.unwrap();
        let input = an_artifact(store, "input").await;
        let third = NewJob {
            id: "third".into(),
            inputs: BTreeMap::from([("model", input)]),
            ..job("a", 4)
        };
        store.create(&third).await.unwrap();
        let (claim, _) = store.claim("one", LONG).await.unwrap().unwrap();
        let failure = failure("crashed");
        let failed = Outcome::Failed(failure);
        store
            .finish(&claim, failed, |_| event("end"))
            .await
            .unwrap();
        let fourth = NewJob {
            id: "fourth".into(),
            ..job("a", 4)
        };
        store.create(&fourth).await.unwrap();
        let resumed = store.wish("third", Wish::Resume).await;
        assert!(
            matches!(resumed, Err(StoreError::NameTaken(_))),
            "{resumed:?}"
        );
    }
}

#[tokio::test]
async fn what_was_asked_at_the_last_moment_is_done() {
    for database in databases() {
        let installation = Installation::new(database).await;
        let store = &installation.store;
        let cases = [
            (Some(Wish::Cancel), Outcome::Released, Status::Cancelled),
            (Some(Wish::Cancel), Outcome::Paused, Status::Cancelled),
            (Some(Wish::Pause), Outcome::Released, Status::Paused),
            (Some(Wish::Pause), Outcome::Paused, Status::Paused),
            (None, Outcome::Paused, Status::Queued),
            (None, Outcome::Released, Status::Queued),
        ];
        for (number, (wish, outcome, status)) in cases.into_iter().enumerate() {
            let id = installation.create(&format!("job{number}"), 4).await.id;
            let (claim, _) = store.claim("one", LONG).await.unwrap().unwrap();
            assert_eq!(claim.job, id);
            if let Some(wish) = wish {
                store.wish(&id, wish).await.unwrap();
            }
            store
                .finish(&claim, outcome, |outcome| event(&format!("{outcome:?}")))
                .await
                .unwrap();
            assert_eq!(installation.job(&id).await.status, status, "{wish:?}");
            // Out of the next one's way.
            let ended = store.wish(&id, Wish::Cancel).await.unwrap();
            assert_eq!(ended.status, Status::Cancelled);
        }
    }
}

#[tokio::test]
async fn a_job_that_has_nothing_left_cannot_be_resumed() {
    for database in databases() {
        let installation = Installation::new(database).await;
        let store = &installation.store;
        let id = installation.create("a", 4).await.id;
        let (claim, _) = store.claim("one", LONG).await.unwrap().unwrap();
        let failure = failure("crashed");
        let failed = Outcome::Failed(failure);
        store
            .finish(&claim, failed, |_| event("end"))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(store.give_failed_jobs_up(Duration::ZERO).await.unwrap() > 0);
        let resumed = store.wish(&id, Wish::Resume).await;
        assert!(matches!(resumed, Err(StoreError::GivenUp)), "{resumed:?}");
        assert_eq!(installation.job(&id).await.status, Status::Failed);
    }
}

#[tokio::test]
async fn a_bridge_takes_its_sparse_model_s_name_too() {
    for database in databases() {
        let installation = Installation::new(database).await;
        installation.create("a", 4).await;
        let taken = installation.store.create(&job("a-sparse", 4)).await;
        assert!(
            matches!(&taken, Err(StoreError::NameTaken(name)) if name == "a-sparse"),
            "{taken:?}"
        );
    }
}
