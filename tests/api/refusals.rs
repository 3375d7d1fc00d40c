//! What is refused, with which status, and which field is named.

use serde_json::{Value, json};

use crate::client::Server;

fn completion(changes: &Value) -> Value {
    let mut request = json!({"model": "tiny", "prompt": "x = 1", "max_tokens": 2});
    for (name, value) in changes.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

#[test]
fn fields_out_of_range_are_named() {
    let server = Server::new();
    let vector = json!({"site": "1.resid_in", "vector": [1.0]});
    let edit = json!({"feature": vector, "op": "add", "value": 1, "strength": [0, 1]});
    for (changes, param) in [
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": "warm"}), "temperature"),
        (json!({"top_p": 1.5}), "top_p"),
        (json!({"min_p": -1}), "min_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -3}), "frequency_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"n": -1}), "n"),
        (json!({"n": 3, "best_of": 2}), "best_of"),
        (
            json!({"best_of": 2, "steer": {"variants": ["steered", "baseline"]}}),
            "best_of",
        ),
        (json!({"best_of": 2, "steer": {"edits": [edit]}}), "best_of"),
        (json!({"logprobs": 6}), "logprobs"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": 1}), "stop"),
        (json!({"logit_bias": {"7": 101}}), "logit_bias"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"320": 1}}), "logit_bias"),
        (json!({"prompt": [320]}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[1], []]}), "prompt"),
        (json!({"prompt": [1, "a"]}), "prompt"),
        (json!({"prompt": {"text": "a"}}), "prompt"),
        (json!({"seed": 0.5}), "seed"),
        (
            json!({"stream_options": {"include_usage": true}}),
            "stream_options",
        ),
        (
            json!({"steer": {"edits": [{"feature": "a", "op": "pach"}]}}),
            "steer.edits[0].op",
        ),
        (json!({"steer": {}, "steering": {}}), "steering"),
        (json!({"stream": true, "best_of": 2}), "best_of"),
        (json!({"stream": true, "max_tokens": -1}), "max_tokens"),
    ] {
        let answer = server.post("/v1/completions", &completion(&changes));
        assert_eq!(answer.status, 400, "{changes}: {}", answer.body);
        answer.is_error(400, Some(param), None);
    }
}

#[test]
fn what_is_not_supported_says_so() {
    let server = Server::new();
    let ask = |changes: Value| server.post("/v1/completions", &completion(&changes));
    ask(json!({"suffix": "x"})).is_error(400, Some("suffix"), Some("unsupported"));
}

#[test]
fn unknown_fields_are_refused_with_the_nearest_known_one() {
    let server = Server::new();
    let ask = |changes: Value| server.post("/v1/completions", &completion(&changes));
    let answer = ask(json!({"temprature": 1}));
    answer.is_error(400, Some("temprature"), Some("unknown_field"));
    assert!(answer.body.contains("temperature"), "{}", answer.body);
    let answer = ask(json!({"steer": {"edit": []}}));
    answer.is_error(400, Some("steer.edit"), Some("unknown_field"));
    assert!(answer.body.contains("edits"), "{}", answer.body);
}

#[test]
fn bodies_that_are_no_json_of_the_right_kind_are_refused() {
    let server = Server::new();
    let send = |content_type: &str, body: &[u8]| {
        server.send(
            "POST",
            "/v1/completions",
            &[("content-type", content_type)],
            body,
        )
    };
    send("application/json", b"{\"model\": ").is_error(400, None, None);
    send("application/json", b"").is_error(400, None, None);
    send("application/json", b"[]").is_error(400, None, None);
    send("application/json; charset=utf-8", b"\xff").is_error(400, None, None);
    send("application/json", b"{}").is_error(400, Some("model"), Some("missing_field"));
    send(
        "application/json",
        b"{\"model\": \"tiny\", \"temperature\": 1e999}",
    )
    .is_error(400, Some("temperature"), None);
    send("application/json", b"{\"model\": \"tiny\", \"n\": NaN}").is_error(400, Some("n"), None);
    send("text/plain", b"{}").is_error(415, None, Some("unsupported_media_type"));
    let deep = format!(
        "{{\"model\": \"tiny\", \"stream_options\": {}{}}}",
        "[".repeat(9999),
        "]".repeat(9999)
    );
    assert_eq!(send("application/json", deep.as_bytes()).status, 400);
}

#[test]
fn budgets_hold_before_anything_is_made() {
    let server = Server::with(|settings| {
        settings.limits.max_body_bytes = 20_000;
        settings.limits.max_prompts = 3;
        settings.limits.max_prompt_characters = 1000;
        settings.limits.max_choices = 8;
        settings.limits.max_generated_tokens = 100;
        settings.limits.max_activation_values = 5000;
    });
    let ask = |changes: Value| server.post("/v1/completions", &completion(&changes));
    ask(json!({"prompt": ["a", "b", "c", "d"]})).is_error(400, Some("prompt"), None);
    ask(json!({"prompt": "a".repeat(1001)})).is_error(400, Some("prompt"), Some("prompt_too_long"));
    ask(json!({"prompt": "ab ".repeat(300)})).is_error(
        400,
        Some("prompt"),
        Some("context_length_exceeded"),
    );
    ask(json!({"prompt": "a".repeat(20_000)})).is_error(413, None, Some("body_too_large"));
    ask(json!({"prompt": ["a", "b", "c"], "n": 3})).is_error(400, Some("n"), Some("over_budget"));
    ask(json!({"max_tokens": 101})).is_error(400, Some("max_tokens"), Some("over_budget"));
    ask(json!({"max_tokens": u64::MAX, "n": 8})).is_error(
        400,
        Some("max_tokens"),
        Some("over_budget"),
    );
    let sweep: Vec<f64> = (0..9).map(f64::from).collect();
    let edit = json!({"feature": "shipped_feature", "op": "add", "value": 1, "strength": sweep});
    ask(json!({"steer": {"edits": [edit]}})).is_error(400, Some("n"), Some("over_budget"));
    let long = json!({"prompt": "a".repeat(1001)});
    let edit = json!({"feature": "shipped_feature", "op": "patch", "to": long});
    ask(json!({"steer": {"edits": [edit]}})).is_error(
        400,
        Some("steer.edits"),
        Some("over_budget"),
    );
    let all =
        json!({"model": "tiny", "prompt": "x = 1\n", "nodes": ["0.mlp.post_act"], "logits": true});
    let prompt = "x = 1\n".repeat(5);
    let many =
        json!({"model": "tiny", "prompt": prompt, "nodes": ["0.mlp.post_act"], "logits": true});
    assert_eq!(server.post("/v1/activations", &all).status, 200);
    server
        .post("/v1/activations", &many)
        .is_error(400, Some("nodes"), None);
    // The server is as well as before.
    assert_eq!(ask(json!({})).status, 200);
}

#[test]
fn names_that_nothing_has_are_refused_with_the_nearest() {
    let server = Server::new();
    let answer = server.post("/v1/completions", &completion(&json!({"model": "tinyy"})));
    answer.is_error(404, Some("model"), Some("model_not_found"));
    assert!(
        answer.body.contains("the nearest is \\\"tiny\\\""),
        "{}",
        answer.body
    );
    server
        .get("/v1/models/../tiny")
        .is_error(404, None, Some("no_such_address"));
    server
        .get("/v1/models/..%2f..%2fetc")
        .is_error(404, Some("model"), Some("model_not_found"));
    server
        .get("/v1/bridges/nothing")
        .is_error(404, None, Some("bridge_not_found"));
}

#[test]
fn addresses_and_methods_that_do_not_exist_have_the_same_error_shape() {
    let server = Server::new();
    server
        .get("/v1/nothing")
        .is_error(404, None, Some("no_such_address"));
    let answer = server.get("/v1/completions");
    answer.is_error(405, None, Some("method_not_allowed"));
    assert_eq!(answer.headers["allow"], "POST");
    let answer = server.delete("/v1/features");
    answer.is_error(405, None, Some("method_not_allowed"));
    assert_eq!(answer.headers["allow"], "GET, POST");
}

#[test]
fn another_host_s_name_is_refused() {
    let server = Server::new();
    let host = |host: &str| server.send("GET", "/v1/models", &[("host", host)], b"");
    host("evil.example:8080").is_error(403, None, Some("foreign_host"));
    host("127.0.0.1.evil.example").is_error(403, None, Some("foreign_host"));
    for name in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080"] {
        assert_eq!(host(name).status, 200, "{name}");
    }
}
