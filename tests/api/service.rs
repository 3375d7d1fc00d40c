//! What the server says of itself.

use serde_json::{Value, json};

use crate::client::Server;
use crate::tiny_pair;

#[test]
fn models_and_bridges_are_described() {
    let server = Server::new();
    let list = server.get("/v1/models").ok();
    assert_eq!(list["object"], "list");
    let ids: Vec<&Value> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| &model["id"])
        .collect();
    assert_eq!(json!(ids), json!(["tiny", "tiny-sparse"]));
    let model = server.get("/v1/models/tiny").ok();
    assert_eq!(model, list["data"][0]);
    for (field, value) in [
        ("object", json!("model")),
        ("owned_by", json!("causeway")),
        ("kind", json!("dense")),
        ("context_length", json!(tiny_pair::CONTEXT)),
        ("vocab_size", json!(tiny_pair::VOCABULARY)),
        ("bridges", json!(["tiny"])),
        ("end_of_text", json!(tiny_pair::VOCABULARY - 1)),
        (
            "sites",
            json!([
                "0.resid_in",
                "0.resid_mid",
                "1.resid_in",
                "1.resid_mid",
                "final_resid"
            ]),
        ),
    ] {
        assert_eq!(model[field], value, "{field}");
    }
    let sparse = server.get("/v1/models/tiny-sparse").ok();
    assert_eq!(sparse["kind"], "sparse");
    assert!(sparse["nonzeros"].as_u64() < sparse["parameters"].as_u64());
    assert_ne!(sparse["fingerprint"], model["fingerprint"]);
    let bridge = server.get("/v1/bridges/tiny").ok();
    assert_eq!(server.get("/v1/bridges").ok()["data"], json!([bridge]));
    assert_eq!(
        (&bridge["dense"], &bridge["sparse"]),
        (&json!("tiny"), &json!("tiny-sparse"))
    );
    assert_eq!(bridge["sites"].as_array().unwrap().len(), 5);
    assert_eq!(bridge["features"], 1);
}

#[test]
fn health_is_told() {
    let server = Server::new();
    for path in ["/healthz", "/livez"] {
        assert_eq!(server.get(path).ok(), json!({"status": "ok"}));
    }
    assert_eq!(server.get("/readyz").ok(), json!({"status": "ready"}));
}

#[test]
fn every_answer_has_a_request_id() {
    let server = Server::new();
    let id = |given: &str| {
        server
            .send("GET", "/livez", &[("x-request-id", given)], b"")
            .headers["x-request-id"]
            .clone()
    };
    assert_eq!(id("my-request.7"), "my-request.7");
    for unusable in ["two words", "<script>", &"x".repeat(129)] {
        assert!(id(unusable).starts_with("req_"), "{unusable}");
    }
    let first = server.get("/livez").headers["x-request-id"].clone();
    assert_ne!(first, server.get("/livez").headers["x-request-id"]);
}

#[test]
fn requests_are_counted() {
    let server = Server::new();
    let ask = |changes: Value| {
        let mut request = json!({"model": "tiny", "prompt": "x = 1", "max_tokens": 4, "logit_bias": {"319": -100}});
        for (name, value) in changes.as_object().unwrap() {
            request[name] = value.clone();
        }
        server.post("/v1/completions", &request).status
    };
    assert_eq!(
        (
            ask(json!({})),
            ask(json!({"n": 0})),
            server.get("/nowhere/42").status
        ),
        (200, 400, 404)
    );
    let metrics = server.get("/metrics");
    assert!(metrics.headers["content-type"].starts_with("text/plain"));
    for line in [
        "causeway_requests_total{endpoint=\"/v1/completions\",outcome=\"ok\"} 1",
        "causeway_requests_total{endpoint=\"/v1/completions\",outcome=\"refused\"} 1",
        "causeway_requests_total{endpoint=\"none\",outcome=\"refused\"} 1",
        "causeway_generation_tokens_total 4",
        "causeway_request_duration_seconds_count{endpoint=\"/v1/completions\"} 2",
    ] {
        assert!(
            metrics.body.lines().any(|found| found == line),
            "{line} is not in\n{}",
            metrics.body
        );
    }
    assert!(metrics.body.contains("causeway_build_info{version="));
    assert!(!metrics.body.contains("/nowhere"), "paths are no labels");
}

#[test]
fn the_front_page_leads_to_the_document() {
    let server = Server::new();
    let page = server.get("/");
    assert_eq!(page.status, 200);
    assert!(page.headers["content-type"].starts_with("text/html"));
    assert!(page.body.contains("href=\"/openapi.json\""));
}

#[test]
fn the_committed_document_is_the_served_one() {
    let server = Server::new();
    let served = server.get("/openapi.json");
    let document = served.ok();
    let committed =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json"))
            .unwrap();
    assert!(
        served.body == committed,
        "openapi/openapi.json is out of date: cargo run --release -- openapi > openapi/openapi.json"
    );
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(
                operation["description"].is_string() || operation["summary"].is_string(),
                "{method} {path}"
            );
            assert!(
                operation["responses"].get("200").is_some()
                    || operation["responses"].get("201").is_some()
            );
        }
    }
}
