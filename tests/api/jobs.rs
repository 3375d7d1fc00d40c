//! Files and trainings as a client sees them; that trainings are carried out is tested with workers of their own.

use std::path::{Path, PathBuf};

use candle_core::Device;
use causeway::bridge::pair;
use causeway::models::config::TransformerConfig;
use causeway::models::layout::ModelFiles;
use causeway::settings::keys::Role;
use causeway::training::initialise;
use serde_json::{Value, json};

use crate::client::{Response, Server};
use crate::keys::key;
use crate::tiny_pair;

pub const JOBS: &str = "/v1/fine_tuning/jobs";

/// Sends a form with these fields; a name with a `/` is a file's field and its name.
pub fn upload(server: &Server, fields: &[(&str, &[u8])]) -> Response {
    let mut body = Vec::new();
    for (name, value) in fields {
        let disposition = match name.split_once('/') {
            Some((field, file)) => format!("name=\"{field}\"; filename=\"{file}\""),
            None => format!("name=\"{name}\""),
        };
        body.extend(
            format!("--limit\r\ncontent-disposition: form-data; {disposition}\r\n\r\n").as_bytes(),
        );
        body.extend(*value);
        body.extend(b"\r\n");
    }
    body.extend(b"--limit--\r\n");
    let headers = [("content-type", "multipart/form-data; boundary=limit")];
    server.send("POST", "/v1/files", &headers, &body)
}

/// A request for a tiny bridge to the tiny dense model.
pub fn bridge(suffix: &str) -> Value {
    let sparse = json!({
        "n_layers": tiny_pair::LAYERS, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 32,
        "vocab_size": tiny_pair::VOCABULARY, "context_length": 32, "norm": "rms", "bias": true, "activation": "gelu",
        "positions": "added"
    });
    json!({"model": "tiny", "suffix": suffix, "metadata": {"course": "one"}, "method": {"type": "bridge", "bridge":
    {"hyperparameters": {
        "sparse": sparse, "generated": {"documents": 20, "seed": 1},
        "batches": {"steps": 4, "sequences": 2, "length": 16, "seed": 3},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1}, "bridge_learning_rate": 1e-3,
        "sparsity": {"kept_fraction": 0.2},
        "terms": {"cross_entropy": 1, "distillation": 1, "encoder": 1, "decoder": 1, "dense_to_sparse": 1,
            "sparse_to_dense": 1}
    }}}})
}

#[test]
fn files_are_kept_as_they_were_sent() {
    let server = Server::new();
    let text = b"{\"text\": \"x = 1\\n\"}\n{\"text\": \"y = 2\\n\"}\n";
    let file = upload(
        &server,
        &[("purpose", b"fine-tune"), ("file/code.jsonl", text)],
    )
    .ok();
    assert_eq!(
        (
            &file["object"],
            &file["bytes"],
            &file["filename"],
            &file["documents"],
            &file["status"]
        ),
        (
            &json!("file"),
            &json!(text.len()),
            &json!("code.jsonl"),
            &json!(2),
            &json!("processed")
        )
    );
    assert_eq!(file["sha256"].as_str().map(str::len), Some(64));
    let address = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(server.get(&address).ok(), file);
    assert_eq!(server.get("/v1/files").ok()["data"], json!([file]));
    let content = server.get(&format!("{address}/content"));
    assert_eq!(content.body.as_bytes(), text);
    assert_eq!(server.delete(&address).ok()["deleted"], true);
    server
        .get(&address)
        .is_error(404, None, Some("file_not_found"));
    server
        .delete(&address)
        .is_error(404, None, Some("file_not_found"));
    assert_eq!(server.get("/v1/files").ok()["data"], json!([]));
}

#[test]
fn files_that_cannot_be_used_are_refused_with_the_line() {
    let server = Server::with(|settings| settings.jobs.max_file_bytes = 10_000);
    let purpose: (&str, &[u8]) = ("purpose", b"fine-tune");
    let long = vec![b'x'; 20_000];
    for (fields, status, param, code, told) in [
        (
            vec![
                purpose,
                ("file/a.jsonl", b"{\"text\": \"a\"}\n\n{\"txt\": 1}\n"),
            ],
            400,
            Some("file"),
            Some("invalid_file"),
            "line 3",
        ),
        (
            vec![purpose, ("file/a.txt", b"good\nbad \xff\n")],
            400,
            Some("file"),
            Some("invalid_file"),
            "line 2",
        ),
        (
            vec![purpose, ("file/a.txt", b"one line\n")],
            400,
            Some("file"),
            Some("invalid_file"),
            "two",
        ),
        (
            vec![("file/a.txt", b"x")],
            400,
            Some("purpose"),
            None,
            "fine-tune",
        ),
        (
            vec![purpose],
            400,
            Some("file"),
            Some("missing_field"),
            "missing",
        ),
        (
            vec![purpose, ("files/a.txt", b"x")],
            400,
            Some("files"),
            Some("unknown_field"),
            "purpose",
        ),
        (
            vec![purpose, ("file/a.txt", &long)],
            413,
            None,
            Some("body_too_large"),
            "10000",
        ),
    ] {
        let refused = upload(&server, &fields);
        refused.is_error(status, param, code);
        let message = refused.json()["error"]["message"].to_string();
        assert!(message.contains(told), "{message}");
    }
    server
        .post("/v1/files", &json!({}))
        .is_error(415, None, Some("unsupported_media_type"));
    let kept = std::fs::read_dir(server.directory.join("data/uploads")).unwrap();
    assert_eq!(kept.count(), 0, "nothing of what was refused stays");
    assert!(!server.directory.join("data/artifacts/places").exists());
}

#[test]
fn jobs_are_created_found_and_steered() {
    let server = Server::new();
    let body = bridge("one");
    let headers = [
        ("content-type", "application/json"),
        ("idempotency-key", "k1"),
    ];
    let send = |body: &Value| server.send("POST", JOBS, &headers, body.to_string().as_bytes());
    let job = send(&body).ok();
    assert_eq!(
        (&job["object"], &job["status"]),
        (&json!("fine_tuning.job"), &json!("queued"))
    );
    assert_eq!(
        (&job["model"], &job["fine_tuned_model"]),
        (&json!("tiny"), &Value::Null)
    );
    assert_eq!((&job["seed"], &job["steps"]), (&json!(3), &json!(4)));
    let defaults = &job["method"]["bridge"]["hyperparameters"]["watch"];
    assert_eq!(defaults["checkpoint_every"], 200);
    assert_eq!(send(&body).ok()["id"], job["id"]);
    send(&bridge("other")).is_error(400, Some("idempotency-key"), Some("idempotency_key_reused"));
    server
        .post(JOBS, &body)
        .is_error(400, Some("suffix"), Some("already_exists"));
    let mut unnamed = bridge("two");
    unnamed["suffix"].take();
    unnamed["seed"] = json!(9);
    let second = server.post(JOBS, &unnamed).ok();
    assert_eq!(second["seed"], 9);

    let address = format!("{JOBS}/{}", job["id"].as_str().unwrap());
    assert_eq!(server.get(&address).ok()["id"], job["id"]);
    let page = server.get(&format!("{JOBS}?limit=1")).ok();
    assert_eq!(
        (page["data"].as_array().unwrap().len(), &page["has_more"]),
        (1, &json!(true))
    );
    let found = server.get(&format!("{JOBS}?metadata%5Bcourse%5D=one")).ok();
    assert_eq!(found["data"].as_array().unwrap().len(), 2);
    let found = server.get(&format!("{JOBS}?metadata%5Bcourse%5D=two")).ok();
    assert_eq!(found["data"], json!([]));
    for (query, param) in [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("order=asc", "order"),
    ] {
        server.get(&format!("{JOBS}?{query}")).blames(param);
    }
    server
        .get(&format!("{JOBS}?after=ftjob-x"))
        .is_error(404, None, Some("job_not_found"));

    let ask = |what: &str| server.post(&format!("{address}/{what}"), &json!({}));
    assert_eq!(ask("pause").ok()["status"], "paused");
    assert_eq!(ask("resume").ok()["status"], "queued");
    assert_eq!(ask("cancel").ok()["status"], "cancelled");
    assert_eq!(ask("cancel").ok()["status"], "cancelled");
    ask("resume").is_error(400, None, Some("wrong_status"));
    assert_eq!(
        server.get(&format!("{address}/events")).ok()["data"],
        json!([])
    );
    assert_eq!(
        server.get(&format!("{address}/checkpoints")).ok()["data"],
        json!([])
    );
    let followed = server.get(&format!("{address}/events?stream=true"));
    assert_eq!(followed.body.trim(), "data: [DONE]");
    server
        .get(&format!("{address}/events?after=x"))
        .blames("after");
    for address in ["ftjob-x", "ftjob-x/events", "ftjob-x/checkpoints"] {
        server
            .get(&format!("{JOBS}/{address}"))
            .is_error(404, None, Some("job_not_found"));
    }
}

#[test]
fn recipes_that_cannot_work_are_refused_with_their_field() {
    let server = Server::new();
    let good = bridge("bad");
    let vocabulary = good["method"]["bridge"]["hyperparameters"]["sparse"]["vocab_size"]
        .as_u64()
        .unwrap();
    const H: &str = "/method/bridge/hyperparameters";
    for (pointer, value, param) in [
        ("/model", json!("nobody"), "model"),
        ("/model", json!("tiny-sparse"), "model"),
        ("/training_file", json!("file-x"), "training_file"),
        ("/suffix", json!("Not An Id"), "suffix"),
        ("/suffix", json!("tiny"), "suffix"),
        ("/validation_file", json!("file-x"), "validation_file"),
        ("/metadata", json!({"k": "v".repeat(600)}), "metadata"),
        ("/method/type", json!("shrink"), "method.type"),
        ("/method/type", json!("dense"), "method.bridge"),
        ("/method/sparse", json!({}), "method.sparse.hyperparameters"),
        (
            "H/batches/lenght",
            json!(3),
            "method.bridge.hyperparameters.batches.lenght",
        ),
        (
            "H/batches/length",
            json!(33),
            "method.bridge.hyperparameters.batches.length",
        ),
        (
            "H/batches/steps",
            json!(0),
            "method.bridge.hyperparameters.batches.steps",
        ),
        (
            "H/optimizer/learning_rate",
            json!(-1),
            "method.bridge.hyperparameters.optimizer.learning_rate",
        ),
        (
            "H/sparsity/kept_fraction",
            json!(2),
            "method.bridge.hyperparameters.sparsity.kept_fraction",
        ),
        (
            "H/sparse/vocab_size",
            json!(vocabulary + 1),
            "method.bridge.hyperparameters.sparse.vocab_size",
        ),
        (
            "H/sparse/n_layers",
            json!(9),
            "method.bridge.hyperparameters.sparse.n_layers",
        ),
        (
            "H/site_map",
            json!(["0.resid_in", "final_resid"]),
            "method.bridge.hyperparameters.site_map",
        ),
        (
            "H/site_map",
            json!([
                "0.resid_in",
                "0.resid_mid",
                "1.resid_in",
                "0.attn.q",
                "final_resid"
            ]),
            "method.bridge.hyperparameters.site_map",
        ),
        (
            "H/sparse/d_model",
            json!(0),
            "method.bridge.hyperparameters.sparse.d_model",
        ),
        (
            "H/batches/seed",
            json!(1u64 << 63),
            "method.bridge.hyperparameters.batches.seed",
        ),
        (
            "H/start_from",
            json!("nothing"),
            "method.bridge.hyperparameters.start_from",
        ),
        ("H/generated", Value::Null, "training_file"),
        (
            "H/generated/documents",
            json!(0),
            "method.bridge.hyperparameters.generated.documents",
        ),
        (
            "H/watch",
            json!({"checkpoint_every": 0}),
            "method.bridge.hyperparameters.watch.checkpoint_every",
        ),
        (
            "H/watch",
            json!({"checkpoint_minutes": 0}),
            "method.bridge.hyperparameters.watch.checkpoint_minutes",
        ),
        (
            "H/watch",
            json!({"tasks": ["nothing"]}),
            "method.bridge.hyperparameters.watch.tasks[0]",
        ),
    ] {
        let mut body = good.clone();
        let pointer = pointer.replacen('H', H, usize::from(pointer.starts_with('H')));
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[field] = value;
        server.post(JOBS, &body).blames(param);
    }
    assert_eq!(server.get(JOBS).ok()["data"], json!([]));
    server.post(JOBS, &good).ok();
}

/// The files below a folder with a name that ends so.
fn files_called(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files_called(&entry.path(), ending)),
            false if entry.path().to_string_lossy().ends_with(ending) => found.push(entry.path()),
            false => {}
        }
    }
    found
}

#[test]
fn what_is_damaged_is_refused_when_it_is_named() {
    let server = Server::new();
    let text = b"{\"text\": \"x = 1\\n\"}\n{\"text\": \"y = 2\\n\"}\n";
    let fields: [(&str, &[u8]); 2] = [("purpose", b"fine-tune"), ("file/code.jsonl", text)];
    let file = upload(&server, &fields).ok();
    let mut body = bridge("one");
    body["training_file"] = file["id"].clone();
    let kept = files_called(&server.directory.join("data/artifacts"), "text.jsonl");
    std::fs::write(&kept[0], text.to_ascii_uppercase()).unwrap();
    server
        .post(JOBS, &body)
        .is_error(400, Some("training_file"), Some("damaged_file"));
    std::fs::write(&kept[0], text).unwrap();
    server.post(JOBS, &body).ok();

    // The job has the text, whoever deletes the file.
    let address = format!("/v1/files/{}", file["id"].as_str().unwrap());
    server.delete(&address).ok();
    assert!(kept[0].is_file());
    body["suffix"] = json!("two");
    server
        .post(JOBS, &body)
        .is_error(400, Some("training_file"), Some("file_not_found"));

    let mut body = bridge("two");
    let weights = server.directory.join("pair/dense/model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    let mut other = whole.clone();
    *other.last_mut().unwrap() ^= 1;
    for damage in [&whole[..whole.len() / 2], &other] {
        std::fs::write(&weights, damage).unwrap();
        server
            .post(JOBS, &body)
            .is_error(400, Some("model"), Some("damaged_model"));
    }
    std::fs::write(&weights, &whole).unwrap();
    const START_FROM: &str = "method.bridge.hyperparameters.start_from";
    body["method"]["bridge"]["hyperparameters"]["start_from"] = json!("tiny");
    let bridge = server.directory.join("pair/bridge.safetensors");
    let whole = std::fs::read(&bridge).unwrap();
    std::fs::write(&bridge, &whole[..100]).unwrap();
    server
        .post(JOBS, &body)
        .is_error(400, Some(START_FROM), Some("damaged_model"));
    std::fs::write(&bridge, &whole).unwrap();
    // Whole again, but of another shape.
    server
        .post(JOBS, &body)
        .is_error(400, Some("method.bridge.hyperparameters.sparse"), None);
    let fields = &mut body["method"]["bridge"]["hyperparameters"];
    fields["start_from"] = Value::Null;
    server.post(JOBS, &body).ok();
}

#[test]
fn trainings_are_for_those_who_may_train() {
    let server = Server::with(|settings| {
        settings.keys = vec![
            key("reader", Role::Infer, None),
            key("trainer", Role::Train, None),
        ];
    });
    for (method, path, allowed) in [
        ("GET", JOBS, 200),
        ("GET", "/v1/files", 200),
        ("DELETE", "/v1/models/nothing", 404),
    ] {
        for (name, status) in [("reader", 403), ("trainer", allowed)] {
            let bearer = format!("Bearer ck-{name}");
            let answer = server.send(method, path, &[("authorization", &bearer)], b"");
            assert_eq!(answer.status, status, "{name} {path}");
        }
    }
}

/// Each has passed as a job once, been served, and ended the server at its first request.
#[test]
fn results_that_no_server_could_hold_are_refused_at_creation() {
    let server = Server::new();
    for (fields, param, told) in [
        (
            json!({"context_length": 1 << 24}),
            "sparse",
            "limits.max_model_mib",
        ),
        (
            json!({"n_heads": 1 << 24, "d_head": 1 << 24}),
            "sparse.n_heads",
            "product",
        ),
        (
            json!({"n_heads": 1 << 12, "d_head": 1 << 12}),
            "sparse",
            "limits.max_model_mib",
        ),
        (
            json!({"n_layers": 1 << 24}),
            "sparse.n_layers",
            "between 1 and 1024",
        ),
        (
            json!({"bigram_table": true, "d_mlp": 1 << 24, "d_model": 1 << 20}),
            "sparse",
            "limits.max_model_mib",
        ),
    ] {
        let mut request = bridge("absurd");
        let sparse = &mut request["method"]["bridge"]["hyperparameters"]["sparse"];
        for (field, value) in fields.as_object().unwrap() {
            sparse[field] = value.clone();
        }
        let answer = server.post(JOBS, &request);
        let param = format!("method.bridge.hyperparameters.{param}");
        answer.is_error(400, Some(&param), None);
        assert!(answer.body.contains(told), "{}", answer.body);
        let estimate = server.post(&format!("{JOBS}/estimate"), &request);
        estimate.is_error(400, Some(&param), None);
    }
    server.post(JOBS, &bridge("plausible")).ok();
}

/// A directory of a pair whose sparse model is a pickled checkpoint.
fn pair_with_a_pickle(directory: &Path) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/circuit_sparsity/plain");
    let sparse = ModelFiles::read(&golden).unwrap();
    let config = TransformerConfig {
        active_fraction: None,
        ..sparse.config.clone()
    };
    let dense = ModelFiles {
        tensors: initialise::model(&config, 1, &Device::Cpu).unwrap(),
        config,
        quantised: Default::default(),
        tokenizer: sparse.tokenizer.clone(),
    };
    let mut stream = 0;
    let draw = |name: &str, shape: &[usize], deviation: f64| {
        stream += 1;
        initialise::tensor(name, shape, deviation, 3, stream, &Device::Cpu)
    };
    let (sites, width) = (sparse.config.n_sites(), sparse.config.d_model);
    let tensors =
        causeway::bridge::initial_tensors(sites, width, width, draw, &Device::Cpu).unwrap();
    let site = json!({"site": "", "dense_rms": 1, "sparse_rms": 1, "encoder_nmse": 1, "decoder_nmse": 1,
        "dense_to_sparse_kl": 1, "sparse_to_dense_kl": 1});
    let record = json!({"id": "mixed", "dense": "mixed", "sparse": "mixed-sparse", "encoder_fraction": 0.25,
        "sites": vec![site; sites]});
    let record = serde_json::from_value(record).unwrap();
    pair::write(directory, (&dense, &sparse), &tensors, &record).unwrap();
    std::fs::remove_dir_all(directory.join("sparse")).unwrap();
    std::fs::create_dir(directory.join("sparse")).unwrap();
    for file in ["beeg_config.json", "final_model.pt", "tokenizer.json"] {
        std::fs::copy(golden.join(file), directory.join("sparse").join(file)).unwrap();
    }
}

/// The pickle is read when the server starts, and after that only by processes of their own.
#[test]
fn a_training_may_begin_with_a_pickled_model() {
    let directory = tempfile::tempdir().unwrap();
    pair_with_a_pickle(directory.path());
    let path = directory.path().to_owned();
    let server = Server::with(move |settings| settings.pairs = vec![path]);
    let mut request = bridge("of-a-pickle");
    request["model"] = json!("mixed");
    let hyperparameters = &mut request["method"]["bridge"]["hyperparameters"];
    hyperparameters["sparse"]["vocab_size"] = json!(96);
    let job = server.post(JOBS, &request).ok();
    assert_eq!(job["status"], "queued");
    // The pair of a start is tried too.
    let checkpoint = directory.path().join("sparse/final_model.pt");
    let hyperparameters = &mut request["method"]["bridge"]["hyperparameters"];
    hyperparameters["start_from"] = json!("mixed");
    request["suffix"] = json!("from-a-start");
    server
        .post(JOBS, &request)
        .is_error(400, Some("method.bridge.hyperparameters.sparse"), None);
    std::fs::write(checkpoint, b"no pickle").unwrap();
    server.post(JOBS, &request).is_error(
        400,
        Some("method.bridge.hyperparameters.start_from"),
        Some("damaged_model"),
    );
}
