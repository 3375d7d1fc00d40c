//! Who is let in, what they may do, and how often.

use causeway::settings::keys::{KeySettings, Role};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::client::{Response, Server};

/// A key `ck-NAME`.
pub fn key(name: &str, role: Role, requests_per_minute: Option<u32>) -> KeySettings {
    let hash = Sha256::digest(format!("ck-{name}"));
    KeySettings {
        name: name.parse().unwrap(),
        sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        role,
        requests_per_minute,
    }
}

fn server() -> Server {
    Server::with(|settings| {
        settings.keys = vec![
            key("reader", Role::Infer, None),
            key("maker", Role::Train, None),
            key("slow", Role::Infer, Some(2)),
        ];
    })
}

fn send(server: &Server, key: Option<&str>, method: &str, path: &str) -> Response {
    let bearer = key.map(|key| format!("Bearer {key}"));
    let headers: Vec<(&str, &str)> = bearer
        .iter()
        .map(|bearer| ("authorization", bearer.as_str()))
        .chain([("content-type", "application/json")])
        .collect();
    let body = json!({"name": "mine", "node": "1.attn.act_in", "channels": [{"channel": 1, "weight": 1.0}]});
    let body = if method == "POST" {
        body.to_string()
    } else {
        String::new()
    };
    server.send(method, path, &headers, body.as_bytes())
}

#[test]
fn health_and_what_describes_the_api_are_open_to_everybody() {
    let server = server();
    for path in [
        "/healthz",
        "/livez",
        "/readyz",
        "/",
        "/docs",
        "/docs/start.js",
        "/openapi.json",
    ] {
        assert_eq!(send(&server, None, "GET", path).status, 200, "{path}");
    }
    for path in ["/v1/models", "/metrics", "/nothing"] {
        for key in [None, Some("ck-other"), Some("")] {
            let refused = send(&server, key, "GET", path);
            refused.is_error(401, None, Some("invalid_api_key"));
            assert_eq!(refused.headers["www-authenticate"], "Bearer");
        }
        assert_ne!(send(&server, Some("ck-reader"), "GET", path).status, 401);
    }
}

#[test]
fn roles_bound_what_may_be_changed() {
    let server = server();
    send(&server, Some("ck-reader"), "POST", "/v1/features").is_error(
        403,
        None,
        Some("insufficient_role"),
    );
    assert_eq!(
        send(&server, Some("ck-maker"), "POST", "/v1/features").status,
        201
    );
    assert_eq!(
        send(&server, Some("ck-reader"), "GET", "/v1/features/mine").status,
        200
    );
    send(&server, Some("ck-reader"), "DELETE", "/v1/features/mine").is_error(
        403,
        None,
        Some("insufficient_role"),
    );
    assert_eq!(
        send(&server, Some("ck-maker"), "DELETE", "/v1/features/mine").status,
        200
    );
}

#[test]
fn rates_are_counted_by_key() {
    let server = server();
    let ask = |key| send(&server, Some(key), "GET", "/v1/models");
    assert_eq!((ask("ck-slow").status, ask("ck-slow").status), (200, 200));
    let refused = ask("ck-slow");
    refused.is_error(429, None, Some("rate_limit_exceeded"));
    let wait: u64 = refused.headers["retry-after"].parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert!((0..5).all(|_| ask("ck-reader").status == 200));
}
