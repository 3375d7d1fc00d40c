//! Answers piece by piece: together they are the answer in one piece.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::client::Server;

const ASK: &str = "/v1/completions";

fn request(changes: Value) -> Value {
    let mut request = json!({"model": "tiny", "prompt": "def f(x):", "max_tokens": 24, "seed": 5});
    for (field, value) in changes.as_object().unwrap() {
        request[field] = value.clone();
    }
    request
}

/// What the chunks of a stream say of each choice, joined.
#[derive(Default)]
struct Joined {
    text: String,
    logprobs: BTreeMap<&'static str, Vec<Value>>,
    ends: Vec<Value>,
    extras: BTreeMap<&'static str, Value>,
}

fn joined(events: &[Value]) -> Vec<Joined> {
    let mut choices: BTreeMap<u64, Joined> = BTreeMap::new();
    for event in events {
        assert_eq!(event["object"], "text_completion");
        assert_eq!(event["id"], events[0]["id"]);
        for choice in event["choices"].as_array().unwrap() {
            let joined = choices
                .entry(choice["index"].as_u64().unwrap())
                .or_default();
            joined.text += choice["text"].as_str().unwrap();
            for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let more = choice["logprobs"][list].as_array().into_iter().flatten();
                joined
                    .logprobs
                    .entry(list)
                    .or_default()
                    .extend(more.cloned());
            }
            if !choice["finish_reason"].is_null() {
                joined.ends.push(choice["finish_reason"].clone());
            }
            for extra in ["variant", "strength", "receipt", "activations"] {
                if let Some(value) = choice.get(extra) {
                    joined.extras.insert(extra, value.clone());
                }
            }
        }
    }
    choices.into_values().collect()
}

#[test]
fn the_chunks_of_a_stream_are_the_answer() {
    let server = Server::new();
    let steer = json!({
        "edits": [{"feature": "shipped_feature", "op": "add", "value": 2.0, "strength": [0.5, 1.0]}],
        "variants": ["steered", "baseline", "random"], "return": ["receipt", "activations"]
    });
    for changes in [
        json!({}),
        json!({"n": 3, "logprobs": 2}),
        json!({"prompt": ["x = 1", "h\u{e9}llo \u{1f600}"], "n": 2, "echo": true, "logprobs": 0}),
        json!({"stop": ["e", "th"], "temperature": 1.4, "n": 4, "logprobs": 1}),
        json!({"max_tokens": 0, "echo": true, "logprobs": 1}),
        json!({"steer": steer}),
    ] {
        let body = request(changes);
        let whole = server.post(ASK, &body).ok();
        let mut streamed = body.clone();
        streamed["stream"] = json!(true);
        streamed["stream_options"] = json!({"include_usage": true});
        let mut events = server.post(ASK, &streamed).events();
        let last = events.pop().unwrap();
        assert_eq!(
            (&last["choices"], &last["usage"]),
            (&json!([]), &whole["usage"]),
            "{body}"
        );
        assert!(events.iter().all(|event| event["usage"].is_null()));
        assert_eq!(last["system_fingerprint"], whole["system_fingerprint"]);
        let found = joined(&events);
        let expected = whole["choices"].as_array().unwrap();
        assert_eq!(found.len(), expected.len(), "{body}");
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found.text, expected["text"].as_str().unwrap(), "{body}");
            assert_eq!(found.ends, [expected["finish_reason"].clone()], "{body}");
            for (list, found) in &found.logprobs {
                let expected = expected["logprobs"][*list].as_array().cloned();
                assert_eq!(*found, expected.unwrap_or_default(), "{list} of {body}");
            }
            for extra in ["variant", "strength", "receipt", "activations"] {
                assert_eq!(
                    found.extras.get(extra),
                    expected.get(extra),
                    "{extra} of {body}"
                );
            }
        }
    }
}

#[test]
fn a_request_that_is_refused_gets_no_stream() {
    let server = Server::new();
    let ask = |changes| {
        let mut body = request(changes);
        body["stream"] = json!(true);
        server.post(ASK, &body)
    };
    ask(json!({"model": "nothing"})).is_error(404, Some("model"), Some("model_not_found"));
    let steer = json!({"edits": [{"feature": "nothing", "op": "ablate"}]});
    let refused = ask(json!({"steer": steer}));
    assert_eq!(refused.status, 400, "{}", refused.body);
    // Without the option nobody is told of the usage.
    let events = ask(json!({})).events();
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}
