//! Bodies that were valid before they were spoilt: whatever is sent, the server answers it, or says what is wrong
//! with it, and is as well as before.
//!
//! A few thousand bodies unless `CAUSEWAY_MUTATIONS` says how many. `CAUSEWAY_MUTATIONS_SEED` chooses others; the
//! seed and the smallest body that does harm are part of a failure's message.
//! `CAUSEWAY_MUTATIONS=100000 cargo test --release --test api mutations`

use std::cell::RefCell;

use proptest::collection::vec;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use serde_json::{Value, json};

use crate::client::{Connection, Response, Server};
use crate::damage::{Damage, damage, damaged};

const MUTATIONS: u32 = 3000;
const SEED: u64 = 1;
/// Changes of one body.
const MOST_CHANGES: usize = 4;

fn from_environment<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}, which is no number")),
        Err(_) => default,
    }
}

/// A request that is answered as it stands.
struct Valid {
    method: &'static str,
    path: &'static str,
    body: Value,
}

/// Requests to every address that takes a body; most of them complete something, in all ways there are.
fn valid() -> Vec<Valid> {
    let channel = json!({"node": "1.resid_mid", "channel": 4});
    let input = json!({"node": "1.attn.act_in", "channel": 7});
    let group = json!({"node": "0.mlp.post_act", "channels": [{"channel": 1, "weight": 0.6},
                                                             {"channel": 5, "weight": -0.8}]});
    let vector = json!({"site": "1.resid_in", "vector": vec![0.25; 16]});
    let edits = [
        json!({"feature": "shipped_feature", "op": "add", "value": 2.0, "strength": [0.5, 1.0], "unit": "std"}),
        json!({"feature": channel, "op": "set", "value": 1.5, "read": "sparse",
               "at": {"prompt": [0, -1, [1, 3]], "generation": [0]}}),
        json!({"feature": channel, "op": "clamp", "min": -0.5, "max": 0.5, "read": "encoder"}),
        json!({"feature": input, "op": "scale", "value": 3.0, "write": "sublayer",
               "when": {"any": [{"feature": channel, "gt": -1.0}, {"feature": "shipped_feature", "lt": 0.5}]}}),
        json!({"feature": input, "op": "ablate", "to": "zero", "write": "residual"}),
        json!({"feature": "shipped_feature", "op": "ablate"}),
        json!({"feature": group, "op": "patch", "to": {"prompt": "y = 22", "align": "end"}, "strength": 2.0}),
        json!({"feature": channel, "op": "patch", "to": {"value": 0.75}}),
        json!({"feature": input, "op": "swap", "with": 9}),
        json!({"feature": vector, "op": "add", "value": 1.0, "unit": "residual",
               "at": {"prompt": "none", "generation": [[null, 2]]}}),
    ];
    let completion = |more: Value| {
        let mut body = json!({"model": "tiny", "prompt": "x = 1", "max_tokens": 3, "seed": 3});
        for (field, value) in more.as_object().unwrap() {
            body[field] = value.clone();
        }
        Valid {
            method: "POST",
            path: "/v1/completions",
            body,
        }
    };
    let mut valid = vec![
        completion(json!({})),
        completion(json!({
            "prompt": ["def f(x):", "h\u{e9}llo"], "n": 2, "best_of": 3, "stop": ["\n", "::"], "temperature": 1.2,
            "top_p": 0.9, "top_k": 40, "min_p": 0.01, "logit_bias": {"7": -3}, "presence_penalty": 0.5,
            "frequency_penalty": -0.5, "repetition_penalty": 1.1, "user": "me", "cache_salt": "salt"
        })),
        completion(
            json!({"prompt": [[1, 2, 3], [4, 5]], "echo": true, "logprobs": 2, "max_tokens": 0}),
        ),
        completion(
            json!({"stream": true, "stream_options": {"include_usage": true}, "n": 2, "stop": "e"}),
        ),
    ];
    for edit in edits {
        valid.push(completion(
            json!({"steer": {"edits": [edit], "return": ["receipt"]}}),
        ));
        valid.push(completion(
            json!({"stream": true, "steering": {"bridge": "tiny", "edits": [edit],
            "variants": ["steered", "baseline", "random"], "return": ["receipt", "activations"]}}),
        ));
    }
    let native = json!({"feature": input, "op": "set", "value": 2.0});
    valid.push(completion(
        json!({"model": "tiny-sparse", "steer": {"edits": [native]}}),
    ));
    let test = json!({"prompt": "x = 1", "counterfactual": "x = 2", "expected": "\n", "instead": ":",
                      "at_least": 0.0, "at_most_before": 1.0});
    let pair =
        json!({"prompt": "x = 1", "counterfactual": "x = 2", "expected": "\n", "instead": ":"});
    let task = json!({
        "id": "made", "description": "Made to be spoilt", "pairs": (0..20).map(crate::tasks::pair).collect::<Vec<_>>()
    });
    let others = [
        (
            "POST",
            "/v1/features",
            json!({
                "name": "made", "description": "Made to be spoilt", "node": "0.mlp.act_in", "bridge": "tiny",
                "channels": [{"channel": 1, "weight": 3.0}, {"channel": 2, "weight": -4.0}], "write": "sublayer",
                "tasks": ["with_open"], "tests": [test]
            }),
        ),
        (
            "PATCH",
            "/v1/features/shipped_feature",
            json!({
                "description": "Changed", "write": "residual", "tasks": ["single_double_quote"], "tests": [test]
            }),
        ),
        (
            "POST",
            "/v1/features/contrast",
            json!({
                "bridge": "tiny", "pairs": [pair], "nodes": ["1.attn.act_in", "1.resid_mid"], "max_channels": 2,
                "target": 0.5, "limit": 1, "write": "residual"
            }),
        ),
        (
            "POST",
            "/v1/features",
            json!({
                "name": "made", "description": "Made to be spoilt", "model": "tiny", "texts": ["x = 1", "y = 2"],
                "directions": [{"site": "1.resid_in", "vector": vec![0.5; 16]},
                               {"site": "final_resid", "vector": vec![-0.25; 16]}]
            }),
        ),
        (
            "POST",
            "/v1/features/direction",
            json!({
                "model": "tiny", "positive": ["x = 1", [1, 2, 3]], "negative": ["y = 2", [4, 5]],
                "held_out": {"positive": ["x = 3"], "negative": [[7]]}, "sites": ["1.resid_in", "0.resid_mid"],
                "method": "pca", "positions": "all", "answers": {"positive": "\n", "negative": 9}, "strengths": [0.5],
                "seed": 3
            }),
        ),
        (
            "POST",
            "/v1/features/direction",
            json!({
                "model": "tiny", "positive": [{"prompt": "x", "answer": " = 1"}, {"prompt": [1], "answer": [2, 3]}],
                "negative": [{"prompt": "x", "answer": " = 2"}, {"prompt": [1], "answer": [4]}],
                "sites": ["final_resid"], "strengths": [-0.5]
            }),
        ),
        ("POST", "/v1/features/shipped_feature/verify", json!({})),
        (
            "POST",
            "/v1/presets",
            json!({
                "id": "made", "model": "tiny", "description": "Made to be spoilt",
                "steer": {"bridge": "tiny", "return": ["receipt"], "edits": [
                    {"feature": channel, "op": "set", "value": 1.5, "at": {"prompt": [0, -1, [1, 3], {"text": "x"}]}},
                    {"feature": group, "op": "patch", "to": {"prompt": "y = 22", "align": "end"}, "strength": 2.0}
                ]}
            }),
        ),
        ("POST", "/v1/tasks", task),
        (
            "POST",
            "/v1/activations",
            json!({
                "model": "tiny-sparse", "prompt": "x = 1", "nodes": ["0.attn.act_in", "final_resid"], "top_k": 3,
                "logits": true
            }),
        ),
        (
            "POST",
            "/v1/activations",
            json!({
                "model": "tiny", "prompt": [1, 2, 3], "nodes": ["1.mlp.post_act"], "channels": [3, 1]
            }),
        ),
    ];
    valid.extend(others.map(|(method, path, body)| Valid { method, path, body }));
    valid
}

/// What is wrong with an answer to a body that may be anything.
fn harm(answer: &Response) -> Option<String> {
    let said = |what: &str| Some(format!("{what}: {} {}", answer.status, answer.body));
    match answer.status {
        200 | 201 if answer.headers["content-type"] == "text/event-stream" => {
            let whole = answer.body.ends_with("data: [DONE]\n\n");
            // Of a request that turned out to be wrong after some steps a stream may tell, of anything else not.
            match whole && !answer.body.contains("\"type\":\"server_error\"") {
                true => None,
                false => said("a stream that does not end well"),
            }
        }
        200 | 201 => match serde_json::from_str::<Value>(&answer.body) {
            Ok(_) => None,
            Err(_) => said("an answer that is no JSON"),
        },
        400 | 404 | 413 => answer.error_problem().and_then(|problem| said(&problem)),
        _ => said("an answer that it should not have"),
    }
}

#[test]
fn spoilt_bodies_do_no_harm() {
    let server = Server::with(|settings| {
        settings.limits.max_body_bytes = 1 << 18;
        settings.limits.max_choices = 32;
        settings.limits.max_generated_tokens = 512;
    });
    let normal = json!({"model": "tiny", "prompt": "x = 1", "max_tokens": 8, "seed": 3});
    let choices = || server.post("/v1/completions", &normal).ok()["choices"].clone();
    let before = choices();
    let requests = valid();
    let connection = RefCell::new(Connection::new(&server));
    let send = |request: &Valid, body: &[u8]| {
        let answer = connection
            .borrow_mut()
            .send(request.method, request.path, body);
        // So that the name is free again, and no list grows.
        if answer.status == 201 {
            let made = answer.json();
            let (folder, name) = match made["object"].as_str().unwrap() {
                "preset" => ("presets", &made["name"]),
                "task" => ("tasks", &made["id"]),
                _ => ("features", &made["id"]),
            };
            let name = name.as_str().unwrap();
            server.delete(&format!("/v1/{folder}/{name}")).ok();
        }
        answer
    };
    for request in &requests {
        let body = request.body.to_string();
        let answer = send(request, body.as_bytes());
        assert!(
            answer.status < 300,
            "{} {body}: {}",
            request.path,
            answer.body
        );
        assert_eq!(harm(&answer), None, "{} {body}", request.path);
    }

    let seed = from_environment("CAUSEWAY_MUTATIONS_SEED", SEED);
    let mut runner = TestRunner::new(Config {
        cases: from_environment("CAUSEWAY_MUTATIONS", MUTATIONS),
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    });
    let cases = (0..requests.len(), vec(damage(), 1..=MOST_CHANGES));
    let found = runner.run(&cases, |(index, damages): (usize, Vec<Damage>)| {
        let request = &requests[index];
        match harm(&send(request, &damaged(&request.body, &damages))) {
            None => Ok(()),
            Some(harm) => Err(TestCaseError::fail(harm)),
        }
    });
    if let Err(TestError::Fail(harm, (index, damages))) = &found {
        let Valid { method, path, body } = &requests[*index];
        let body = damaged(body, damages);
        let body = String::from_utf8_lossy(&body);
        panic!("seed {seed}: {method} {path} with {body}\n{harm}");
    }
    found.unwrap();

    assert_eq!(server.get("/readyz").status, 200);
    server.wait_until_idle();
    assert_eq!(choices(), before);
    let metrics = server.get("/metrics").body;
    assert!(!metrics.contains("outcome=\"failed\""), "{metrics}");
}
