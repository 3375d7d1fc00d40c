//! Chat completions: a conversation is the text that its model's template makes of it, in OpenAI's shape.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::client::{Response, Server};
use crate::tiny_pair;

const ASK: &str = "/v1/chat/completions";
/// Short, for the tiny models' context is; as particular about white space as templates are.
const TEMPLATE: &str = "{{ bos_token }}
{%- for message in messages %}
    {% if message.role == 'assistant' and loop.first %}
        {{ raise_exception('the user speaks first') }}
    {% endif %}
    {% if message['name'] == 'loop' %}
        {% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}
    {% endif %}
{{ message.role[0] }}:{{ message.content.strip() }}
{% endfor %}
{% if add_generation_prompt %}a:{% endif %}";

fn write_tokenizer_config(model: &Path, eos_token: Value) {
    let config = json!({
        "chat_template": [
            {"name": "tool_use", "template": "{{ raise_exception('not this one') }}"},
            {"name": "default", "template": TEMPLATE},
        ],
        "bos_token": {"content": "<|endoftext|>", "special": true},
        "eos_token": eos_token,
    });
    std::fs::write(model.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// A server whose dense model takes conversations, and its sparse one does not.
fn server() -> Server {
    Server::with(|settings| write_tokenizer_config(&settings.pairs[0].join("dense"), Value::Null))
}

fn with(mut request: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

fn request(changes: Value) -> Value {
    let messages = json!([{"role": "user", "content": "x = 1"}]);
    with(
        json!({"model": "tiny", "messages": messages, "max_tokens": 12, "seed": 5}),
        changes,
    )
}

fn ask(server: &Server, changes: Value) -> Response {
    server.post(ASK, &request(changes))
}

fn contents(answer: &Value) -> Vec<&str> {
    let choices = answer["choices"].as_array().unwrap();
    choices
        .iter()
        .map(|choice| choice["message"]["content"].as_str().unwrap())
        .collect()
}

fn steer() -> Value {
    json!({
        "edits": [{"feature": "shipped_feature", "op": "add", "value": 50.0, "strength": [0.0, 1.0]}],
        "variants": ["steered", "baseline", "random"], "return": ["receipt", "activations"]
    })
}

#[test]
fn an_answer_has_openai_s_shape() {
    let server = server();
    let answer = ask(&server, json!({})).ok();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "tiny");
    let choice = &answer["choices"][0];
    let mut keys: Vec<&String> = choice.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["finish_reason", "index", "logprobs", "message"]);
    assert_eq!(choice["logprobs"], Value::Null);
    let content = &choice["message"]["content"];
    assert_eq!(
        choice["message"],
        json!({"role": "assistant", "content": content, "refusal": null})
    );
    assert!(content.is_string());
    let usage = &answer["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(
        count("total_tokens"),
        count("prompt_tokens") + count("completion_tokens")
    );
    for (model, chat) in [("tiny", true), ("tiny-sparse", false)] {
        assert_eq!(
            server.get(&format!("/v1/models/{model}")).ok()["chat"],
            chat
        );
    }
}

#[test]
fn a_conversation_is_the_text_that_the_template_makes_of_it() {
    let server = server();
    let parts = json!([{"type": "text", "text": " y = 2"}, {"type": "text", "text": "z = 3 "}]);
    let messages = json!([
        {"role": "developer", "content": "be"},
        {"role": "user", "content": parts, "name": null},
        {"role": "assistant", "content": "ok", "refusal": null, "tool_calls": []},
        {"role": "user", "content": "<|x|> & \u{e9}"},
    ]);
    let chat = ask(&server, json!({"messages": messages, "n": 2})).ok();
    let text = "<|endoftext|>s:be\nu:y = 2\nz = 3\na:ok\nu:<|x|> & \u{e9}\na:";
    let body = json!({"model": "tiny", "prompt": text, "max_tokens": 12, "seed": 5, "n": 2});
    let completion = server.post("/v1/completions", &body).ok();
    let texts: Vec<&str> = completion["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["text"].as_str().unwrap())
        .collect();
    assert_eq!(contents(&chat), texts);
    assert_eq!(
        chat["usage"]["total_tokens"],
        completion["usage"]["total_tokens"]
    );
}

#[test]
fn fields_that_ask_for_what_is_done_anyway_change_nothing() {
    let server = server();
    let plain = ask(&server, json!({})).ok();
    let nothing = json!({
        "stream": false, "stream_options": null, "logprobs": false, "top_logprobs": null, "user": "someone", "cache_salt": null,
        "tools": [], "tool_choice": "none", "parallel_tool_calls": null, "functions": null, "store": false,
        "response_format": {"type": "text"}, "modalities": ["text"], "stop": null, "n": null, "steer": null,
    });
    let answer = ask(&server, nothing).ok();
    assert_eq!(contents(&answer), contents(&plain));
    let mut renamed = request(json!({"max_completion_tokens": 12}));
    renamed.as_object_mut().unwrap().remove("max_tokens");
    assert_eq!(contents(&server.post(ASK, &renamed).ok()), contents(&plain));
}

#[test]
fn an_answer_goes_on_to_the_context_s_end_unless_said() {
    let server = server();
    let endless = json!({"max_tokens": null, "logit_bias": {"319": -100}});
    let answer = ask(&server, endless.clone()).ok();
    assert_eq!(answer["usage"]["total_tokens"], tiny_pair::CONTEXT);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    // Where the budget is smaller, to the budget's.
    let small = Server::with(|settings| {
        write_tokenizer_config(&settings.pairs[0].join("dense"), Value::Null);
        settings.limits.max_generated_tokens = 10;
    });
    let answer = ask(&small, with(endless, json!({"n": 2}))).ok();
    assert_eq!(answer["usage"]["completion_tokens"], 10);
}

#[test]
fn the_token_that_ends_a_turn_ends_the_answer() {
    let whole = ask(&server(), json!({"temperature": 0})).ok();
    let whole = contents(&whole)[0];
    let (at, end) = whole
        .char_indices()
        .find(|&(at, character)| at > 0 && character.is_ascii())
        .unwrap();
    let first = whole.find(end).unwrap();
    assert!(first <= at);
    let ending = Server::with(|settings| {
        write_tokenizer_config(&settings.pairs[0].join("dense"), json!(end.to_string()));
    });
    let answer = ask(&ending, json!({"temperature": 0})).ok();
    assert_eq!(contents(&answer), [&whole[..first]]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[test]
fn logprobs_have_an_entry_for_each_token() {
    let server = server();
    let answer = ask(&server, json!({"logprobs": true, "top_logprobs": 20})).ok();
    let choice = &answer["choices"][0];
    let entries = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], entries.len());
    assert_eq!(choice["logprobs"]["refusal"], Value::Null);
    let mut bytes: Vec<u8> = Vec::new();
    for entry in entries {
        let own = entry["logprob"].as_f64().unwrap();
        let of_token: Vec<u8> = serde_json::from_value(entry["bytes"].clone()).unwrap();
        if let Ok(text) = std::str::from_utf8(&of_token) {
            assert_eq!(entry["token"], text);
        }
        bytes.extend(of_token);
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 20);
        let logprobs: Vec<f64> = top
            .iter()
            .map(|alternative| alternative["logprob"].as_f64().unwrap())
            .collect();
        assert!(logprobs.is_sorted_by(|left, right| left >= right));
        let listed = top.iter().find(|other| other["token"] == entry["token"]);
        match listed {
            Some(listed) => assert_eq!(listed["logprob"].as_f64(), Some(own)),
            None => assert!(logprobs.iter().all(|&other| other >= own)),
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    assert_eq!(text, choice["message"]["content"].as_str().unwrap());
    let alone = ask(&server, json!({"logprobs": true})).ok();
    let alone = &alone["choices"][0]["logprobs"]["content"];
    assert_eq!(alone[0]["logprob"], entries[0]["logprob"]);
    assert_eq!(alone[0]["top_logprobs"], json!([]));
}

/// What the chunks of a stream say of each choice, joined.
#[derive(Default)]
struct Joined {
    content: String,
    logprobs: Vec<Value>,
    arm: BTreeMap<&'static str, Value>,
    ends: Vec<Value>,
}

fn joined(events: &[Value]) -> Vec<Joined> {
    let mut choices: BTreeMap<u64, Joined> = BTreeMap::new();
    for event in events {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!(event["id"], events[0]["id"]);
        for choice in event["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap();
            let delta = &choice["delta"];
            if !choices.contains_key(&index) {
                assert_eq!(*delta, json!({"role": "assistant", "content": ""}));
            } else {
                assert!(delta.get("role").is_none(), "{delta}");
            }
            let joined = choices.entry(index).or_default();
            if let Some(content) = delta.get("content") {
                assert!(joined.ends.is_empty(), "content after the end");
                joined.content += content.as_str().unwrap();
            }
            let logprobs = choice["logprobs"]["content"].as_array();
            joined
                .logprobs
                .extend(logprobs.into_iter().flatten().cloned());
            if !choice["finish_reason"].is_null() {
                joined.ends.push(choice["finish_reason"].clone());
            }
            for key in ["variant", "strength", "receipt", "activations"] {
                if let Some(value) = choice.get(key) {
                    joined.arm.insert(key, value.clone());
                }
            }
        }
    }
    choices.into_values().collect()
}

#[test]
fn the_chunks_of_a_stream_are_the_answer() {
    let server = server();
    for changes in [
        json!({}),
        json!({"n": 3, "logprobs": true, "top_logprobs": 2}),
        json!({"stop": ["e", "th"], "temperature": 1.4, "n": 4, "logprobs": true}),
        json!({"steer": steer(), "max_tokens": 6}),
    ] {
        let whole = ask(&server, changes.clone()).ok();
        let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
        let mut events = ask(&server, with(changes.clone(), streamed)).events();
        let last = events.pop().unwrap();
        assert_eq!(
            (&last["choices"], &last["usage"]),
            (&json!([]), &whole["usage"])
        );
        assert!(events.iter().all(|event| event["usage"].is_null()));
        assert_eq!(last["system_fingerprint"], whole["system_fingerprint"]);
        let found = joined(&events);
        let expected = whole["choices"].as_array().unwrap();
        assert_eq!(found.len(), expected.len(), "{changes}");
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(
                found.content,
                expected["message"]["content"].as_str().unwrap()
            );
            assert_eq!(found.ends, [expected["finish_reason"].clone()], "{changes}");
            let logprobs = expected["logprobs"]["content"].as_array().cloned();
            assert_eq!(found.logprobs, logprobs.unwrap_or_default(), "{changes}");
            for key in ["variant", "strength", "receipt", "activations"] {
                assert_eq!(found.arm.get(key), expected.get(key), "{key} of {changes}");
            }
        }
    }
    let events = ask(&server, json!({"stream": true})).events();
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[test]
fn a_steered_conversation_answers_with_its_arms() {
    let server = server();
    let answer = ask(&server, json!({"steer": steer(), "temperature": 0})).ok();
    let choices = answer["choices"].as_array().unwrap();
    let arms: Vec<Value> = choices
        .iter()
        .map(|choice| json!([choice["variant"], choice.get("strength")]))
        .collect();
    let expected = [
        json!(["steered", 0.0]),
        json!(["steered", 1.0]),
        json!(["baseline", null]),
        json!(["random", 0.0]),
        json!(["random", 1.0]),
    ];
    assert_eq!(arms, expected);
    let plain = ask(&server, json!({"temperature": 0})).ok();
    let found = contents(&answer);
    assert_eq!([found[0], found[2]], [contents(&plain)[0]; 2]);
    assert_ne!(found[1], found[2], "a large edit changes the answer");
    assert!(choices[1]["receipt"].is_object() && choices[1]["activations"].is_array());
    assert_ne!(answer["system_fingerprint"], plain["system_fingerprint"]);
}

#[test]
fn a_counterfactual_is_text_as_the_template_writes_it() {
    let server = server();
    let patch = |to: &str| {
        let edit = json!({"feature": "shipped_feature", "op": "patch", "to": {"prompt": to}});
        ask(
            &server,
            json!({"steer": {"edits": [edit], "return": ["receipt"]}}),
        )
    };
    let text = "<|endoftext|>u:x = 2\na:";
    let answer = patch(text).ok();
    let edit = &answer["choices"][0]["receipt"]["edits"][0];
    assert!(edit["tokens_touched"].as_u64() > Some(0), "{edit}");
    // What the messages alone would be is a text of another length.
    let refused = patch("x = 2");
    assert_eq!(refused.status, 400, "{}", refused.body);
}

#[test]
fn fields_that_are_wrong_or_not_supported_are_named() {
    let server = server();
    let content = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let second = |message: Value| json!({"messages": [{"role": "user", "content": "x"}, message]});
    let unsupported = Some("unsupported");
    for (changes, param, code) in [
        (json!({"messages": []}), "messages", None),
        (json!({"messages": "x"}), "messages", None),
        (
            json!({"messages": [{"role": "user"}]}),
            "messages[0].content",
            Some("missing_field"),
        ),
        (
            json!({"messages": [{"content": "x"}]}),
            "messages[0].role",
            Some("missing_field"),
        ),
        (
            second(json!({"role": "narrator", "content": "x"})),
            "messages[1].role",
            None,
        ),
        (
            second(json!({"role": "user", "contents": "x"})),
            "messages[1].contents",
            Some("unknown_field"),
        ),
        (
            second(json!({"role": "tool", "content": "x"})),
            "messages[1].role",
            unsupported,
        ),
        (
            second(json!({"role": "assistant", "content": null, "tool_calls": [{"id": "a"}]})),
            "messages[1].tool_calls",
            unsupported,
        ),
        (content(json!(7)), "messages[0].content", None),
        (
            content(json!([{"type": "text"}])),
            "messages[0].content[0].text",
            Some("missing_field"),
        ),
        (
            content(json!([{"type": "text", "text": 7}])),
            "messages[0].content[0].text",
            None,
        ),
        (
            second(
                json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}),
            ),
            "messages[1].content[0].type",
            unsupported,
        ),
        (
            content(
                json!([{"type": "text", "text": "x"}, {"type": "input_audio", "input_audio": {}}]),
            ),
            "messages[0].content[1].type",
            unsupported,
        ),
        (
            json!({"tools": [{"type": "function"}]}),
            "tools",
            unsupported,
        ),
        (json!({"tool_choice": "auto"}), "tool_choice", unsupported),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
            unsupported,
        ),
        (
            json!({"modalities": ["text", "audio"]}),
            "modalities",
            unsupported,
        ),
        (json!({"store": true}), "store", unsupported),
        (
            json!({"temprature": 1}),
            "temprature",
            Some("unknown_field"),
        ),
        (json!({"temperature": 3}), "temperature", None),
        (json!({"n": 0}), "n", None),
        (json!({"max_tokens": 0}), "max_tokens", None),
        (json!({"max_completion_tokens": 1}), "max_tokens", None),
        (
            json!({"max_tokens": null, "max_completion_tokens": 1_u64 << 40}),
            "max_completion_tokens",
            Some("over_budget"),
        ),
        (json!({"logprobs": 2}), "logprobs", None),
        (json!({"top_logprobs": 2}), "top_logprobs", None),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
            None,
        ),
        (
            json!({"stream_options": {"include_usage": true}}),
            "stream_options",
            None,
        ),
        (json!({"steer": {}, "steering": {}}), "steering", None),
        (
            json!({"steer": {"edits": [{"feature": "a", "op": "pach"}]}}),
            "steer.edits[0].op",
            None,
        ),
    ] {
        for stream in [false, true] {
            let mut body = request(changes.clone());
            if body.get("stream_options").is_none() {
                body["stream"] = json!(stream);
            }
            let answer = server.post(ASK, &body);
            assert_eq!(answer.status, 400, "{changes}: {}", answer.body);
            answer.is_error(400, Some(param), code);
        }
    }
    ask(&server, json!({"model": "tinny"})).is_error(404, Some("model"), Some("model_not_found"));
    let answer = server.get(ASK);
    answer.is_error(405, None, Some("method_not_allowed"));
}

#[test]
fn a_model_without_a_template_says_where_to_ask() {
    let server = server();
    let answer = ask(&server, json!({"model": "tiny-sparse"}));
    answer.is_error(400, Some("model"), Some("no_chat_template"));
    assert!(answer.body.contains("/v1/completions"), "{}", answer.body);
}

#[test]
fn what_the_template_does_not_take_is_the_messages_fault() {
    let server = server();
    let messages = |messages: Value| ask(&server, json!({ "messages": messages }));
    let raised = messages(json!([{"role": "assistant", "content": "x"}]));
    raised.is_error(400, Some("messages"), Some("chat_template_failed"));
    assert!(
        raised.body.contains("the user speaks first"),
        "{}",
        raised.body
    );
    let endless = messages(json!([{"role": "user", "content": "x", "name": "loop"}]));
    endless.is_error(400, Some("messages"), Some("chat_template_failed"));
    let long = messages(json!([{"role": "user", "content": "x = 1\n".repeat(64)}]));
    long.is_error(400, Some("messages"), Some("context_length_exceeded"));
    let small = Server::with(|settings| {
        write_tokenizer_config(&settings.pairs[0].join("dense"), Value::Null);
        settings.limits.max_prompt_characters = 20;
    });
    for content in ["x".repeat(21), "x".repeat(19)] {
        let body = json!([{"role": "user", "content": content}]);
        ask(&small, json!({ "messages": body })).is_error(
            400,
            Some("messages"),
            Some("prompt_too_long"),
        );
    }
}

#[test]
fn a_template_that_ends_its_process_fails_its_request_alone() {
    let templates = [
        (
            "nested",
            format!("{{{{ {} true }}}}", "not ".repeat(200_000)),
        ),
        (
            "wide",
            "{{ '{:>2000000000}'.format(messages[0].content) }}".to_owned(),
        ),
        ("broken", "{{ messages".to_owned()),
    ];
    let server = Server::with(|settings| {
        write_tokenizer_config(&settings.pairs[0].join("dense"), Value::Null);
        for (id, template) in &templates {
            let folder = settings.pairs[0].join(id);
            std::fs::create_dir(&folder).unwrap();
            for file in ["config.json", "model.safetensors", "tokenizer.json"] {
                let from = settings.pairs[0].join("dense").join(file);
                std::fs::copy(from, folder.join(file)).unwrap();
            }
            std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
            settings.models.insert((*id).parse().unwrap(), folder);
        }
    });
    for (id, why) in [
        ("nested", "limits.template_mib"),
        ("wide", "memory allocation"),
        ("broken", "no Jinja"),
    ] {
        let failed = ask(&server, json!({ "model": id }));
        failed.is_error(400, Some("messages"), Some("chat_template_failed"));
        assert!(failed.body.contains(why), "{id}: {}", failed.body);
        ask(&server, json!({})).ok();
    }
}

#[test]
fn a_template_in_a_file_of_its_own_wins() {
    let server = Server::with(|settings| {
        let dense = settings.pairs[0].join("dense");
        write_tokenizer_config(&dense, Value::Null);
        std::fs::write(
            dense.join("chat_template.jinja"),
            "{{ messages[0].content }}",
        )
        .unwrap();
    });
    let body = json!({"model": "tiny", "prompt": "x = 1", "max_tokens": 12, "seed": 5});
    let completion = server.post("/v1/completions", &body).ok();
    let chat = ask(&server, json!({})).ok();
    assert_eq!(
        contents(&chat),
        [completion["choices"][0]["text"].as_str().unwrap()]
    );
}
