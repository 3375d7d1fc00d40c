//! Folders of the library that were made to harm whoever reads them: the server says in words what is wrong with
//! each, takes little memory for it, and goes on answering.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::MOST_ABOVE_IDLE;
use crate::server::Server;

pub fn shipped(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("bridges/tinypython")
        .join(part)
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// A safetensors file with this header and `data` zeros, which may take no room on the disk.
fn write_safetensors(path: &Path, header: &str, data: u64) {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    let length = file.len() as u64 + data;
    fs::write(path, file).unwrap();
    let opened = fs::OpenOptions::new().write(true).open(path).unwrap();
    opened.set_len(length).unwrap();
}

/// Changes one tensor's values in a safetensors file.
fn change_weights(path: &Path, name: &str, change: impl Fn(f32) -> f32) {
    let mut file = fs::read(path).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let offsets: (usize, usize) =
        serde_json::from_value(header[name]["data_offsets"].clone()).unwrap();
    for value in file[8 + length..][offsets.0..offsets.1].chunks_exact_mut(4) {
        let changed = change(f32::from_le_bytes((&*value).try_into().unwrap()));
        value.copy_from_slice(&changed.to_le_bytes());
    }
    fs::write(path, file).unwrap();
}

fn change_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Puts a copy of the dense model into the server's library, changed by `change`.
fn model(server: &Server, id: &str, change: impl FnOnce(&Path)) {
    let folder = server.directory.join("library").join(id);
    copy(&shipped("dense"), &folder);
    change(&folder);
}

/// The words in which the server refuses to serve an entry, within the bound on memory; it then still answers.
fn refusal(server: &Server, id: &str) -> String {
    let mut told = String::new();
    let above = server.peak_above_idle(|| {
        let (status, answer) = server.post(&format!("/v1/library/{id}/load"), &json!({}));
        assert_eq!(status, 400, "{id}: {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["error"]["code"], "cannot_load", "{answer}");
        told = answer["error"]["message"].as_str().unwrap().to_owned();
    });
    assert!(above <= MOST_ABOVE_IDLE, "{id}: {above} bytes");
    let (status, list) = server.get("/v1/library");
    assert_eq!(status, 200, "{list}");
    let list: Value = serde_json::from_str(&list).unwrap();
    let entries = list["data"].as_array().unwrap();
    let entry = entries.iter().find(|entry| entry["id"] == id).unwrap();
    assert_eq!(entry["loaded"], false, "{list}");
    let body = json!({"model": "tinypython", "prompt": "x = 1", "max_tokens": 2});
    let (status, answer) = server.post("/v1/completions", &body);
    assert_eq!(status, 200, "{id}: {answer}");
    told
}

#[test]
fn an_untouched_copy_is_served() {
    let server = Server::start(&[]);
    model(&server, "copied", |_| {});
    let (status, answer) = server.post("/v1/library/copied/load", &json!({}));
    assert_eq!(status, 200, "{answer}");
    let body = json!({"model": "copied", "prompt": "x = 1", "max_tokens": 2});
    let (status, answer) = server.post("/v1/completions", &body);
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn weights_that_lie_about_their_size_are_refused() {
    let server = Server::start(&[]);
    let weights = "model.safetensors";
    model(&server, "no-width", |folder| {
        let header = r#"{"transformer.wte.weight":{"dtype":"F32","shape":[70368744177664,0],"data_offsets":[0,0]}}"#;
        write_safetensors(&folder.join(weights), header, 0);
        let gpt2 = json!({"model_type": "gpt2", "vocab_size": 16, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1});
        fs::write(folder.join("config.json"), gpt2.to_string()).unwrap();
    });
    let told = refusal(&server, "no-width");
    assert!(
        told.contains("wte.weight") && told.contains("70368744177664"),
        "{told}"
    );

    model(&server, "long-header", |folder| {
        let header = format!(
            "{{\"__metadata__\":{{\"a\":\"{}\"}}}}",
            "x".repeat(99_000_000)
        );
        write_safetensors(&folder.join(weights), &header, 0);
    });
    let told = refusal(&server, "long-header");
    assert!(told.contains("header at most"), "{told}");

    model(&server, "holes", |folder| {
        let size = 1u64 << 38;
        let header =
            format!(r#"{{"a":{{"dtype":"U8","shape":[{size}],"data_offsets":[0,{size}]}}}}"#);
        write_safetensors(&folder.join(weights), &header, size);
    });
    let told = refusal(&server, "holes");
    assert!(told.contains("can belong here"), "{told}");

    model(&server, "claimed", |folder| {
        // Four million values claim 64 GiB, which their configuration does too.
        let header = concat!(
            r#"{"transformer.wte.weight.values":{"dtype":"F32","shape":[4194304],"data_offsets":[0,16777216]},"#,
            r#""transformer.wte.weight.indices":{"dtype":"U8","shape":[4194304],"data_offsets":[16777216,20971520]},"#,
            r#""transformer.wte.weight.shape":{"dtype":"U32","shape":[2],"data_offsets":[20971520,20971528]}}"#
        );
        write_safetensors(&folder.join(weights), header, 20_971_528);
        change_json(&folder.join("config.json"), |config| {
            config["vocab_size"] = json!(1 << 20);
            config["d_model"] = json!(1 << 14);
        });
    });
    let told = refusal(&server, "claimed");
    assert!(told.contains("limits.max_model_mib"), "{told}");
}

#[test]
fn configurations_beyond_all_bounds_are_refused() {
    let server = Server::start(&[]);
    for (id, fields, expected) in [
        (
            "long",
            json!({"context_length": 1 << 24}),
            "limits.max_model_mib",
        ),
        (
            "heads",
            json!({"n_heads": 1 << 24, "d_head": 1 << 24}),
            "n_heads",
        ),
        (
            "wide",
            json!({"d_model": 1 << 24, "d_mlp": 1 << 24}),
            "limits.max_model_mib",
        ),
        ("deep", json!({"n_layers": 1 << 24}), "n_layers"),
        (
            "bigrams",
            json!({"bigram_table": true, "vocab_size": 1 << 24}),
            "limits.max_model_mib",
        ),
    ] {
        model(&server, id, |folder| {
            change_json(&folder.join("config.json"), |config| {
                for (field, value) in fields.as_object().unwrap() {
                    config[field] = value.clone();
                }
            });
        });
        let told = refusal(&server, id);
        assert!(told.contains(expected), "{id}: {told}");
    }
}

/// Each would keep whoever opens it waiting for ever.
#[test]
fn pipes_in_place_of_files_hold_nobody_up() {
    let server = Server::start(&[]);
    for name in ["model.safetensors", "tokenizer.json"] {
        let id = format!("pipe-{}", name.split('.').next().unwrap());
        model(&server, &id, |folder| {
            fs::remove_file(folder.join(name)).unwrap();
            let mode = rustix::fs::Mode::RWXU;
            rustix::fs::mkfifoat(rustix::fs::CWD, folder.join(name), mode).unwrap();
        });
        let told = refusal(&server, &id);
        assert!(told.contains("named pipe") && told.contains(name), "{told}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let server = Server::start(&[]);
    let name = "transformer.h.1.mlp.c_fc.weight";
    model(&server, "undefined", |folder| {
        change_weights(&folder.join("model.safetensors"), name, |_| f32::NAN);
    });
    let told = refusal(&server, "undefined");
    assert!(told.contains(name) && told.contains("finite"), "{told}");

    let name = "site.3.decoder.weight";
    let folder = server.directory.join("library/bridge");
    copy(&shipped(""), &folder);
    change_json(&folder.join("bridge.json"), |record| {
        record["id"] = json!("bridge")
    });
    change_weights(&folder.join("bridge.safetensors"), name, |_| f32::INFINITY);
    let told = refusal(&server, "bridge");
    assert!(told.contains(name) && told.contains("finite"), "{told}");
}

/// Each number is finite; what the model makes of them is not.
#[test]
fn weights_that_give_no_answer_are_refused_before_anybody_asks() {
    let server = Server::start(&[]);
    model(&server, "huge", |folder| {
        let weights = folder.join("model.safetensors");
        change_weights(&weights, "transformer.h.0.mlp.c_proj.weight", |_| 3e38);
    });
    let told = refusal(&server, "huge");
    assert!(told.contains("no finite numbers"), "{told}");

    let folder = server.directory.join("library/bridge");
    copy(&shipped(""), &folder);
    change_json(&folder.join("bridge.json"), |record| {
        record["id"] = json!("bridge");
    });
    let weights = folder.join("bridge.safetensors");
    change_weights(&weights, "site.3.decoder.weight", |_| 3e38);
    let told = refusal(&server, "bridge");
    assert!(
        told.contains("decoder") && told.contains("no finite"),
        "{told}"
    );
}

#[test]
fn tokenizers_that_double_a_text_again_and_again_are_refused() {
    let server = Server::start(&[]);
    let doubling = json!({"type": "Replace", "pattern": {"String": "e"}, "content": "ee"});
    let expanding = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "e"});
    for (id, field, chain, step) in [
        ("normalizers", "normalizer", "normalizers", &doubling),
        ("expressions", "normalizer", "normalizers", &expanding),
        ("decoders", "decoder", "decoders", &doubling),
    ] {
        model(&server, id, |folder| {
            change_json(&folder.join("tokenizer.json"), |tokenizer| {
                tokenizer[field] = json!({"type": "Sequence", chain: vec![step; 45]});
            });
        });
        let told = refusal(&server, id);
        assert!(
            told.contains(field) && told.contains("times as long"),
            "{told}"
        );
    }
}

/// What is read while serving runs no program of its maker's; `causeway convert` makes something else of it.
#[test]
fn pickles_are_not_read_while_serving() {
    let server = Server::start(&[]);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/circuit_sparsity/plain");
    let folder = server.directory.join("library/pickled");
    copy(&shipped(""), &folder);
    change_json(&folder.join("bridge.json"), |record| {
        record["id"] = json!("pickled");
    });
    fs::remove_dir_all(folder.join("sparse")).unwrap();
    copy(&golden, &folder.join("sparse"));
    let told = refusal(&server, "pickled");
    assert!(told.contains("causeway convert"), "{told}");

    copy(&golden, &server.directory.join("library/alone"));
    let told = refusal(&server, "alone");
    assert!(told.contains("causeway convert"), "{told}");

    let converted = server.directory.join("library/converted");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_causeway"))
        .arg("convert")
        .args([&golden, &converted])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let (status, answer) = server.post("/v1/library/converted/load", &json!({}));
    assert_eq!(status, 200, "{answer}");
    let body = json!({"model": "converted", "prompt": "a", "max_tokens": 1});
    let (status, answer) = server.post("/v1/completions", &body);
    assert_eq!(status, 200, "{answer}");
}

/// A process of its own tries what comes into service, and ends when it takes more memory or stack than the files'
/// sizes account for; the server goes on.
#[test]
fn what_kills_its_reader_does_not_kill_the_server() {
    let server = Server::start(&[]);
    model(&server, "nested", |folder| {
        // A value within a value, far deeper than any stack.
        let nested = "not ".repeat(400_000);
        let template = format!("{{{{ {nested} true }}}}");
        fs::write(folder.join("chat_template.jinja"), template).unwrap();
    });
    let told = refusal(&server, "nested");
    assert!(!told.is_empty());

    let folder = server.directory.join("library/reference");
    copy(&shipped(""), &folder);
    change_json(&folder.join("bridge.json"), |record| {
        record["id"] = json!("reference");
    });
    // Sixteen gibibytes of text that are not there.
    let (rows, size) = (1u64 << 27, 1u64 << 34);
    let header =
        format!(r#"{{"text":{{"dtype":"U32","shape":[{rows},32],"data_offsets":[0,{size}]}}}}"#);
    write_safetensors(&folder.join("reference.safetensors"), &header, size);
    let told = refusal(&server, "reference");
    assert!(told.contains("did not survive"), "{told}");
}
