//! Directions of dense models: making, using, changing and removing them.

use serde_json::{Value, json};

use crate::client::Server;
use crate::tiny_pair::REFERENCE_LENGTH;

/// Channels of the dense model's stream.
pub const WIDTH: usize = 16;

/// A vector that no other number of these tests is near.
pub fn vector(seed: usize) -> Vec<f32> {
    let value = |channel: usize| ((channel * 7 + seed * 13) % 11) as f32 * 0.37 - 1.9;
    (0..WIDTH).map(value).collect()
}

/// The numbers of a list, as the server has them.
pub fn floats(list: &Value) -> Vec<f32> {
    let list = list.as_array().unwrap().iter();
    list.map(|value| value.as_f64().unwrap() as f32).collect()
}

pub fn made(name: &str) -> Value {
    json!({
        "name": name, "description": "Two sites", "model": "tiny",
        "directions": [{"site": "final_resid", "vector": vector(2)}, {"site": "1.resid_in", "vector": vector(1)}]
    })
}

/// What a completion with these edits says, to the last bit of its log-probabilities.
pub fn completed(server: &Server, model: &str, edits: Value) -> Value {
    let body = json!({
        "model": model, "prompt": ["x = 1", "def f("], "max_tokens": 6, "temperature": 0, "logprobs": 3,
        "steer": {"edits": edits}
    });
    let answer = server.post("/v1/completions", &body).ok();
    let choices = answer["choices"].as_array().unwrap().iter();
    let told = |choice: &Value| json!([choice["text"], choice["logprobs"]]);
    choices.map(told).collect()
}

/// The vectors of a direction as edits of their own.
pub fn by_hand(detail: &Value, more: &Value) -> Value {
    let parts = detail["directions"].as_array().unwrap().iter();
    let edit = |part: &Value| {
        let mut edit = more.clone();
        edit["feature"] = json!({"site": part["site"], "vector": part["vector"]});
        edit
    };
    parts.map(edit).collect()
}

#[test]
fn a_direction_is_made_listed_used_changed_kept_and_removed() {
    let server = Server::new();
    let answer = server.post("/v1/features", &made("formal"));
    answer.status_is(201);
    let object = answer.json();
    assert_eq!(
        (&object["object"], &object["id"], &object["model"]),
        (&json!("direction"), &json!("formal"), &json!("tiny"))
    );
    assert_eq!(object["source"], json!({"kind": "given"}));
    let parts = object["directions"].as_array().unwrap();
    let sites: Vec<&str> = parts
        .iter()
        .map(|part| part["site"].as_str().unwrap())
        .collect();
    assert_eq!(
        sites,
        ["1.resid_in", "final_resid"],
        "in the order of the pass"
    );
    for (part, seed) in parts.iter().zip([1, 2]) {
        let length: f64 = vector(seed).iter().map(|&v| f64::from(v).powi(2)).sum();
        assert!((part["norm"].as_f64().unwrap() - length.sqrt()).abs() < 1e-9);
        assert_eq!(part["stats"]["tokens"], 10 * REFERENCE_LENGTH);
        assert!(part["stats"]["std"].as_f64().unwrap() > 0.0, "{part}");
        assert!(part["stats"]["residual_norm"].as_f64().unwrap() > 0.0);
    }
    let detail = server.get("/v1/features/formal").ok();
    assert_eq!(floats(&detail["directions"][0]["vector"]), vector(1));
    for (query, expected) in [
        ("", 2),
        ("?model=tiny", 2),
        ("?model=tiny-sparse", 1),
        ("?bridge=tiny", 1),
        ("?query=FINAL_RES", 1),
        ("?query=two%20sites", 1),
        ("?task=single_double_quote", 1),
        ("?after=shipped_feature", 1),
    ] {
        let list = server.get(&format!("/v1/features{query}")).ok();
        assert_eq!(list["data"].as_array().unwrap().len(), expected, "{query}");
    }
    let list = server.get("/v1/features?query=formal").ok();
    assert_eq!(
        (&list["data"][0], &list["last_id"]),
        (&object, &json!("formal"))
    );

    let plain = completed(&server, "tiny", json!([]));
    for more in [
        json!({"op": "add", "value": 0.75}),
        json!({"op": "add", "value": 0.3, "unit": "residual"}),
        json!({"op": "set", "value": -2.0, "strength": 0.5, "at": {"prompt": [-1]}}),
        json!({"op": "ablate"}),
    ] {
        let mut named = more.clone();
        named["feature"] = json!("formal");
        let steered = completed(&server, "tiny", json!([named]));
        assert_eq!(
            steered,
            completed(&server, "tiny", by_hand(&detail, &more)),
            "{more}"
        );
        assert_ne!(steered, plain, "{more}");
    }
    // A site counts in its own deviations and maxima.
    for unit in ["std", "max"] {
        let edit = json!({"feature": "formal", "op": "add", "value": 1.5, "unit": unit});
        let mut raw = by_hand(&detail, &json!({"op": "add"}));
        for (edit, part) in raw.as_array_mut().unwrap().iter_mut().zip(parts) {
            edit["value"] = json!(1.5 * part["stats"][unit].as_f64().unwrap());
        }
        assert_eq!(
            completed(&server, "tiny", json!([edit])),
            completed(&server, "tiny", raw)
        );
    }
    let to_mean = json!({"feature": "formal", "op": "ablate", "to": "mean"});
    let mut raw = by_hand(&detail, &json!({"op": "set"}));
    for (edit, part) in raw.as_array_mut().unwrap().iter_mut().zip(parts) {
        edit["value"] = part["stats"]["mean"].clone();
    }
    assert_eq!(
        completed(&server, "tiny", json!([to_mean])),
        completed(&server, "tiny", raw)
    );

    let changed = server
        .patch("/v1/features/formal", &json!({"description": "New"}))
        .ok();
    assert_eq!(changed["description"], "New");
    assert_eq!(changed["directions"], object["directions"]);
    let before = completed(
        &server,
        "tiny",
        json!([{"feature": "formal", "op": "add", "value": 1}]),
    );
    let server = server.restarted();
    let after = server.get("/v1/features/formal?model=tiny").ok();
    assert_eq!(after["description"], "New");
    assert_eq!(after["directions"], detail["directions"]);
    let again = completed(
        &server,
        "tiny",
        json!([{"feature": "formal", "op": "add", "value": 1}]),
    );
    assert_eq!(again, before);
    let gone = server.delete("/v1/features/formal").ok();
    assert_eq!(
        gone,
        json!({"id": "formal", "object": "feature", "deleted": true})
    );
    for method in ["GET", "DELETE"] {
        server
            .send(method, "/v1/features/formal", &[], b"")
            .is_error(404, None, Some("feature_not_found"));
    }
    let server = server.restarted();
    server
        .get("/v1/features/formal")
        .is_error(404, None, Some("feature_not_found"));
}

#[test]
fn several_directions_act_together_and_receipts_tell_each_site() {
    let server = Server::new();
    server.post("/v1/features", &made("one")).status_is(201);
    let mut other = made("other");
    other["directions"] = json!([{"site": "1.resid_in", "vector": vector(5)}]);
    server.post("/v1/features", &other).status_is(201);
    let [one, other] = ["one", "other"].map(|id| server.get(&format!("/v1/features/{id}")).ok());
    let edits = json!([
        {"feature": "one", "op": "add", "value": 1}, {"feature": "other", "op": "add", "value": -2},
        {"feature": {"node": "1.attn.act_in", "channel": 3}, "op": "add", "value": 1}
    ]);
    let mut raw = by_hand(&one, &json!({"op": "add", "value": 1}));
    raw.as_array_mut().unwrap().extend(
        by_hand(&other, &json!({"op": "add", "value": -2}))
            .as_array()
            .unwrap()
            .clone(),
    );
    raw.as_array_mut().unwrap().push(edits[2].clone());
    assert_eq!(
        completed(&server, "tiny", edits.clone()),
        completed(&server, "tiny", raw)
    );
    let body = json!({
        "model": "tiny", "prompt": "x = 1", "max_tokens": 2,
        "steer": {"edits": edits, "variants": ["steered", "random", "baseline"], "return": ["receipt"]}
    });
    let answer = server.post("/v1/completions", &body).ok();
    let told = answer["choices"][0]["receipt"]["edits"].as_array().unwrap();
    let told: Vec<_> = told
        .iter()
        .map(|edit| (&edit["feature"], &edit["node"]))
        .collect();
    assert_eq!(
        told,
        [
            (&json!("one"), &json!("1.resid_in")),
            (&json!("one"), &json!("final_resid")),
            (&json!("other"), &json!("1.resid_in")),
            (&Value::Null, &json!("1.attn.act_in")),
        ]
    );
    // A direction of one site has a value that can be read and compared.
    let read = json!({"model": "tiny", "prompt": "x = 1", "features": ["other", "one"]});
    server
        .post("/v1/activations", &read)
        .is_error(400, Some("features[1]"), None);
    let read = json!({
        "model": "tiny", "prompt": "x = 1",
        "features": ["other", {"site": "1.resid_in", "vector": vector(5)}]
    });
    let values = server.post("/v1/activations", &read).ok();
    assert_eq!(
        values["features"][0]["values"],
        values["features"][1]["values"]
    );
    assert_eq!(values["features"][0]["feature"], "other");
    let when = |feature: &str| json!([{"feature": "one", "op": "add", "value": 1, "when": {"all": [{"feature": feature, "gt": 1000}]}}]);
    let body = |edits: Value| json!({"model": "tiny", "prompt": "x", "max_tokens": 1, "steer": {"edits": edits}});
    server.post("/v1/completions", &body(when("one"))).is_error(
        400,
        Some("steer.edits[0].when.all[0].feature"),
        None,
    );
    assert_eq!(
        completed(&server, "tiny", when("other")),
        completed(&server, "tiny", json!([]))
    );
}

/// A server whose model `alone` has no bridge.
fn with_lone_model() -> Server {
    Server::with(|settings| {
        let dense = settings.pairs[0].join("dense");
        settings.models.insert("alone".parse().unwrap(), dense);
    })
}

#[test]
fn without_text_a_direction_has_no_statistics_and_with_it_it_has() {
    let server = with_lone_model();
    let mut bare = made("bare");
    bare["model"] = json!("alone");
    let answer = server.post("/v1/features", &bare);
    answer.status_is(201);
    assert_eq!(answer.json()["directions"][0]["stats"], Value::Null);
    let edits = |name: &str, more: Value| {
        let mut edit = json!({"feature": name, "op": "add", "value": 1});
        edit.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({"model": "alone", "prompt": "x", "max_tokens": 2, "steer": {"edits": [edit]}})
    };
    let refused = server.post("/v1/completions", &edits("bare", json!({"unit": "std"})));
    refused.is_error(400, Some("steer.edits[0].unit"), None);
    assert!(refused.body.contains("`texts`"), "{}", refused.body);
    let to_mean = edits("bare", json!({"op": "ablate", "to": "mean", "value": null}));
    server
        .post("/v1/completions", &to_mean)
        .is_error(400, Some("steer.edits[0].to"), None);
    for more in [json!({}), json!({"unit": "residual"})] {
        server.post("/v1/completions", &edits("bare", more)).ok();
    }
    let mut measured = bare.clone();
    measured["name"] = json!("measured");
    measured["texts"] = json!(["x = 1\n", "for i in y:\n    pass\n"]);
    let answer = server.post("/v1/features", &measured);
    answer.status_is(201);
    let tokens: u64 = ["x = 1\n", "for i in y:\n    pass\n"]
        .iter()
        .map(|text| {
            let asked = json!({"model": "alone", "prompt": text});
            server.post("/v1/tokenize", &asked).ok()["count"]
                .as_u64()
                .unwrap()
        })
        .sum();
    assert_eq!(answer.json()["directions"][0]["stats"]["tokens"], tokens);
    server
        .post(
            "/v1/completions",
            &edits("measured", json!({"unit": "std"})),
        )
        .ok();
    // The same name in another model is another direction.
    server.post("/v1/features", &made("bare")).status_is(201);
    server
        .get("/v1/features/bare")
        .is_error(400, Some("model"), None);
    assert_eq!(
        server.get("/v1/features/bare?model=alone").ok()["model"],
        "alone"
    );
    server.delete("/v1/features/bare?model=alone").ok();
    assert_eq!(server.get("/v1/features/bare").ok()["model"], "tiny");
    let unknown = server.post("/v1/completions", &edits("measurd", json!({})));
    unknown.is_error(400, Some("steer.edits[0].feature"), None);
    assert!(unknown.body.contains("measured"), "{}", unknown.body);
    let on_the_bridge = json!({"model": "tiny", "prompt": "x", "steer": {"edits": [
        {"feature": "measured", "op": "add", "value": 1}]}});
    server.post("/v1/completions", &on_the_bridge).is_error(
        400,
        Some("steer.edits[0].feature"),
        None,
    );
}

#[test]
fn a_direction_that_cannot_be_is_refused() {
    let server = Server::new();
    let with = |field: &str, value: Value| {
        let mut body = made("x");
        body[field] = value;
        body
    };
    let site = |site: &str, vector: Value| json!([{"site": site, "vector": vector}]);
    let good = json!(vector(1));
    let mut no_model = made("x");
    no_model.as_object_mut().unwrap().remove("model");
    for (body, param) in [
        (with("name", json!("X")), "name"),
        (with("name", json!("direction")), "name"),
        (with("name", json!("control_vector")), "name"),
        (with("name", json!("shipped_feature")), "name"),
        (with("model", json!("tiny-sparse")), "model"),
        (no_model, "model"),
        (with("directions", json!([])), "directions"),
        (
            with("directions", site("0.mlp.act_in", good.clone())),
            "directions[0].site",
        ),
        (
            with("directions", site("2.resid_in", good.clone())),
            "directions[0].site",
        ),
        (
            with("directions", site("0.resid_in", json!([1.0]))),
            "directions[0].vector",
        ),
        (
            with("directions", site("0.resid_in", json!(vec![0.0; WIDTH]))),
            "directions[0].vector",
        ),
        (
            with("directions", site("0.resid_in", json!(vec![1e39; WIDTH]))),
            "directions[0].vector[0]",
        ),
        (
            with(
                "directions",
                json!([{"site": "0.resid_in", "vector": good}, {"site": "0.resid_in", "vector": good}]),
            ),
            "directions[1].site",
        ),
        (with("bridge", json!("tiny")), "bridge"),
        (with("node", json!("0.mlp.act_in")), "node"),
        (
            with("channels", json!([{"channel": 1, "weight": 1}])),
            "channels",
        ),
        (with("write", json!("residual")), "write"),
        (with("tasks", json!(["with_open"])), "tasks"),
        (with("texts", json!([])), "texts"),
        (with("texts", json!(["x", "y".repeat(100_000)])), "texts[1]"),
        (json!({"name": "x", "node": "0.mlp.act_in"}), "channels"),
        (
            json!({"name": "x", "channels": [{"channel": 1, "weight": 1}]}),
            "node",
        ),
        (
            json!({"name": "x", "node": "0.mlp.act_in", "channels": [{"channel": 1, "weight": 1}], "model": "tiny"}),
            "model",
        ),
    ] {
        let answer = server.post("/v1/features", &body);
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
        assert_eq!(
            answer.json()["error"]["param"],
            param,
            "{body}: {}",
            answer.body
        );
    }
    server
        .post("/v1/features", &with("model", json!("other")))
        .is_error(404, Some("model"), Some("model_not_found"));
    assert_eq!(
        server.get("/v1/features").ok()["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert!(
        !server.directory.join("data/directions").exists(),
        "nothing was kept"
    );

    server.post("/v1/features", &made("x")).status_is(201);
    server
        .post("/v1/features", &made("x"))
        .is_error(400, Some("name"), Some("already_exists"));
    let channels =
        json!({"name": "x", "node": "0.mlp.act_in", "channels": [{"channel": 1, "weight": 1}]});
    server
        .post("/v1/features", &channels)
        .is_error(400, Some("name"), Some("already_exists"));
    server
        .patch("/v1/features/x", &json!({"write": "residual"}))
        .is_error(400, Some("write"), None);
    server.post("/v1/features/x/verify", &json!(null)).is_error(
        400,
        None,
        Some("not_a_bridge_feature"),
    );
    server
        .get("/v1/features/x?bridge=tiny&model=tiny")
        .is_error(400, Some("model"), None);
}

#[test]
fn directions_are_kept_within_quotas() {
    let server = Server::with(|settings| {
        settings.limits.max_directions = 2;
        settings.limits.max_direction_bytes = 1500;
    });
    server.post("/v1/features", &made("a")).status_is(201);
    let long = json!({"description": "d".repeat(2000)});
    let refused = server.patch("/v1/features/a", &long);
    refused.is_error(400, None, Some("over_budget"));
    assert!(
        refused.body.contains("limits.max_direction_bytes"),
        "{}",
        refused.body
    );
    let mut small = made("b");
    small["directions"] = json!([{"site": "0.resid_in", "vector": vec![1; WIDTH]}]);
    server.post("/v1/features", &small).status_is(201);
    small["name"] = json!("c");
    let refused = server.post("/v1/features", &small);
    refused.is_error(400, None, Some("over_budget"));
    assert!(
        refused.body.contains("limits.max_directions"),
        "{}",
        refused.body
    );
    server.delete("/v1/features/a").ok();
    server.post("/v1/features", &small).status_is(201);
}
