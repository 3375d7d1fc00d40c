//! Pairs and models come into service and go out of it while the server answers.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use causeway::settings::keys::Role;
use serde_json::{Value, json};

use crate::client::Server;
use crate::keys::key;
use crate::tiny_pair;

/// A server with nothing but the tiny pair, and in its library a copy of the dense model and a damaged one.
fn server() -> Server {
    let library = std::env::temp_dir().join(format!("causeway-library-{}", uuid::Uuid::new_v4()));
    tiny_pair::write(&library.join("pair"));
    let dense = library.join("pair/dense");
    std::fs::rename(dense, library.join("again")).unwrap();
    std::fs::remove_dir_all(library.join("pair")).unwrap();
    std::fs::create_dir(library.join("damaged")).unwrap();
    std::fs::copy(
        library.join("again/config.json"),
        library.join("damaged/config.json"),
    )
    .unwrap();
    std::fs::write(library.join("damaged/model.safetensors"), b"nothing").unwrap();
    std::fs::create_dir(library.join("Not an id")).unwrap();
    std::fs::create_dir(library.join("empty")).unwrap();
    Server::with(move |settings| settings.library = library)
}

fn ids(list: &Value) -> Vec<(&str, bool)> {
    let entries = list["data"].as_array().unwrap().iter();
    entries
        .map(|entry| (entry["id"].as_str().unwrap(), entry["loaded"] == true))
        .collect()
}

fn ask(server: &Server, model: &str) -> u16 {
    let request = json!({"model": model, "prompt": "x = 1", "max_tokens": 2});
    server.post("/v1/completions", &request).status
}

#[test]
fn folders_that_cannot_be_served_are_told() {
    let list = server().get("/v1/library").ok();
    let skipped = list["skipped"].as_array().unwrap();
    let folders: Vec<_> = skipped.iter().map(|one| one["folder"].as_str()).collect();
    assert_eq!(folders, [Some("Not an id"), Some("empty")]);
    assert_eq!(
        skipped[0]["problem"],
        "\"Not an id\" is not a valid id: 1 to 64 of a-z, 0-9, '.', '_' and '-', no '..', no dot at the start"
    );
    assert_eq!(skipped[1]["problem"], "it holds neither a pair nor a model");
}

#[test]
fn a_model_comes_and_goes() {
    let server = server();
    let list = server.get("/v1/library").ok();
    assert_eq!(
        ids(&list),
        [("again", false), ("damaged", false), ("tiny", true)]
    );
    assert_eq!(ask(&server, "again"), 404);
    for _ in 0..2 {
        let loaded = server.post("/v1/library/again/load", &json!({})).ok();
        assert_eq!(
            loaded,
            json!({"id": "again", "object": "library.entry", "kind": "model", "loaded": true})
        );
    }
    assert_eq!(ask(&server, "again"), 200);
    let described = server.get("/v1/models/again").ok();
    let original = server.get("/v1/models/tiny").ok();
    assert_eq!(described["fingerprint"], original["fingerprint"]);
    let unloaded = server.post("/v1/library/again/unload", &json!({})).ok();
    assert_eq!(unloaded["loaded"], false);
    assert_eq!(ask(&server, "again"), 404);
    assert_eq!(ask(&server, "tiny"), 200);
}

#[test]
fn a_pair_goes_with_its_models_and_comes_back_with_the_features_made_for_it() {
    let server = server();
    let feature = json!({"name": "mine", "bridge": "tiny", "node": "0.resid_mid", "channels": [{"channel": 3, "weight": 1}],
        "description": "made here"});
    assert_eq!(server.post("/v1/features", &feature).status, 201);
    let before = server.get("/v1/features?bridge=tiny").ok();
    let nmse = |server: &Server| {
        server
            .get("/metrics")
            .body
            .matches("causeway_bridge_nmse{")
            .count()
    };
    let gauges = nmse(&server);
    assert!(gauges > 0);

    server.post("/v1/library/tiny/unload", &json!({})).ok();
    assert_eq!(
        (ask(&server, "tiny"), ask(&server, "tiny-sparse")),
        (404, 404)
    );
    assert_eq!(server.get("/v1/models").ok()["data"], json!([]));
    assert_eq!(server.get("/v1/bridges/tiny").status, 404);
    assert_eq!(server.get("/v1/features").ok()["data"], json!([]));
    assert_eq!(nmse(&server), 0);
    assert_eq!(server.get("/readyz").status, 200);

    server.post("/v1/library/tiny/load", &json!({})).ok();
    assert_eq!(server.get("/v1/features?bridge=tiny").ok(), before);
    assert_eq!(nmse(&server), gauges);
    let steered = json!({"model": "tiny", "prompt": "x = 1", "max_tokens": 2,
        "steer": {"edits": [{"feature": "mine", "op": "set", "value": 1}]}});
    server.post("/v1/completions", &steered).ok();
}

#[test]
fn what_cannot_be_loaded_changes_nothing() {
    let server = server();
    server
        .post("/v1/library/damaged/load", &json!({}))
        .is_error(400, None, Some("cannot_load"));
    for unknown in ["agian", "..", "%2e%2e%2fpair", "Not%20an%20id"] {
        let answer = server.post(&format!("/v1/library/{unknown}/load"), &json!({}));
        assert_eq!(answer.status, 404, "{unknown}: {}", answer.body);
    }
    let near = server.post("/v1/library/agian/load", &json!({})).json();
    assert!(near["error"]["message"].as_str().unwrap().contains("again"));
    assert_eq!(ids(&server.get("/v1/library").ok()).len(), 3);
    assert_eq!(ask(&server, "tiny"), 200);
}

#[test]
fn only_an_administrator_may() {
    let server = Server::with(|settings| {
        settings.keys = vec![
            key("trainer", Role::Train, None),
            key("keeper", Role::Admin, None),
        ];
    });
    let unload = |key: &str| {
        let bearer = format!("Bearer ck-{key}");
        let headers = [("authorization", bearer.as_str())];
        server.send("POST", "/v1/library/tiny/unload", &headers, b"")
    };
    unload("trainer").is_error(403, None, Some("insufficient_role"));
    assert_eq!(unload("keeper").status, 200);
}

/// Reading what never ends holds up nobody but who waits for it, and that for so long as the settings say.
#[test]
fn what_takes_for_ever_to_try_is_given_up_and_stops_nobody_else() {
    let programs = tempfile::tempdir().unwrap();
    let program = programs.path().join("program");
    std::fs::write(&program, "#!/bin/sh\nexec sleep 600\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let library = programs.path().join("library");
    tiny_pair::write(&library.join("tiny-again"));
    let server = Server::with(move |settings| {
        settings.library = library;
        settings.program = program;
        settings.limits.load_seconds = 5;
    });
    let answered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| {
            let answer = server.post("/v1/library/tiny-again/load", &json!({}));
            answered.store(true, Ordering::SeqCst);
            answer
        });
        let listed = server.get("/v1/library").ok();
        assert_eq!(ids(&listed).len(), 2);
        server.post("/v1/library/tiny/unload", &json!({})).ok();
        assert_eq!(ask(&server, "tiny"), 404);
        assert!(!answered.load(Ordering::SeqCst), "others waited for it");
        let answer = loading.join().unwrap();
        answer.is_error(400, None, Some("cannot_load"));
        assert!(
            answer.body.contains("limits.load_seconds"),
            "{}",
            answer.body
        );
    });
}

/// A job adds one in the same way; its name comes before the other's in every list.
#[test]
fn a_second_bridge_changes_nothing_for_requests_that_name_none() {
    let library = std::env::temp_dir().join(format!("causeway-library-{}", uuid::Uuid::new_v4()));
    let second = library.join("another");
    tiny_pair::write(&second);
    let record = second.join("bridge.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    json["id"] = json!("another");
    std::fs::write(&record, json.to_string()).unwrap();
    let server = Server::with(move |settings| settings.library = library);
    let steered = |bridge: Option<&str>| {
        let edit =
            json!({"feature": {"node": "1.mlp.act_in", "channel": 3}, "op": "add", "value": 2});
        let mut steer = json!({"edits": [edit], "return": ["receipt"]});
        if let Some(bridge) = bridge {
            steer["bridge"] = json!(bridge);
        }
        let request = json!({"model": "tiny", "prompt": "x = 1", "max_tokens": 2, "steer": steer});
        let answer = server.post("/v1/completions", &request).ok();
        answer["choices"][0]["receipt"]["bridge"].clone()
    };
    assert_eq!(steered(None), "tiny");
    server.post("/v1/library/another/load", &json!({})).ok();
    assert_eq!(
        (steered(None), steered(Some("another"))),
        (json!("tiny"), json!("another"))
    );
    for model in ["tiny", "tiny-sparse"] {
        let described = server.get(&format!("/v1/models/{model}")).ok();
        assert_eq!(described["bridges"], json!(["another", "tiny"]));
        assert_eq!(described["default_bridge"], "tiny");
    }
    let channel = server.get("/v1/features/1.mlp.act_in:3").ok();
    assert_eq!(channel["bridge"], "tiny");
    let feature = json!({"name": "mine", "description": "", "node": "1.mlp.act_in",
        "channels": [{"channel": 3, "weight": 1}]});
    let made = server.post("/v1/features", &feature);
    assert_eq!(
        (made.status, made.json()["bridge"].clone()),
        (201, json!("tiny"))
    );
    server.post("/v1/library/tiny/unload", &json!({})).ok();
    assert_eq!(steered(None), "another");
}
