//! Presets: `steer` fields under ids. What can be kept, who may keep it, and how long it stays.

use causeway::settings::keys::Role;
use serde_json::{Value, json};

use crate::client::{Response, Server};
use crate::keys::key;

pub const COMPLETIONS: &str = "/v1/completions";

/// A steer field that changes what is said.
pub fn loud() -> Value {
    json!({"edits": [{"feature": "shipped_feature", "op": "add", "value": 50.0}]})
}

/// Another one, over the encoder and at some tokens only.
pub fn odd() -> Value {
    json!({
        "bridge": "tiny",
        "edits": [{
            "feature": {"node": "1.resid_mid", "channel": 4}, "op": "set", "value": -30.0, "strength": 0.75,
            "read": "encoder", "at": {"prompt": [-1], "generation": [[0, 3]]}
        }]
    })
}

pub fn make(server: &Server, id: &str, steer: &Value) -> Response {
    server.post(
        "/v1/presets",
        &json!({"id": id, "model": "tiny", "steer": steer}),
    )
}

pub fn made(server: &Server, id: &str, steer: &Value) -> Value {
    let answer = make(server, id, steer);
    assert_eq!(answer.status, 201, "{}", answer.body);
    answer.json()
}

pub fn with(mut request: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

pub fn ask(server: &Server, changes: Value) -> Response {
    let request =
        json!({"model": "tiny", "prompt": "x = 1", "max_tokens": 8, "seed": 3, "logprobs": 2});
    server.post(COMPLETIONS, &with(request, changes))
}

pub fn message(answer: &Response) -> String {
    answer.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn names(list: &Value) -> Vec<&str> {
    let list = list["data"].as_array().unwrap().iter();
    list.map(|preset| preset["name"].as_str().unwrap())
        .collect()
}

#[test]
fn one_is_made_listed_found_and_removed() {
    let server = Server::new();
    assert_eq!(server.get("/v1/presets").ok()["data"], json!([]));
    let body =
        json!({"id": "loud", "model": "tiny", "steer": loud(), "description": "More of it."});
    let answer = server.post("/v1/presets", &body);
    answer.status_is(201);
    let preset = answer.json();
    assert_eq!(
        (
            &preset["id"],
            &preset["model"],
            &preset["name"],
            &preset["object"]
        ),
        (
            &json!("loud"),
            &json!("tiny"),
            &json!("tiny@loud"),
            &json!("preset")
        )
    );
    assert_eq!(preset["description"], "More of it.");
    assert_eq!(
        (&preset["steer"], &preset["served"]),
        (&loud(), &json!(true))
    );
    for address in ["/v1/presets/tiny@loud", "/v1/presets/tiny%40loud"] {
        assert_eq!(server.get(address).ok(), preset);
    }
    assert_eq!(server.get("/v1/presets").ok()["data"], json!([preset]));

    // The id is free for another model, and taken for this one.
    let sparse = with(body.clone(), json!({"model": "tiny-sparse"}));
    server.post("/v1/presets", &sparse).status_is(201);
    let again = server.post("/v1/presets", &body);
    again.is_error(400, Some("id"), Some("already_exists"));

    let gone = server.delete("/v1/presets/tiny@loud").ok();
    assert_eq!(
        gone,
        json!({"id": "loud", "object": "preset", "model": "tiny", "deleted": true})
    );
    for answer in [
        server.get("/v1/presets/tiny@loud"),
        server.delete("/v1/presets/tiny@loud"),
    ] {
        answer.is_error(404, None, Some("preset_not_found"));
    }
    ask(&server, json!({"model": "tiny@loud"})).is_error(
        404,
        Some("model"),
        Some("model_not_found"),
    );
    assert_eq!(names(&server.get("/v1/presets").ok()), ["tiny-sparse@loud"]);
    server.post("/v1/presets", &body).status_is(201);
}

#[test]
fn models_and_their_presets_are_listed_together() {
    let server = Server::new();
    let preset = made(&server, "loud", &loud());
    let list = server.get("/v1/models").ok();
    let listed = list["data"].as_array().unwrap();
    let ids: Vec<&Value> = listed.iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["tiny", "tiny-sparse", "tiny@loud"]);
    let (model, steered) = (&listed[0], &listed[2]);
    assert_eq!(server.get("/v1/models/tiny@loud").ok(), *steered);
    assert_eq!(
        (&steered["kind"], &steered["base_model"], &steered["steer"]),
        (&json!("preset"), &json!("tiny"), &loud())
    );
    assert_eq!(
        (&model["kind"], &model["base_model"], &model["steer"]),
        (&json!("dense"), &Value::Null, &Value::Null)
    );
    assert_eq!(steered["created"], preset["created"]);
    for field in [
        "n_layers",
        "context_length",
        "sites",
        "ends",
        "bridges",
        "fingerprint",
    ] {
        assert_eq!(steered[field], model[field], "{field}");
    }
}

#[test]
fn what_no_request_could_be_steered_with_is_not_kept() {
    let server = Server::new();
    let edit = |edit: Value| json!({"edits": [edit]});
    let channel = json!({"node": "1.resid_mid", "channel": 4});
    for (steer, param, code) in [
        (
            edit(json!({"feature": "shiped_feature", "op": "ablate"})),
            "steer.edits[0].feature",
            None,
        ),
        (
            edit(json!({"feature": "9.mlp.act_in:1", "op": "ablate"})),
            "steer.edits[0].feature",
            None,
        ),
        (
            edit(json!({"feature": channel, "op": "add"})),
            "steer.edits[0].value",
            None,
        ),
        (
            edit(json!({"feature": channel, "op": "clamp", "min": 2, "max": 1})),
            "steer.edits[0].min",
            None,
        ),
        (
            edit(json!({"feature": channel, "op": "scale", "value": 1, "strength": 11})),
            "steer.edits[0].strength",
            None,
        ),
        (
            edit(json!({"feature": channel, "op": "scale", "value": 1, "strength": [1, 2]})),
            "steer.edits[0].strength",
            None,
        ),
        (
            edit(json!({"feature": channel, "op": "scale", "value": 1, "strength": [1]})),
            "steer.edits[0].strength",
            None,
        ),
        (
            edit(json!({"feature": channel, "op": "swap", "with": 99})),
            "steer.edits[0].with",
            None,
        ),
        (
            edit(json!({"feature": channel, "op": "ablate", "at": {"prompt": [[3, 3]]}})),
            "steer.edits[0].at.prompt[0]",
            None,
        ),
        (
            edit(json!({"feature": channel, "op": "ablate", "at": {"generation": [-1]}})),
            "steer.edits[0].at.generation",
            None,
        ),
        (
            edit(
                json!({"feature": channel, "op": "ablate", "at": {"prompt": [{"text": "x", "occurrence": 0}]}}),
            ),
            "steer.edits[0].at.prompt[0].occurrence",
            None,
        ),
        (
            edit(json!({"feature": channel, "op": "ablate", "at": {"text": "x", "occurrence": 0}})),
            "steer.edits[0].at.occurrence",
            None,
        ),
        (
            edit(json!({"feature": channel, "op": "patch", "to": {"prompt": "x ".repeat(200)}})),
            "steer.edits[0].to.prompt",
            None,
        ),
        (
            edit(json!({"feature": channel, "op": "patch", "to": {"prompt": [4096]}})),
            "steer.edits[0].to.prompt",
            None,
        ),
        (
            edit(json!({"feature": channel, "op": "patch", "to": {"prompt": []}})),
            "steer.edits[0].to.prompt",
            None,
        ),
        (
            edit(json!({"feature": channel, "op": "patch", "to": {"prompt": ["x", "y"]}})),
            "steer.edits[0].to.prompt",
            None,
        ),
        (
            edit(
                json!({"feature": channel, "op": "ablate", "when": {"all": [{"feature": "nothing", "gt": 1}]}}),
            ),
            "steer.edits[0].when.all[0].feature",
            None,
        ),
        (
            edit(json!({"feature": {"site": "1.resid_in", "vector": [1.0, 2.0]}, "op": "ablate"})),
            "steer.edits[0].feature.vector",
            None,
        ),
        (
            with(loud(), json!({"variants": ["steered", "baseline"]})),
            "steer.variants",
            None,
        ),
        (
            with(loud(), json!({"bridge": "tinny"})),
            "steer.bridge",
            Some("bridge_not_found"),
        ),
        (
            with(loud(), json!({"edit": []})),
            "steer.edit",
            Some("unknown_field"),
        ),
        (
            json!({"edits": vec![json!({"feature": channel, "op": "ablate"}); 65]}),
            "steer.edits",
            None,
        ),
    ] {
        let refused = make(&server, "some", &steer);
        assert_eq!(refused.status, 400, "{steer}: {}", refused.body);
        assert_eq!(
            refused.json()["error"]["param"],
            param,
            "{steer}: {}",
            refused.body
        );
        if code.is_some() {
            refused.is_error(400, Some(param), code);
        }
        assert!(
            !refused.body.contains("variant") || param == "steer.variants",
            "{}",
            refused.body
        );
    }
    let near = make(
        &server,
        "some",
        &edit(json!({"feature": "shiped_feature", "op": "ablate"})),
    );
    assert!(message(&near).contains("shipped_feature"), "{}", near.body);
    for id in ["", "Loud", "a@b", "../x", ".x", "a..b", &"x".repeat(65)] {
        make(&server, id, &loud()).is_error(400, Some("id"), None);
    }
    let of = |model: &str| {
        server.post(
            "/v1/presets",
            &json!({"id": "some", "model": model, "steer": loud()}),
        )
    };
    of("tinny").is_error(404, Some("model"), Some("model_not_found"));
    assert!(message(&of("tinny")).contains("\"tiny\""));
    made(&server, "loud", &loud());
    of("tiny@loud").is_error(404, Some("model"), Some("model_not_found"));
    assert!(message(&of("tiny@loud")).contains("preset of model \"tiny\""));
    let long =
        json!({"id": "some", "model": "tiny", "steer": loud(), "description": "d".repeat(10_001)});
    server
        .post("/v1/presets", &long)
        .is_error(400, Some("description"), None);
    let missing = json!({"id": "some", "model": "tiny"});
    server
        .post("/v1/presets", &missing)
        .is_error(400, Some("steer"), Some("missing_field"));
    assert_eq!(names(&server.get("/v1/presets").ok()), ["tiny@loud"]);
}

#[test]
fn they_are_there_after_a_restart() {
    let server = Server::new();
    // A group that is measured first, and numbers that a careless writer would round.
    let exact = json!({"edits": [{
        "feature": {"node": "0.mlp.post_act", "channels": [{"channel": 1, "weight": 0.1}, {"channel": 5, "weight": -0.7}]},
        "op": "add", "value": 0.1 + 12.2, "unit": "std", "strength": 0.1 + 0.2
    }]});
    let presets = [
        made(&server, "exact", &exact),
        made(&server, "loud", &loud()),
    ];
    made(&server, "gone", &loud());
    server.delete("/v1/presets/tiny@gone").ok();
    let say =
        |server: &Server, name: &str| ask(server, json!({"model": name})).ok()["choices"].clone();
    let before = ["tiny@exact", "tiny@loud"].map(|name| say(&server, name));
    let fingerprint = |server: &Server| {
        ask(server, json!({"model": "tiny@loud"})).ok()["system_fingerprint"].clone()
    };
    let printed = fingerprint(&server);
    let server = server.restarted();
    assert_eq!(server.get("/v1/presets").ok()["data"], json!(presets));
    assert_eq!(
        ["tiny@exact", "tiny@loud"].map(|name| say(&server, name)),
        before
    );
    assert_eq!(fingerprint(&server), printed);
    assert_eq!(
        ask(&server, json!({"steer": exact})).ok()["choices"],
        before[0]
    );
    let kept = std::fs::read_dir(server.directory.join("data/presets")).unwrap();
    assert_eq!(kept.count(), 2, "what was removed left nothing");
}

#[test]
fn one_of_a_model_that_is_not_served_is_kept_and_says_so() {
    let server = Server::new();
    made(&server, "loud", &loud());
    let before = ask(&server, json!({"model": "tiny@loud"})).ok();
    server.post("/v1/library/tiny/unload", &json!({})).ok();
    let listed = server.get("/v1/presets?model=tiny").ok();
    assert_eq!(listed["data"][0]["served"], false);
    assert_eq!(server.get("/v1/models").ok()["data"], json!([]));
    for (address, request) in [
        (COMPLETIONS, json!({"prompt": "x"})),
        ("/v1/activations", json!({"prompt": "x", "logits": true})),
        ("/v1/tokenize", json!({"prompt": "x"})),
    ] {
        let refused = server.post(address, &with(request, json!({"model": "tiny@loud"})));
        refused.is_error(404, Some("model"), Some("model_not_found"));
        let message = message(&refused);
        assert!(
            message.contains("\"tiny@loud\"") && message.contains("not served"),
            "{message}"
        );
    }
    assert_eq!(server.get("/v1/models/tiny@loud").status, 404);
    make(&server, "other", &loud()).is_error(404, Some("model"), Some("model_not_found"));
    server.post("/v1/library/tiny/load", &json!({})).ok();
    assert_eq!(server.get("/v1/presets/tiny@loud").ok()["served"], true);
    let after = ask(&server, json!({"model": "tiny@loud"})).ok();
    assert_eq!(after["choices"], before["choices"]);
    // Deleting one needs no model.
    server.post("/v1/library/tiny/unload", &json!({})).ok();
    server.delete("/v1/presets/tiny@loud").ok();
    assert_eq!(server.get("/v1/presets").ok()["data"], json!([]));
}

#[test]
fn near_names_are_offered() {
    let server = Server::new();
    made(&server, "loud", &loud());
    for (model, said) in [
        ("tiny@lood", "the nearest is \"loud\""),
        (
            "tinny@loud",
            "there is no model \"tinny\"; the nearest is \"tiny\"",
        ),
        ("tiny@", "has no preset \"\""),
        ("@loud", "there is no model \"\""),
        ("tiny@loud@loud", "has no preset"),
    ] {
        let refused = ask(&server, json!({"model": model}));
        refused.is_error(404, Some("model"), Some("model_not_found"));
        assert!(
            message(&refused).contains(said),
            "{model}: {}",
            refused.body
        );
    }
    for (name, said) in [
        ("tiny@lood", "the nearest is \"loud\""),
        (
            "tinny@loud",
            "there is no model \"tinny\"; the nearest is \"tiny\"",
        ),
        ("loud", "MODEL@PRESET"),
    ] {
        let refused = server.get(&format!("/v1/presets/{name}"));
        refused.is_error(404, None, Some("preset_not_found"));
        assert!(message(&refused).contains(said), "{name}: {}", refused.body);
    }
    // What takes a model alone says what it got.
    let refused = server.get("/v1/features?model=tiny@loud");
    refused.is_error(400, Some("model"), None);
    assert!(
        message(&refused).contains("preset of model \"tiny\""),
        "{}",
        refused.body
    );
}

#[test]
fn lists_are_paged() {
    let server = Server::new();
    for id in ["c", "a", "b"] {
        made(&server, id, &loud());
    }
    let sparse = json!({"id": "a", "model": "tiny-sparse", "steer": loud()});
    server.post("/v1/presets", &sparse).status_is(201);
    let get = |query: &str| server.get(&format!("/v1/presets?{query}"));
    let first = get("limit=2").ok();
    assert_eq!(
        (names(&first), &first["has_more"]),
        (vec!["tiny-sparse@a", "tiny@a"], &json!(true))
    );
    assert_eq!(first["last_id"], "tiny@a");
    let second = get("limit=2&after=tiny@a").ok();
    assert_eq!(
        (names(&second), &second["has_more"]),
        (vec!["tiny@b", "tiny@c"], &json!(false))
    );
    let end = get("after=tiny%40c").ok();
    assert_eq!((names(&end), &end["last_id"]), (vec![], &Value::Null));
    assert_eq!(names(&get("model=tiny-sparse").ok()), ["tiny-sparse@a"]);
    get("limit=0").is_error(400, Some("limit"), None);
    get("limit=1001").is_error(400, Some("limit"), None);
    get("after=a").is_error(400, Some("after"), None);
    get("model=tiny-spars").is_error(400, Some("model"), None);
    get("modle=tiny").is_error(400, Some("modle"), Some("unknown_field"));
}

#[test]
fn how_many_and_how_long_they_are_is_bounded() {
    let server = Server::with(|settings| {
        settings.limits.max_presets = 2;
        settings.limits.max_preset_bytes = 40_000;
    });
    made(&server, "loud", &loud());
    // A character that JSON writes with six.
    let long = |length: usize| {
        let description = "\u{1}".repeat(length);
        let body =
            json!({"id": "long", "model": "tiny", "steer": loud(), "description": description});
        server.post("/v1/presets", &body)
    };
    let refused = long(7000);
    refused.is_error(400, None, Some("over_budget"));
    assert!(
        message(&refused).contains("limits.max_preset_bytes"),
        "{}",
        refused.body
    );
    long(6000).status_is(201);
    let third = make(&server, "third", &loud());
    third.is_error(400, None, Some("over_budget"));
    assert!(
        message(&third).contains("limits.max_presets"),
        "{}",
        third.body
    );
    server.delete("/v1/presets/tiny@long").ok();
    made(&server, "third", &loud());
    server.delete("/v1/presets/tiny@third").ok();
    // One alone has a bound of its own.
    let channels: Vec<Value> = (0..64)
        .map(|channel| json!({"channel": channel, "weight": 0.25}))
        .collect();
    let group = json!({"node": "0.mlp.post_act", "channels": channels});
    let conditions = vec![json!({"feature": group, "gt": 0.5}); 16];
    let edit = json!({"feature": "shipped_feature", "op": "ablate", "when": {"all": conditions}});
    let longest = make(&server, "longest", &json!({"edits": vec![edit; 64]}));
    longest.is_error(400, Some("steer"), Some("over_budget"));
    assert!(message(&longest).contains("1048576"), "{}", longest.body);
}

#[test]
fn only_an_administrator_makes_and_removes_them() {
    let server = Server::with(|settings| {
        settings.keys = vec![
            key("reader", Role::Infer, None),
            key("trainer", Role::Train, None),
            key("keeper", Role::Admin, None),
        ];
    });
    let send = |name: &str, method: &str, path: &str, body: Value| {
        let bearer = format!("Bearer ck-{name}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
        ];
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        server.send(method, path, &headers, body.as_bytes())
    };
    let preset = json!({"id": "loud", "model": "tiny", "steer": loud()});
    for name in ["reader", "trainer"] {
        let refused = send(name, "POST", "/v1/presets", preset.clone());
        refused.is_error(403, None, Some("insufficient_role"));
    }
    send("keeper", "POST", "/v1/presets", preset).status_is(201);
    for name in ["reader", "trainer"] {
        for path in [
            "/v1/presets",
            "/v1/presets/tiny@loud",
            "/v1/models/tiny@loud",
        ] {
            send(name, "GET", path, Value::Null).ok();
        }
        let refused = send(name, "DELETE", "/v1/presets/tiny@loud", Value::Null);
        refused.is_error(403, None, Some("insufficient_role"));
        let request = json!({"model": "tiny@loud", "prompt": "x", "max_tokens": 2});
        send(name, "POST", COMPLETIONS, request).ok();
    }
    send("keeper", "DELETE", "/v1/presets/tiny@loud", Value::Null).ok();
}
