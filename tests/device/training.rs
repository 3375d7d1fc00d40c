//! Training as it is on a device, against the CPU's: the optimizer, gradients that kernels give, and a training as a whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Tensor, Var};
use causeway::models::layout::ModelFiles;
use causeway::numerics::abs_top_k::abs_top_k;
use causeway::numerics::device::MatrixType;
use causeway::numerics::linear::multiply_in;
use causeway::numerics::loss::kl_divergence;
use causeway::training::model::train_model;
use causeway::training::optimizer::{AdamW, StepGradients, StepRates};
use causeway::training::parameters::Parameters;
use causeway::training::recipe::{Clip, ModelRecipe, Optimizer};
use causeway::training::run::Mode;

use super::{both, device, furthest, root};

fn numbers(count: usize, phase: usize) -> Vec<f32> {
    let number = |n: usize| ((n + phase) as f32 * 0.7391).sin() * (1.0 + (n % 7) as f32);
    (0..count).map(number).collect()
}

fn tensor(shape: &[usize], phase: usize) -> Tensor {
    let count = shape.iter().product();
    Tensor::from_vec(numbers(count, phase), shape, &device()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Three steps: the weights, the moments of a checkpoint taken up again on the way, and the gradients' norms.
fn optimized(clip: Clip, kept: Option<f64>) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let shapes: [(&str, &[usize]); 5] = [
        ("transformer.h.0.mlp.c_fc.weight", &[40, 33]),
        ("transformer.h.0.mlp.c_proj.weight", &[33, 70]),
        ("transformer.wte.weight", &[150, 33]),
        ("transformer.h.0.mlp.c_fc.bias", &[40]),
        ("transformer.ln_f.weight", &[33]),
    ];
    let named = |(index, (name, shape)): (usize, &(&str, &[usize]))| {
        ((*name).to_owned(), tensor(shape, 100 * index))
    };
    let tensors: BTreeMap<String, Tensor> = shapes.iter().enumerate().map(named).collect();
    let parameters = Parameters::of_model(tensors, Some(2)).unwrap();
    let recipe = Optimizer {
        learning_rate: 0.01,
        warmup_steps: 0,
        final_fraction: 1.0,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 0.1,
        weight_decay: 0.1,
        clip,
    };
    let mut optimizer = AdamW::new(recipe.clone(), &parameters).unwrap();
    let mut norms = Vec::new();
    for step in 0..3 {
        // Its gradient is different in every step; the gains have none.
        let losses = parameters.iter().filter(|one| !one.name.contains("ln_f"));
        let losses = losses.map(|one| {
            let along = tensor(one.var.dims(), 31 * (step + 1));
            (one.var.as_tensor() * along).unwrap().sum_all().unwrap()
        });
        let loss = losses.reduce(|sum, loss| (sum + loss).unwrap()).unwrap();
        let gradients = StepGradients {
            by_candle: &loss.backward().unwrap(),
            by_passes: None,
        };
        let rates = StepRates {
            model: 0.02,
            bridge: 0.0,
            kept_fraction: kept,
        };
        let norm = optimizer.step(&parameters, &gradients, &rates).unwrap();
        norms.push(norm.value().unwrap() as f32);
        if step == 1 {
            let state = optimizer.state(&parameters).unwrap();
            optimizer = AdamW::new(recipe.clone(), &parameters).unwrap();
            optimizer.restore(&parameters, &state, 2).unwrap();
        }
    }
    let weights = parameters
        .iter()
        .flat_map(|one| values(one.var.as_tensor()));
    let moments = optimizer.state(&parameters).unwrap();
    (
        weights.collect(),
        moments.values().flat_map(values).collect(),
        norms,
    )
}

#[test]
fn the_optimizer_takes_the_cpus_steps() {
    for (clip, kept) in [
        (Clip::Norm { at: 1.0 }, Some(0.3)),
        (Clip::Rms { at: 1e6 }, None),
        (Clip::NormaliseRms { to: 2.0 }, Some(0.05)),
    ] {
        let (cpu, device, launched) = both(|| optimized(clip, kept));
        assert!(furthest(&cpu.0, &device.0) < 1e-5, "{clip:?}: weights");
        assert!(furthest(&cpu.1, &device.1) < 1e-4, "{clip:?}: moments");
        assert!(furthest(&cpu.2, &device.2) < 1e-2, "{clip:?}: norms");
        let zeros = |of: &[f32]| of.iter().filter(|weight| **weight == 0.0).count();
        assert_eq!(zeros(&cpu.0), zeros(&device.0));
        for kernel in ["gradient_squares", "clip_scale", "adamw_f32"] {
            assert!(launched.contains(kernel), "{kernel} of {launched:?}");
        }
        for kernel in ["mask_protect", "mask_narrow", "mask_apply"] {
            assert_eq!(launched.contains(kernel), kept.is_some(), "{kernel}");
        }
    }
}

#[test]
fn gradients_by_kernels_are_the_cpus() {
    let (cpu, device, launched) = both(|| {
        let x = Var::from_tensor(&tensor(&[5, 33], 3)).unwrap();
        let teacher = tensor(&[5, 33], 50);
        let kept = abs_top_k(x.as_tensor(), 9).unwrap();
        let divergence = kl_divergence(&teacher, &kept).unwrap();
        let weights = tensor(&[5], 7);
        let loss = (&divergence * weights).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let gradient = gradients.get(x.as_tensor()).unwrap();
        // Without a gradient too.
        let plain = kl_divergence(&teacher, &kept.detach()).unwrap();
        (values(&divergence), values(gradient), values(&plain))
    });
    assert!(furthest(&cpu.0, &device.0) < 1e-4);
    assert!(furthest(&cpu.1, &device.1) < 1e-5);
    assert!(furthest(&cpu.2, &device.2) < 1e-4);
    for kernel in ["abs_top_k_f32", "kl_take_in_f32", "kl_gradient_f32"] {
        assert!(launched.contains(kernel), "{kernel} of {launched:?}");
    }
}

/// A small sparse model's recipe of three steps, which writes into `folder`.
fn recipe(folder: &Path) -> ModelRecipe {
    let recipe = format!(
        r#"
tokenizer = "{}"
[model]
n_layers = 1
d_model = 16
n_heads = 2
d_head = 8
d_mlp = 32
vocab_size = 2048
context_length = 16
norm = "rms"
bias = true
activation = "gelu"
positions = "added"
attention_sinks = true
bigram_table = true
active_fraction = 0.25
active_locations = ["attn_in", "attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out"]
[[sources]]
kind = "generated"
documents = 20
seed = 3
weight = 1.0
[batches]
steps = 3
sequences = 2
length = 16
seed = 5
[optimizer]
learning_rate = 1e-3
warmup_steps = 0
# Where a gradient is next to zero its sign is rounding's, and a first step would go by the sign.
epsilon = 1e-3
[sparsity]
kept_fraction = 0.15
anneal_to = 0.6
protected = 2
[output]
directory = "{}"
evaluate_every = 3
evaluation_sequences = 2
checkpoint_every = 3
"#,
        root()
            .join("bridges/tinypython/dense/tokenizer.json")
            .display(),
        folder.display(),
    );
    toml::from_str(&recipe).unwrap()
}

/// The losses of its steps, and the model.
fn trained(recipe: &ModelRecipe) -> (Vec<f32>, ModelFiles) {
    let folder = &recipe.output.directory;
    let _ = fs::remove_dir_all(folder);
    train_model(recipe, &device(), Mode::Start).unwrap();
    let metrics = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let losses = metrics.lines().filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["loss"].as_f64().map(|loss| loss as f32)
    });
    let model = ModelFiles::read(&folder.join("model")).unwrap();
    let _ = fs::remove_dir_all(folder);
    (losses.collect(), model)
}

fn folder(of: &str) -> PathBuf {
    std::env::temp_dir().join(format!("causeway-device-{of}-{}", std::process::id()))
}

#[test]
fn products_of_a_training_may_be_bfloat16() {
    let recipe = recipe(&folder("bf16"));
    let (cpu, device, _) = both(|| {
        multiply_in(MatrixType::Bfloat16);
        let trained = trained(&recipe);
        multiply_in(MatrixType::Float32);
        trained
    });
    let apart = furthest(&cpu.0, &device.0);
    // The CPU knows nothing of it.
    assert!(apart > 1e-5 && apart < 0.05, "{:?} {:?}", cpu.0, device.0);
    for (name, weights) in &device.1.tensors {
        assert!(
            values(weights).iter().all(|weight| weight.is_finite()),
            "{name}"
        );
    }
}

#[test]
fn a_sparse_model_is_trained_as_on_the_cpu() {
    let recipe = recipe(&folder("f32"));
    let (cpu, device, launched) = both(|| trained(&recipe));
    assert_eq!(cpu.0.len(), 3);
    assert!(
        furthest(&cpu.0, &device.0) < 1e-4,
        "{:?} {:?}",
        cpu.0,
        device.0
    );
    let mut moved = 0;
    for (name, weights) in &cpu.1.tensors {
        let (one, other) = (values(weights), values(&device.1.tensors[name]));
        let apart = one
            .iter()
            .zip(&other)
            .filter(|(one, other)| (*one - *other).abs() > 1e-4);
        moved += apart.count();
        let zeros = |of: &[f32]| of.iter().filter(|weight| **weight == 0.0).count();
        assert_eq!(zeros(&one), zeros(&other), "{name}");
    }
    assert!(moved < 20, "{moved} weights differ");
    for kernel in ["abs_top_k_f32", "adamw_f32", "mask_apply", "mask_protect"] {
        assert!(launched.contains(kernel), "{kernel} of {launched:?}");
    }
}
