//! The `steer` field over HTTP: arms come back as choices, what cannot be applied is refused, and what callers
//! name is steerable at once.

use serde_json::{Value, json};

use crate::client::{Response, Server};

fn ask(server: &Server, changes: Value) -> Response {
    let mut request = json!({"model": "tiny", "prompt": "x = 1", "max_tokens": 6, "seed": 3});
    for (name, value) in changes.as_object().unwrap() {
        request[name] = value.clone();
    }
    server.post("/v1/completions", &request)
}

fn add(feature: Value, strength: Value) -> Value {
    json!({"feature": feature, "op": "add", "value": 50, "strength": strength})
}

fn texts(answer: &Value) -> Vec<&str> {
    answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["text"].as_str().unwrap())
        .collect()
}

#[test]
fn arms_are_choices_in_the_order_asked_for() {
    let server = Server::new();
    let steer = json!({
        "edits": [add(json!("shipped_feature"), json!([0, 1]))],
        "variants": ["baseline", "steered", "random"], "return": ["receipt", "activations"],
    });
    let answer = ask(&server, json!({"steer": steer, "n": 2})).ok();
    let choices = answer["choices"].as_array().unwrap();
    let arms: Vec<Value> = choices
        .iter()
        .map(|choice| json!([choice["variant"], choice.get("strength")]))
        .collect();
    let sample = [
        json!(["baseline", null]),
        json!(["steered", 0.0]),
        json!(["steered", 1.0]),
        json!(["random", 0.0]),
        json!(["random", 1.0]),
    ];
    assert_eq!(arms, [sample.clone(), sample].concat());
    assert_eq!(
        choices[0]["text"], choices[1]["text"],
        "a strength of 0 changes nothing"
    );
    assert_ne!(choices[1]["text"], choices[2]["text"], "a large one does");
    assert!(
        choices[2]["receipt"].is_object() && choices[2]["activations"].is_array(),
        "{}",
        choices[2]
    );
    assert!(choices[2]["receipt"]["edits"][0]["tokens_touched"].as_u64() > Some(0));
}

#[test]
fn no_edits_change_nothing() {
    let server = Server::new();
    let plain = ask(&server, json!({})).ok();
    let empty = ask(&server, json!({"steer": {"edits": []}})).ok();
    assert_eq!(
        (texts(&empty), &empty["usage"]),
        (texts(&plain), &plain["usage"])
    );
    assert!(empty["choices"][0].get("variant").is_none());
    let one = json!({"edits": [add(json!("shipped_feature"), json!(1))]});
    let steered = ask(&server, json!({"steer": one})).ok();
    assert_ne!(texts(&steered), texts(&plain));
    assert_eq!(
        texts(&ask(&server, json!({"steering": one})).ok()),
        texts(&steered)
    );
    assert_ne!(
        steered["system_fingerprint"], plain["system_fingerprint"],
        "the bridge is part of it"
    );
    let native = json!({"model": "tiny-sparse", "steer": one});
    assert_eq!(ask(&server, native).status, 200);
    let metrics = server.get("/metrics").body;
    assert!(
        metrics.contains("causeway_steered_requests_total{bridge=\"tiny\"} 3"),
        "{metrics}"
    );
}

#[test]
fn what_cannot_be_steered_is_refused_and_named() {
    let server = Server::new();
    let steer = |steer: Value| ask(&server, json!({ "steer": steer }));
    let edit = |edit: Value| steer(json!({"edits": [edit]}));
    let answer = edit(add(json!("shiped_feature"), json!(1)));
    assert_eq!(
        (answer.status, &answer.json()["error"]["param"]),
        (400, &json!("steer.edits[0].feature"))
    );
    assert!(answer.body.contains("shipped_feature"), "{}", answer.body);
    let answer =
        steer(json!({"bridge": "tinny", "edits": [add(json!("shipped_feature"), json!(1))]}));
    assert_eq!(
        (answer.status, &answer.json()["error"]["param"]),
        (400, &json!("steer.bridge"))
    );
    for wrong in [
        add(json!("shipped_feature"), json!(11)),
        json!({"feature": "shipped_feature", "op": "set"}),
        json!({"feature": {"node": "7.attn.act_in", "channel": 1}, "op": "ablate"}),
        json!({"feature": {"node": "1.attn.act_in", "channel": 99}, "op": "ablate"}),
        json!({"feature": {"site": "1.resid_in", "vector": [1.0]}, "op": "add", "value": 1}),
    ] {
        let answer = edit(wrong.clone());
        assert_eq!(answer.status, 400, "{wrong}: {}", answer.body);
        let param = answer.json()["error"]["param"]
            .as_str()
            .unwrap_or("")
            .to_owned();
        assert!(
            param.starts_with("steer.edits[0]"),
            "{wrong}: {}",
            answer.body
        );
    }
}

#[test]
fn what_callers_name_can_be_steered_at_once() {
    let server = Server::new();
    let steered = |server: &Server| {
        ask(
            server,
            json!({"steer": {"edits": [add(json!("mine"), json!(1))]}}),
        )
    };
    assert_eq!(steered(&server).status, 400);
    let mine =
        json!({"name": "mine", "node": "1.attn.act_in", "channels": [{"channel": 3, "weight": 2}]});
    assert_eq!(server.post("/v1/features", &mine).status, 201);
    let first = steered(&server).ok();
    let server = server.restarted();
    assert_eq!(texts(&steered(&server).ok()), texts(&first));
    server.delete("/v1/features/mine").ok();
    assert_eq!(steered(&server).status, 400);
}

/// What an unnamed group's units are is what the same group has as statistics once it is named.
#[test]
fn units_of_unnamed_groups_are_measured_on_the_reference_text() {
    let server = Server::new();
    let channels = json!([{"channel": 1, "weight": 3.0}, {"channel": 2, "weight": -4.0}]);
    let named = json!({"name": "own", "node": "0.mlp.post_act", "channels": channels});
    let made = server.post("/v1/features", &named);
    assert_eq!(made.status, 201, "{}", made.body);
    let group = json!({"node": "0.mlp.post_act", "channels": channels});
    let logprobs = |edit: Value| {
        let steer = json!({"edits": [edit]});
        let changes = json!({"steer": steer, "logprobs": 5, "max_tokens": 1});
        ask(&server, changes).ok()["choices"][0]["logprobs"]["top_logprobs"][0].clone()
    };
    for unit in ["std", "max"] {
        let statistic = made.json()["stats"][unit].as_f64().unwrap();
        assert!(statistic > 0.0 && statistic != 1.0, "{unit} {statistic}");
        let by_unit = logprobs(json!({"feature": group, "op": "add", "value": 4, "unit": unit}));
        let raw = logprobs(json!({"feature": group, "op": "add", "value": 4.0 * statistic}));
        let (by_unit, raw) = (by_unit.as_object().unwrap(), raw.as_object().unwrap());
        for (token, logprob) in by_unit {
            let apart = logprob.as_f64().unwrap() - raw[token].as_f64().unwrap();
            assert!(apart.abs() < 1e-4, "{unit}, {token:?}: {apart}");
        }
    }
}

#[test]
fn a_contrast_ranks_channels_and_verify_runs_claims_again() {
    let server = Server::new();
    let pair =
        json!({"prompt": "x = 1", "counterfactual": "x = 2", "expected": "\n", "instead": ":"});
    let ask = |changes: Value| {
        let mut request =
            json!({"pairs": [pair], "nodes": ["1.attn.act_in", "1.resid_mid"], "max_channels": 2});
        for (name, value) in changes.as_object().unwrap() {
            request[name] = value.clone();
        }
        server.post("/v1/features/contrast", &request)
    };
    let found = ask(json!({})).ok();
    assert_eq!(
        (&found["object"], &found["bridge"]),
        (&json!("contrast"), &json!("tiny"))
    );
    let nodes = found["data"].as_array().unwrap();
    assert_eq!(nodes.len(), 2);
    for node in nodes {
        let write = if node["node"] == "1.attn.act_in" {
            "sublayer"
        } else {
            "residual"
        };
        assert_eq!(node["write"], write);
        let effects: Vec<f64> = node["ranking"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["effect"].as_f64().unwrap())
            .collect();
        assert!(
            effects.is_sorted_by(|left, right| left >= right),
            "{effects:?}"
        );
        assert!(node["group"].as_array().unwrap().len() <= 2);
    }
    for (changes, param) in [
        (json!({"pairs": []}), "pairs"),
        (json!({"nodes": ["1.attn.act_in", "x"]}), "nodes[1]"),
        (json!({"max_channels": 0}), "max_channels"),
        (json!({"target": 0}), "target"),
        (json!({"limit": 0}), "limit"),
        (
            json!({"pairs": [{"prompt": "x", "counterfactual": "x = 2", "expected": "\n", "instead": ":"}]}),
            "pairs",
        ),
    ] {
        ask(changes).is_error(400, Some(param), None);
    }

    let claim = |at_least: f64| {
        json!({"prompt": "x = 1", "counterfactual": "x = 2", "expected": "\n", "instead": ":",
               "at_least": at_least, "at_most_before": 1.0})
    };
    server
        .patch(
            "/v1/features/shipped_feature",
            &json!({"tests": [claim(0.0), claim(1.0)]}),
        )
        .ok();
    let verified = server
        .send("POST", "/v1/features/shipped_feature/verify", &[], b"")
        .ok();
    assert_eq!(
        (&verified["object"], &verified["feature"]),
        (&json!("feature.verification"), &json!("shipped_feature"))
    );
    let passed: Vec<&Value> = verified["tests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|test| &test["passed"])
        .collect();
    assert_eq!(
        (json!(passed), &verified["passed"]),
        (json!([true, false]), &json!(false))
    );
    let long = json!({"prompt": "x = 1\n".repeat(40), "counterfactual": "x = 2\n".repeat(40), "expected": "a",
                      "instead": "b", "at_least": 0.5, "at_most_before": 0.5});
    server
        .patch("/v1/features/shipped_feature", &json!({"tests": [long]}))
        .ok();
    server
        .send("POST", "/v1/features/shipped_feature/verify", &[], b"")
        .is_error(400, Some("tests"), None);
    server
        .send("POST", "/v1/features/nothing/verify", &[], b"")
        .is_error(404, None, Some("feature_not_found"));
}

/// The touched tokens of one edit of a completion that generates nothing.
fn touched(server: &Server, prompt: Value, at: Value) -> Response {
    let edit = json!({"feature": "shipped_feature", "op": "add", "value": 1, "at": at});
    let steer = json!({"edits": [edit], "return": ["receipt"]});
    ask(
        server,
        json!({"prompt": prompt, "max_tokens": 2, "steer": steer, "logit_bias": {"319": -100}}),
    )
}

#[test]
fn tokens_are_named_by_their_text_and_receipts_say_it() {
    let server = Server::new();
    let prompt = "value = other + value";
    let tokens = |at: Value| -> Vec<(u64, String)> {
        let answer = touched(&server, json!(prompt), at).ok();
        let tokens = answer["choices"][0]["receipt"]["edits"][0]["tokens"].clone();
        let tokens = tokens.as_array().unwrap().iter();
        tokens
            .map(|token| {
                (
                    token["position"].as_u64().unwrap(),
                    token["text"].as_str().unwrap().to_owned(),
                )
            })
            .collect()
    };
    let text = |tokens: &[(u64, String)]| {
        tokens
            .iter()
            .map(|(_, text)| text.as_str())
            .collect::<String>()
    };
    // The prompt, and the generated token that is fed back.
    let all = tokens(json!({}));
    assert!(text(&all).starts_with(prompt), "{all:?}");
    assert_eq!(text(&tokens(json!({"generation": "none"}))), prompt);
    let first = tokens(json!({"text": "value"}));
    let second = tokens(json!({"text": "value", "occurrence": 2}));
    assert!(text(&first).contains("value") && text(&second).contains("value"));
    assert_eq!(first[0].0, 0);
    assert!(second[0].0 > first[0].0);
    assert_eq!(tokens(json!({"text": "value", "occurrence": -1})), second);
    let listed = json!({"prompt": [{"text": "value"}, {"text": "value", "occurrence": 2}], "generation": "none"});
    assert_eq!(tokens(listed), [first.clone(), second].concat());
    // Prompts of ids have a text too.
    let ids = server
        .post("/v1/tokenize", &json!({"model": "tiny", "prompt": prompt}))
        .ok();
    let answer = touched(&server, ids["tokens"].clone(), json!({"text": "value"})).ok();
    let position = &answer["choices"][0]["receipt"]["edits"][0]["tokens"][0]["position"];
    assert_eq!(*position, first[0].0);
}

#[test]
fn a_text_that_does_not_occur_is_refused_with_what_does() {
    let server = Server::new();
    let refused = touched(&server, json!("value = 1"), json!({"text": "Value"}));
    refused.is_error(400, Some("steer.edits[0].at.text"), None);
    let message = refused.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.contains("does not occur in prompt 0") && message.contains("\"value\" does"),
        "{message}"
    );
    let other = touched(
        &server,
        json!(["value = 1", "x = 1"]),
        json!({"text": "value"}),
    );
    other.is_error(400, Some("steer.edits[0].at.text"), None);
    assert!(other.body.contains("prompt 1"), "{}", other.body);
    let third = touched(
        &server,
        json!("value = value"),
        json!({"text": "value", "occurrence": 3}),
    );
    third.is_error(400, Some("steer.edits[0].at.occurrence"), None);
    assert!(third.body.contains("occurs 2 times"), "{}", third.body);
    touched(&server, json!("x"), json!({"occurrence": 1})).blames("steer.edits[0].at.occurrence");
    let listed = json!({"prompt": [0, {"text": "y"}]});
    touched(&server, json!("x"), listed).blames("steer.edits[0].at.prompt[1].text");
}
