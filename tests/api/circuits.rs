//! Circuits that a pair comes with: as records, as pictures, on a prompt, and told of the features that they have.

use std::path::Path;

use causeway::circuits::circuit::Circuit;
use causeway::circuits::directory;
use causeway::features::pair::Pair;
use serde_json::{Value, json};

use crate::client::Server;

/// Nodes that are the same channels of the tiny pair's sparse model in every circuit here; the first is of the shipped
/// feature's place.
const NODES: [(&str, usize); 4] = [
    ("1.attn.act_in", 3),
    ("0.mlp.act_in", 5),
    ("0.mlp.post_act", 7),
    ("0.mlp.resid_delta", 3),
];

fn circuit(id: &str, task: &str, (model, fingerprint): (&str, &str)) -> Circuit {
    let nodes = NODES.map(|(place, channel)| {
        json!({"node": place, "channel": channel, "held_at": 0.1, "effect": 0.4, "effect_in_whole_model": 0.2,
            "correlation": 0.9, "presented": 1.5, "counterfactual": -1.5,
            "reference": {"mean": 0.1, "std": 0.5, "min": -1.0, "max": 2.0, "density": 0.25},
            "examples": [{"tokens": ["x", " <b>"], "values": [0.0, 1.5]}]})
    });
    let record = json!({
        "id": id, "model": model, "model_fingerprint": fingerprint, "task": task,
        "summary": "It does its task & <b>beats</b> its controls.",
        "method": {"ablation": "mean", "frozen_norms": false, "target_loss": 0.15, "learning_rate": 0.003,
            "node_penalty": 0.0001, "steps": 100, "batch_pairs": 8, "train_pairs": 16, "held_out_pairs": 8, "seed": 1,
            "reference_tokens": 320, "scale": 1.2, "shift": 0.1},
        "figures": {"nodes": 4, "edges": 0, "edges_before_pruning": 0, "task_loss": 0.125, "accuracy": 0.96,
            "task_loss_train": 0.12, "task_loss_unscaled": 0.14, "task_loss_whole": 0.02, "accuracy_whole": 1.0,
            "task_loss_without": 1.3, "accuracy_without": 0.5, "reaches_target": true},
        "controls": {"shuffled_labels": {"nodes": 90, "edges": 4, "task_loss_train": 0.5, "reaches_target": false},
            "random_model": null, "frozen_norms": null, "interchange": 0.9, "interchange_random_nodes": 0.05,
            "mean_correlation": 0.9, "least_correlation": 0.9, "beats_controls": true},
        "nodes": nodes, "edges": [], "sizes": [{"nodes": 4, "task_loss": 0.12}]
    });
    serde_json::from_value(record).unwrap()
}

/// A server whose pair comes with circuits: `brackets`, `quotes` and `quotes.svg` of the sparse model.
fn server() -> Server {
    Server::with(|settings| add_circuits(&settings.pairs[0]))
}

fn add_circuits(pair: &Path) {
    let read = Pair::read(pair).unwrap();
    let host = (read.sparse.id.as_str(), read.sparse.fingerprint.as_str());
    for (id, task) in [
        ("brackets", "bracket_depth"),
        ("quotes", "single_double_quote"),
        ("quotes.svg", "single_double_quote"),
    ] {
        let place = pair.join("circuits").join(id);
        directory::write(&place, &circuit(id, task, host)).unwrap();
    }
}

fn ids(list: &Value) -> Vec<&str> {
    let data = list["data"].as_array().unwrap().iter();
    data.map(|listed| listed["id"].as_str().unwrap()).collect()
}

#[test]
fn circuits_are_listed_and_told() {
    let server = server();
    let list = server.get("/v1/circuits").ok();
    assert_eq!(ids(&list), ["brackets", "quotes", "quotes.svg"]);
    assert_eq!(
        (&list["last_id"], &list["has_more"]),
        (&json!("quotes.svg"), &json!(false))
    );
    let listed = &list["data"][1];
    for (field, value) in [
        ("object", json!("circuit")),
        ("model", json!("tiny-sparse")),
        ("task", json!("single_double_quote")),
        ("nodes", json!(4)),
        ("edges", json!(0)),
        ("task_loss", json!(0.125)),
        ("stale", json!(false)),
    ] {
        assert_eq!(listed[field], value, "{field}");
    }
    assert_eq!(listed["controls"]["beats_controls"], true);
    for (query, wanted) in [
        ("task=bracket_depth", &["brackets"][..]),
        ("task=nothing", &[]),
        ("model=tiny", &[]),
        ("model=tiny-sparse&limit=1", &["brackets"]),
        ("limit=1&after=brackets", &["quotes"]),
    ] {
        let list = server.get(&format!("/v1/circuits?{query}")).ok();
        assert_eq!(ids(&list), wanted, "{query}");
    }
    assert_eq!(server.get("/v1/circuits?limit=2").ok()["has_more"], true);
    for (query, param) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("model=tiny-sparce", "model"),
        ("after=nobody", "after"),
    ] {
        let refused = server.get(&format!("/v1/circuits?{query}"));
        refused.is_error(400, Some(param), None);
    }
    let circuit = server.get("/v1/circuits/quotes").ok();
    assert_eq!(
        (&circuit["id"], &circuit["object"], &circuit["stale"]),
        (&json!("quotes"), &json!("circuit"), &json!(false))
    );
    assert_eq!(circuit["nodes"][2]["node"], "0.mlp.post_act");
    assert_eq!(circuit["figures"]["task_loss_without"], 1.3);
    let unknown = server.get("/v1/circuits/quotse");
    unknown.is_error(404, None, Some("circuit_not_found"));
    assert!(unknown.body.contains("\\\"quotes\\\""), "{}", unknown.body);
}

#[test]
fn circuits_are_drawn() {
    let server = server();
    for (form, media_type, begins) in [
        ("dot", "text/vnd.graphviz", "digraph"),
        ("svg", "image/svg+xml", "<svg"),
        ("txt", "text/plain", ""),
    ] {
        let drawn = server.get(&format!("/v1/circuits/brackets.{form}"));
        drawn.status_is(200);
        let found = &drawn.headers["content-type"];
        assert!(found.starts_with(media_type), "{form}: {found}");
        assert!(drawn.body.contains(begins), "{form}: {}", drawn.body);
        assert!(drawn.body.contains("bracket_depth"), "{form}");
        let policy = &drawn.headers["content-security-policy"];
        assert!(policy.contains("default-src 'none'"), "{policy}");
        server
            .get(&format!("/v1/circuits/bracket.{form}"))
            .is_error(404, None, Some("circuit_not_found"));
    }
    let picture = server.get("/v1/circuits/brackets.svg").body;
    assert!(!picture.contains("<b>") && !picture.contains("<script"));
    // A circuit that is called like a picture is itself, and its picture has one more ending.
    let whole = server.get("/v1/circuits/quotes.svg");
    assert_eq!(
        serde_json::from_str::<Value>(&whole.body).unwrap()["id"],
        "quotes.svg"
    );
    let picture = server.get("/v1/circuits/quotes.svg.svg");
    picture.status_is(200);
    assert!(picture.body.contains("<svg"));
}

#[test]
fn a_circuit_is_drawn_on_a_prompt() {
    let server = server();
    let graph = server.get("/v1/circuits/quotes?prompt=x%20%3D%201").ok();
    assert_eq!(graph["metadata"]["scan"], "tiny-sparse");
    assert_eq!(graph["metadata"]["prompt"], "x = 1");
    let tokens = graph["metadata"]["prompt_tokens"].as_array().unwrap().len();
    let nodes = graph["nodes"].as_array().unwrap();
    let embeddings = nodes.iter().filter(|node| node["layer"] == "E");
    assert_eq!(embeddings.count(), tokens);
    let of = |node: &Value| node["node_id"].as_str().unwrap().to_owned();
    let known: Vec<String> = nodes.iter().map(of).collect();
    let links = graph["links"].as_array().unwrap();
    assert!(!links.is_empty());
    for link in links {
        for end in ["source", "target"] {
            let end = link[end].as_str().unwrap();
            assert!(known.iter().any(|id| id == end), "{end}");
        }
    }
    for prompt in [String::new(), "x%20".repeat(100)] {
        let refused = server.get(&format!("/v1/circuits/quotes?prompt={prompt}"));
        refused.is_error(400, Some("prompt"), None);
    }
    let refused = server.get("/v1/circuits/brackets.svg?prompt=x");
    refused.is_error(400, Some("prompt"), None);
    let unknown = server.get("/v1/circuits/quotes?prompts=x");
    assert_eq!(unknown.status, 400);
}

#[test]
fn features_tell_the_circuits_that_have_them() {
    let server = server();
    let list = server.get("/v1/features").ok();
    let all = json!(["brackets", "quotes", "quotes.svg"]);
    assert_eq!(list["data"][0]["id"], "shipped_feature");
    assert_eq!(list["data"][0]["circuits"], all);
    let detail = |id: &str| {
        let address = format!("/v1/features/{id}?examples=0");
        server.get(&address).ok()["circuits"].clone()
    };
    assert_eq!(detail("shipped_feature"), all);
    assert_eq!(detail("0.mlp.post_act:7"), all);
    assert_eq!(detail("0.mlp.post_act:8"), json!([]));
}

#[test]
fn circuits_come_and_go_with_their_pair() {
    let server = server();
    server.post("/v1/library/tiny/unload", &json!({})).ok();
    assert_eq!(server.get("/v1/circuits").ok()["data"], json!([]));
    assert_eq!(server.get("/v1/circuits/quotes").status, 404);
    server.post("/v1/library/tiny/load", &json!({})).ok();
    assert_eq!(server.get("/v1/circuits/quotes").status, 200);
}
