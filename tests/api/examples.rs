//! What the document shows is what works: every example of an address and of a body, sent to a server with the pair
//! that ships; and every id that an answer tells, where a feature is taken.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::client::Server;
use crate::document;

/// A server with a copy of the shipped pair, whose dense model has a chat template.
fn shipped() -> Server {
    Server::with(|settings| {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("bridges/tinypython");
        let library = settings.library.clone();
        let pair = library.join("tinypython");
        copy(&shipped, &pair);
        let template = pair.join("dense/chat_template.jinja");
        fs::write(template, "{{ messages[0].content }}").unwrap();
        settings.pairs = vec![pair];
    })
}

/// A folder with everything in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copied = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &copied),
            false => drop(fs::copy(&path, copied).unwrap()),
        }
    }
}

/// Fills the variables of an address with their examples; none where one has no example.
fn address(path: &str, operation: &Value) -> Option<String> {
    let (mut address, mut query) = (path.to_owned(), Vec::new());
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str()?;
        let example = match &parameter["example"] {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        };
        match (parameter["in"].as_str()?, example) {
            ("path", example) => address = address.replace(&format!("{{{name}}}"), &example?),
            ("query", Some(example)) => query.push(format!("{name}={example}")),
            _ => {}
        }
    }
    match query.is_empty() {
        true => Some(address),
        false => Some(format!("{address}?{}", query.join("&"))),
    }
}

/// The bodies that an operation shows; an empty one where it takes none.
fn bodies(operation: &Value) -> Vec<Option<Value>> {
    if operation["requestBody"].is_null() {
        return vec![None];
    }
    let content = &operation["requestBody"]["content"]["application/json"];
    let examples = content["examples"].as_object().into_iter().flatten();
    let examples = examples.map(|(_, example)| Some(example["value"].clone()));
    let only = content.get("example").cloned().map(Some);
    examples.chain(only).collect()
}

#[test]
fn a_shipped_feature_is_explained_and_agrees_with_its_twin() {
    let server = shipped();
    let verified = server
        .send("POST", "/v1/features/quote_type/verify", &[], b"")
        .ok();
    assert_eq!(verified["passed"], true);
    let twin = &verified["twin"];
    assert_eq!(twin["pairs"], 32);
    for (field, least) in [("correlation", 0.9), ("same_sign", 0.95), ("native", 1.0)] {
        let found = twin[field].as_f64().unwrap();
        assert!(found >= least, "{twin}");
    }
    let binarised = &verified["binarised"];
    assert_eq!(binarised["prompts"], 64);
    let of = |field: &str| binarised[field].as_f64().unwrap();
    assert!(of("low") < of("threshold") && of("threshold") < of("high"));
    assert!(of("accuracy") >= 0.9, "{binarised}");
    assert!((0.0..=1.0).contains(&of("kept")) && (0.0..=1.0).contains(&of("explained")));

    let told = server.get("/v1/features/quote_type?examples=2").ok();
    let label = told["label"].as_str().unwrap();
    assert!(label.contains("strongest at"), "{label}");
    for kind in ["top", "bottom", "quantiles"] {
        for window in told["examples"][kind].as_array().unwrap() {
            let values = window["values"].as_array().unwrap();
            assert_eq!(values.len(), window["tokens"].as_array().unwrap().len());
            assert_eq!(
                values[window["at"].as_u64().unwrap() as usize],
                window["value"]
            );
        }
    }
    // A feature without a task has neither.
    let own = json!({"name": "own", "node": "1.attn.act_in", "channels": [{"channel": 1, "weight": 1.0}]});
    server.post("/v1/features", &own).status_is(201);
    let verified = server
        .send("POST", "/v1/features/own/verify", &[], b"")
        .ok();
    assert_eq!(
        (&verified["twin"], &verified["binarised"]),
        (&Value::Null, &Value::Null)
    );
}

#[test]
fn every_example_of_the_document_is_answered() {
    let server = shipped();
    let upload = "--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--b\r\n\
        content-disposition: form-data; name=\"file\"; filename=\"text.jsonl\"\r\n\r\n\
        {\"text\": \"x = 1\\ny = 2\\n\"}\n{\"text\": \"z = 3\\n\"}\r\n--b--\r\n";
    let form = [("content-type", "multipart/form-data; boundary=b")];
    let file = server
        .send("POST", "/v1/files", &form, upload.as_bytes())
        .ok();
    // What is made is there for those who change it, and is taken away after them.
    let order = |method: &str, path: &str| match (method, path) {
        ("post", "/v1/library/{id}/unload") => 5,
        ("post", "/v1/library/{id}/load") => 6,
        ("post", _) => 0,
        ("patch", _) => 1,
        ("get", _) => 2,
        _ => 3,
    };
    let mut operations = Vec::new();
    for (path, item) in document::published()["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            operations.push((order(method, path), path, method, operation));
        }
    }
    operations.sort_by_key(|(order, ..)| *order);
    let mut sent = 0;
    for (_, path, method, operation) in operations {
        let Some(target) = address(path, operation) else {
            continue;
        };
        for body in bodies(operation) {
            let method = method.to_uppercase();
            let answer = match body {
                None => server.send(&method, &target, &[], b""),
                Some(mut body) => {
                    // What the document cannot know the names of.
                    if body["model"] == "my-chat-model" {
                        body["model"] = "tinypython".into();
                    }
                    if body.get("training_file").is_some_and(Value::is_string) {
                        body["training_file"] = file["id"].clone();
                    }
                    let json = [("content-type", "application/json")];
                    server.send(&method, &target, &json, body.to_string().as_bytes())
                }
            };
            assert!(
                (200..300).contains(&answer.status),
                "{method} {target}: {} {}",
                answer.status,
                answer.body
            );
            sent += 1;
        }
    }
    assert!(sent > 25, "{sent}");
}

#[test]
fn every_id_of_a_feature_is_taken_where_a_feature_is() {
    let server = Server::new();
    let unnamed = "1.attn.act_in:5";
    let found = server.get(&format!("/v1/features/{unnamed}")).ok();
    let listed = server.get("/v1/features").ok();
    let listed = listed["data"].as_array().unwrap().clone();
    assert!(!listed.is_empty());
    let texts = |feature: &Value| {
        let body = json!({
            "model": "tiny", "prompt": "x = 1", "max_tokens": 4, "temperature": 0,
            "steer": {
                "edits": [{"feature": feature, "op": "add", "value": 4, "unit": "std",
                           "when": {"all": [{"feature": feature, "gt": -1000}]}}],
                "return": ["receipt", "activations"]
            }
        });
        let answer = server.post("/v1/completions", &body).ok();
        answer["choices"][0]["receipt"]["edits"][0]["tokens"].clone()
    };
    for feature in listed.iter().chain([&found]) {
        let id = feature["id"].as_str().unwrap();
        let again = server.get(&format!("/v1/features/{id}?examples=0")).ok();
        assert_eq!(again["id"], feature["id"]);
        assert!(!texts(&feature["id"]).is_null(), "{id}");
    }
    let by_parts = json!({"node": "1.attn.act_in", "channel": 5});
    assert_eq!(texts(&json!(unnamed)), texts(&by_parts));
    let missing = |id: &str| {
        let edit = json!({"feature": id, "op": "add", "value": 1});
        server.post(
            "/v1/completions",
            &json!({"model": "tiny", "prompt": "x", "steer": {"edits": [edit]}}),
        )
    };
    missing("1.attn.act_in:4096").blames("steer.edits[0].feature");
    missing("1.attn.act_inn:4").blames("steer.edits[0].feature");
    missing("nothing:at:all").blames("steer.edits[0].feature");
}
