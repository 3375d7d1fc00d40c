//! Prompts that begin like earlier ones: what is told of them, and who shares them with whom.

use serde_json::{Value, json};

use crate::client::Server;

const ASK: &str = "/v1/completions";

/// A greedy request for a prompt of so many tokens, with more fields.
fn request(tokens: u32, changes: Value) -> Value {
    let prompt: Vec<u32> = (0..tokens).map(|at| (at * at + 5) % 300).collect();
    let mut request = json!({"model": "tiny", "prompt": prompt, "max_tokens": 4, "temperature": 0, "logprobs": 2});
    for (name, value) in changes.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

fn cached(answer: &Value) -> u64 {
    let details = &answer["usage"]["prompt_tokens_details"];
    details["cached_tokens"].as_u64().unwrap()
}

fn counts(server: &Server) -> [f64; 3] {
    server.metrics([
        "causeway_prefix_cache_queried_tokens_total",
        "causeway_prefix_cache_hit_tokens_total",
        "causeway_prefix_cache_bytes",
    ])
}

#[test]
fn an_answer_tells_how_much_of_its_prompt_was_known() {
    let server = Server::new();
    let first = server.post(ASK, &request(40, json!({}))).ok();
    let again = server.post(ASK, &request(40, json!({}))).ok();
    assert_eq!((cached(&first), cached(&again)), (0, 32));
    assert_eq!(first["choices"], again["choices"]);
    // Two layers' keys and values of 16 channels for the two blocks of 16 tokens that are whole.
    let bytes = f64::from(2 * 2 * 16 * 32 * 4);
    assert_eq!(counts(&server), [80.0, 32.0, bytes]);

    let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = server.post(ASK, &request(40, streamed)).events();
    assert_eq!(cached(events.last().unwrap()), 32);
    let short = server.post(ASK, &request(16, json!({}))).ok();
    assert_eq!(cached(&short), 15, "the last token's logits are needed");
    let scored = server.post(ASK, &request(40, json!({"echo": true}))).ok();
    assert_eq!(cached(&scored), 0, "every token's logits are needed");
}

#[test]
fn steered_answers_share_what_the_same_edits_have_made() {
    let server = Server::new();
    let steered = |value: f64, from: u32| {
        let at = json!({"prompt": [[from, null]]});
        let edit = json!({"feature": "shipped_feature", "op": "set", "value": value, "at": at});
        server
            .post(ASK, &request(40, json!({"steer": {"edits": [edit]}})))
            .ok()
    };
    let plain = server.post(ASK, &request(40, json!({}))).ok();
    let first = steered(3.0, 20);
    // The sparse model has not read the prompt before.
    assert_eq!((cached(&plain), cached(&first)), (0, 0));
    let again = steered(3.0, 20);
    assert_eq!(cached(&again), 32);
    assert_eq!(first["choices"], again["choices"]);
    assert_ne!(
        first["choices"][0]["logprobs"],
        plain["choices"][0]["logprobs"]
    );
    for (value, from, expected) in [(2.0, 20, 16), (3.0, 19, 16), (3.0, 0, 0), (0.0, 36, 32)] {
        assert_eq!(
            cached(&steered(value, from)),
            expected,
            "{value} from {from}"
        );
    }
    let unsteered = server.post(ASK, &request(40, json!({}))).ok();
    assert_eq!(cached(&unsteered), 32);
    assert_eq!(unsteered["choices"], plain["choices"]);
}

#[test]
fn a_salt_is_shared_with_those_who_know_it() {
    let server = Server::new();
    let salted = |salt: Value| {
        let body = request(40, json!({ "cache_salt": salt }));
        cached(&server.post(ASK, &body).ok())
    };
    assert_eq!(salted(json!("mine")), 0);
    assert_eq!(salted(Value::Null), 0);
    assert_eq!(salted(json!("yours")), 0);
    assert_eq!(salted(json!("mine")), 32);
    assert_eq!(salted(Value::Null), 32);
    server
        .post(ASK, &request(40, json!({"cache_salt": ""})))
        .is_error(400, Some("cache_salt"), None);
}

#[test]
fn nothing_is_kept_where_there_is_no_room_for_it() {
    let server = Server::with(|settings| settings.engine.prefix_cache_mib = 0);
    let answers = [(); 2].map(|()| server.post(ASK, &request(40, json!({}))).ok());
    assert_eq!(answers.each_ref().map(cached), [0, 0]);
    assert_eq!(answers[0]["choices"], answers[1]["choices"]);
    assert_eq!(counts(&server), [0.0; 3]);
}

#[test]
fn a_model_that_is_unloaded_takes_its_blocks_along() {
    let server = Server::new();
    let folder = server.directory.join("library/again");
    std::fs::create_dir_all(&folder).unwrap();
    for file in std::fs::read_dir(server.directory.join("pair/dense")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    let ask = |model: &str| {
        let body = request(40, json!({ "model": model }));
        cached(&server.post(ASK, &body).ok())
    };
    for _ in 0..2 {
        server.post("/v1/library/again/load", &json!({})).ok();
        assert_eq!([ask("again"), ask("again")], [0, 32]);
        assert!(counts(&server)[2] > 0.0);
        server.post("/v1/library/again/unload", &json!({})).ok();
        assert_eq!(counts(&server)[2], 0.0);
    }
    assert_eq!([ask("tiny"), ask("tiny")], [0, 32]);
}
