//! Features: looking them up, and making, changing and removing one's own.

use serde_json::{Value, json};

use crate::client::{Server, kept_features};
use crate::tiny_pair::REFERENCE_LENGTH;

fn ids(list: &Value) -> Vec<&str> {
    list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|feature| feature["id"].as_str().unwrap())
        .collect()
}

fn own(name: &str) -> Value {
    json!({
        "name": name, "description": "Whether a string is open", "node": "0.mlp.act_in",
        "channels": [{"channel": 1, "weight": 3.0}, {"channel": 2, "weight": -4.0}], "tasks": ["with_open"],
        "tests": [{"prompt": "a", "counterfactual": "b", "expected": "c", "instead": "d",
                   "at_least": 0.9, "at_most_before": 0.1}]
    })
}

#[test]
fn the_shipped_ones_are_listed_and_found() {
    let server = Server::new();
    let list = server.get("/v1/features").ok();
    assert_eq!(
        (&list["object"], &list["model"]),
        (&json!("list"), &json!("tiny"))
    );
    assert_eq!(ids(&list), ["shipped_feature"]);
    assert_eq!(list["has_more"], false);
    let feature = server.get("/v1/features/shipped_feature").ok();
    assert_eq!(summary(&feature), list["data"][0]);
    assert_eq!(feature["object"], "feature");
    assert_eq!(feature["bridge"], "tiny");
    assert_eq!(feature["origin"], "shipped");
    assert_eq!(feature["stats"]["std"], 0.5);
    assert_eq!(feature["channels"], json!([{"channel": 3, "weight": 1.0}]));
}

/// A feature as lists show it.
fn summary(detail: &Value) -> Value {
    let mut summary = detail.clone();
    for known in [
        "promoted",
        "suppressed",
        "promotion",
        "weights",
        "examples",
        "histogram",
        "label",
    ] {
        let removed = summary.as_object_mut().unwrap().remove(known);
        assert!(removed.is_some(), "no {known}");
    }
    summary
}

fn numbers(list: &Value, field: &str) -> Vec<f64> {
    let list = list.as_array().unwrap().iter();
    list.map(|entry| entry[field].as_f64().unwrap()).collect()
}

#[test]
fn what_is_known_of_a_channel_is_told() {
    let server = Server::new();
    let feature = server.get("/v1/features/1.attn.act_in:8?examples=4").ok();
    let weights = &feature["weights"][0];
    assert_eq!(weights["channel"], 8);
    // The test pair keeps every tenth weight of a flattened matrix: of column 8 of 48 rows of 32, every fifth;
    // of row 8 of the two matrices that write before layer 1, two of 16 and 13 of 128.
    assert_eq!(
        (&weights["n_outgoing"], &weights["n_incoming"]),
        (&json!(10), &json!(15))
    );
    for edge in weights["outgoing"].as_array().unwrap() {
        let block = ["1.attn.q", "1.attn.k", "1.attn.v"]
            .iter()
            .position(|node| edge["node"] == **node)
            .unwrap() as u64;
        let row = 16 * block + edge["channel"].as_u64().unwrap();
        assert_eq!((row * 32 + 8) % 10, 0, "{edge}");
        assert_ne!(edge["weight"], 0.0);
    }
    let sizes = numbers(&weights["incoming"], "weight");
    assert!(sizes.is_sorted_by(|a, b| a.abs() >= b.abs()), "{sizes:?}");
    let (up, down) = (
        numbers(&feature["promoted"], "score"),
        numbers(&feature["suppressed"], "score"),
    );
    assert_eq!((up.len(), down.len()), (10, 10));
    assert!(up.is_sorted_by(|a, b| a >= b) && down.is_sorted() && up[9] > down[9]);
    // Layer 1 is the last, and its attention is not: what it reads is written to a stream that two sublayers read yet.
    assert_eq!(feature["promotion"]["scored_by"], "measured");
    assert_eq!(feature["promotion"]["added"], feature["stats"]["std"]);
    assert!(feature["promotion"]["tokens"].as_u64() > Some(0));
    for (last, scored_by) in [
        ("final_resid:3", "unembedding"),
        ("1.mlp.post_act:3", "unembedding"),
        ("1.resid_mid:3", "measured"),
    ] {
        let address = format!("/v1/features/{last}?examples=0");
        let basis = &server.get(&address).ok()["promotion"];
        assert_eq!(basis["scored_by"], scored_by, "{last}");
        assert_eq!(basis["tokens"] == 0, scored_by == "unembedding", "{last}");
    }
    let examples = &feature["examples"];
    for kind in ["top", "bottom", "quantiles"] {
        assert_eq!(examples[kind].as_array().unwrap().len(), 4, "{kind}");
        for example in examples[kind].as_array().unwrap() {
            let values = example["values"].as_array().unwrap();
            assert_eq!(values.len(), example["tokens"].as_array().unwrap().len());
            let at = example["at"].as_u64().unwrap() as usize;
            assert_eq!(values[at], example["value"]);
            assert!(example["tokens"][at].is_string(), "{example}");
        }
    }
    let (top, bottom) = (
        numbers(&examples["top"], "value"),
        numbers(&examples["bottom"], "value"),
    );
    assert!(top.is_sorted_by(|a, b| a >= b) && bottom.is_sorted() && top[3] > bottom[3]);
    assert!(numbers(&examples["quantiles"], "value").is_sorted());

    let histogram = &feature["histogram"];
    let counts = histogram["counts"].as_array().unwrap();
    let edges = histogram["edges"].as_array().unwrap();
    assert_eq!(edges.len(), counts.len() + 1);
    assert_eq!(edges.last(), Some(&examples["top"][0]["value"]));
    assert!(counts.iter().any(|count| count.as_u64() > Some(0)));
    let none = server.get("/v1/features/1.attn.act_in:8?examples=0").ok();
    assert_eq!(none["examples"], Value::Null);
    server
        .get("/v1/features/1.attn.act_in:8?examples=21")
        .is_error(400, Some("examples"), None);
    // Queries and keys have no direction in the stream.
    let query = server.get("/v1/features/0.attn.q:1?examples=0").ok();
    assert_eq!(
        (&query["promoted"], &query["weights"][0]["n_outgoing"]),
        (&Value::Null, &json!(0))
    );
    assert_eq!(query["promotion"], Value::Null);
}

#[test]
fn any_channel_has_an_address() {
    let server = Server::new();
    let feature = server.get("/v1/features/1.attn.act_in:7").ok();
    assert_eq!(
        (&feature["id"], &feature["name"]),
        (&json!("1.attn.act_in:7"), &Value::Null)
    );
    assert_eq!(feature["channels"], json!([{"channel": 7, "weight": 1.0}]));
    assert_eq!(
        (&feature["write"], &feature["origin"]),
        (&json!("sublayer"), &json!("unnamed"))
    );
    assert_eq!(
        server.get("/v1/features/1.mlp.post_act:127").ok()["write"],
        "residual"
    );
    for id in [
        "1.attn.act_in:32",
        "1.attn.act_in:x",
        "9.attn.act_in:1",
        "nothing:1",
        "1.attn.act_in:-1",
    ] {
        server
            .get(&format!("/v1/features/{id}"))
            .is_error(404, None, Some("feature_not_found"));
    }
}

#[test]
fn one_s_own_are_made_changed_kept_and_removed() {
    let server = Server::new();
    let made = server.post("/v1/features", &own("string_open"));
    assert_eq!(made.status, 201, "{}", made.body);
    let made = made.json();
    assert_eq!(
        made["channels"],
        json!([{"channel": 1, "weight": 0.6}, {"channel": 2, "weight": -0.8}])
    );
    assert_eq!(
        (&made["write"], &made["origin"]),
        (&json!("sublayer"), &json!("own"))
    );
    // Measured over the ten sequences that came with the pair.
    assert_eq!(made["stats"]["tokens"], 10 * REFERENCE_LENGTH);
    assert!(made["stats"]["std"].as_f64().unwrap() > 0.0, "{made}");
    let found = server.get("/v1/features/string_open").ok();
    assert_eq!(summary(&found), made);
    server.post("/v1/features", &own("string_open")).is_error(
        400,
        Some("name"),
        Some("already_exists"),
    );
    let changed = server
        .patch(
            "/v1/features/string_open",
            &json!({"description": "New", "write": "residual"}),
        )
        .ok();
    assert_eq!(
        (&changed["description"], &changed["write"]),
        (&json!("New"), &json!("residual"))
    );
    assert_eq!(changed["tests"], made["tests"]);

    let server = server.restarted();
    let found = server.get("/v1/features/string_open").ok();
    assert_eq!(summary(&found), changed);
    let gone = server.delete("/v1/features/string_open").ok();
    assert_eq!(
        gone,
        json!({"id": "string_open", "object": "feature", "deleted": true})
    );
    server
        .get("/v1/features/string_open")
        .is_error(404, None, Some("feature_not_found"));
    server
        .delete("/v1/features/string_open")
        .is_error(404, None, Some("feature_not_found"));
    let kept: Value =
        serde_json::from_slice(&std::fs::read(kept_features(&server)).unwrap()).unwrap();
    assert_eq!(kept, json!([]));
}

#[test]
fn a_shipped_one_can_be_changed_and_comes_back() {
    let server = Server::new();
    let before = server.get("/v1/features/shipped_feature").ok();
    server
        .delete("/v1/features/shipped_feature")
        .is_error(400, None, Some("shipped"));
    let changed = server
        .patch(
            "/v1/features/shipped_feature",
            &json!({"description": "Mine"}),
        )
        .ok();
    assert_eq!(
        (&changed["origin"], &changed["description"]),
        (&json!("changed"), &json!("Mine"))
    );
    assert_eq!(
        server.get("/v1/features").ok()["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    server.delete("/v1/features/shipped_feature").ok();
    assert_eq!(server.get("/v1/features/shipped_feature").ok(), before);
}

#[test]
fn lists_are_searched_and_paged() {
    let server = Server::new();
    for name in ["a", "b", "c"] {
        assert_eq!(server.post("/v1/features", &own(name)).status, 201);
    }
    let get = |query: &str| server.get(&format!("/v1/features?{query}"));
    let page = get("limit=2").ok();
    assert_eq!(
        (ids(&page), &page["has_more"]),
        (vec!["shipped_feature", "a"], &json!(true))
    );
    assert_eq!(page["last_id"], "a");
    let page = get("limit=2&after=a").ok();
    assert_eq!(
        (ids(&page), &page["has_more"]),
        (vec!["b", "c"], &json!(false))
    );
    assert_eq!(ids(&get("query=PAIR").ok()), ["shipped_feature"]);
    assert_eq!(ids(&get("query=mlp.act").ok()), ["a", "b", "c"]);
    assert_eq!(
        ids(&get("task=single_double_quote").ok()),
        ["shipped_feature"]
    );
    assert_eq!(ids(&get("bridge=tiny&model=tiny-sparse").ok()).len(), 4);
    assert_eq!(get("model=tiny-sparse").ok()["model"], "tiny-sparse");
    get("limit=0").is_error(400, Some("limit"), None);
    get("after=nothing").is_error(400, Some("after"), None);
    get("task=quotes").is_error(400, Some("task"), None);
    get("model=x").is_error(400, Some("model"), None);
    get("bridge=x").is_error(400, Some("bridge"), Some("bridge_not_found"));
    get("limt=3").is_error(400, Some("limt"), Some("unknown_field"));
}

#[test]
fn a_feature_that_cannot_be_is_refused() {
    let server = Server::new();
    let channels =
        |channels: Value| json!({"name": "x", "node": "0.mlp.act_in", "channels": channels});
    for (body, param) in [
        (
            json!({"name": "X", "node": "0.mlp.act_in", "channels": [{"channel": 1, "weight": 1}]}),
            "name",
        ),
        (
            json!({"name": "contrast", "node": "0.mlp.act_in", "channels": [{"channel": 1, "weight": 1}]}),
            "name",
        ),
        (
            json!({"name": "../x", "node": "0.mlp.act_in", "channels": [{"channel": 1, "weight": 1}]}),
            "name",
        ),
        (
            json!({"name": "x", "node": "2.mlp.act_in", "channels": [{"channel": 1, "weight": 1}]}),
            "node",
        ),
        (channels(json!([])), "channels"),
        (
            channels(json!([{"channel": 32, "weight": 1}])),
            "channels[0].channel",
        ),
        (
            channels(json!([{"channel": 1, "weight": 1}, {"channel": 1, "weight": 1}])),
            "channels[1].channel",
        ),
        (
            channels(json!([{"channel": 1, "weight": 0}])),
            "channels[0].weight",
        ),
        (
            channels(json!([{"channel": -1, "weight": 1}])),
            "channels[0].channel",
        ),
        (
            json!({"name": "x", "node": "0.mlp.act_in", "channels": [{"channel": 1, "weight": 1}], "tasks": ["y"]}),
            "tasks[0]",
        ),
    ] {
        let answer = server.post("/v1/features", &body);
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
        answer.is_error(400, Some(param), None);
    }
    let mut test = own("x");
    test["tests"][0]["at_least"] = json!(1.5);
    server
        .post("/v1/features", &test)
        .is_error(400, Some("tests[0].at_least"), None);
    assert!(!kept_features(&server).exists(), "nothing was kept");
    server
        .patch("/v1/features/shipped_feature", &json!({"node": "x"}))
        .is_error(400, Some("node"), Some("unknown_field"));
}

#[test]
fn features_are_kept_within_quotas_and_what_was_accepted_is_there_after_a_restart() {
    let server = Server::new();
    // Close to the longest body.
    let long = |name: &str| {
        let mut feature = own(name);
        let test = json!({"prompt": "a".repeat(40_000), "counterfactual": "b", "expected": "c", "instead": "d",
            "at_least": 0.9, "at_most_before": 0.1});
        feature["tests"] = json!(vec![test; 100]);
        feature
    };
    let mut accepted = Vec::new();
    let refused = (0..17).find_map(|number| {
        let name = format!("long_{number}");
        let answer = server.post("/v1/features", &long(&name));
        match answer.status {
            201 => {
                accepted.push(name);
                None
            }
            _ => Some(answer),
        }
    });
    let refused = refused.expect("seventeen of them are more than is kept");
    refused.is_error(400, None, Some("over_budget"));
    assert!(
        refused.body.contains("limits.max_feature_bytes"),
        "{}",
        refused.body
    );
    assert!(accepted.len() > 1, "{accepted:?}");
    // A change may not do it either, and what is smaller is welcome.
    server.post("/v1/features", &own("short")).status_is(201);
    let tests = json!({"tests": long("short")["tests"]});
    server
        .patch("/v1/features/short", &tests)
        .is_error(400, None, Some("over_budget"));
    server
        .patch("/v1/features/long_0", &json!({"tests": []}))
        .ok();
    server.patch("/v1/features/short", &tests).ok();
    let server = server.restarted();
    let listed = server.get("/v1/features").ok();
    for name in accepted.iter().map(String::as_str).chain(["short"]) {
        assert!(ids(&listed).contains(&name), "{name}");
    }
}

#[test]
fn how_many_features_and_tests_there_are_is_a_setting() {
    let server = Server::with(|settings| {
        settings.limits.max_features = 2;
        settings.limits.max_feature_tests = 1;
    });
    let mut tested = own("first");
    tested["tests"] = json!(vec![tested["tests"][0].clone(); 2]);
    let refused = server.post("/v1/features", &tested);
    refused.is_error(400, Some("tests"), None);
    assert!(
        refused.body.contains("limits.max_feature_tests"),
        "{}",
        refused.body
    );
    for name in ["first", "second"] {
        server.post("/v1/features", &own(name)).status_is(201);
    }
    let third = server.post("/v1/features", &own("third"));
    third.is_error(400, None, Some("over_budget"));
    assert!(third.body.contains("limits.max_features"), "{}", third.body);
    server.delete("/v1/features/first").ok();
    server.post("/v1/features", &own("third")).status_is(201);
}
