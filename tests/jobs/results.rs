//! What comes of a job: it answers as soon as the job is told to have succeeded, it talks as the model that it was
//! trained on does, and it can be taken away and measured elsewhere.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::installation::{Database, Installation, Server, method};

const JOBS: &str = "/v1/fine_tuning/jobs";

/// Asks for a job and waits until its server says that it has succeeded.
async fn carried_out(server: &Server, body: &Value) -> Value {
    let (status, job) = server.post(JOBS, body).await;
    assert_eq!(status, 200, "{job}");
    let address = format!("{JOBS}/{}", job["id"].as_str().unwrap());
    let begun = Instant::now();
    loop {
        let (_, job) = server.get(&address).await;
        match job["status"].as_str().unwrap() {
            "succeeded" => return job,
            "queued" | "running" => {}
            other => panic!("{other}: {job}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(300), "{job}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn causeway(folder: &Path, arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_causeway"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

#[tokio::test]
async fn a_sparse_model_of_fewer_layers_steers_the_deeper_one() {
    let installation = Installation::new(Database::Sqlite).await;
    let server = installation.listening_server("all").await;
    let mut body = json!({"model": "tinypython", "suffix": "shallow", "method": method(4)});
    let fields = &mut body["method"]["bridge"]["hyperparameters"];
    fields["sparse"]["n_layers"] = json!(2);
    let joined = [
        "0.resid_in",
        "1.resid_in",
        "2.resid_in",
        "3.resid_mid",
        "final_resid",
    ];
    fields["site_map"] = json!(joined);
    carried_out(&server, &body).await;
    let (_, bridge) = server.get("/v1/bridges/shallow").await;
    let sites = bridge["sites"].as_array().unwrap().iter();
    let sites: Vec<[&str; 2]> = sites
        .map(|site| ["site", "dense_site"].map(|key| site[key].as_str().unwrap()))
        .collect();
    let own = [
        "0.resid_in",
        "0.resid_mid",
        "1.resid_in",
        "1.resid_mid",
        "final_resid",
    ];
    let expected: Vec<[&str; 2]> = own.into_iter().zip(joined).map(Into::into).collect();
    assert_eq!(sites, expected);
    let completion = json!({"model": "shallow", "prompt": "x = 1\n", "max_tokens": 1, "steer": {
        "edits": [
            {"feature": {"node": "1.resid_in", "channel": 3}, "op": "add", "value": 2},
            {"feature": {"node": "1.mlp.act_in", "channel": 3}, "op": "add", "value": 2},
        ],
        "return": ["receipt"]}});
    let (status, answer) = server.post("/v1/completions", &completion).await;
    assert_eq!(status, 200, "{answer}");
    let edits = &answer["choices"][0]["receipt"]["edits"];
    let told = [0, 1].map(|edit: usize| edits[edit]["dense_node"].clone());
    assert_eq!(told, ["2.resid_in", "3.mlp.act_in"], "{answer}");

    // Who goes on from it need not say how, and cannot say otherwise.
    let mut on = json!({"model": "shallow", "suffix": "shallow-on", "method": method(2)});
    let fields = &mut on["method"]["bridge"]["hyperparameters"];
    fields["sparse"] = Value::Null;
    fields["start_from"] = json!("shallow");
    let mut otherwise = on.clone();
    otherwise["method"]["bridge"]["hyperparameters"]["site_map"] = json!(own);
    let (status, refusal) = server.post(JOBS, &otherwise).await;
    let param = "method.bridge.hyperparameters.site_map";
    assert_eq!((status, &refusal["error"]["param"]), (400, &json!(param)));
    carried_out(&server, &on).await;
    let (_, bridge) = server.get("/v1/bridges/shallow-on").await;
    assert_eq!(bridge["sites"][3]["dense_site"], "3.resid_mid");
}

#[tokio::test]
async fn a_result_answers_at_once_and_can_be_taken_away_and_measured() {
    let installation = Installation::new(Database::Sqlite).await;
    let server = installation.listening_server("all").await;
    let mut body = json!({"model": "tinypython", "suffix": "made", "method": method(8)});
    let fields = &mut body["method"]["bridge"]["hyperparameters"];
    fields["sparse"]["context_length"] = json!(128);
    fields["terms"]["twin"] =
        json!({"weight": 1, "native_weight": 1, "counterfactual_weight": 1, "task_pairs": 1});
    // What an edit's pairs are made of needs more room than the others.
    fields["batches"]["length"] = json!(64);
    let job = carried_out(&server, &body).await;
    // Nothing between: whoever is told that it has succeeded may use it.
    let completion = json!({"model": "made", "prompt": "x = 1\n", "max_tokens": 1});
    let (status, answer) = server.post("/v1/completions", &completion).await;
    assert_eq!(status, 200, "{answer}");

    let id = job["id"].as_str().unwrap();
    let (_, plot) = server.get(&format!("{JOBS}/{id}/plot")).await;
    let names: Vec<&String> = plot["training"].as_object().unwrap().keys().collect();
    let expected = [
        "cross_entropy",
        "decoder",
        "dense_to_sparse",
        "distillation",
        "encoder",
        "gradient_norm",
        "kept_fraction",
        "learning_rate",
        "loss",
        "sparse_to_dense",
        "twin",
        "twin_counterfactual",
        "twin_native",
    ];
    assert_eq!(names, expected);

    for (model, status, code) in [
        ("made-sparse", 400, "in_use"),
        ("tinypython", 400, "not_trained"),
        ("nothing", 404, "model_not_found"),
    ] {
        let (answered, answer) = server.get(&format!("/v1/models/{model}/archive")).await;
        assert_eq!((answered, &answer["error"]["code"]), (status, &json!(code)));
    }
    let archive = server.bytes("/v1/models/made/archive").await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("made.tar"), &archive).unwrap();
    let unpacked = Command::new("tar")
        .args(["-xf", "made.tar"])
        .current_dir(folder.path())
        .status();
    assert!(unpacked.unwrap().success());
    let at = folder.path();
    causeway(at, &["manifest", "made", "--verify"]);
    let few = [
        "--tasks",
        "single_double_quote",
        "--pairs",
        "8",
        "--train-pairs",
        "8",
    ];
    causeway(
        at,
        &[&["eval", "tasks", "--pair", "made"], &few[..]].concat(),
    );
    let losses = [
        "eval",
        "losses",
        "--pair",
        "made",
        "--recipe",
        "made/recipe.toml",
    ];
    causeway(at, &[&losses[..], &["--sequences", "2"]].concat());
    // What it was kept as comes out of it, bit by bit.
    let kept = installation.weights("made").await;
    let files = ["bridge.safetensors", "sparse/model.safetensors"];
    let found = files.map(|file| std::fs::read(at.join("made").join(file)).unwrap());
    assert!(kept == found);

    // The command that follows a job ends when its result is there, too.
    let mut second = json!({"model": "tinypython", "suffix": "second", "method": method(4)});
    second["seed"] = json!(11);
    let (_, job) = server.post(JOBS, &second).await;
    let followed = Command::new(env!("CARGO_BIN_EXE_causeway"))
        .args(["jobs", "follow", job["id"].as_str().unwrap(), "--server"])
        .arg(&server.address)
        .output()
        .unwrap();
    assert!(followed.status.success(), "{followed:?}");
    let completion = json!({"model": "second", "prompt": "x = 1\n", "max_tokens": 1});
    let (status, answer) = server.post("/v1/completions", &completion).await;
    assert_eq!(status, 200, "{answer}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test]
async fn a_bridge_to_a_model_that_talks_talks_and_is_steered_in_talk() {
    let installation = Installation::new(Database::Sqlite).await;
    let library = installation.path().join("library");
    let dense = Path::new(env!("CARGO_MANIFEST_DIR")).join("bridges/tinypython/dense");
    copy(&dense, &library.join("talker"));
    let template = "{% for message in messages %}{{ message.content }}\n{% endfor %}";
    std::fs::write(library.join("talker/chat_template.jinja"), template).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_causeway"));
    command.env("CAUSEWAY_LIBRARY", &library);
    let server = installation.listening_server_by("all", &mut command).await;
    let (status, loaded) = server.post("/v1/library/talker/load", &json!({})).await;
    assert_eq!(status, 200, "{loaded}");
    let body = json!({"model": "talker", "suffix": "spoken", "method": method(4)});
    carried_out(&server, &body).await;
    for model in ["spoken", "spoken-sparse"] {
        let (_, model) = server.get(&format!("/v1/models/{model}")).await;
        assert_eq!(model["chat"], true, "{model}");
    }
    let feature = json!({"bridge": "spoken", "name": "tone", "description": "d", "node": "1.mlp.act_in",
        "channels": [{"channel": 3, "weight": 1}], "write": "residual", "tests": []});
    let (status, made) = server.post("/v1/features", &feature).await;
    assert_eq!(status, 201, "{made}");
    let messages = json!([{"role": "user", "content": "x = 1"}]);
    let chat = json!({"model": "spoken", "messages": messages, "max_tokens": 4, "steer": {
        "edits": [{"feature": "tone", "op": "add", "value": 2}], "variants": ["steered", "baseline"],
        "return": ["receipt"]}});
    let (status, answer) = server.post("/v1/chat/completions", &chat).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2, "{answer}");

    // A model that goes on from another one's weights has its configuration, and its way of talking.
    let method = json!({"type": "dense", "dense": {"hyperparameters": {
        "start_from_model": true, "generated": {"documents": 20, "seed": 1},
        "batches": {"steps": 2, "sequences": 1, "length": 16, "seed": 3},
        "optimizer": {"learning_rate": 1e-4, "warmup_steps": 1},
        "watch": {"evaluation_sequences": 1},
    }}});
    carried_out(
        &server,
        &json!({"model": "talker", "suffix": "further", "method": method}),
    )
    .await;
    let (_, model) = server.get("/v1/models/further").await;
    let (_, before) = server.get("/v1/models/talker").await;
    for field in ["n_layers", "d_model", "context_length", "chat"] {
        assert_eq!(model[field], before[field], "{model}");
    }
}
