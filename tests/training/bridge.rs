//! A dense model, then a sparse one with its bridge: what the pair is in the end, and going on half-way.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use causeway::bridge::pair::read_record;
use causeway::models::layout::ModelFiles;

use super::{VOCABULARY, Workshop, contents};

/// A workshop with a dense model in `dense/model`, and the recipe of a bridge to it.
fn workshop() -> (Workshop, String) {
    workshop_of(2)
}

/// The same with a dense model of so many layers.
fn workshop_of(dense_layers: usize) -> (Workshop, String) {
    let workshop = Workshop::new();
    let root = workshop.0.display().to_string();
    let dense = workshop
        .dense_recipe()
        .replace("n_layers = 2", &format!("n_layers = {dense_layers}"))
        .replace(&format!("{root}/output"), &format!("{root}/dense"));
    workshop.train("dense", &dense, &[]).expect("a dense model");
    let recipe = format!(
        r#"
dense = "{root}/dense/model"
bridge_learning_rate = 1e-2
encoder_fraction = 0.25

[sparse]
n_layers = 2
d_model = 64
n_heads = 4
d_head = 16
d_mlp = 128
vocab_size = {VOCABULARY}
context_length = 48
norm = "rms"
bias = true
activation = "gelu"
positions = "added"
attention_sinks = true
active_fraction = 0.25
active_locations = ["attn_in", "attn_out", "mlp_in", "mlp_neuron", "mlp_out"]

[[sources]]
kind = "directory"
path = "{root}/python"
weight = 1.0
held_out_every = 3

[batches]
steps = 40
sequences = 4
length = 32
seed = 5

[optimizer]
learning_rate = 5e-3
warmup_steps = 3

[sparsity]
kept_fraction = 0.2
protected = 2

[terms]
cross_entropy = 1.0
distillation = 1.0
encoder = 1.0
decoder = 1.0
dense_to_sparse = 1.0
sparse_to_dense = 1.0
hybrid_sequences = 2

[terms.twin]
weight = 1.0
native_weight = 0.5
task_pairs = 1
text_pairs = 1

[output]
directory = "{root}/output"
checkpoint_every = 20
evaluate_every = 20
evaluation_sequences = 4
"#
    );
    (workshop, recipe)
}

#[test]
fn a_pair_is_trained_and_resumed_bit_for_bit() {
    let (workshop, recipe) = workshop();
    workshop.train("bridge", &recipe, &[]).expect("a bridge");
    let output = workshop.output();
    let whole = contents(&output);

    let evaluations: Vec<_> = workshop
        .metrics()
        .into_iter()
        .filter(|line| line["evaluation"] == true)
        .collect();
    assert_eq!(evaluations.len(), 2);
    for figure in [
        "sparse_loss",
        "distillation",
        "encoder_nmse",
        "decoder_nmse",
        "sparse_to_dense_kl",
    ] {
        let at = |index: usize| {
            evaluations[index][format!("real_{figure}")]
                .as_f64()
                .expect("a figure")
        };
        assert!(at(1) < at(0), "{figure} rose from {} to {}", at(0), at(1));
    }

    let pair = output.join("pair");
    let half = |name: &str| ModelFiles::read(&pair.join(name)).expect("a model of the pair");
    let (pair_dense, pair_sparse) = (half("dense"), half("sparse"));
    let dense = ModelFiles::read(&workshop.0.join("dense/model")).expect("the dense model");
    for (name, tensor) in &dense.tensors {
        let bits = |tensor: &candle_core::Tensor| -> Vec<u32> {
            let values = tensor
                .flatten_all()
                .and_then(|t| t.to_vec1::<f32>())
                .expect("float32");
            values.into_iter().map(f32::to_bits).collect()
        };
        assert_eq!(
            bits(tensor),
            bits(&pair_dense.tensors[name]),
            "the dense model's {name} changed"
        );
    }
    assert_eq!(read_record(&pair).expect("a record").sites.len(), 5);
    let weights = pair_sparse.tensors["transformer.h.1.mlp.c_fc.weight"].flatten_all();
    let kept = weights
        .and_then(|w| w.to_vec1::<f32>())
        .expect("weights")
        .iter()
        .filter(|w| **w != 0.0)
        .count();
    assert_eq!(kept, 128 * 64 / 5);

    resumes_bit_for_bit(&workshop, &recipe, &whole);
}

/// Cut off after step 20, then on to the end, to what the training that was not cut off has left.
fn resumes_bit_for_bit(workshop: &Workshop, recipe: &str, whole: &BTreeMap<PathBuf, Vec<u8>>) {
    let output = workshop.output();
    fs::remove_dir_all(output.join("pair")).expect("the pair");
    fs::remove_dir_all(output.join("checkpoints/step-40")).expect("the last checkpoint");
    workshop
        .train("bridge", recipe, &["--resume"])
        .expect("the rest of the training");
    for (path, content) in contents(&output)
        .iter()
        .filter(|(path, _)| !path.ends_with("metrics.jsonl"))
    {
        assert!(*content == whole[path], "{} is another", path.display());
    }
    assert!(output.join("pair/bridge.safetensors").is_file());
}

#[test]
fn a_pair_with_a_deeper_model_is_trained_and_resumed_bit_for_bit() {
    let (workshop, recipe) = workshop_of(4);
    let names = [
        "0.resid_in",
        "0.resid_mid",
        "1.resid_mid",
        "3.resid_in",
        "final_resid",
    ];
    let line = format!("encoder_fraction = 0.25\nsite_map = {names:?}");
    let mapped = recipe.replace("encoder_fraction = 0.25", &line);
    workshop.train("bridge", &mapped, &[]).expect("a bridge");
    let whole = contents(&workshop.output());
    let pair = workshop.output().join("pair");
    let record = read_record(&pair).expect("a record");
    assert_eq!(
        record.site_map.as_deref(),
        Some(&names.map(str::to_owned)[..])
    );
    assert_eq!(record.sites.len(), names.len());
    let lines = workshop.metrics();
    for (name, value) in lines
        .iter()
        .flat_map(|line| line.as_object().expect("an object"))
    {
        // No number that is not finite has a place in JSON.
        assert!(!value.is_null(), "{name}");
    }
    let evaluations: Vec<_> = lines
        .iter()
        .filter(|line| line["evaluation"] == true)
        .collect();
    for figure in ["sparse_loss", "distillation"] {
        let name = format!("real_{figure}");
        let [early, late] = [0, 1].map(|index: usize| evaluations[index][&name].as_f64());
        assert!(
            late.expect("a figure") < early.expect("a figure"),
            "{figure}"
        );
    }
    resumes_bit_for_bit(&workshop, &mapped, &whole);

    // A pair keeps its map, whoever goes on from it.
    let on = |recipe: &str| {
        recipe.replace(
            "bridge_learning_rate",
            &format!(
                "start_from = {:?}\nbridge_learning_rate",
                workshop.0.join("kept")
            ),
        )
    };
    fs::rename(&pair, workshop.0.join("kept")).expect("the pair elsewhere");
    fs::remove_dir_all(workshop.output()).expect("the first training's output");
    let other = on(&mapped.replace("3.resid_in", "3.resid_mid"));
    let error = workshop
        .train("bridge", &other, &[])
        .expect_err("a refusal");
    assert!(error.contains("site_map is not that"), "{error}");
    let short = on(&recipe).replace("steps = 40", "steps = 2");
    workshop.train("bridge", &short, &[]).expect("a bridge");
    let went_on = read_record(&workshop.output().join("pair")).expect("a record");
    assert_eq!(went_on.site_map, record.site_map);
}

#[test]
fn sites_are_joined_evenly_where_nothing_is_said() {
    let (workshop, recipe) = workshop_of(3);
    let short = recipe.replace("steps = 40", "steps = 2");
    workshop.train("bridge", &short, &[]).expect("a bridge");
    let record = read_record(&workshop.output().join("pair")).expect("a record");
    let names = record.site_map.expect("a map");
    assert_eq!(
        names,
        [
            "0.resid_in",
            "0.resid_mid",
            "1.resid_in",
            "1.resid_mid",
            "final_resid"
        ]
    );
}

#[test]
fn models_that_no_bridge_can_join_are_refused() {
    let (workshop, recipe) = workshop();
    for (from, to, words) in [
        (
            "n_layers = 2",
            "n_layers = 3",
            &["n_layers", "3", "2"] as &[&str],
        ),
        (
            "vocab_size = 1000",
            "vocab_size = 1001",
            &["vocab_size", "1001"],
        ),
        (
            "encoder_fraction = 0.25",
            "encoder_fraction = 0.0",
            &["encoder_fraction"],
        ),
        (
            "encoder_fraction = 0.25",
            "encoder_fraction = 0.001",
            &["fraction", "0.001"],
        ),
        (
            "encoder_fraction = 0.25",
            "encoder_fraction = 0.25\nsite_map = [\"0.resid_in\"]",
            &["site_map", "names 1 sites", "5"],
        ),
        (
            "encoder_fraction = 0.25",
            "encoder_fraction = 0.25\nsite_map = [\"0.resid_in\", \"0.resid_mid\", \"1.resid_mid\", \"1.resid_in\", \"final_resid\"]",
            &["site_map", "1.resid_in after 1.resid_mid"],
        ),
        (
            "encoder_fraction = 0.25",
            "encoder_fraction = 0.25\nsite_map = [\"0.resid_in\", \"0.resid_mid\", \"1.resid_in\", \"1.resid_mid\", \"2.resid_in\"]",
            &["site_map", "\"2.resid_in\"", "final_resid"],
        ),
        ("text_pairs = 1", "text_pairs = 3", &["text_pairs"]),
        ("[terms]", "[terms]\nmagic = 1.0", &["magic"]),
        ("/dense/model", "/dense/nothing", &["nothing"]),
    ] {
        assert_eq!(recipe.matches(from).count(), 1, "{from}");
        let error = workshop
            .train("bridge", &recipe.replace(from, to), &[])
            .expect_err("a refusal");
        for word in words {
            assert!(error.contains(word), "expected {word:?} in: {error}");
        }
        assert!(
            contents(&workshop.output()).is_empty(),
            "something was written: {error}"
        );
    }
}
