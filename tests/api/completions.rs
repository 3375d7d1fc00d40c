//! Completions: OpenAI's shape and OpenAI's meaning.

use serde_json::{Value, json};

use crate::client::Server;

const ASK: &str = "/v1/completions";

/// The request every test here starts from: reproducible, without the end of a document.
fn request(changes: Value) -> Value {
    let mut request = json!({"model": "tiny", "prompt": "def f(x):", "max_tokens": 8, "seed": 5});
    for (name, value) in changes.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap();
    choices
        .iter()
        .map(|choice| choice["text"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn an_answer_has_openai_s_shape() {
    let server = Server::new();
    let answer = server.post(ASK, &request(json!({}))).ok();
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], "tiny");
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert!(
        answer["system_fingerprint"]
            .as_str()
            .unwrap()
            .starts_with("fp_")
    );
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 1);
    let mut keys: Vec<&String> = choices[0].as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["finish_reason", "index", "logprobs", "text"]);
    assert_eq!(choices[0]["logprobs"], Value::Null);
    assert_eq!(choices[0]["index"], 0);
    assert!(["stop", "length"].contains(&choices[0]["finish_reason"].as_str().unwrap()));
    let usage = &answer["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert!(count("prompt_tokens") >= 1);
    assert!((1..=8).contains(&count("completion_tokens")));
    assert_eq!(
        count("total_tokens"),
        count("prompt_tokens") + count("completion_tokens")
    );
}

#[test]
fn sixteen_tokens_unless_said() {
    let server = Server::new();
    let mut body = request(json!({"temperature": 0, "logit_bias": {"319": -100}}));
    body.as_object_mut().unwrap().remove("max_tokens");
    assert_eq!(
        server.post(ASK, &body).ok()["usage"]["completion_tokens"],
        16
    );
}

#[test]
fn the_four_forms_of_a_prompt_agree() {
    let server = Server::new();
    let greedy = |prompt: Value| {
        server
            .post(ASK, &request(json!({"prompt": prompt, "temperature": 0})))
            .ok()
    };
    let asked = json!({"model": "tiny", "prompt": "def f(x):", "nodes": ["final_resid"]});
    let found = server.post("/v1/activations", &asked).ok();
    let ids: Vec<Value> = found["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["id"].clone())
        .collect();
    let text = texts(&greedy(json!("def f(x):")));
    assert_eq!(texts(&greedy(json!(ids))), text);
    let both = [text[0].clone(), text[0].clone()];
    assert_eq!(texts(&greedy(json!(["def f(x):", "def f(x):"]))), both);
    assert_eq!(texts(&greedy(json!([ids, ids]))), both);
    let empty = greedy(json!(""));
    assert_eq!(
        empty["usage"]["prompt_tokens"], 1,
        "a document begins with its separator"
    );
    assert_eq!(texts(&empty), texts(&greedy(Value::Null)));
}

#[test]
fn the_seed_decides() {
    let server = Server::new();
    let ask = |seed: i64| {
        texts(
            &server
                .post(ASK, &request(json!({"seed": seed, "max_tokens": 24})))
                .ok(),
        )
    };
    assert_eq!(ask(5), ask(5));
    assert_eq!(ask(-5), ask(-5));
    assert_ne!(ask(5), ask(6));
}

#[test]
fn neighbouring_seeds_have_no_sample_in_common() {
    let server = Server::new();
    let ask = |seed: i64| {
        let changes = json!({"seed": seed, "n": 8, "max_tokens": 24});
        texts(&server.post(ASK, &request(changes)).ok())
    };
    let (first, second) = (ask(5), ask(6));
    for text in &first {
        assert!(!second.contains(text), "both seeds give {text:?}");
    }
}

#[test]
fn a_top_p_of_zero_is_greedy() {
    let server = Server::new();
    let ask = |changes: Value| texts(&server.post(ASK, &request(changes)).ok());
    let greedy = ask(json!({"temperature": 0, "max_tokens": 24}));
    for seed in [1, 2] {
        let nucleus = json!({"top_p": 0, "temperature": 2, "seed": seed, "max_tokens": 24});
        assert_eq!(ask(nucleus), greedy);
    }
}

#[test]
fn choices_are_by_prompt_then_sample() {
    let server = Server::new();
    let answer = server
        .post(
            ASK,
            &request(json!({"prompt": ["x = 1", "while y"], "n": 3, "echo": true})),
        )
        .ok();
    let texts = texts(&answer);
    assert_eq!(texts.len(), 6);
    assert!(
        texts[..3].iter().all(|text| text.starts_with("x = 1")),
        "{texts:?}"
    );
    assert!(
        texts[3..].iter().all(|text| text.starts_with("while y")),
        "{texts:?}"
    );
    let indices: Vec<&Value> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| &choice["index"])
        .collect();
    assert_eq!(json!(indices), json!([0, 1, 2, 3, 4, 5]));
    assert_ne!(texts[0], texts[1], "samples differ");
}

#[test]
fn best_of_keeps_the_most_probable_samples() {
    let server = Server::new();
    let mean = |choice: &Value| {
        let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        logprobs
            .iter()
            .map(|logprob| logprob.as_f64().unwrap())
            .sum::<f64>()
            / logprobs.len() as f64
    };
    let all = server
        .post(ASK, &request(json!({"n": 5, "logprobs": 0})))
        .ok();
    let mut all: Vec<(f64, String)> = all["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| (mean(choice), choice["text"].to_string()))
        .collect();
    all.sort_by(|left, right| right.0.total_cmp(&left.0));
    let best = server
        .post(ASK, &request(json!({"n": 2, "best_of": 5})))
        .ok();
    let best: Vec<String> = best["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["text"].to_string())
        .collect();
    assert_eq!(best, [all[0].1.clone(), all[1].1.clone()]);
    let best = server
        .post(ASK, &request(json!({"n": 2, "best_of": 5})))
        .ok();
    assert_eq!(
        best["choices"][0]["logprobs"],
        Value::Null,
        "they were not asked for"
    );
    assert!(
        best["usage"]["completion_tokens"].as_u64().unwrap() > 16,
        "dropped samples count"
    );
}

#[test]
fn logprobs_are_four_lists_that_fit_the_text() {
    let server = Server::new();
    for echo in [false, true] {
        // The characters are one, two, three and four bytes long.
        let prompt = "a é ☃ 😀 def";
        let answer = server
            .post(
                ASK,
                &request(json!({"prompt": prompt, "logprobs": 3, "echo": echo})),
            )
            .ok();
        let choice = &answer["choices"][0];
        let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
        let list = |name: &str| choice["logprobs"][name].as_array().unwrap().clone();
        let (tokens, own) = (list("tokens"), list("token_logprobs"));
        let (top, offsets) = (list("top_logprobs"), list("text_offset"));
        assert_eq!(
            (tokens.len(), tokens.len(), tokens.len()),
            (own.len(), top.len(), offsets.len())
        );
        let total = &answer["usage"][if echo {
            "total_tokens"
        } else {
            "completion_tokens"
        }];
        assert_eq!(total, tokens.len(), "echo {echo}");
        for (index, token) in tokens.iter().enumerate() {
            let (token, offset) = (
                token.as_str().unwrap(),
                offsets[index].as_u64().unwrap() as usize,
            );
            if !token.starts_with("bytes:") {
                let expected: Vec<char> = token.chars().collect();
                assert_eq!(
                    text[offset..offset + expected.len()],
                    expected,
                    "token {index}, echo {echo}"
                );
            }
            if echo && index == 0 {
                assert_eq!(
                    (&own[0], &top[0]),
                    (&Value::Null, &Value::Null),
                    "nothing predicts the first"
                );
                continue;
            }
            let own = own[index].as_f64().unwrap();
            assert!(own <= 0.0);
            let top = top[index].as_object().unwrap();
            assert_eq!(top[token].as_f64(), Some(own));
            assert!((1..=4).contains(&top.len()), "{top:?}");
        }
    }
}

#[test]
fn a_prompt_can_be_scored_alone() {
    let server = Server::new();
    let answer = server
        .post(
            ASK,
            &request(json!({"prompt": "x = 1", "max_tokens": 0, "echo": true, "logprobs": 0})),
        )
        .ok();
    assert_eq!(answer["choices"][0]["text"], "x = 1");
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_stop_ends_the_text_before_it() {
    let server = Server::new();
    let ask = |stop: Value| {
        server
            .post(ASK, &request(json!({"temperature": 0, "stop": stop})))
            .ok()
    };
    let whole = texts(&ask(Value::Null))[0].clone();
    let characters: Vec<char> = whole.chars().collect();
    let (index, stop) = characters
        .iter()
        .enumerate()
        .find(|(index, character)| *index > 0 && **character != char::REPLACEMENT_CHARACTER)
        .unwrap();
    let first = characters
        .iter()
        .position(|character| character == stop)
        .unwrap();
    assert!(first <= index);
    let expected: String = characters[..first].iter().collect();
    for stop in [
        json!(stop.to_string()),
        json!(["never to be found", stop.to_string()]),
    ] {
        let answer = ask(stop);
        assert_eq!(texts(&answer), std::slice::from_ref(&expected));
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn fields_that_do_nothing_are_taken_as_null_or_false() {
    let server = Server::new();
    let nothing = json!({
        "stream": false, "stream_options": null, "suffix": null, "user": "someone", "cache_salt": null, "steer": null, "n": null,
        "logit_bias": null, "stop": null, "best_of": null, "echo": null, "logprobs": null, "top_k": -1,
    });
    let plain = server.post(ASK, &request(json!({}))).ok();
    assert_eq!(
        texts(&server.post(ASK, &request(nothing)).ok()),
        texts(&plain)
    );
}
