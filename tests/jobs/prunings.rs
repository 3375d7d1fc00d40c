//! Prunings as jobs: what is found is kept as a circuit, however often the job was paused, and is served as no model.

use std::time::Duration;

use causeway::circuits::circuit::Circuit;
use causeway::circuits::directory;
use causeway::jobs::job::Status;
use serde_json::{Value, json};

use crate::installation::{Database, Installation, Server};

const JOBS: &str = "/v1/fine_tuning/jobs";
const FIELDS: &str = "method.prune.hyperparameters";

fn body(suffix: &str, steps: usize) -> Value {
    json!({"model": "tinypython-sparse", "suffix": suffix, "method": {"type": "prune", "prune": {"hyperparameters": {
        "task": "while_return_true",
        "search": {
            "train_pairs": 8, "held_out_pairs": 8, "batch_pairs": 4, "steps": steps, "learning_rates": [0.1],
            "node_penalties": [0.001], "reference_sequences": 4, "reference_length": 64, "target_loss": 1.0,
        },
        "controls": {"shuffled_labels": false, "random_model": false, "frozen_norms": false},
        "checkpoint_every": 4,
    }}}})
}

async fn asked(server: &Server, body: &Value) -> String {
    let (status, job) = server.post(JOBS, body).await;
    assert_eq!(status, 200, "{job}");
    job["id"].as_str().unwrap().to_owned()
}

async fn refused(server: &Server, body: &Value) -> Value {
    let (status, answer) = server.post(JOBS, body).await;
    assert_eq!(status, 400, "{answer}");
    answer["error"].clone()
}

async fn found(installation: &Installation, id: &str) -> Circuit {
    let circuits = installation.store.circuits().await.unwrap();
    let kept = circuits.iter().find(|circuit| circuit.id == id).unwrap();
    let folder = installation.path().join("looked-at").join(id);
    let artifacts = &installation.artifacts;
    artifacts.get(&kept.artifact, &folder).await.unwrap();
    assert!(folder.join("manifest.json").is_file() && folder.join("recipe.toml").is_file());
    directory::read(&folder).unwrap()
}

#[tokio::test]
async fn a_circuit_is_kept_as_one_and_its_name_is_free_when_it_is_deleted() {
    let installation = Installation::new(Database::Sqlite).await;
    let server = installation.listening_server("all").await;
    let id = asked(&server, &body("truth", 8)).await;
    let job = installation.ended(&id).await;
    installation.is_complete(&job).await;
    let circuit = found(&installation, "truth").await;
    assert_eq!(circuit.id.as_str(), "truth");
    assert_eq!(circuit.model, "tinypython-sparse");
    assert_eq!(circuit.task, "while_return_true");
    assert_eq!(job.results["nodes"], circuit.nodes.len() as f64);
    assert_eq!(job.results["task_loss"], circuit.figures.task_loss);
    assert!(installation.store.models().await.unwrap().is_empty());

    let address = format!("{JOBS}/{id}");
    let (_, told) = server.get(&address).await;
    assert_eq!(told["fine_tuned_model"], "truth");
    assert_eq!(told["trained_tokens"], 0);
    let fields = &told["method"]["prune"]["hyperparameters"];
    assert_eq!(
        (&fields["task"], &fields["search"]["steps"]),
        (&json!("while_return_true"), &json!(8))
    );
    let (_, plot) = server.get(&format!("{address}/plot")).await;
    for name in ["task_loss", "nodes"] {
        let points = plot["training"][name].as_array().unwrap();
        assert_eq!(points.len(), 8, "{name}");
    }
    let (_, models) = server.get("/v1/models").await;
    let ids = models["data"].as_array().unwrap().iter();
    assert!(ids.map(|model| &model["id"]).all(|id| id != "truth"));
    let archive = server.bytes("/v1/models/truth/archive").await;
    let name = b"truth/circuit.json";
    assert!(archive.windows(name.len()).any(|bytes| bytes == name));

    let taken = refused(&server, &body("truth", 8)).await;
    assert_eq!(
        (&taken["param"], &taken["code"]),
        (&json!("suffix"), &json!("already_exists"))
    );
    let (status, deleted) = server.delete("/v1/models/truth").await;
    assert_eq!((status, &deleted["object"]), (200, &json!("circuit")));
    assert!(installation.store.circuits().await.unwrap().is_empty());
    let again = asked(&server, &body("truth", 8)).await;
    let (status, _) = server
        .post(&format!("{JOBS}/{again}/cancel"), &json!({}))
        .await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_paused_pruning_finds_what_it_would_have_found() {
    let installation = Installation::new(Database::Sqlite).await;
    let server = installation.listening_server("all").await;
    const STEPS: usize = 120;
    let calm = asked(&server, &body("calm", STEPS)).await;
    assert_eq!(installation.ended(&calm).await.status, Status::Succeeded);
    let id = asked(&server, &body("paused", STEPS)).await;
    while installation.job(&id).await.step < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let address = format!("{JOBS}/{id}");
    let (status, answer) = server.post(&format!("{address}/pause"), &json!({})).await;
    assert_eq!(status, 200, "{answer}");
    let paused = loop {
        let now = installation.job(&id).await;
        if now.status != Status::Running {
            break now;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(paused.status, Status::Paused, "{paused:?}");
    assert!(paused.step < STEPS as i64);
    let (status, answer) = server.post(&format!("{address}/resume"), &json!({})).await;
    assert_eq!(status, 200, "{answer}");
    let job = installation.ended(&id).await;
    installation.is_complete_with(&job, &[paused.step]).await;
    let calm = found(&installation, "calm").await;
    let paused = Circuit {
        id: calm.id.clone(),
        ..found(&installation, "paused").await
    };
    assert_eq!(paused, calm);
}

#[tokio::test]
async fn a_task_that_was_added_is_pruned_for_as_it_was_then() {
    let installation = Installation::new(Database::Sqlite).await;
    let server = installation.listening_server("none").await;
    let pairs: Vec<Value> = (0..60)
        .map(|number| {
            json!({
                "presented": {"prompt": format!("{number}\n1\n"), "answer": "1\n"},
                "counterfactual": {"prompt": format!("{number}\n2\n"), "answer": "2\n"}
            })
        })
        .collect();
    let task = json!({"id": "again", "description": "Say it again.", "pairs": pairs});
    let (status, answer) = server.post("/v1/tasks", &task).await;
    assert_eq!(status, 201, "{answer}");
    let mut body = body("repeats", 4);
    body["method"]["prune"]["hyperparameters"]["task"] = json!("again");
    let id = asked(&server, &body).await;
    // The job has what it needs.
    let (status, answer) = server.delete("/v1/tasks/again").await;
    assert_eq!(status, 200, "{answer}");
    let _worker = installation.worker();
    let job = installation.ended(&id).await;
    assert_eq!(job.status, Status::Succeeded, "{job:?}");
    assert_eq!(found(&installation, "repeats").await.task, "again");
}

#[tokio::test]
async fn a_dense_model_is_pruned_on_text_that_is_given() {
    let installation = Installation::new(Database::Sqlite).await;
    let server = installation.listening_server("all").await;
    let mut body = body("dense-truth", 4);
    body["model"] = json!("tinypython");
    body["seed"] = json!(5);
    let fields = &mut body["method"]["prune"]["hyperparameters"];
    fields["generated"] = json!({"documents": 50, "seed": 1});
    let id = asked(&server, &body).await;
    let job = installation.ended(&id).await;
    assert_eq!(job.status, Status::Succeeded, "{job:?}");
    let circuit = found(&installation, "dense-truth").await;
    assert_eq!(
        (circuit.model.as_str(), circuit.method.seed),
        ("tinypython", 5)
    );
}

#[tokio::test]
async fn what_a_pruning_costs_is_told_and_what_cannot_be_pruned_is_refused() {
    let installation = Installation::new(Database::Sqlite).await;
    let server = installation.listening_server("none").await;
    let (status, cost) = server
        .post(&format!("{JOBS}/estimate"), &body("cost", 8))
        .await;
    assert_eq!(status, 200, "{cost}");
    assert_eq!(cost["steps"], 8);
    assert!(cost["step_seconds"].as_f64().unwrap() > 0.0, "{cost}");

    let with = |place: &str, value: Value| {
        let mut body = body("wrong", 8);
        *body["method"]["prune"]["hyperparameters"]
            .pointer_mut(place)
            .unwrap() = value;
        body
    };
    let cases = [
        ("/task", json!("while_return_tru"), "task"),
        ("/search/steps", json!(0), "search.steps"),
        ("/search/batch_pairs", json!(9), "search.batch_pairs"),
        ("/search/target_loss", json!(-1), "search.target_loss"),
        (
            "/search/reference_length",
            json!(4096),
            "search.reference_length",
        ),
        ("/checkpoint_every", json!(0), "checkpoint_every"),
    ];
    for (place, value, field) in cases {
        let error = refused(&server, &with(place, value)).await;
        assert_eq!(error["param"], format!("{FIELDS}.{field}"), "{error}");
    }
    let near = refused(&server, &with("/task", json!("while_return_tru"))).await;
    let message = near["message"].as_str().unwrap();
    assert!(message.contains("while_return_true"), "{message}");
    // Others than prunings begin with a dense model, as before.
    let mut bridge =
        json!({"model": "tinypython-sparse", "method": crate::installation::method(4)});
    assert_eq!(refused(&server, &bridge).await["param"], "model");
    bridge["method"]["type"] = json!("prune");
    assert_eq!(refused(&server, &bridge).await["param"], "method.bridge");
}
