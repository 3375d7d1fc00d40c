//! Texts as tokens and back: the tokens of completions, with texts and offsets, under the names of other servers.

use serde_json::{Value, json};

use crate::client::Server;

fn tokenize(server: &Server, body: &Value) -> Value {
    let answer = server.post("/v1/tokenize", body).ok();
    assert_eq!(server.post("/tokenize", body).ok(), answer);
    let count = answer["tokens"].as_array().unwrap().len();
    assert_eq!(answer["count"], count);
    assert_eq!(answer["offsets"].as_array().unwrap().len(), count);
    answer
}

/// The pieces of `text` that the offsets say.
fn pieces(text: &str, answer: &Value) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    let offsets = answer["offsets"].as_array().unwrap().iter();
    let at = |offset: &Value, end: usize| offset[end].as_u64().unwrap() as usize;
    offsets
        .map(|offset| characters[at(offset, 0)..at(offset, 1)].iter().collect())
        .collect()
}

#[test]
fn a_text_becomes_the_tokens_of_a_completion_and_comes_back() {
    let server = Server::new();
    let text = "def f(x):\n    return x";
    for model in ["tiny", "tiny-sparse"] {
        let answer = tokenize(&server, &json!({"model": model, "prompt": text}));
        assert_eq!(answer["max_model_len"], 64);
        let activations = json!({"model": model, "prompt": text, "nodes": ["final_resid"]});
        let run = server.post("/v1/activations", &activations).ok();
        let run = run["tokens"].as_array().unwrap();
        let field =
            |name: &str| -> Vec<Value> { run.iter().map(|token| token[name].clone()).collect() };
        assert_eq!(answer["tokens"], json!(field("id")));
        assert_eq!(answer["token_strs"], json!(field("text")));
        assert_eq!(json!(pieces(text, &answer)), answer["token_strs"]);
        let body = json!({"model": model, "tokens": answer["tokens"]});
        let back = server.post("/v1/detokenize", &body).ok();
        assert_eq!(server.post("/detokenize", &body).ok(), back);
        assert_eq!(back["prompt"], text);
        let starts: Vec<Value> = answer["offsets"]
            .as_array()
            .unwrap()
            .iter()
            .map(|offset| offset[0].clone())
            .collect();
        assert_eq!(back["starts"], json!(starts));
    }
    let bare = json!({"model": "tiny", "prompt": text, "return_token_strs": false});
    assert_eq!(tokenize(&server, &bare)["token_strs"], Value::Null);
}

#[test]
fn a_character_in_several_tokens_belongs_to_each() {
    let server = Server::new();
    let text = "x = '→'";
    let answer = tokenize(&server, &json!({"model": "tiny", "prompt": text}));
    let pieces = pieces(text, &answer);
    assert!(
        pieces.iter().filter(|piece| piece.contains('→')).count() > 1,
        "{pieces:?}"
    );
    let strings = answer["token_strs"].as_array().unwrap();
    assert!(
        strings
            .iter()
            .any(|text| text.as_str().unwrap().contains('\u{fffd}'))
    );
    let back = server.post(
        "/v1/detokenize",
        &json!({"model": "tiny", "tokens": answer["tokens"]}),
    );
    assert_eq!(back.ok()["prompt"], text);
}

#[test]
fn a_conversation_is_the_text_that_the_template_makes_of_it() {
    let server = Server::with(|settings| {
        let template = settings.pairs[0].join("dense/chat_template.jinja");
        std::fs::write(template, "{{ messages[0].content }} = 1\n").unwrap();
    });
    let messages = json!([{"role": "user", "content": "value"}]);
    let answer = tokenize(&server, &json!({"model": "tiny", "messages": messages}));
    let text = answer["prompt"].as_str().unwrap();
    assert!(text.starts_with("value = 1"), "{text:?}");
    let plain = tokenize(&server, &json!({"model": "tiny", "prompt": text}));
    assert_eq!(answer["tokens"], plain["tokens"]);
    assert_eq!(answer["offsets"], plain["offsets"]);
    assert!(plain.get("prompt").is_none());
    let sparse = json!({"model": "tiny-sparse", "messages": messages});
    server
        .post("/v1/tokenize", &sparse)
        .is_error(400, Some("model"), Some("no_chat_template"));
    let both = json!({"model": "tiny", "messages": messages, "prompt": "x"});
    server.post("/v1/tokenize", &both).blames("messages");
}

#[test]
fn what_cannot_be_tokenised_is_refused_by_its_field() {
    let server = Server::new();
    server
        .post("/v1/tokenize", &json!({"model": "tiny"}))
        .blames("prompt");
    server
        .post("/v1/tokenize", &json!({"model": "tinny", "prompt": "x"}))
        .blames("model");
    let long = json!({"model": "tiny", "prompt": "x".repeat(600_000)});
    server.post("/v1/tokenize", &long).blames("prompt");
    server
        .post(
            "/v1/detokenize",
            &json!({"model": "tiny", "tokens": [1, 320]}),
        )
        .blames("tokens[1]");
    let many = json!({"model": "tiny", "tokens": vec![1; 600_000]});
    server
        .post("/v1/detokenize", &many)
        .is_error(400, Some("tokens"), Some("prompt_too_long"));
    let none = server
        .post("/v1/detokenize", &json!({"model": "tiny", "tokens": []}))
        .ok();
    assert_eq!(none, json!({"prompt": "", "starts": []}));
}
