//! A dense model, then a sparse one with its bridge: what the pair is in the end, and going on half-way.

use std::fs;

use causeway::bridge::pair::read_record;
use causeway::models::layout::ModelFiles;

use super::{VOCABULARY, Workshop, contents};

/// A workshop with a dense model in `dense/model`, and the recipe of a bridge to it.
fn workshop() -> (Workshop, String) {
    let workshop = Workshop::new();
    let root = workshop.0.display().to_string();
    let dense = workshop
        .dense_recipe()
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

    // Cut off after step 20, then on to the end.
    fs::remove_dir_all(output.join("pair")).expect("the pair");
    fs::remove_dir_all(output.join("checkpoints/step-40")).expect("the last checkpoint");
    workshop
        .train("bridge", &recipe, &["--resume"])
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
