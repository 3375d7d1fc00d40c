//! The published format of attribution graphs: which fields a graph must have, and what they may hold.

use serde_json::Value;

use super::*;
use crate::features::test_pair::VOCABULARY;

/// What the published format asks of a graph: which fields must be there, and of which types each may be.
fn follows_the_format(graph: &Value) {
    let text = |value: &Value| value.is_string();
    let integer = |value: &Value| value.is_i64() || value.is_u64();
    let fields = |value: &Value, of: &[&str]| {
        for field in of {
            assert!(value.get(field).is_some(), "no {field} in {value}");
        }
    };
    fields(graph, &["metadata", "qParams", "nodes", "links"]);
    let (metadata, view) = (&graph["metadata"], &graph["qParams"]);
    fields(metadata, &["slug", "scan", "prompt_tokens", "prompt"]);
    assert!(
        ["slug", "scan", "prompt"]
            .iter()
            .all(|field| text(&metadata[field]))
    );
    assert!(
        metadata["prompt_tokens"]
            .as_array()
            .unwrap()
            .iter()
            .all(text)
    );
    assert!(metadata["info"].is_object() && text(&metadata["info"]["description"]));
    assert!(metadata["info"]["generator"]["name"].is_string());
    assert!(metadata.get("node_threshold").is_none_or(Value::is_number));
    assert!(view["pinnedIds"].as_array().unwrap().iter().all(text));
    assert!(view["supernodes"].is_array());
    assert!(
        ["linkType", "clickedId", "sg_pos"]
            .iter()
            .all(|field| text(&view[field]))
    );
    let mut ids = BTreeSet::new();
    for node in graph["nodes"].as_array().unwrap() {
        let needed = [
            "node_id",
            "feature",
            "layer",
            "ctx_idx",
            "feature_type",
            "jsNodeId",
            "clerp",
        ];
        fields(node, &needed);
        for field in ["node_id", "feature_type", "jsNodeId", "clerp"] {
            assert!(text(&node[field]), "{node}");
        }
        assert!(text(&node["layer"]) || integer(&node["layer"]));
        assert!(integer(&node["ctx_idx"]) && integer(&node["feature"]));
        for field in ["influence", "activation"] {
            assert!(node[field].is_null() || node[field].is_number());
        }
        assert!(
            ids.insert(node["node_id"].as_str().unwrap().to_owned()),
            "{node} is there twice"
        );
    }
    for link in graph["links"].as_array().unwrap() {
        fields(link, &["source", "target", "weight"]);
        assert!(link["weight"].is_number());
        for end in ["source", "target"] {
            assert!(
                ids.contains(link[end].as_str().unwrap()),
                "{link} has no {end}"
            );
        }
    }
    let clicked = view["clickedId"].as_str().unwrap();
    assert!(clicked.is_empty() || ids.contains(clicked));
}

#[test]
fn the_json_follows_the_published_format() {
    let pair = random_pair(2).pair();
    let model = &pair.sparse;
    let kept = third(&model.config);
    let circuit = circuit_of(model, &kept);
    let prompt = "t3 t17 t5 t5 t31";
    let traced = trace(&circuit, model, prompt, 5).unwrap();
    let graph = attribution_graph(&circuit, &traced);
    let json = serde_json::to_value(&graph).unwrap();
    follows_the_format(&json);
    assert_eq!(json["metadata"]["prompt"], prompt);
    assert_eq!(
        json["metadata"]["prompt_tokens"].as_array().unwrap().len(),
        5
    );
    assert_eq!(json["metadata"]["scan"], circuit.model);
    let nodes = json["nodes"].as_array().unwrap();
    let of_type = |kind: &'static str| {
        let nodes = nodes.iter();
        nodes.filter(move |node| node["feature_type"] == kind)
    };
    assert_eq!(of_type("embedding").count(), 5);
    assert_eq!(of_type("logit").count(), 5);
    assert!(of_type("mlp reconstruction error").count() > 0);
    let targets: Vec<&Value> = of_type("logit")
        .filter(|node| node["is_target_logit"] == true)
        .collect();
    assert_eq!(targets.len(), 1);
    assert_eq!(targets[0]["node_id"], json["qParams"]["clickedId"]);
    // The likeliest token is what the model says.
    let ids = model.tokenizer.encode_prompt(prompt).unwrap();
    let mut token_rows = TokenRows::sequences(&ids, ids.len(), &Device::Cpu).unwrap();
    let logits = rows::to_vec(&model.forward(&mut token_rows, &mut NoTap).unwrap()).unwrap();
    let last = &logits[(ids.len() - 1) * VOCABULARY..];
    let best = (0..VOCABULARY)
        .max_by(|&a, &b| last[a].total_cmp(&last[b]))
        .unwrap();
    assert_eq!(targets[0]["feature"], best);
    assert_eq!(
        targets[0]["clerp"]
            .as_str()
            .unwrap()
            .split(" (")
            .next()
            .unwrap(),
        format!("Output \"t{best}\"")
    );
    // Every active node of the circuit is there with its value, and no other.
    let active = (0..traced.places.len()).flat_map(|node| (0..5).map(move |token| (node, token)));
    let active = active
        .filter(|&(node, token)| traced.values[node][token] != 0.0)
        .count();
    assert_eq!(of_type("cross layer transcoder").count(), active);
    for node in of_type("cross layer transcoder") {
        let place =
            &graph.metadata.places[node["layer"].as_str().unwrap().parse::<usize>().unwrap()];
        let channel: usize = node["node_id"]
            .as_str()
            .unwrap()
            .split('_')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(node["clerp"], format!("{place}:{channel}"));
        let at = traced
            .places
            .iter()
            .position(|(node, of)| node.to_string() == *place && *of == channel);
        let value = traced.values[at.unwrap()][node["ctx_idx"].as_u64().unwrap() as usize];
        assert_eq!(node["activation"], json!(value));
        // Queries and keys lead nowhere.
        let chooses = place.ends_with("attn.q") || place.ends_with("attn.k");
        assert!(!(chooses && node["influence"].is_number()), "{node}");
        if let Some(influence) = node["influence"].as_f64() {
            assert!(influence > 0.0 && influence <= 1.0);
        }
    }
    let again = attribution_graph(&circuit, &traced);
    assert_eq!(again, graph);
    let back: AttributionGraph = serde_json::from_value(json).unwrap();
    assert_eq!(back, graph);
}
