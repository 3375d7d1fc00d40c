//! Models and tokenizers made elsewhere: what ends a text and begins one, and what text tokens are.

use std::fs;
use std::path::Path;

use causeway::models::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::client::Server;
use crate::tiny_pair::VOCABULARY;

const ASK: &str = "/v1/completions";

/// A server on a pair both of whose tokenizers are changed.
fn server(tokenizer: impl Fn(Value) -> Value, configuration: impl Fn(&Path)) -> Server {
    Server::with(|settings| {
        for model in ["dense", "sparse"] {
            let model = settings.pairs[0].join(model);
            let path = model.join("tokenizer.json");
            let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            fs::write(&path, tokenizer(json).to_string()).unwrap();
            configuration(&model);
        }
    })
}

/// A tokenizer that ends its texts with `<|im_end|>` and has no `<|endoftext|>`.
fn without_end_of_text(mut tokenizer: Value) -> Value {
    tokenizer["added_tokens"][0]["content"] = json!("<|im_end|>");
    tokenizer
}

/// Words that begin with a space, and bytes: Llama's kind of tokenizer.
fn words_and_bytes(_: Value) -> Value {
    let token = |id: usize| match id {
        0 => "<unk>".to_owned(),
        1 => "<s>".to_owned(),
        2 => "a".to_owned(),
        3 => "b".to_owned(),
        0x80..0x100 => format!("<0x{id:02X}>"),
        _ => format!("\u{2581}w{id}"),
    };
    let vocabulary: serde_json::Map<String, Value> =
        (0..VOCABULARY).map(|id| (token(id), json!(id))).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    })
}

/// What a server with this tokenizer decodes with.
fn tokenizer(json: Value) -> Tokenizer {
    Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
}

fn forced(server: &Server, id: u32) -> Value {
    let body = json!({"model": "tiny", "prompt": "x = 1", "max_tokens": 3, "logit_bias": {id.to_string(): 100}});
    server.post(ASK, &body).ok()["choices"][0].clone()
}

#[test]
fn the_model_s_configuration_says_what_ends_a_text() {
    let generation = |model: &Path| {
        let config = json!({"eos_token_id": [40, 41], "bos_token_id": 42});
        fs::write(model.join("generation_config.json"), config.to_string()).unwrap();
    };
    let several = server(without_end_of_text, generation);
    for id in [40, 41] {
        let choice = forced(&several, id);
        assert_eq!(
            (&choice["text"], &choice["finish_reason"]),
            (&json!(""), &json!("stop")),
            "{id}"
        );
    }
    assert_eq!(forced(&several, 43)["finish_reason"], "length");
    // An empty prompt is the token that a text begins with.
    let ask = |server: &Server, prompt: Value| {
        let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 4, "temperature": 0});
        server.post(ASK, &body)
    };
    let (empty, by_id) = (
        ask(&several, json!("")).ok(),
        ask(&several, json!([42])).ok(),
    );
    assert_eq!(empty["choices"], by_id["choices"]);
    assert_eq!(empty["usage"]["prompt_tokens"], 1);
    let model = several.get("/v1/models/tiny").ok();
    assert_eq!(model["end_of_text"], 40);

    // A tokenizer that has neither a known name nor a configuration runs on, and refuses an empty prompt.
    let unknown = server(without_end_of_text, |_| {});
    assert_eq!(forced(&unknown, 40)["finish_reason"], "length");
    let refused = ask(&unknown, json!(""));
    refused.is_error(400, Some("prompt"), None);
    assert!(refused.body.contains("eos_token_id"), "{}", refused.body);
}

#[test]
fn text_is_what_the_decoder_makes_of_the_sequence() {
    let server = server(words_and_bytes, |_| {});
    let oracle = tokenizer(words_and_bytes(Value::Null));
    let prompt = "w10 w11 w12";
    // A token's name in an answer, as its id.
    let id_of = |name: &str| -> u32 {
        if let Some(byte) = name.strip_prefix("bytes:\\x") {
            return u32::from_str_radix(byte, 16).unwrap();
        }
        match name {
            "<unk>" => 0,
            "<s>" => 1,
            "a" => 2,
            "b" => 3,
            word => word.trim_start_matches(" w").parse().expect(word),
        }
    };
    for seed in 0..12 {
        let mut body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 40, "seed": seed, "logprobs": 0,
            "temperature": 2, "echo": true});
        let whole = server.post(ASK, &body).ok();
        let choice = &whole["choices"][0];
        let names = choice["logprobs"]["tokens"].as_array().unwrap();
        let ids: Vec<u32> = names
            .iter()
            .map(|name| id_of(name.as_str().unwrap()))
            .collect();
        assert_eq!(
            ids[..4],
            [1, 10, 11, 12],
            "the text begins as the post-processor says"
        );
        let (before, all) = (oracle.decode(&ids[1..4]), oracle.decode(&ids[1..]));
        let expected = format!("{prompt}{}", all.strip_prefix(&before).unwrap());
        assert_eq!(choice["text"], expected, "{seed}");
        let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
        let offsets: Vec<usize> = offsets
            .iter()
            .map(|at| at.as_u64().unwrap() as usize)
            .collect();
        // As the library tells it: the space before a word is its own.
        assert_eq!(offsets[..4], [0, 0, 3, 7]);
        let characters: Vec<char> = expected.chars().collect();
        for (name, &at) in names.iter().zip(&offsets).skip(4) {
            let name = name.as_str().unwrap();
            if !name.starts_with("bytes:") {
                let found: String = characters[at..].iter().take(name.chars().count()).collect();
                assert_eq!(found, name, "{seed} {at}");
            }
        }
        body["stream"] = json!(true);
        let streamed: String = server
            .post(ASK, &body)
            .events()
            .iter()
            .map(|event| event["choices"][0]["text"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(streamed, expected, "{seed}");
        // A stop text across two tokens.
        let generated: String = characters[prompt.len()..].iter().collect();
        if let Some((at, _)) = generated.match_indices(" w").nth(1) {
            let begin = generated[..at].char_indices().next_back().unwrap().0;
            let end = generated[at..]
                .char_indices()
                .nth(3)
                .map_or(generated.len(), |(next, _)| at + next);
            let stop = &generated[begin..end];
            let stopped = json!({"model": "tiny", "prompt": prompt, "max_tokens": 40, "seed": seed,
                "temperature": 2, "stop": stop});
            let stopped = server.post(ASK, &stopped).ok();
            let until = generated.find(stop).unwrap();
            assert_eq!(
                stopped["choices"][0]["text"],
                generated[..until],
                "{seed} {stop:?}"
            );
            assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
        }
    }
}

#[test]
fn ids_are_taken_as_they_are() {
    let server = server(words_and_bytes, |_| {});
    let tokens = |prompt: Value| {
        let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 1, "temperature": 0});
        let answer = server.post(ASK, &body).ok();
        answer["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    assert_eq!(tokens(json!([10, 11])), 2);
    assert_eq!(tokens(json!("w10 w11")), 3);
    assert_eq!(tokens(json!("<s>w10 w11")), 3);
    assert_eq!(tokens(json!("")), 1);
    // A counterfactual text begins as a prompt does.
    let steered = |to: Value| {
        let body = json!({"model": "tiny-sparse", "prompt": "w10 w11", "max_tokens": 4, "temperature": 0,
            "steer": {"edits": [{"feature": "shipped_feature", "op": "patch", "to": {"prompt": to}}]}});
        server.post(ASK, &body).ok()["choices"][0]["text"].clone()
    };
    assert_eq!(steered(json!("w20 w21")), steered(json!([1, 20, 21])));
}

#[test]
fn a_text_that_cannot_fit_is_refused_before_it_is_tokenised() {
    let server = Server::new();
    let body = json!({"model": "tiny", "prompt": "\u{6f22}".repeat(400_000), "max_tokens": 1});
    let refused = server.post(ASK, &body);
    refused.is_error(400, Some("prompt"), Some("context_length_exceeded"));
    assert!(
        refused.body.contains("400000 characters"),
        "{}",
        refused.body
    );
    let steer = json!({"edits": [{"feature": "shipped_feature", "op": "patch",
        "to": {"prompt": "\u{6f22}".repeat(400_000)}}]});
    let body = json!({"model": "tiny", "prompt": "x", "max_tokens": 1, "steer": steer});
    let refused = server.post(ASK, &body);
    refused.is_error(
        400,
        Some("steer.edits[0].to.prompt"),
        Some("context_length_exceeded"),
    );
}
