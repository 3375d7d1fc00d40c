//! Results of jobs: they are listed at once and their weights come when somebody asks, go when nobody does or when
//! others need their room, and never take more than their memory.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::MOST_ABOVE_IDLE;
use crate::server::Server;

/// A bridge to a sparse model of 59 MB, trained for a step.
fn job(suffix: &str) -> Value {
    let sparse = json!({
        "n_layers": 4, "d_model": 512, "n_heads": 8, "d_head": 64, "d_mlp": 2048, "vocab_size": 2048,
        "context_length": 64, "norm": "rms", "bias": true, "activation": "gelu", "positions": "added",
    });
    json!({"model": "tinypython", "suffix": suffix, "method": {"type": "bridge", "bridge": {"hyperparameters": {
        "sparse": sparse,
        "generated": {"documents": 50, "seed": 1},
        "batches": {"steps": 1, "sequences": 2, "length": 16, "seed": 3},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
        "bridge_learning_rate": 1e-3,
        "sparsity": {"kept_fraction": 0.9},
        "terms": {"cross_entropy": 1, "distillation": 1, "encoder": 1, "decoder": 1, "dense_to_sparse": 1,
            "sparse_to_dense": 1},
        "watch": {"checkpoint_every": 1, "evaluate_every": 1, "evaluation_sequences": 1}
    }}}})
}

fn in_memory(server: &Server, model: &str) -> Option<bool> {
    let (status, body) = server.get(&format!("/v1/models/{model}"));
    let described: Value = serde_json::from_str(&body).ok()?;
    (status == 200).then(|| described["in_memory"] == true)
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(300), "{what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn answers(server: &Server, model: &str, steer: Value) {
    let body = json!({"model": model, "prompt": "x = 1\n", "max_tokens": 4, "steer": steer});
    let (status, answer) = server.post("/v1/completions", &body);
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn results_come_when_they_are_asked_for_and_go_when_nobody_asks() {
    let server = Server::start(&[
        ("CAUSEWAY_JOBS__WORKERS", "1"),
        ("CAUSEWAY_LIMITS__MAX_WEIGHTS_MIB", "100"),
        ("CAUSEWAY_LIMITS__WEIGHTS_IDLE_SECONDS", "10"),
    ]);
    let edit = json!({"feature": {"node": "1.mlp.act_in", "channel": 3}, "op": "add", "value": 2});
    let above = server.peak_above_idle(|| {
        for suffix in ["one", "two"] {
            let (status, job) = server.post("/v1/fine_tuning/jobs", &job(suffix));
            assert_eq!(status, 200, "{job}");
        }
        for model in ["one", "two"] {
            wait_until("it is listed", || in_memory(&server, model).is_some());
            assert_eq!(in_memory(&server, model), Some(false), "nobody has asked");
        }
        // Both cannot be there: the first makes room for the second.
        for model in ["one", "two", "one"] {
            answers(&server, model, json!({"edits": [edit]}));
            assert_eq!(in_memory(&server, model), Some(true));
            answers(&server, &format!("{model}-sparse"), Value::Null);
        }
        assert_eq!(in_memory(&server, "two"), Some(false), "no room for both");
        wait_until("it is dropped", || in_memory(&server, "one") == Some(false));
        answers(&server, "one", json!({"edits": [edit]}));
    });
    assert_eq!(in_memory(&server, "tinypython"), Some(true));
    assert!(above <= MOST_ABOVE_IDLE, "{above} bytes");
}
