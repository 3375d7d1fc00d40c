//! Who is let in, what they may do, and how often.

use std::collections::BTreeSet;

use causeway::api::keys::Access;
use causeway::api::server::{addresses, document};
use causeway::settings::keys::{KeySettings, Role};
use serde_json::{Value, json};
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
        "/page/app.js",
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

/// Every route, asked with every role: let in by those that its registration says, and by no other way of writing
/// its path.
#[test]
fn a_route_s_role_holds_however_its_path_is_written() {
    let server = Server::with(|settings| {
        settings.keys = vec![
            key("reader", Role::Infer, None),
            key("maker", Role::Train, None),
            key("owner", Role::Admin, None),
        ];
    });
    let keys = [
        (Access::Everybody, None),
        (Access::Infer, Some("ck-reader")),
        (Access::Train, Some("ck-maker")),
        (Access::Admin, Some("ck-owner")),
    ];
    let mut routes = 0;
    for address in addresses() {
        let path = address
            .path()
            .replace("{id}", "nothing")
            .replace("{asset}", "nothing");
        let spelt = |part: &str, letter: &str, code: &str| {
            path.replacen(part, &part.replacen(letter, code, 1), 1)
        };
        let paths = [
            path.clone(),
            spelt("/library", "l", "%6C"),
            spelt("/files", "e", "%65"),
            spelt("/features", "s", "%73"),
            spelt("/fine_tuning", "f", "%66"),
            spelt("/models", "m", "%6d"),
        ];
        // An answer to HEAD has no body, which the client here does not know.
        for (method, access) in address.methods().filter(|(method, _)| *method != "HEAD") {
            routes += 1;
            for (role, key) in keys {
                for path in &paths {
                    let status = send(&server, key, method, path).status;
                    let refused = matches!(status, 401 | 403);
                    assert_eq!(
                        refused,
                        role < access,
                        "{method} {path} by {role:?}: {status}"
                    );
                }
            }
        }
    }
    assert!(routes > 40, "{routes} routes were tried");
}

#[test]
fn a_feature_s_name_gives_nobody_a_role() {
    let server = server();
    let body = json!({"name": "verify", "node": "1.attn.act_in", "channels": [{"channel": 1, "weight": 1.0}]});
    let maker = [
        ("authorization", "Bearer ck-maker"),
        ("content-type", "application/json"),
    ];
    let made = server.send("POST", "/v1/features", &maker, body.to_string().as_bytes());
    assert_eq!(made.status, 201, "{}", made.body);
    let reader = [
        ("authorization", "Bearer ck-reader"),
        ("content-type", "application/json"),
    ];
    let patch = server.send(
        "PATCH",
        "/v1/features/verify",
        &reader,
        br#"{"description": "x"}"#,
    );
    patch.is_error(403, None, Some("insufficient_role"));
    let delete = server.send("DELETE", "/v1/features/verify", &reader, b"");
    delete.is_error(403, None, Some("insufficient_role"));
}

/// An operation that is described and one that is registered are the same, or the document is wrong about who may.
#[test]
fn the_document_and_the_routes_are_of_the_same_operations() {
    let document: Value = serde_json::from_str(&document().unwrap()).unwrap();
    let described = document["paths"].as_object().unwrap().iter();
    let described: BTreeSet<(String, String)> = described
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(move |method| (path.clone(), method.to_uppercase()))
        })
        .collect();
    for address in addresses() {
        let is_page = ["/docs", "/page/"]
            .iter()
            .any(|page| address.path().starts_with(page))
            || address.path() == "/";
        for (method, _) in address
            .methods()
            .filter(|(method, _)| *method != "HEAD" && !is_page)
        {
            let operation = (address.path().to_owned(), method.to_owned());
            let alias = operation.0 == "/healthz";
            assert!(
                alias || described.contains(&operation),
                "{operation:?} is not described"
            );
        }
    }
    let registered: BTreeSet<(String, String)> = addresses()
        .iter()
        .flat_map(|address| {
            let methods = address.methods();
            methods.map(|(method, _)| (address.path().to_owned(), method.to_owned()))
        })
        .collect();
    assert!(
        described.is_subset(&registered),
        "{:?}",
        described.difference(&registered)
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
