//! Control vectors brought and taken, who may do so, and the commands of the command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::Device;
use causeway::artifacts::control_vector::ControlVector;
use causeway::settings::keys::Role;
use serde_json::{Value, json};

use crate::client::{Response, Server};
use crate::direction_search::{NEGATIVE, POSITIVE};
use crate::directions::{WIDTH, completed, floats, made, vector};
use crate::keys::key;

/// Sends a file, as whoever has this key.
fn import(server: &Server, key: Option<&str>, query: &str, file: &[u8]) -> Response {
    let bearer = key.map(|key| format!("Bearer {key}"));
    let bearer = bearer
        .iter()
        .map(|bearer| ("authorization", bearer.as_str()));
    let kind = [("content-type", "application/octet-stream")];
    let headers: Vec<(&str, &str)> = bearer.chain(kind).collect();
    let path = format!("/v1/features/control_vector?{query}");
    server.send("POST", &path, &headers, file)
}

fn file(numbers: &[usize]) -> Vec<u8> {
    let directions = numbers.iter().map(|&number| (number, vector(number)));
    let file = ControlVector {
        model_hint: Some("llama".to_owned()),
        directions: directions.collect(),
    };
    file.to_bytes().unwrap()
}

#[test]
fn a_control_vector_is_added_to_the_bit_as_its_vectors_are_by_hand() {
    let server = Server::new();
    // The files of llama.cpp's generator: direction.1 is that of block 0, whose output is 1.resid_in.
    let answer = import(
        &server,
        None,
        "model=tiny&id=both&layer_offset=-1&description=D",
        &file(&[1, 2]),
    );
    answer.status_is(201);
    let made = answer.json();
    assert_eq!(made["description"], "D");
    let source = &made["source"];
    assert_eq!(
        (
            &source["kind"],
            &source["model_hint"],
            &source["layer_offset"]
        ),
        (&json!("control_vector"), &json!("llama"), &json!(-1))
    );
    let detail = server.get("/v1/features/both").ok();
    let parts: Vec<_> = detail["directions"].as_array().unwrap().iter().collect();
    assert_eq!(
        (&parts[0]["site"], &parts[1]["site"]),
        (&json!("1.resid_in"), &json!("final_resid"))
    );
    assert_eq!(floats(&parts[0]["vector"]), vector(1));
    assert_eq!(floats(&parts[1]["vector"]), vector(2));
    for scale in [0.8, -1.5] {
        let named = json!([{"feature": "both", "op": "add", "value": scale}]);
        let raw = json!([
            {"feature": {"site": "1.resid_in", "vector": vector(1)}, "op": "add", "value": scale},
            {"feature": {"site": "final_resid", "vector": vector(2)}, "op": "add", "value": scale}
        ]);
        assert_eq!(
            completed(&server, "tiny", named),
            completed(&server, "tiny", raw)
        );
    }
    // What such a file cannot hold is refused, and what it can is what came in.
    server
        .get("/v1/features/both/control_vector")
        .is_error(400, None, Some("not_exportable"));
    import(&server, None, "model=tiny&id=last", &file(&[1])).status_is(201);
    let exported = server.get("/v1/features/last/control_vector");
    exported.status_is(200);
    assert_eq!(exported.headers["content-type"], "application/octet-stream");
    assert_eq!(exported.bytes, file(&[1]));
    let server = server.restarted();
    assert_eq!(server.get("/v1/features/both").ok(), detail);
    assert_eq!(
        server.get("/v1/features/last/control_vector").bytes,
        file(&[1])
    );
    server
        .get("/v1/features/shipped_feature/control_vector")
        .is_error(400, None, Some("not_a_direction"));
    server.get("/v1/features/nothing/control_vector").is_error(
        404,
        None,
        Some("feature_not_found"),
    );
    let chosen = import(
        &server,
        None,
        "model=tiny&id=chosen&layer_offset=-1&layers=2:9",
        &file(&[1, 2]),
    );
    chosen.status_is(201);
    assert_eq!(chosen.json()["directions"].as_array().unwrap().len(), 1);
    assert_eq!(chosen.json()["directions"][0]["site"], "final_resid");
}

#[test]
fn files_that_are_no_control_vectors_of_the_model_are_refused() {
    let server = Server::new();
    let good = file(&[1]);
    let mut spoilt = good.clone();
    // The number of tensors.
    spoilt[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let narrow = ControlVector {
        model_hint: None,
        directions: BTreeMap::from([(1, vec![1.0; WIDTH - 1])]),
    };
    let infinite = ControlVector {
        model_hint: None,
        directions: BTreeMap::from([(1, vec![f32::INFINITY; WIDTH])]),
    };
    let zero = ControlVector {
        model_hint: None,
        directions: BTreeMap::from([(1, vec![0.0; WIDTH])]),
    };
    for (bytes, said) in [
        (b"".to_vec(), ""),
        (b"GGUF".to_vec(), ""),
        (b"{\"model\": 1}".to_vec(), ""),
        (good[..40].to_vec(), ""),
        (spoilt, ""),
        (narrow.to_bytes().unwrap(), "[15]"),
        (infinite.to_bytes().unwrap(), "not finite"),
        (zero.to_bytes().unwrap(), "zero"),
        // The model has the blocks 0 and 1.
        (file(&[2]), "blocks 0 to 1"),
        (file(&[1, 2, 3]), "3 tensors"),
    ] {
        let refused = import(&server, None, "model=tiny&id=x", &bytes);
        refused.is_error(400, Some("file"), Some("invalid_file"));
        assert!(refused.body.contains(said), "{}", refused.body);
    }
    for (query, param) in [
        ("id=x", "model"),
        ("model=tiny", "id"),
        ("model=tiny&id=X", "id"),
        ("model=tiny&id=shipped_feature", "id"),
        ("model=tiny-sparse&id=x", "model"),
        ("model=tiny&id=x&layers=2:1", "layers"),
        ("model=tiny&id=x&layers=2", "layers"),
        ("model=tiny&id=x&file=/etc/passwd", "file"),
    ] {
        let refused = import(&server, None, query, &good);
        assert_eq!(refused.status, 400, "{query}: {}", refused.body);
        assert_eq!(
            refused.json()["error"]["param"],
            param,
            "{query}: {}",
            refused.body
        );
    }
    for offset in ["1", "-2", "9223372036854775807"] {
        let query = format!("model=tiny&id=x&layer_offset={offset}");
        import(&server, None, &query, &good).is_error(400, Some("file"), Some("invalid_file"));
    }
    import(&server, None, "model=other&id=x", &good).is_error(
        404,
        Some("model"),
        Some("model_not_found"),
    );
    for kind in ["application/json", "multipart/form-data; boundary=b"] {
        let path = "/v1/features/control_vector?model=tiny&id=x";
        server
            .send("POST", path, &[("content-type", kind)], &good)
            .is_error(415, None, Some("unsupported_media_type"));
    }
    let small = Server::with(|settings| settings.limits.max_body_bytes = 100);
    import(&small, None, "model=tiny&id=x", &good).is_error(413, None, Some("body_too_large"));
    assert_eq!(
        server.get("/v1/features").ok()["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

/// The folder of a reference.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// A server of the tiny Llama of the families' references, whose tokens are words `t0`, `t1` and so on.
fn with_llama() -> Server {
    Server::with(|settings| {
        let model = settings.library.join("llama");
        std::fs::create_dir_all(&model).unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(golden("families/llama").join(name), model.join(name)).unwrap();
        }
        let words = (0..48).map(|id| (format!("t{id}"), id));
        let vocabulary: BTreeMap<String, usize> = words.collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}
        });
        std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        settings.models.insert("llama".parse().unwrap(), model);
    })
}

#[test]
fn a_control_vector_does_what_the_reference_does_with_it() {
    let server = with_llama();
    let vector = std::fs::read(golden("control_vectors/vector.gguf")).unwrap();
    let made = import(&server, None, "model=llama&id=golden", &vector);
    made.status_is(201);
    let sites = made.json()["directions"].clone();
    assert_eq!(
        (&sites[0]["site"], &sites[1]["site"]),
        (&json!("2.resid_in"), &json!("final_resid"))
    );
    let expected = golden("control_vectors/expected.safetensors");
    let expected = candle_core::safetensors::load(expected, &Device::Cpu).unwrap();
    let ids = |name: &str| expected[name].to_vec1::<i32>().unwrap();
    let scales = expected["scales"].to_vec1::<f32>().unwrap();
    assert_eq!(scales.len(), 3);
    for (number, scale) in scales.into_iter().enumerate() {
        let steer = json!({"edits": [{"feature": "golden", "op": "add", "value": scale}]});
        let asked = json!({"model": "llama", "prompt": ids("ids"), "logits": true, "steer": steer});
        let found = server.post("/v1/activations", &asked).ok();
        let logits = expected[&format!("logits.{number}")]
            .to_vec2::<f32>()
            .unwrap();
        let rows = found["logits"].as_array().unwrap();
        assert_eq!(rows.len(), logits.len());
        for (row, expected) in rows.iter().zip(&logits) {
            for (value, expected) in row.as_array().unwrap().iter().zip(expected) {
                let off = value.as_f64().unwrap() - f64::from(*expected);
                assert!(off.abs() < 1e-3, "scale {scale} is off by {off}");
            }
        }
        let greedy = ids(&format!("greedy.{number}"));
        let asked = json!({
            "model": "llama", "prompt": ids("ids"), "max_tokens": greedy.len(), "temperature": 0, "logprobs": 0,
            "steer": steer
        });
        let answer = server.post("/v1/completions", &asked).ok();
        let tokens = answer["choices"][0]["logprobs"]["tokens"]
            .as_array()
            .unwrap();
        let tokens: Vec<&str> = tokens
            .iter()
            .map(|token| token.as_str().unwrap().trim())
            .collect();
        let words: Vec<String> = greedy.iter().map(|id| format!("t{id}")).collect();
        assert_eq!(tokens, words, "scale {scale}");
    }
    // What is given out holds what came in.
    let exported = server.get("/v1/features/golden/control_vector").bytes;
    let read = |bytes: &[u8]| ControlVector::from_bytes(bytes, WIDTH, 3).unwrap();
    assert_eq!(read(&exported), read(&vector));
}

#[test]
fn whoever_may_only_ask_finds_directions_and_keeps_none() {
    let server = Server::with(|settings| {
        settings.keys = vec![
            key("reader", Role::Infer, None),
            key("maker", Role::Train, None),
        ];
    });
    let send = |key: &str, path: &str, body: &Value| {
        let bearer = format!("Bearer ck-{key}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
        ];
        server.send("POST", path, &headers, body.to_string().as_bytes())
    };
    let mut search = json!({
        "model": "tiny", "positive": POSITIVE, "negative": NEGATIVE, "sites": ["1.resid_in"], "strengths": []
    });
    send("reader", "/v1/features/direction", &search).ok();
    search["register"] = json!({"id": "found"});
    for (path, body) in [
        ("/v1/features/direction", &search),
        ("/v1/features", &made("made")),
    ] {
        send("reader", path, body).is_error(403, None, Some("insufficient_role"));
    }
    import(
        &server,
        Some("ck-reader"),
        "model=tiny&id=brought",
        &file(&[1]),
    )
    .is_error(403, None, Some("insufficient_role"));
    import(&server, None, "model=tiny&id=brought", &file(&[1])).is_error(
        401,
        None,
        Some("invalid_api_key"),
    );
    send("maker", "/v1/features/direction", &search).ok();
    send("maker", "/v1/features", &made("made")).status_is(201);
    import(
        &server,
        Some("ck-maker"),
        "model=tiny&id=brought",
        &file(&[1]),
    )
    .status_is(201);
    let reader = [("authorization", "Bearer ck-reader")];
    let exported = server.send("GET", "/v1/features/brought/control_vector", &reader, b"");
    assert_eq!(exported.bytes, file(&[1]));
}

#[test]
fn the_command_line_makes_brings_and_takes_directions() {
    let server = Server::new();
    let folder = &server.directory;
    let write = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let positive = write("positive.txt", POSITIVE.join("\n").as_bytes());
    let lines: Vec<String> = NEGATIVE
        .iter()
        .map(|text| json!(text).to_string())
        .collect();
    let negative = write("negative.jsonl", lines.join("\n").as_bytes());
    let brought = write("Brought.gguf", &file(&[1]));
    let url = format!("http://{}", server.address);
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_causeway"))
            .arg("features")
            .args(arguments)
            .args(["--server", &url])
            .env_remove("OPENAI_API_KEY")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout) + &text(&output.stderr),
        )
    };
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (positive, negative) = (path(&positive), path(&negative));
    let (done, told) = run(&[
        "direction",
        "--model",
        "tiny",
        "--positive",
        &positive,
        "--negative",
        &negative,
        "--site",
        "1.resid_in",
        "--strength",
        "-0.5",
        "--register",
        "found",
        "--description",
        "By hand",
    ]);
    assert!(done, "{told}");
    assert!(
        told.contains("1.resid_in: length") && told.contains("-0.5: next_token"),
        "{told}"
    );
    assert!(
        told.contains("registered: found of tiny at 1.resid_in"),
        "{told}"
    );
    assert_eq!(
        server.get("/v1/features/found").ok()["description"],
        "By hand"
    );

    let (done, told) = run(&["import", &path(&brought), "--model", "tiny"]);
    assert!(
        done && told.contains("brought of tiny at final_resid"),
        "{told}"
    );
    let copy = folder.join("copy.gguf");
    let (done, told) = run(&["export", "brought", &path(&copy), "--model", "tiny"]);
    assert!(done, "{told}");
    assert_eq!(std::fs::read(&copy).unwrap(), file(&[1]));
    let (done, told) = run(&["import", &positive, "--model", "tiny", "--id", "no"]);
    assert!(!done && told.contains("invalid_file"), "{told}");
    let (done, told) = run(&["export", "nothing", &path(&copy)]);
    assert!(!done && told.contains("feature_not_found"), "{told}");
}
