//! What chat templates that were made to do harm, and texts far too long, cost a server.

use std::fs;

use serde_json::{Value, json};

use crate::MOST_ABOVE_IDLE;
use crate::files::{copy, shipped};
use crate::server::Server;

/// Each bomb goes off when the user says its name, and what the answer must say of it.
const BOMBS: [(&str, &str, &str); 8] = [
    (
        "width",
        "{{ '{:>2000000000}'.format('a') }}",
        "limits.template_mib",
    ),
    (
        "itself",
        "{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns }}{{ ns | string }}{{ ns == ns }}",
        "",
    ),
    (
        "deep",
        "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% for j in range(40) %}{% set ns.x = [ns.x] %}\
         {% endfor %}{% endfor %}{{ ns.x }}",
        "chat template",
    ),
    (
        "replace",
        "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set ns.x = ns.x.replace('a', 'aaaaaaaa') %}\
         {% endfor %}{{ ns.x | length }}",
        "chat template",
    ),
    (
        "double",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "chat template",
    ),
    (
        "join",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
        "chat template",
    ),
    (
        "shared",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}\
         {{ ns.x | tojson }}",
        "chat template",
    ),
    (
        "endless",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "steps",
    ),
];

fn ask(server: &Server, content: &str) -> (u16, String) {
    let messages = json!([{"role": "user", "content": content}]);
    let body = json!({"model": "bombs", "messages": messages, "max_tokens": 2});
    server.post("/v1/chat/completions", &body)
}

#[test]
fn a_template_s_bomb_fails_its_request_alone() {
    let server = Server::start(&[("CAUSEWAY_LIMITS__TEMPLATE_SECONDS", "5")]);
    let folder = server.directory.join("library/bombs");
    copy(&shipped("dense"), &folder);
    let bombs = BOMBS.map(|(name, bomb, _)| {
        format!("{{% if messages[0].content == '{name}' %}}{bomb}{{% endif %}}")
    });
    let template = format!("{}{{{{ messages[0].content }}}}", bombs.concat());
    fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let (status, answer) = server.post("/v1/library/bombs/load", &json!({}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(ask(&server, "x = 1").0, 200);
    let above = server.peak_above_idle(|| {
        for (name, _, why) in BOMBS {
            let (status, answer) = ask(&server, name);
            // What refers to itself is written out without harm, or not at all.
            assert!(
                status == 400 || (name == "itself" && status == 200),
                "{name}: {answer}"
            );
            if status == 400 {
                let error: Value = serde_json::from_str(&answer).unwrap();
                let message = error["error"]["message"].as_str().unwrap();
                assert!(message.contains(why), "{name}: {message}");
                assert_eq!(error["error"]["param"], "messages", "{name}");
            }
            let (status, answer) = ask(&server, "x = 1");
            assert_eq!(status, 200, "after {name}: {answer}");
        }
    });
    assert!(above <= MOST_ABOVE_IDLE, "{above} bytes");
}

#[test]
fn texts_that_cannot_fit_are_not_tokenised() {
    let server = Server::start(&[]);
    let above = server.peak_above_idle(|| {
        std::thread::scope(|scope| {
            for at in 0..20u32 {
                let server = &server;
                scope.spawn(move || {
                    let character = char::from_u32(0x4e00 + at).unwrap();
                    let prompt = character.to_string().repeat(524_288);
                    let body = json!({"model": "tinypython", "prompt": prompt, "max_tokens": 1});
                    let (status, answer) = server.post("/v1/completions", &body);
                    let told = &answer[..answer.len().min(500)];
                    assert_eq!(status, 400, "{told}");
                    assert!(answer.contains("context_length_exceeded"), "{told}");
                });
            }
        });
    });
    assert!(above <= MOST_ABOVE_IDLE, "{above} bytes");
}
