//! What a preset answers with: wherever a model is named, just what the same `steer` field in the body would give.

use std::thread;

use serde_json::{Value, json};

use crate::client::Server;
use crate::presets::{ask, loud, made, message, odd, with};

/// A server whose models take conversations too.
fn talking() -> Server {
    Server::with(|settings| {
        let template = settings.pairs[0].join("dense/chat_template.jinja");
        std::fs::write(template, "{{ messages[0].content }}").unwrap();
    })
}

#[test]
fn an_answer_is_that_of_the_same_steer_in_the_body() {
    let server = Server::new();
    let plain = ask(&server, json!({})).ok();
    let both = json!(["x = 1", "def f(a, b):\n"]);
    for (id, steer) in [("loud", loud()), ("odd", odd())] {
        made(&server, id, &steer);
        let name = format!("tiny@{id}");
        for changes in [
            json!({}),
            json!({"prompt": both, "n": 2, "temperature": 0.9}),
            json!({"prompt": [[1, 2, 3], [4, 5]], "echo": true, "max_tokens": 0}),
            json!({"n": 1, "best_of": 3}),
        ] {
            let body = ask(&server, with(changes.clone(), json!({"steer": steer}))).ok();
            let preset = ask(&server, with(changes.clone(), json!({"model": name}))).ok();
            assert_eq!(preset["choices"], body["choices"], "{id} {changes}");
            assert_eq!(preset["usage"], body["usage"]);
            assert_eq!(
                (&preset["model"], &body["model"]),
                (&json!(name), &json!("tiny"))
            );
        }
        let preset = ask(&server, json!({"model": name})).ok();
        assert_ne!(preset["choices"], plain["choices"]);
        assert_ne!(preset["system_fingerprint"], plain["system_fingerprint"]);
    }
    let fingerprint = |id: &str| {
        let answer = ask(&server, json!({"model": format!("tiny@{id}")})).ok();
        answer["system_fingerprint"].clone()
    };
    let before = fingerprint("loud");
    assert_ne!(before, fingerprint("odd"));
    server.delete("/v1/presets/tiny@loud").ok();
    made(&server, "loud", &odd());
    assert_ne!(fingerprint("loud"), before, "it is another preset now");
}

#[test]
fn it_is_a_model_at_every_address() {
    let server = talking();
    made(&server, "loud", &loud());
    let compare = |address: &str, request: Value| {
        let steered = with(request.clone(), json!({"steer": loud()}));
        let body = server.post(address, &steered).ok();
        let preset = with(request.clone(), json!({"model": "tiny@loud"}));
        (
            server.post(address, &preset).ok(),
            body,
            server.post(address, &request).ok(),
        )
    };
    let messages = json!([{"role": "user", "content": "x = 1"}]);
    let chat = json!({"model": "tiny", "messages": messages, "max_tokens": 8, "seed": 3});
    let (preset, body, plain) = compare("/v1/chat/completions", chat);
    assert_eq!(
        (&preset["choices"], &preset["model"]),
        (&body["choices"], &json!("tiny@loud"))
    );
    assert_ne!(preset["choices"], plain["choices"]);

    let activations = json!({"model": "tiny", "prompt": ["x = 1", "y"], "nodes": ["final_resid"],
        "features": ["shipped_feature"], "logits": true});
    let (preset, body, plain) = compare("/v1/activations", activations);
    assert_eq!(preset["model"], "tiny@loud");
    for (one, other) in preset["data"]
        .as_array()
        .unwrap()
        .iter()
        .zip(body["data"].as_array().unwrap())
    {
        assert_eq!(one["model"], "tiny@loud");
        for values in ["tokens", "nodes", "features", "logits"] {
            assert_eq!(one[values], other[values], "{values}");
        }
    }
    assert_ne!(preset["data"][0]["nodes"], plain["data"][0]["nodes"]);

    for (address, request) in [
        ("/v1/tokenize", json!({"prompt": "x = 1"})),
        ("/tokenize", json!({"messages": messages})),
        ("/v1/detokenize", json!({"tokens": [5, 6, 7]})),
        ("/detokenize", json!({"tokens": [5, 6, 7]})),
    ] {
        let of = |model: &str| {
            server
                .post(address, &with(request.clone(), json!({"model": model})))
                .ok()
        };
        assert_eq!(of("tiny@loud"), of("tiny"), "{address}");
    }
}

#[test]
fn a_stream_names_it_and_says_the_same() {
    let server = Server::new();
    made(
        &server,
        "loud",
        &with(loud(), json!({"return": ["receipt"]})),
    );
    let whole = ask(&server, json!({"model": "tiny@loud", "n": 2})).ok();
    let streamed = ask(
        &server,
        json!({"model": "tiny@loud", "n": 2, "stream": true}),
    );
    let (mut texts, mut receipts) = ([String::new(), String::new()], [Value::Null, Value::Null]);
    for event in streamed.events() {
        assert_eq!(event["model"], "tiny@loud");
        assert_eq!(event["system_fingerprint"], whole["system_fingerprint"]);
        for choice in event["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            texts[index] += choice["text"].as_str().unwrap();
            if !choice["receipt"].is_null() {
                receipts[index] = choice["receipt"].clone();
            }
        }
    }
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["text"], texts[index]);
        assert_eq!(choice["receipt"], receipts[index]);
        assert!(choice["receipt"]["edits"][0]["tokens_touched"].as_u64() > Some(0));
    }
    let refused = ask(
        &server,
        json!({"model": "tiny@loud", "stream": true, "steer": loud()}),
    );
    refused.is_error(400, Some("steer.edits"), None);
}

#[test]
fn a_request_s_own_steer_may_say_what_to_return_and_nothing_else() {
    let server = Server::new();
    made(&server, "loud", &loud());
    made(
        &server,
        "told",
        &with(loud(), json!({"return": ["receipt"]})),
    );
    made(
        &server,
        "control",
        &with(loud(), json!({"variants": ["random"]})),
    );
    let choice = |changes: Value| ask(&server, changes).ok()["choices"][0].clone();
    let told = choice(json!({"model": "tiny@told"}));
    assert!(
        told["receipt"].is_object() && told.get("activations").is_none(),
        "{told}"
    );
    for returns in [json!(["activations"]), json!(["receipt", "activations"])] {
        let more = choice(json!({"model": "tiny@told", "steer": {"return": returns}}));
        assert_eq!(
            (&more["text"], &more["receipt"]),
            (&told["text"], &told["receipt"])
        );
        assert!(more["activations"].is_array(), "{more}");
    }
    let asked =
        choice(json!({"model": "tiny@loud", "steering": {"edits": [], "return": ["receipt"]}}));
    assert_eq!(asked, told);
    for (steer, param) in [
        (loud(), "steer.edits"),
        (json!({"bridge": "tiny"}), "steer.bridge"),
        (
            json!({"variants": ["steered"], "return": ["receipt"]}),
            "steer.variants",
        ),
    ] {
        let refused = ask(&server, json!({"model": "tiny@loud", "steer": steer}));
        refused.is_error(400, Some(param), None);
        let message = message(&refused);
        assert!(
            message.contains("\"tiny@loud\"") && message.contains("\"tiny\""),
            "{message}"
        );
    }
    // A control arm is a choice like any other, and says what it is.
    let control = choice(json!({"model": "tiny@control"}));
    let body = with(loud(), json!({"variants": ["random"]}));
    assert_eq!(control, choice(json!({"steer": body})));
    assert_eq!(control["variant"], "random");
    // Activations have no text beside which anything could be returned.
    let values = |model: &str, steer: Option<Value>| {
        let mut request = json!({"model": model, "prompt": "x = 1", "nodes": ["final_resid"]});
        if let Some(steer) = steer {
            request["steer"] = steer;
        }
        server.post("/v1/activations", &request)
    };
    assert_eq!(
        values("tiny@told", None).ok()["nodes"],
        values("tiny", Some(loud())).ok()["nodes"]
    );
    values("tiny@told", Some(json!({"return": ["receipt"]}))).is_error(
        400,
        Some("steer.return"),
        None,
    );
    values("tiny@told", Some(loud())).is_error(400, Some("steer.edits"), None);
}

#[test]
fn what_the_prompts_decide_is_found_out_with_them() {
    let server = Server::new();
    let channel = json!({"node": "1.resid_mid", "channel": 4});
    let edit = |edit: Value| json!({"edits": [edit]});
    let late = edit(json!({"feature": channel, "op": "add", "value": 9.0, "at": {"prompt": [12]}}));
    let named = edit(json!({"feature": channel, "op": "add", "value": 9.0, "at": {"text": "zz"}}));
    let patch = edit(json!({"feature": channel, "op": "patch", "to": {"prompt": "x = 2"}}));
    for (id, steer, param, fits) in [
        (
            "late",
            late,
            "steer.edits[0].at.prompt[0]",
            "def f(a, b):\n    return a + b\n\nclass A:\n    x = 1\n",
        ),
        ("named", named, "steer.edits[0].at.text", "zz = 1"),
        ("patch", patch, "steer.edits[0].to.prompt", "x = 1"),
    ] {
        made(&server, id, &steer);
        let name = format!("tiny@{id}");
        let body = ask(&server, json!({"prompt": "x", "steer": steer}));
        let refused = ask(&server, json!({"model": name, "prompt": "x"}));
        body.is_error(400, Some(param), None);
        refused.is_error(400, Some(param), None);
        assert_eq!(
            message(&refused),
            format!("preset {name:?}: {}", message(&body))
        );
        ask(&server, json!({"model": name, "prompt": fits})).ok();
    }
    // An empty field is a field, and changes nothing.
    made(&server, "nothing", &json!({"edits": []}));
    assert_eq!(
        ask(&server, json!({"model": "tiny@nothing"})).ok()["choices"],
        ask(&server, json!({})).ok()["choices"]
    );
}

#[test]
fn one_whose_feature_has_gone_is_refused_like_a_request_with_it() {
    let server = Server::new();
    let feature =
        json!({"name": "mine", "node": "1.attn.act_in", "channels": [{"channel": 3, "weight": 1}]});
    server.post("/v1/features", &feature).status_is(201);
    let steer = json!({"edits": [{"feature": "mine", "op": "set", "value": 20.0}]});
    made(&server, "mine", &steer);
    ask(&server, json!({"model": "tiny@mine"})).ok();
    server.delete("/v1/features/mine").ok();
    let body = ask(&server, json!({"steer": steer}));
    for stream in [false, true] {
        let refused = ask(&server, json!({"model": "tiny@mine", "stream": stream}));
        refused.is_error(400, Some("steer.edits[0].feature"), None);
        assert_eq!(
            message(&refused),
            format!("preset \"tiny@mine\": {}", message(&body))
        );
    }
    let values = json!({"model": "tiny@mine", "prompt": "x", "logits": true});
    let refused = server.post("/v1/activations", &values);
    refused.is_error(400, Some("steer.edits[0].feature"), None);
    assert!(message(&refused).contains("tiny@mine"), "{}", refused.body);
    assert_eq!(server.get("/v1/presets/tiny@mine").ok()["steer"], steer);
    server.post("/v1/features", &feature).status_is(201);
    ask(&server, json!({"model": "tiny@mine"})).ok();
}

#[test]
fn presets_of_one_model_run_together_and_are_counted_as_steered() {
    let server = Server::new();
    made(&server, "loud", &loud());
    made(&server, "odd", &odd());
    let request = |name: &str, seed: usize| json!({"model": name, "seed": seed, "max_tokens": 24});
    let asked: Vec<Value> = (0..12)
        .map(|index| request(["tiny", "tiny@loud", "tiny@odd"][index % 3], index))
        .collect();
    let alone: Vec<Value> = asked
        .iter()
        .map(|one| ask(&server, one.clone()).ok()["choices"].clone())
        .collect();
    let together: Vec<Value> = thread::scope(|scope| {
        let threads: Vec<_> = asked
            .iter()
            .map(|one| scope.spawn(|| ask(&server, one.clone()).ok()["choices"].clone()))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(together, alone);
    assert_eq!(
        server.metric("causeway_steered_requests_total{bridge=\"tiny\"}"),
        16.0
    );
}
