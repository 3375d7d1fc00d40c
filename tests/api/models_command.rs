//! `causeway models`: the library without a server.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::client::Server;
use crate::test_hub::{COMMIT, ID, TestHub, gguf, model};
use crate::tiny_pair;
use serde_json::json;

/// The program on a library, with a hub or without.
fn models(library: &Path, hub: Option<&TestHub>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_causeway"));
    command
        .arg("models")
        .args(arguments)
        .arg("--library")
        .arg(library)
        .env("CAUSEWAY_HUB__RETRIES", "0");
    match hub {
        Some(hub) => command.env("CAUSEWAY_HUB__ENDPOINT", hub.endpoint()),
        None => command.env("CAUSEWAY_HUB__OFFLINE", "true"),
    };
    command.output().unwrap()
}

#[track_caller]
fn said(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refusal(output: Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn entries(library: &Path) -> Vec<String> {
    let names = fs::read_dir(library).into_iter().flatten();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != ".downloads")
        .collect();
    names.sort();
    names
}

fn downloads(library: &Path) -> usize {
    fs::read_dir(library.join(".downloads"))
        .into_iter()
        .flatten()
        .count()
}

#[test]
fn a_hub_s_model_is_added_listed_served_and_removed() {
    let scratch = tempfile::tempdir().unwrap();
    let library = scratch.path().join("library");
    let hub = TestHub::new(model(1));
    let added = said(models(&library, Some(&hub), &["add", &format!("{ID}@v1")]));
    assert!(added.starts_with("tiny-llama: a model with "), "{added}");
    let again = refusal(models(&library, Some(&hub), &["add", ID]));
    assert!(again.contains("already"), "{again}");
    said(models(&library, Some(&hub), &["add", ID, "--id", "other"]));
    let listed = said(models(&library, None, &["list"]));
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 2, "{listed}");
    assert!(lines[0].starts_with("other\tmodel\t"), "{listed}");
    assert!(lines[1].ends_with(&format!("{ID}@{COMMIT}")), "{listed}");
    assert_eq!(downloads(&library), 0);

    let served = library.clone();
    let server = Server::with(move |settings| settings.library = served);
    server.post("/v1/library/other/load", &json!({})).ok();
    let request = json!({"model": "other", "prompt": "x = 1", "max_tokens": 2});
    server.post("/v1/completions", &request).ok();

    said(models(&library, None, &["rm", "other"]));
    assert_eq!(entries(&library), ["tiny-llama"]);
    assert_eq!(downloads(&library), 0);
    let unknown = refusal(models(&library, None, &["rm", "tiny-lama"]));
    assert!(unknown.contains("\"tiny-llama\""), "{unknown}");
}

#[test]
fn a_hub_s_refusal_is_the_command_s() {
    let scratch = tempfile::tempdir().unwrap();
    let hub = TestHub::new(model(1));
    let offline = refusal(models(scratch.path(), None, &["add", ID]));
    assert!(offline.contains("hub.offline"), "{offline}");
    let missing = refusal(models(
        scratch.path(),
        Some(&hub),
        &["add", "Somebody/Else"],
    ));
    assert!(missing.contains("has no model Somebody/Else"), "{missing}");
    let gguf = refusal(models(
        scratch.path(),
        Some(&hub),
        &["add", ID, "--file", "x.gguf"],
    ));
    assert!(gguf.contains("no file x.gguf"), "{gguf}");
    // What broke is kept, and the next try goes on with it.
    let cuts = vec![5000];
    hub.set(|faults| drop(faults.cuts.insert("model.safetensors".to_owned(), cuts)));
    let broken = refusal(models(scratch.path(), Some(&hub), &["add", ID]));
    assert!(broken.contains("did not arrive"), "{broken}");
    assert_eq!(downloads(scratch.path()), 1);
    said(models(scratch.path(), Some(&hub), &["add", ID]));
    assert_eq!(hub.ranges(), [None, Some("bytes=5000-".to_owned())]);
    assert_eq!(entries(scratch.path()), ["tiny-llama"]);
}

#[test]
fn directories_and_files_are_added_and_what_cannot_be_served_is_not() {
    let scratch = tempfile::tempdir().unwrap();
    let here = |name: &str| scratch.path().join(name).to_string_lossy().into_owned();
    let library = scratch.path().join("library");
    tiny_pair::write(&scratch.path().join("pair"));
    fs::write(scratch.path().join("pair/dense/notes.txt"), "mine").unwrap();
    let (pair, dense) = (here("pair"), here("pair/dense"));
    said(models(&library, None, &["add", &pair]));
    let renamed = refusal(models(&library, None, &["add", &pair, "--id", "renamed"]));
    assert!(renamed.contains("calls itself tiny"), "{renamed}");
    said(models(&library, None, &["add", &dense, "--id", "copied"]));
    said(models(
        &library,
        None,
        &["add", &dense, "--id", "linked", "--link"],
    ));
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gguf/F16.gguf");
    said(models(&library, None, &["add", golden]));
    assert_eq!(entries(&library), ["copied", "f16", "linked", "tiny"]);
    assert!(!library.join("copied/notes.txt").exists());
    assert!(library.join("linked").is_symlink());
    let listed = said(models(&library, None, &["list"]));
    assert!(listed.contains("tiny\tpair\t"), "{listed}");

    let damaged = scratch.path().join("damaged");
    fs::create_dir(&damaged).unwrap();
    fs::copy(format!("{dense}/config.json"), damaged.join("config.json")).unwrap();
    fs::write(damaged.join("model.safetensors"), b"nothing").unwrap();
    let released = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/circuit_sparsity");
    let pickled = find_pickled(Path::new(released));
    for (from, words) in [
        (here("damaged"), "model.safetensors"),
        (
            here("pair/dense/notes.txt"),
            "neither a directory nor a .gguf file",
        ),
        (here("nowhere"), "there is no directory or file"),
        (pickled, "causeway convert"),
    ] {
        let refused = refusal(models(&library, None, &["add", &from, "--id", "bad"]));
        assert!(refused.contains(words), "{refused}");
    }
    let broken = scratch.path().join("broken.gguf");
    fs::write(&broken, b"GGUF").unwrap();
    refusal(models(&library, None, &["add", &here("broken.gguf")]));
    assert_eq!(entries(&library), ["copied", "f16", "linked", "tiny"]);
    assert_eq!(downloads(&library), 0);

    said(models(&library, None, &["rm", "linked"]));
    assert!(Path::new(&dense).join("model.safetensors").is_file());
    let hub = TestHub::new(gguf());
    said(models(
        &library,
        Some(&hub),
        &["add", ID, "--file", "gguf/tiny.Q8_0.gguf"],
    ));
    assert_eq!(entries(&library), ["copied", "f16", "tiny", "tiny-llama"]);
}

/// A released checkpoint, which is pickled.
fn find_pickled(folder: &Path) -> String {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        if folder.join("final_model.pt").is_file() {
            return folder.to_string_lossy().into_owned();
        }
        let inside = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        folders.extend(inside.filter(|path| path.is_dir()));
    }
    panic!("no released checkpoint below {}", folder.display());
}
