//! Servers as processes: a job from its request to its result and that one's end, over HTTP and by `causeway jobs`.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use causeway::jobs::job::{Status, Wish};
use causeway::jobs::store::claims::held_checkpoints;
use serde_json::{Value, json};

use crate::installation::{Database, Installation, Server, databases, method, wait_until};

fn request(suffix: &str, steps: usize) -> Value {
    json!({"model": "tinypython", "suffix": suffix, "method": method(steps)})
}

fn causeway(server: &Server, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_causeway"))
        .arg("jobs")
        .args(arguments)
        .args(["--server", &server.address])
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// Waits until the server has, or has not, a model.
async fn wait_for(server: &Server, model: &str, status: u16) {
    let begun = Instant::now();
    while server.get(&format!("/v1/models/{model}")).await.0 != status {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{model} {status}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_job_is_followed_to_a_model_that_comes_and_goes() {
    let installation = Installation::new(Database::Sqlite).await;
    let server = installation.listening_server("all").await;
    let mut body = request("made", 8);
    let fields = &mut body["method"]["bridge"]["hyperparameters"];
    fields["sparse"]["context_length"] = json!(128);
    fields["watch"]["tasks"] = json!(["single_double_quote"]);
    fields["watch"]["task_pairs"] = json!(8);
    let (status, estimate) = server.post("/v1/fine_tuning/jobs/estimate", &body).await;
    assert_eq!(status, 200, "{estimate}");
    assert_eq!(
        (&estimate["steps"], &estimate["tokens"]),
        (&json!(8), &json!(8 * 2 * 16))
    );
    for positive in [
        "parameters",
        "bridge_parameters",
        "step_seconds",
        "seconds",
        "checkpoint_bytes",
    ] {
        assert!(estimate[positive].as_f64().unwrap() > 0.0, "{estimate}");
    }

    let (status, job) = server.post("/v1/fine_tuning/jobs", &body).await;
    assert_eq!(status, 200, "{job}");
    let id = job["id"].as_str().unwrap();
    let followed = causeway(&server, &["follow", id]);
    assert!(followed.status.success(), "{}", said(&followed));
    assert!(
        said(&followed).contains("made is published"),
        "{}",
        said(&followed)
    );
    for arguments in [vec!["list"], vec!["show", id], vec!["show", id, "--json"]] {
        let output = causeway(&server, &arguments);
        assert!(output.status.success(), "{}", said(&output));
        assert!(
            said(&output).contains(id) && said(&output).contains("succeeded"),
            "{}",
            said(&output)
        );
    }
    let refused = causeway(&server, &["cancel", id]);
    assert!(!refused.status.success() && said(&refused).contains("succeeded"));

    let job = server.get(&format!("/v1/fine_tuning/jobs/{id}")).await.1;
    let evaluation = &job["evaluation"];
    assert_eq!(evaluation["tasks"][0]["task"], "single_double_quote");
    assert_eq!(
        evaluation["sources"]["generated"]["sites"]
            .as_array()
            .unwrap()
            .len(),
        9
    );
    let nonzeros = evaluation["nonzeros"].as_u64().unwrap();
    assert!(nonzeros > 0 && nonzeros < evaluation["parameters"].as_u64().unwrap());
    let plot = server
        .get(&format!("/v1/fine_tuning/jobs/{id}/plot"))
        .await
        .1;
    assert_eq!(plot["training"]["loss"].as_array().unwrap().len(), 8);
    let svg = server
        .text(&format!("/v1/fine_tuning/jobs/{id}/plot.svg"))
        .await;
    assert!(svg.starts_with("<svg") && svg.contains("loss"));

    wait_for(&server, "made", 200).await;
    let models = server.get("/v1/models/made").await.1;
    assert_eq!(models["provenance"]["job"], id);
    let (status, half) = server.delete("/v1/models/made-sparse").await;
    assert_eq!((status, &half["error"]["code"]), (400, &json!("in_use")));
    let (status, shipped) = server.delete("/v1/models/tinypython").await;
    assert_eq!(
        (status, &shipped["error"]["code"]),
        (400, &json!("not_trained"))
    );
    let folder = installation.path().join("models");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    let (status, deleted) = server.delete("/v1/models/made").await;
    assert_eq!((status, &deleted["deleted"]), (200, &json!(true)));
    for model in ["made", "made-sparse"] {
        assert_eq!(server.get(&format!("/v1/models/{model}")).await.0, 404);
    }
    wait_until("its files are gone", || {
        std::fs::read_dir(&folder).unwrap().count() == 0
    });
    assert_eq!(server.delete("/v1/models/made").await.0, 404);
    // Its name is free again.
    let (status, again) = server
        .post("/v1/fine_tuning/jobs", &request("made", 8))
        .await;
    assert_eq!(status, 200, "{again}");
    let cancelled = causeway(&server, &["cancel", again["id"].as_str().unwrap()]);
    assert!(cancelled.status.success(), "{}", said(&cancelled));
    let failed = causeway(&server, &["follow", again["id"].as_str().unwrap()]);
    assert!(!failed.status.success() && said(&failed).contains("cancelled"));
}

/// A server that takes the request, a worker that trains, and another server that serves the result have nothing in
/// common but the database and, where there is one, the bucket.
#[tokio::test]
async fn machines_share_nothing_but_the_database_and_the_artifacts() {
    if !databases().contains(&Database::Postgres) {
        return;
    }
    let installation = Installation::new(Database::Postgres).await;
    let front = installation
        .elsewhere("front")
        .listening_server("none")
        .await;
    let back = installation
        .elsewhere("back")
        .listening_server("none")
        .await;
    let _worker = installation.elsewhere("worker").worker();
    let (status, job) = front
        .post("/v1/fine_tuning/jobs", &request("made", 8))
        .await;
    assert_eq!(status, 200, "{job}");
    for server in [&front, &back] {
        wait_for(server, "made", 200).await;
        let steered = json!({"model": "made", "prompt": "x = 1\n", "max_tokens": 4, "steer": {"edits": [
            {"feature": {"node": "1.mlp.act_in", "channel": 3}, "op": "add", "value": 2}]}});
        let (status, answer) = server.post("/v1/completions", &steered).await;
        assert_eq!(status, 200, "{answer}");
    }
    assert_eq!(back.delete("/v1/models/made").await.0, 200);
    wait_for(&front, "made", 404).await;
    // What nobody needs any more goes as soon as it may.
    let artifacts = installation.artifacts_kept_for(Duration::ZERO);
    assert!(artifacts.sweep().await.unwrap() > 0);
    assert!(installation.store.places().await.unwrap().is_empty());
    assert_eq!(artifacts.sweep().await.unwrap(), 0);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_costs_a_job_nothing_but_time() {
    let installation = Installation::new(Database::Sqlite).await;
    let server = installation.listening_server("all").await;
    let steps = 400;
    let job = server
        .post("/v1/fine_tuning/jobs", &request("full", steps))
        .await
        .1;
    let id = job["id"].as_str().unwrap().to_owned();
    while installation
        .store
        .checkpoints(&id)
        .await
        .unwrap()
        .is_empty()
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // From now on no file of the training may become long: its next checkpoint does not fit.
    wait_until("the training's files are limited", || {
        let trainings = server.process.children();
        trainings.iter().any(|training| {
            let limit = ["--pid", training, "--fsize=100000"];
            Command::new("prlimit")
                .args(limit)
                .status()
                .unwrap()
                .success()
        })
    });
    let failed = installation.ended(&id).await;
    assert_eq!(failed.status, Status::Failed, "{failed:?}");
    assert_eq!(failed.failure.unwrap().code, "disk_full");
    let completion = json!({"model": "tinypython", "prompt": "x = 1\n", "max_tokens": 4});
    assert_eq!(server.post("/v1/completions", &completion).await.0, 200);
    let held = installation.store.held_by_job(&id).await.unwrap();
    let checkpoints = held_checkpoints(&held);
    assert!(!checkpoints.is_empty());
    for checkpoint in checkpoints.values() {
        installation.artifacts.verify(checkpoint).await.unwrap();
    }

    installation.store.wish(&id, Wish::Resume).await.unwrap();
    let job = installation.ended(&id).await;
    installation.is_complete(&job).await;
    assert!(job.attempt == 2 && job.failure.is_none());
    let calm = server
        .post("/v1/fine_tuning/jobs", &request("calm", steps))
        .await
        .1;
    let calm = installation.ended(calm["id"].as_str().unwrap()).await;
    assert_eq!(calm.status, Status::Succeeded);
    assert!(installation.weights("full").await == installation.weights("calm").await);
}
