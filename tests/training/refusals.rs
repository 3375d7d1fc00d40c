//! Recipes that cannot be: the answer names the field and nothing is written.

use std::fs;

use super::{Workshop, contents};

/// Expects the recipe to be refused with every one of `words`, before anything is written.
fn refused(workshop: &Workshop, kind: &str, recipe: &str, words: &[&str]) {
    let before = contents(&workshop.0.join("output"));
    let error = workshop
        .train(kind, recipe, &[])
        .expect_err(&format!("a refusal that says {words:?}"));
    for word in words {
        assert!(error.contains(word), "expected {word:?} in: {error}");
    }
    assert!(!error.contains("panicked"), "{error}");
    assert!(
        contents(&workshop.0.join("output")) == before,
        "something was written: {error}"
    );
}

/// The recipe with one piece of it changed.
fn changed(recipe: &str, from: &str, to: &str) -> String {
    assert_eq!(
        recipe.matches(from).count(),
        1,
        "{from:?} stands in the recipe once"
    );
    recipe.replace(from, to)
}

#[test]
fn a_value_that_cannot_be_is_named() {
    let workshop = Workshop::new();
    let recipe = workshop.sparse_recipe();
    for (from, to, words) in [
        (
            "sequences = 8\nlength",
            "sequences = 8\ncolour = 1\nlength",
            &["colour"] as &[&str],
        ),
        ("n_layers = 2", "n_layers = 2\nn_layer = 2", &["n_layer"]),
        ("[sparsity]", "[sparsity]\nkept = 0.5", &["kept"]),
        ("steps = 80", "steps = 0", &["batches.steps"]),
        (
            "sequences = 8\nlength",
            "sequences = 0\nlength",
            &["batches.sequences"],
        ),
        ("length = 32", "length = 0", &["batches.length"]),
        ("length = 32", "length = 49", &["batches.length", "48"]),
        ("seed = 5", "seed = -5", &["seed"]),
        ("d_model = 32", "d_model = 0", &["model.d_model"]),
        ("n_heads = 2", "n_heads = 0", &["model.n_heads"]),
        ("d_mlp = 64", "d_mlp = 100000000", &["model.d_mlp"]),
        ("vocab_size = 1000", "vocab_size = 0", &["model.vocab_size"]),
        (
            "vocab_size = 1000",
            "vocab_size = 1001",
            &["model.vocab_size", "1001", "1000"],
        ),
        ("norm = \"rms\"", "norm = \"batch\"", &["norm", "batch"]),
        (
            "active_fraction = 0.25",
            "active_fraction = 0.0",
            &["model.active_fraction"],
        ),
        (
            "learning_rate = 1e-2",
            "learning_rate = -1e-2",
            &["optimizer.learning_rate"],
        ),
        (
            "learning_rate = 1e-2",
            "learning_rate = nan",
            &["optimizer.learning_rate"],
        ),
        ("learning_rate = 1e-2", "", &["learning_rate"]),
        (
            "final_fraction = 0.1",
            "final_fraction = 1.5",
            &["optimizer.final_fraction"],
        ),
        (
            "kept_fraction = 0.15",
            "kept_fraction = 0.0",
            &["sparsity.kept_fraction"],
        ),
        (
            "anneal_to = 0.6",
            "anneal_to = 1.6",
            &["sparsity.anneal_to"],
        ),
        ("protected = 2", "protected = 20", &["sparsity.protected"]),
        ("weight = 0.6", "weight = 0.0", &["weight"]),
        ("documents = 60", "documents = 0", &["documents"]),
        (
            "held_out_every = 3",
            "held_out_every = 1",
            &["held_out_every"],
        ),
        (
            "checkpoint_every = 40",
            "checkpoint_every = 0",
            &["output.checkpoint_every"],
        ),
        (
            "evaluate_every = 40",
            "evaluate_every = 0",
            &["output.evaluate_every"],
        ),
        (
            "evaluation_sequences = 8",
            "evaluation_sequences = 0",
            &["output.evaluation_sequences"],
        ),
        ("[batches]", "[batches", &["recipe.toml"]),
    ] {
        refused(&workshop, "sparse", &changed(&recipe, from, to), words);
    }
}

#[test]
fn files_that_are_missing_or_hold_too_little_are_named() {
    let workshop = Workshop::new();
    let recipe = workshop.dense_recipe();
    let tokenizer = changed(&recipe, "/tokenizer.json", "/no-tokenizer.json");
    refused(&workshop, "dense", &tokenizer, &["no-tokenizer.json"]);
    let nowhere = changed(&recipe, "/python", "/nowhere");
    refused(&workshop, "dense", &nowhere, &["nowhere"]);
    fs::create_dir(workshop.0.join("empty")).expect("a directory");
    refused(
        &workshop,
        "dense",
        &changed(&recipe, "/python", "/empty"),
        &["empty", "0 documents"],
    );
    fs::create_dir(workshop.0.join("short")).expect("a directory");
    for index in 0..12 {
        fs::write(workshop.0.join(format!("short/{index}.py")), "x\n").expect("a source file");
    }
    refused(
        &workshop,
        "dense",
        &changed(&recipe, "/python", "/short"),
        &["too few", "32"],
    );
    fs::write(workshop.0.join("tokenizer.json"), "{\"model\": 3}").expect("a damaged tokenizer");
    refused(&workshop, "dense", &recipe, &["tokenizer"]);
    fs::remove_file(workshop.0.join("recipe.toml")).expect("the recipe");
}

#[test]
fn a_kind_of_training_takes_its_own_recipes_only() {
    let workshop = Workshop::new();
    refused(&workshop, "dense", &workshop.sparse_recipe(), &["sparsity"]);
    refused(&workshop, "sparse", &workshop.dense_recipe(), &["sparsity"]);
    refused(
        &workshop,
        "tokenizer",
        &workshop.dense_recipe(),
        &["recipe.toml"],
    );
    let on_no_device = workshop.train("dense", &workshop.dense_recipe(), &["--device", "cuda:99"]);
    assert!(on_no_device.expect_err("a refusal").contains("cuda:99"));
}
