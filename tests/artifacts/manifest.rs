//! Manifests find every change to the files they list, and cannot name a file elsewhere.

use std::collections::BTreeMap;
use std::fs;

use causeway::artifacts::{ArtifactError, ArtifactId, Manifest};
use serde_json::json;

use crate::Scratch;

fn artifact() -> (Scratch, Manifest) {
    let scratch = Scratch::new();
    fs::create_dir(scratch.0.join("dense")).unwrap();
    scratch.file("dense/model.safetensors", b"weights");
    scratch.file("README.md", b"about");
    scratch.file(".hidden", b"not listed");
    let provenance = BTreeMap::from([("seed".to_owned(), json!(7))]);
    let id: ArtifactId = "quote-pair.v1".parse().unwrap();
    let manifest = Manifest::of_directory(&scratch.0, id, "a pair".to_owned(), provenance).unwrap();
    (scratch, manifest)
}

#[test]
fn a_manifest_lists_every_file_and_reads_back() {
    let (scratch, manifest) = artifact();
    manifest.write(&scratch.0).unwrap();
    assert_eq!(Manifest::read(&scratch.0).unwrap(), manifest);
    let names: Vec<&str> = manifest
        .files
        .iter()
        .map(|file| file.name.as_str())
        .collect();
    assert_eq!(names, ["README.md", "dense/model.safetensors"]);
    // From another program.
    let expected = "a4262e1c9bcbc1721eb3fe13558154460a2b2a2d307daa32532478526ce6ccb1";
    assert_eq!(manifest.files[0].size, 5);
    assert_eq!(manifest.files[0].sha256, expected);
    manifest.verify(&scratch.0).unwrap();
}

#[test]
fn every_change_to_a_file_is_found_and_named() {
    let (scratch, manifest) = artifact();
    let path = scratch.file("dense/model.safetensors", b"Weights");
    match manifest.verify(&scratch.0).unwrap_err() {
        ArtifactError::HashMismatch {
            path: found,
            expected,
            found: hash,
        } => {
            assert_eq!(found, path);
            assert_eq!(expected, manifest.files[1].sha256);
            assert_ne!(hash, expected);
        }
        other => panic!("{other}"),
    }
    scratch.file("dense/model.safetensors", b"weight");
    let error = manifest.verify(&scratch.0).unwrap_err().to_string();
    assert!(
        error.contains("model.safetensors") && error.contains("6 bytes"),
        "{error}"
    );
    fs::remove_file(&path).unwrap();
    assert!(manifest.verify(&scratch.0).is_err());
}

#[cfg(unix)]
#[test]
fn symbolic_links_are_refused() {
    let (scratch, manifest) = artifact();
    let outside = Scratch::new();
    let target = outside.file("model.safetensors", b"weights");
    let path = scratch.0.join("dense/model.safetensors");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&target, &path).unwrap();
    let error = manifest.verify(&scratch.0).unwrap_err().to_string();
    assert!(error.contains("symbolic link"), "{error}");
    fs::remove_dir_all(scratch.0.join("dense")).unwrap();
    std::os::unix::fs::symlink(&outside.0, scratch.0.join("dense")).unwrap();
    assert!(manifest.verify(&scratch.0).is_err());
    let id: ArtifactId = "a".parse().unwrap();
    assert!(Manifest::of_directory(&scratch.0, id, String::new(), BTreeMap::new()).is_err());
}

#[test]
fn manifests_that_say_more_or_reach_further_are_refused() {
    let (scratch, manifest) = artifact();
    let good = serde_json::to_value(&manifest).unwrap();
    let mut bad = Vec::new();
    for name in [
        "../x",
        "/etc/passwd",
        "a/../b",
        "a//b",
        "",
        ".",
        "a\\b",
        ".git/config",
        "a/",
        "a\0",
    ] {
        let mut changed = good.clone();
        changed["files"][0]["name"] = json!(name);
        bad.push(changed);
    }
    let mut changed = good.clone();
    changed["extra"] = json!(1);
    bad.push(changed);
    let mut changed = good.clone();
    changed["format_version"] = json!(2);
    bad.push(changed);
    let mut changed = good.clone();
    changed["files"][1] = changed["files"][0].clone();
    bad.push(changed);
    let mut changed = good.clone();
    changed["id"] = json!("../up");
    bad.push(changed);
    for manifest in bad {
        scratch.file("manifest.json", manifest.to_string().as_bytes());
        assert!(Manifest::read(&scratch.0).is_err(), "{manifest}");
    }
    scratch.file("manifest.json", good.to_string().as_bytes());
    assert!(Manifest::read(&scratch.0).is_ok());
}

#[test]
fn ids_are_safe_directory_names() {
    for good in ["a", "0", "quote-pair_v1.2", &"x".repeat(64)] {
        let id: ArtifactId = good.parse().unwrap();
        assert_eq!(id.to_string(), good);
        assert_eq!(serde_json::to_value(&id).unwrap(), json!(good));
    }
    for bad in [
        "",
        ".",
        "..",
        ".a",
        "a..b",
        "A",
        "a/b",
        "a b",
        "é",
        "a\n",
        &"x".repeat(65),
    ] {
        assert!(bad.parse::<ArtifactId>().is_err(), "{bad:?}");
        assert!(serde_json::from_value::<ArtifactId>(json!(bad)).is_err());
    }
}
