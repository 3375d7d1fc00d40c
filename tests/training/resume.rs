//! Stopping and going on.

use std::fs;
use std::path::{Path, PathBuf};

use super::{STEPS, Workshop, contents};

/// A sparse training that has ended, short enough to be repeated.
fn finished() -> (Workshop, String) {
    let workshop = Workshop::new();
    let recipe = shorter(&workshop.sparse_recipe());
    workshop.train("sparse", &recipe, &[]).expect("a training");
    (workshop, recipe)
}

fn shorter(recipe: &str) -> String {
    recipe
        .replace(&format!("steps = {STEPS}"), "steps = 12")
        .replace("_every = 40", "_every = 6")
}

/// What remains of a training that was cut off after its checkpoint of step 6.
fn cut_off(workshop: &Workshop) -> PathBuf {
    let output = workshop.output();
    fs::remove_dir_all(output.join("model")).expect("the model");
    fs::remove_dir_all(output.join("checkpoints/step-12")).expect("the last checkpoint");
    output.join("checkpoints/step-6")
}

#[test]
fn a_resumed_training_is_the_uninterrupted_one_bit_for_bit() {
    let (workshop, recipe) = finished();
    let whole = contents(&workshop.output());
    let losses = |workshop: &Workshop| -> Vec<(u64, f64)> {
        let metrics = workshop.metrics();
        let steps = metrics
            .iter()
            .filter_map(|line| Some((line["step"].as_u64()?, line["loss"].as_f64()?)));
        steps.collect()
    };
    let told = losses(&workshop);
    cut_off(&workshop);
    workshop
        .train("sparse", &recipe, &["--resume"])
        .expect("the rest of the training");
    let resumed = contents(&workshop.output());
    assert_eq!(
        resumed.keys().collect::<Vec<_>>(),
        whole.keys().collect::<Vec<_>>()
    );
    // The metrics hold times; everything else must be the same bytes.
    for (path, content) in resumed
        .iter()
        .filter(|(path, _)| !path.ends_with("metrics.jsonl"))
    {
        assert!(*content == whole[path], "{} is another", path.display());
    }
    assert_eq!(
        losses(&workshop),
        told,
        "every step is told once, with the same loss"
    );
    assert_eq!(told.len(), 12);
    // Resuming what has ended changes nothing.
    workshop
        .train("sparse", &recipe, &["--resume"])
        .expect("nothing left to do");
    let again = contents(&workshop.output());
    for (path, content) in again
        .iter()
        .filter(|(path, _)| !path.ends_with("metrics.jsonl"))
    {
        assert!(*content == whole[path], "{} is another", path.display());
    }
}

#[test]
fn resuming_where_nothing_was_begun_begins() {
    let workshop = Workshop::new();
    let recipe = shorter(&workshop.dense_recipe());
    workshop
        .train("dense", &recipe, &["--resume"])
        .expect("a training");
    assert!(workshop.output().join("model/config.json").is_file());
}

/// Expects `options` to fail with all of `words` in the message and to leave every file as it was.
fn refuses(workshop: &Workshop, recipe: &str, options: &[&str], words: &[&str]) {
    let before = contents(&workshop.output());
    let error = workshop
        .train("sparse", recipe, options)
        .expect_err(&format!("a refusal that says {words:?}"));
    for word in words {
        assert!(error.contains(word), "expected {word:?} in: {error}");
    }
    assert!(
        contents(&workshop.output()) == before,
        "something was written all the same: {error}"
    );
}

#[test]
fn a_damaged_checkpoint_is_named_and_nothing_is_overwritten() {
    let (workshop, recipe) = finished();
    let checkpoint = cut_off(&workshop);
    let spoil = |name: &str, damage: &dyn Fn(&Path, Vec<u8>), words: &[&str]| {
        let path = checkpoint.join(name);
        let sound = fs::read(&path).expect("a file of the checkpoint");
        damage(&path, sound.clone());
        let words: Vec<&str> = words.iter().copied().chain(["step-6"]).collect();
        refuses(&workshop, &recipe, &["--resume"], &words);
        fs::write(&path, sound).expect("the file as it was");
    };
    let flip = |path: &Path, mut bytes: Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).expect("a damaged file");
    };
    let truncate = |path: &Path, bytes: Vec<u8>| {
        fs::write(path, &bytes[..bytes.len() / 2]).expect("a shorter file");
    };
    let remove = |path: &Path, _: Vec<u8>| fs::remove_file(path).expect("the file");
    spoil(
        "weights.safetensors",
        &flip,
        &["weights.safetensors", "sha256"],
    );
    spoil(
        "moments.safetensors",
        &flip,
        &["moments.safetensors", "sha256"],
    );
    spoil(
        "weights.safetensors",
        &truncate,
        &["weights.safetensors", "sha256"],
    );
    spoil("moments.safetensors", &remove, &["moments.safetensors"]);
    spoil("state.json", &truncate, &[]);
    spoil("state.json", &remove, &["state.json"]);
    let another_step = |path: &Path, bytes: Vec<u8>| {
        let text = String::from_utf8(bytes)
            .expect("UTF-8")
            .replace("\"step\": 6", "\"step\": 5");
        fs::write(path, text).expect("another state");
    };
    spoil("state.json", &another_step, &["step 5"]);
    // And as it was, it is taken.
    workshop
        .train("sparse", &recipe, &["--resume"])
        .expect("the rest of the training");
}

#[test]
fn a_half_written_checkpoint_is_no_checkpoint() {
    let (workshop, recipe) = finished();
    let whole = contents(&workshop.output().join("model"));
    let checkpoint = cut_off(&workshop);
    let partial = checkpoint.with_file_name("partial-12");
    fs::create_dir(&partial).expect("a directory");
    fs::copy(
        checkpoint.join("weights.safetensors"),
        partial.join("weights.safetensors"),
    )
    .expect("a copy");
    workshop
        .train("sparse", &recipe, &["--resume"])
        .expect("the rest of the training");
    assert!(contents(&workshop.output().join("model")) == whole);
    assert!(!partial.exists());
}

#[test]
fn another_recipe_or_a_forgotten_resume_overwrites_nothing() {
    let (workshop, recipe) = finished();
    refuses(&workshop, &recipe, &[], &["--resume", "step 12"]);
    for (from, to) in [
        ("learning_rate = 1e-2", "learning_rate = 2e-2"),
        ("steps = 12", "steps = 24"),
        ("seed = 5", "seed = 6"),
    ] {
        let other = recipe.replace(from, to);
        assert_ne!(other, recipe);
        refuses(&workshop, &other, &["--resume"], &["another recipe"]);
        refuses(&workshop, &other, &[], &["another recipe"]);
    }
}
