//! Activations: shapes, choices of channels, refusals.

use serde_json::{Value, json};

use crate::client::Server;

fn ask(server: &Server, changes: Value) -> crate::client::Response {
    let mut request = json!({"model": "tiny-sparse", "prompt": "x = 1", "nodes": ["0.attn.act_in", "final_resid"]});
    for (name, value) in changes.as_object().unwrap() {
        request[name] = value.clone();
    }
    server.post("/v1/activations", &request)
}

fn numbers(values: &Value) -> Vec<f64> {
    values
        .as_array()
        .unwrap()
        .iter()
        .map(|value| value.as_f64().unwrap())
        .collect()
}

#[test]
fn every_channel_at_every_token() {
    let server = Server::new();
    let answer = ask(&server, json!({"logits": true})).ok();
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("activations"), &json!("tiny-sparse"))
    );
    let tokens = answer["tokens"].as_array().unwrap();
    let text: String = tokens
        .iter()
        .map(|token| token["text"].as_str().unwrap())
        .collect();
    assert_eq!(text, "x = 1");
    assert_eq!(answer["nodes"].as_object().unwrap().len(), 2);
    let node = &answer["nodes"]["0.attn.act_in"];
    assert_eq!(node["shape"], json!([tokens.len(), 32]));
    assert_eq!(node["values"].as_array().unwrap().len(), tokens.len());
    assert!(
        node["values"]
            .as_array()
            .unwrap()
            .iter()
            .all(|row| numbers(row).len() == 32)
    );
    assert!(node.get("channels").is_none());
    let logits = answer["logits"].as_array().unwrap();
    assert_eq!(
        (logits.len(), numbers(&logits[0]).len()),
        (tokens.len(), 320)
    );
    assert!(ask(&server, json!({})).ok().get("logits").is_none());
}

#[test]
fn channels_can_be_named_or_the_largest_taken() {
    let server = Server::new();
    let all = ask(&server, json!({})).ok();
    let all: Vec<Vec<f64>> = all["nodes"]["final_resid"]["values"]
        .as_array()
        .unwrap()
        .iter()
        .map(numbers)
        .collect();
    let named = ask(&server, json!({"channels": [5, 2]})).ok()["nodes"]["final_resid"].clone();
    assert_eq!(named["shape"], json!([all.len(), 2]));
    let largest = ask(&server, json!({"top_k": 3})).ok()["nodes"]["final_resid"].clone();
    assert_eq!(largest["shape"], json!([all.len(), 3]));
    for (token, row) in all.iter().enumerate() {
        assert_eq!(numbers(&named["values"][token]), [row[5], row[2]]);
        assert_eq!(named["channels"][token], json!([5, 2]));
        let mut sizes: Vec<f64> = row.iter().map(|value| value.abs()).collect();
        sizes.sort_by(|left, right| right.total_cmp(left));
        let (values, channels) = (
            numbers(&largest["values"][token]),
            numbers(&largest["channels"][token]),
        );
        for rank in 0..3 {
            assert_eq!(values[rank].abs(), sizes[rank]);
            assert_eq!(row[channels[rank] as usize], values[rank]);
        }
    }
    assert_eq!(
        ask(&server, json!({"top_k": 1000})).ok()["nodes"]["final_resid"]["shape"],
        json!([all.len(), 32])
    );
}

#[test]
fn what_does_not_exist_is_refused() {
    let server = Server::new();
    ask(&server, json!({"model": "x"})).is_error(404, Some("model"), Some("model_not_found"));
    for (changes, param) in [
        (json!({"nodes": ["0.attn.act_in", "0.attn.x"]}), "nodes[1]"),
        (json!({"nodes": ["2.attn.q"]}), "nodes[0]"),
        (json!({"nodes": ["final_resid", "final_resid"]}), "nodes[1]"),
        (json!({"nodes": []}), "nodes"),
        (json!({"channels": [1, 32]}), "channels[1]"),
        (json!({"channels": [1, 1]}), "channels[1]"),
        (json!({"channels": [1], "top_k": 1}), "top_k"),
        (json!({"top_k": 0}), "top_k"),
        (json!({"prompt": [1, 320]}), "prompt"),
        (json!({"prompt": ["x"]}), "prompt"),
    ] {
        let answer = ask(&server, changes.clone());
        assert_eq!(answer.status, 400, "{changes}: {}", answer.body);
        answer.is_error(400, Some(param), None);
    }
}
