//! The pruner on a model whose circuit is known, because it was written down by hand.
//!
//! Two neurons of the first MLP read a token: one says that it is a quote, the other which kind of token it is, of words
//! too. A head of the second layer attends by the first to the quote and reads the second there. Everything else in the
//! model computes something, and none of it matters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use candle_core::{Device, Tensor};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::answers::Rescaling;
use super::edge_pruning::pruned_edges;
use super::held::means;
use super::materials::with_shuffled_labels;
use super::recipe::{Controls, PruneOutput, PruneRecipe, Search};
use super::run::{Material, Materials, TrainingsEnd, train_masks};
use super::size::{NodeChoice, bisected, trimmed};
use super::subject::{PrunedModel, as_nodes};
use super::trimming::TrimmingPairs;
use crate::circuits::edges::edges;
use crate::circuits::nodes::NodeSet;
use crate::discovery::question::{PromptPair, Question};
use crate::models::config::TransformerConfig;
use crate::models::layers::Purpose;
use crate::models::location::{Node, NodeKind};
use crate::models::tensor_names::tensor_shapes;
use crate::models::transformer::Transformer;
use crate::training::run::Mode;

const D_MODEL: usize = 12;
const D_MLP: usize = 10;
const VOCABULARY: usize = 14;
/// Single and double quote; words are all tokens from here on but the last, which asks for the closing quote.
const QUOTES: [u32; 2] = [0, 1];
const LAST: u32 = 13;
/// Channels of the stream: what a token is, what the neurons say of it, what the head says in the end.
const IS_QUOTE: usize = 0;
const KIND: usize = 1;
const SAID_QUOTE: usize = 2;
const SAID_KIND: usize = 3;
const ANSWER: usize = 4;
/// The neurons.
const DETECTOR: usize = 3;
const TYPE: usize = 7;
/// The channel of keys and of values.
const KEY: usize = 5;
const VALUE: usize = 9;

fn config() -> TransformerConfig {
    serde_json::from_value(serde_json::json!({
        "n_layers": 2, "d_model": D_MODEL, "n_heads": 1, "d_head": 16, "d_mlp": D_MLP,
        "vocab_size": VOCABULARY, "context_length": 16, "norm": "rms", "bias": true,
        "activation": "gelu", "positions": "none", "bigram_table": false,
        "attention_sinks": false, "active_fraction": null, "active_locations": [],
    }))
    .expect("a configuration")
}

/// The tensors by name, row-major.
struct Written(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Written {
    fn set(&mut self, name: &str, at: &[usize], value: f32) {
        let (shape, values) = self.0.get_mut(name).expect("a tensor of that name");
        let index = match (shape.as_slice(), at) {
            ([_, columns], [row, column]) => row * columns + column,
            (_, [index]) => *index,
            _ => panic!("{name} has shape {shape:?}"),
        };
        values[index] = value;
    }
}

fn quote_closer() -> BTreeMap<String, Tensor> {
    let config = config();
    let zeros = tensor_shapes(&config).into_iter().map(|(name, shape)| {
        let of = if name.contains("ln_") && name.ends_with("weight") {
            1.0
        } else {
            0.0
        };
        let values = vec![of; shape.iter().product()];
        (name, (shape, values))
    });
    let mut model = Written(zeros.collect());
    let mut rng = SmallRng::seed_from_u64(1);
    for (token, kind) in [(0, 1.0), (1, -1.0)] {
        model.set("transformer.wte.weight", &[token, IS_QUOTE], 1.5);
        model.set("transformer.wte.weight", &[token, KIND], kind);
    }
    for word in 2..VOCABULARY {
        let kind = if word % 2 == 0 { 1.0 } else { -1.0 };
        model.set("transformer.wte.weight", &[word, KIND], kind);
        for channel in ANSWER + 1..D_MODEL {
            let value = rng.random_range(-0.5..0.5);
            model.set("transformer.wte.weight", &[word, channel], value);
        }
    }
    let first = |name: &str| format!("transformer.h.0.{name}");
    let second = |name: &str| format!("transformer.h.1.{name}");
    model.set(&first("mlp.c_fc.weight"), &[DETECTOR, IS_QUOTE], 6.0);
    model.set(&first("mlp.c_fc.bias"), &[DETECTOR], -3.0);
    model.set(&first("mlp.c_fc.weight"), &[TYPE, KIND], 3.0);
    model.set(&first("mlp.c_proj.weight"), &[SAID_QUOTE, DETECTOR], 0.7);
    model.set(&first("mlp.c_proj.weight"), &[SAID_KIND, TYPE], 0.7);
    // Rows of queries, keys and values are one after another.
    model.set(&second("attn.c_attn.bias"), &[KEY], 12.0);
    model.set(&second("attn.c_attn.weight"), &[16 + KEY, SAID_QUOTE], 3.0);
    model.set(&second("attn.c_attn.weight"), &[32 + VALUE, SAID_KIND], 2.0);
    model.set(&second("attn.c_proj.weight"), &[ANSWER, VALUE], 8.0);
    for (token, weight) in [(0, 6.0), (1, -6.0)] {
        model.set("lm_head.weight", &[token, ANSWER], weight);
    }
    // A shift that is not fitted away.
    model.set("final_logits_bias", &[1], 8.0);
    // Weights that nothing comes of: among channels that the circuit does not read.
    for _ in 0..40 {
        let mut of = |range: std::ops::Range<usize>| rng.random_range(range);
        let (from, to) = (of(ANSWER + 1..D_MODEL), of(ANSWER + 1..D_MODEL));
        let (neuron, channel) = (of(0..D_MLP), of(0..16));
        let value = rng.random_range(-0.6..0.6);
        if neuron != DETECTOR && neuron != TYPE {
            model.set(&first("mlp.c_fc.weight"), &[neuron, from], value);
            model.set(&first("mlp.c_proj.weight"), &[to, neuron], -value);
        }
        model.set(&second("mlp.c_fc.weight"), &[neuron, from], value);
        model.set(&second("mlp.c_proj.weight"), &[to, neuron], value);
        if channel != KEY && channel != VALUE {
            model.set(&first("attn.c_attn.weight"), &[32 + channel, from], value);
            model.set(&first("attn.c_proj.weight"), &[to, channel], value);
        }
    }
    let tensors = model.0.into_iter().map(|(name, (shape, values))| {
        (
            name,
            Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor"),
        )
    });
    tensors.collect()
}

/// Words, a quote among them, more words.
fn pairs(count: usize) -> Vec<PromptPair> {
    let mut rng = SmallRng::seed_from_u64(2);
    let pair = |_| {
        let length = rng.random_range(5..9);
        let mut prompt: Vec<u32> = (0..length).map(|_| rng.random_range(2..LAST)).collect();
        prompt.push(LAST);
        let at = rng.random_range(0..length);
        let with = |quote: u32| {
            let mut prompt = prompt.clone();
            prompt[at] = quote;
            prompt
        };
        PromptPair {
            presented: with(QUOTES[0]),
            counterfactual: with(QUOTES[1]),
            question: Question::Between {
                presented: QUOTES[0],
                counterfactual: QUOTES[1],
            },
        }
    };
    (0..count).map(pair).collect()
}

fn subject() -> PrunedModel {
    let tensors = quote_closer();
    let model = Transformer::new(config(), &tensors, Purpose::Inference).expect("a model");
    let text: Vec<u32> = pairs(64)
        .iter()
        .flat_map(|pair| {
            let mut ids = pair.presented.clone();
            ids.resize(9, 2);
            ids
        })
        .collect();
    let held = means(&model, &text, 9).expect("means");
    PrunedModel::new(config(), tensors, held, false).expect("a subject")
}

fn recipe(directory: &std::path::Path) -> PruneRecipe {
    PruneRecipe {
        model: "none".into(),
        model_id: None,
        id: None,
        task: "quotes".to_owned(),
        task_file: None,
        reference: None,
        sources: Vec::new(),
        search: Search {
            steps: 200,
            learning_rates: vec![1e-2, 3e-2],
            node_penalties: vec![1e-2],
            ..Search::default()
        },
        controls: Controls {
            shuffled_labels: true,
            random_model: false,
            frozen_norms: false,
        },
        output: PruneOutput {
            directory: directory.to_owned(),
            checkpoint_every: 50,
        },
    }
}

/// The nodes that the model was written with.
fn written_down() -> NodeSet {
    let at = |layer: usize, kind: NodeKind, channel: usize| (Node { layer, kind }, channel);
    NodeSet::new([
        at(0, NodeKind::MlpIn, IS_QUOTE),
        at(0, NodeKind::MlpIn, KIND),
        at(0, NodeKind::PostAct, DETECTOR),
        at(0, NodeKind::PostAct, TYPE),
        at(0, NodeKind::MlpOut, SAID_QUOTE),
        at(0, NodeKind::MlpOut, SAID_KIND),
        at(1, NodeKind::AttnIn, SAID_QUOTE),
        at(1, NodeKind::AttnIn, SAID_KIND),
        at(1, NodeKind::K, KEY),
        at(1, NodeKind::V, VALUE),
        at(1, NodeKind::AttnOut, ANSWER),
    ])
}

#[test]
fn the_circuit_that_was_written_down_is_found_and_shuffled_labels_have_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let recipe = recipe(directory.path());
    let (task, shuffled) = (
        Material {
            subject: subject(),
            pairs: pairs(128),
            trimming: pairs(128),
        },
        Material {
            subject: subject(),
            pairs: with_shuffled_labels(&pairs(128), 3),
            trimming: with_shuffled_labels(&pairs(128), 3),
        },
    );
    let materials = Materials {
        task: &task,
        shuffled_labels: Some(&shuffled),
        random_model: None,
        other_norms: None,
    };
    let end = train_masks(&recipe, &materials, Mode::Start, Instant::now()).expect("trained");
    let TrainingsEnd::Trained {
        task: trained,
        controls,
    } = end
    else {
        panic!("the trainings were not asked to end");
    };
    let target = recipe.search.target_loss;
    let chosen = |material: &Material, parameters: &[f32]| -> NodeChoice {
        let pairs = TrimmingPairs::new(&material.subject, &material.pairs).expect("pairs");
        let choice = bisected(&material.subject, &pairs.deciding, parameters, target);
        let choice = choice.expect("a size");
        trimmed(&material.subject, &pairs, parameters, choice, target).expect("a choice")
    };
    let choice = chosen(&task, &trained.parameters);
    assert!(choice.reaches_target, "{}", choice.task_loss);
    let nodes = as_nodes(&config(), &choice.kept);
    let named = |nodes: &NodeSet| -> BTreeSet<String> {
        nodes
            .iter()
            .map(|(node, channel)| format!("{node}:{channel}"))
            .collect()
    };
    assert_eq!(named(&nodes), named(&written_down()));

    // Seven weights join them, and none of these can be spared.
    let model = Transformer::new(config(), &task.subject.tensors, Purpose::Inference);
    let all = edges(&model.expect("a model"), &nodes).expect("edges");
    assert_eq!(all.len(), 7, "{all:?}");
    let pairs = TrimmingPairs::new(&task.subject, &task.pairs).expect("pairs");
    let carried: Vec<f64> = all
        .iter()
        .map(|edge| f64::from(edge.weight.abs()))
        .collect();
    let found = pruned_edges(&task.subject, &pairs, &choice, &all, &carried, target);
    assert_eq!(found.expect("edges").edges.len(), 7);

    // The whole model does its task without help; nothing does a task whose labels are random.
    let whole = vec![true; task.subject.nodes()];
    let answers = task
        .subject
        .answers(&pairs.deciding, &whole)
        .expect("answers");
    assert!(answers.loss(Rescaling::fitted(&answers)) < target);
    let control = chosen(&shuffled, &controls[0].parameters);
    assert!(!control.reaches_target, "{} nodes", control.nodes);
}
