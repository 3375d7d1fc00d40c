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
fn heads_tell_where_they_attend() {
    let server = Server::new();
    let heads = json!([{"layer": 1, "head": 0}, {"layer": 0, "head": 1}]);
    let answer = ask(&server, json!({"nodes": [], "attention": heads})).ok();
    let tokens = answer["tokens"].as_array().unwrap().len();
    let patterns = answer["attention"].as_array().unwrap();
    assert_eq!(patterns.len(), 2);
    assert_eq!(
        (&patterns[0]["layer"], &patterns[1]["head"]),
        (&json!(1), &json!(1))
    );
    for pattern in patterns {
        let rows = pattern["values"].as_array().unwrap();
        assert_eq!(rows.len(), tokens);
        for (token, row) in rows.iter().enumerate() {
            let row = numbers(row);
            assert!(row[token + 1..].iter().all(|share| *share == 0.0));
            let sum: f64 = row.iter().sum();
            assert!(sum > 0.0 && sum < 1.0 + 1e-5, "{sum}");
        }
    }
    for (heads, param) in [
        (json!([{"layer": 9, "head": 0}]), "attention[0].layer"),
        (json!([{"layer": 0, "head": 99}]), "attention[0].head"),
        (json!([heads[0], heads[0]]), "attention[1]"),
    ] {
        let answer = ask(&server, json!({"nodes": [], "attention": heads}));
        answer.is_error(400, Some(param), None);
    }
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
    ] {
        let answer = ask(&server, changes.clone());
        assert_eq!(answer.status, 400, "{changes}: {}", answer.body);
        answer.is_error(400, Some(param), None);
    }
}

/// The dense model with edits of its own stream.
fn steered(server: &Server, steer: Value) -> crate::client::Response {
    let body = json!({"model": "tiny", "prompt": "x = 1", "nodes": ["0.resid_mid", "1.resid_in", "final_resid"],
        "logits": true, "steer": steer});
    server.post("/v1/activations", &body)
}

#[test]
fn values_are_those_of_the_steered_run() {
    let server = Server::new();
    let vector: Vec<f64> = (0..16).map(|channel| f64::from(channel) - 7.5).collect();
    let edit = |strength: f64| json!({"feature": {"site": "1.resid_in", "vector": vector}, "op": "add", "value": 2, "strength": strength});
    let plain = steered(&server, json!({"edits": []})).ok();
    let nothing = steered(&server, json!({"edits": [edit(0.0)]})).ok();
    assert_eq!(nothing, plain, "a strength of 0 changes nothing");
    let edited = steered(&server, json!({"edits": [edit(1.0)]})).ok();
    let before = |node: &str| &plain["nodes"][node]["values"];
    let after = |node: &str| &edited["nodes"][node]["values"];
    assert_eq!(after("0.resid_mid"), before("0.resid_mid"));
    let rows = |values: &Value| -> Vec<Vec<f64>> {
        values.as_array().unwrap().iter().map(numbers).collect()
    };
    for (before, after) in rows(before("1.resid_in"))
        .iter()
        .zip(rows(after("1.resid_in")))
    {
        for ((before, after), step) in before.iter().zip(after).zip(&vector) {
            assert!(
                (after - before - 2.0 * step).abs() < 1e-4,
                "{before} {after} {step}"
            );
        }
    }
    assert_ne!(after("final_resid"), before("final_resid"));
    assert_ne!(edited["logits"], plain["logits"]);
    // The first token of a completion with the same edits is drawn from these logits.
    let last = numbers(edited["logits"].as_array().unwrap().last().unwrap());
    let best = (0..last.len())
        .max_by(|&a, &b| last[a].total_cmp(&last[b]))
        .unwrap();
    let body = json!({"model": "tiny", "prompt": "x = 1", "max_tokens": 1, "temperature": 0,
        "logit_bias": {"319": -100}, "steer": {"edits": [edit(1.0)]}});
    let answer = server.post("/v1/completions", &body).ok();
    let text = server.post(
        "/v1/activations",
        &json!({"model": "tiny", "prompt": [best], "logits": true}),
    );
    if best != 319 {
        assert_eq!(answer["choices"][0]["text"], text.ok()["tokens"][0]["text"]);
    }
    // A sparse model is steered in itself.
    let scale = json!({"feature": {"node": "0.mlp.act_in", "channel": 3}, "op": "set", "value": 5});
    let native = ask(
        &server,
        json!({"nodes": ["0.mlp.act_in"], "channels": [3], "steer": {"edits": [scale]}}),
    )
    .ok();
    for row in native["nodes"]["0.mlp.act_in"]["values"]
        .as_array()
        .unwrap()
    {
        assert_eq!(numbers(row), [5.0]);
    }
}

#[test]
fn named_features_are_told_of_either_model() {
    let server = Server::new();
    let features = json!(["shipped_feature", "1.attn.act_in:3", {"node": "1.attn.act_in",
        "channels": [{"channel": 3, "weight": 3}, {"channel": 4, "weight": -4}]}]);
    let sparse = ask(
        &server,
        json!({"features": features, "nodes": ["1.attn.act_in"], "channels": [3, 4]}),
    )
    .ok();
    let values: Vec<Vec<f64>> = sparse["features"]
        .as_array()
        .unwrap()
        .iter()
        .map(|feature| numbers(&feature["values"]))
        .collect();
    let rows = sparse["nodes"]["1.attn.act_in"]["values"]
        .as_array()
        .unwrap();
    assert_eq!(values[0].len(), rows.len());
    for (token, row) in rows.iter().map(numbers).enumerate() {
        assert_eq!(values[0][token], row[0]);
        assert_eq!(values[1][token], row[0]);
        assert!((values[2][token] - (0.6 * row[0] - 0.8 * row[1])).abs() < 1e-5);
    }
    assert_eq!(sparse["features"][0]["feature"], "shipped_feature");
    assert_eq!(sparse["features"][1]["node"], "1.attn.act_in");
    // The dense model's are the sparse one's, whatever edits it runs with; its own are directions.
    let direction =
        json!({"site": "1.resid_in", "vector": [2.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]});
    let edit = json!({"feature": direction, "op": "set", "value": 7});
    let dense = ask(
        &server,
        json!({"model": "tiny", "nodes": [], "steer": {"edits": [edit]},
        "features": [features[0], features[2], direction]}),
    )
    .ok();
    assert_eq!(dense["features"][0], sparse["features"][0]);
    assert_eq!(dense["features"][1], sparse["features"][2]);
    assert!(
        numbers(&dense["features"][2]["values"])
            .iter()
            .all(|value| (value - 7.0).abs() < 1e-5)
    );
    ask(&server, json!({"features": ["shiped_feature"]})).blames("features[0]");
    ask(
        &server,
        json!({"features": [{"node": "0.nothing", "channel": 1}]}),
    )
    .blames("features[0].node");
}

#[test]
fn a_list_of_prompts_is_answered_with_a_list() {
    let server = Server::new();
    let one = |prompt: Value| {
        ask(
            &server,
            json!({"prompt": prompt, "features": ["shipped_feature"]}),
        )
        .ok()
    };
    let list = one(json!(["x = 1", "while y"]));
    assert_eq!(list["object"], "list");
    assert_eq!(list["model"], "tiny-sparse");
    assert_eq!(
        list["data"],
        json!([one(json!("x = 1")), one(json!("while y"))])
    );
    assert_eq!(one(json!(["x = 1"]))["data"], json!([one(json!("x = 1"))]));
    let ids: Vec<Value> = list["data"][1]["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["id"].clone())
        .collect();
    assert_eq!(one(json!([ids]))["data"][0], list["data"][1]);
    // Each prompt has its own counterfactual.
    let patch = |prompts: Value, to: Value| {
        let edit = json!({"feature": "shipped_feature", "op": "patch", "to": {"prompt": to}});
        ask(
            &server,
            json!({"prompt": prompts, "nodes": ["1.attn.act_in"], "steer": {"edits": [edit]}}),
        )
    };
    let both = patch(json!(["x = 1", "y = 2"]), json!(["y = 2", "z = 3"])).ok();
    let second = patch(json!("y = 2"), json!("z = 3")).ok();
    assert_eq!(both["data"][1], second);
    patch(json!(["x = 1", "y = 2"]), json!(["y = 2"])).blames("steer.edits[0].to.prompt");
    ask(&server, json!({"prompt": []})).is_error(400, Some("prompt"), None);
}

#[test]
fn activations_are_of_one_arm() {
    let server = Server::new();
    let edit = json!({"feature": "shipped_feature", "op": "add", "value": 1});
    let with = |steer: Value| ask(&server, json!({"steer": steer}));
    with(json!({"edits": [edit], "variants": ["random"]})).ok();
    with(json!({"edits": [edit], "variants": ["steered", "baseline"]})).blames("steer");
    with(json!({"edits": [edit], "return": ["receipt"]})).blames("steer.return");
    let mut sweep = edit.clone();
    sweep["strength"] = json!([0, 1]);
    with(json!({"edits": [sweep]})).blames("steer");
}
