//! Measures on a model whose mechanism is known, and on one of random weights.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::correlation::correlations;
use super::measured::{CircuitProvenance, SearchedControls, Unmeasured, measured};
use super::node_tap::{PAIRS_A_PASS, ablated, answers, prompts_of};
use crate::circuits::circuit::{Ablation, Circuit, PruningMethod};
use crate::circuits::edges::edges;
use crate::circuits::nodes::{NodeSet, node_locations};
use crate::discovery::question::{PromptPair, Question};
use crate::features::test_pair::{VOCABULARY, random_pair, set};
use crate::models::config::{Positions, TransformerConfig};
use crate::models::location::{Node, NodeKind};
use crate::models::tap::NoTap;
use crate::models::tensor_names::{EMBEDDING, UNEMBEDDING, tensor_shapes};
use crate::pruning::answers::Rescaling;
use crate::pruning::edge_pruning::EdgeChoice;
use crate::pruning::held::means;
use crate::pruning::size::NodeChoice;
use crate::pruning::subject::{PrunedModel, as_mask, as_nodes};

const MLP_IN: Node = Node {
    layer: 0,
    kind: NodeKind::MlpIn,
};
const NEURONS: Node = Node {
    layer: 0,
    kind: NodeKind::PostAct,
};
const MLP_OUT: Node = Node {
    layer: 0,
    kind: NodeKind::MlpOut,
};

/// A model that answers token 0 with token 2 and token 1 with token 3, by one neuron each; its attention does nothing.
fn known_model() -> (TransformerConfig, BTreeMap<String, Tensor>) {
    let config = TransformerConfig {
        n_layers: 1,
        d_model: 6,
        n_heads: 1,
        d_head: 2,
        d_mlp: 6,
        vocab_size: 6,
        positions: Positions::None,
        ..random_pair(1).dense.config.clone()
    };
    let mut tensors: BTreeMap<String, Tensor> = tensor_shapes(&config)
        .into_iter()
        .map(|(name, shape)| {
            let is_gain = name.contains(".ln_") && name.ends_with(".weight");
            let value = if is_gain { 1f32 } else { 0.0 };
            let tensor = Tensor::full(value, shape, &Device::Cpu).unwrap();
            (name, tensor)
        })
        .collect();
    let mut put = |name: &str, row, column, value| {
        set(tensors.get_mut(name).unwrap(), row, column, value);
    };
    for token in 0..2 {
        put(EMBEDDING, token, token, 1.0);
        put("transformer.h.0.mlp.c_fc.weight", token, token, 2.0);
        put("transformer.h.0.mlp.c_proj.weight", token + 2, token, 1.0);
        put(UNEMBEDDING, token + 2, token + 2, 4.0);
    }
    // A token that the question does not turn on.
    put(EMBEDDING, 4, 4, 1.0);
    (config, tensors)
}

fn known_pairs() -> Vec<PromptPair> {
    let question = Question::Between {
        presented: 2,
        counterfactual: 3,
    };
    let pair = |before: &[u32]| PromptPair {
        presented: [before, &[0]].concat(),
        counterfactual: [before, &[1]].concat(),
        question,
    };
    // Two lengths, so that some are padded.
    vec![pair(&[4]), pair(&[4, 4, 5])]
}

fn known_circuit() -> NodeSet {
    NodeSet::new([
        (MLP_IN, 0),
        (MLP_IN, 1),
        (NEURONS, 0),
        (NEURONS, 1),
        (MLP_OUT, 2),
        (MLP_OUT, 3),
    ])
}

fn record_of(nodes: &NodeSet, frozen_norms: bool) -> Circuit {
    let (config, tensors) = known_model();
    let count: usize = node_locations(&config).iter().map(|at| at.1).sum();
    let subject =
        PrunedModel::new(config.clone(), tensors, vec![0.0; count], frozen_norms).unwrap();
    let pairs = known_pairs();
    let choice = NodeChoice {
        kept: as_mask(&config, nodes),
        nodes: nodes.len(),
        task_loss: 0.1,
        rescaling: Rescaling::NONE,
        reaches_target: true,
        sizes: Vec::new(),
    };
    let chosen = EdgeChoice {
        edges: edges(&subject.passes.transformer, nodes).unwrap(),
        task_loss: 0.1,
        rescaling: Rescaling::NONE,
    };
    let found = Unmeasured {
        model: &subject.passes.transformer,
        subject: &subject,
        choice: &choice,
        edges: &chosen,
        held_out: &pairs,
        reference: (&[0, 1, 4, 4, 5, 0], 3),
        token_text: &|id| format!("t{id}"),
        seed: 1,
    };
    let provenance = CircuitProvenance {
        id: "known".parse().unwrap(),
        model: "model".to_owned(),
        model_fingerprint: "00".to_owned(),
        task: "known".to_owned(),
        method: PruningMethod {
            ablation: Ablation::Zero,
            frozen_norms,
            target_loss: 0.15,
            learning_rate: 0.01,
            node_penalty: 0.001,
            steps: 1,
            batch_pairs: 1,
            train_pairs: 2,
            trimming_pairs: 2,
            held_out_pairs: 2,
            seed: 1,
            reference_tokens: 6,
            scale: 1.0,
            shift: 0.0,
        },
    };
    measured(&found, provenance, SearchedControls::default()).unwrap()
}

#[test]
fn a_known_mechanism_is_measured_as_what_it_is() {
    for frozen_norms in [false, true] {
        let circuit = record_of(&known_circuit(), frozen_norms);
        let figures = &circuit.figures;
        // Nothing but the circuit does anything.
        assert!((figures.task_loss - figures.task_loss_whole).abs() < 1e-6);
        assert!(figures.task_loss < 0.1, "{}", figures.task_loss);
        assert_eq!((figures.accuracy, figures.accuracy_whole), (1.0, 1.0));
        assert!((figures.task_loss_without - 2f64.ln()).abs() < 1e-6);
        assert_eq!(figures.accuracy_without, 0.0);
        assert_eq!((figures.nodes, figures.edges), (6, 4));
        // One half of the prompts becomes a toss.
        let rise = (2f64.ln() - figures.task_loss) / 2.0;
        for node in &circuit.nodes {
            assert!((node.effect.unwrap() - rise).abs() < 1e-5, "{node:?}");
            assert!((node.effect_in_whole_model.unwrap() - rise).abs() < 1e-5);
            assert!((node.correlation.unwrap() - 1.0).abs() < 1e-6);
        }
        for edge in &circuit.edges {
            assert!((edge.effect.unwrap() - rise).abs() < 1e-5, "{edge:?}");
        }
        let controls = &circuit.controls;
        assert_eq!(controls.interchange, Some(1.0));
        assert_eq!(controls.interchange_random_nodes, Some(0.0));
        assert_eq!(controls.beats_controls, None);
        // The neuron of token 0.
        let neuron = &circuit.nodes[2];
        assert_eq!(neuron.channel, 0);
        assert!(neuron.presented > 4.0 && neuron.counterfactual == 0.0);
        assert!((neuron.reference.density - 2.0 / 6.0).abs() < 1e-6);
        assert_eq!((neuron.reference.min, neuron.held_at), (0.0, 0.0));
        let example = &neuron.examples[0];
        assert_eq!(example.tokens, ["t4", "t0"]);
        assert_eq!(example.values, [0.0, neuron.presented]);
        assert_eq!(neuron.examples.len(), 4);
        assert_eq!(neuron.examples[3].tokens, ["t4", "t4", "t5", "t1"]);
        let json = serde_json::to_string(&circuit).unwrap();
        assert_eq!(serde_json::from_str::<Circuit>(&json).unwrap(), circuit);
    }
}

#[test]
fn half_of_a_mechanism_is_half_as_good() {
    let half = NodeSet::new([(MLP_IN, 0), (NEURONS, 0), (MLP_OUT, 2)]);
    let circuit = record_of(&half, false);
    assert!(circuit.figures.task_loss > 0.3);
    assert_eq!(circuit.figures.accuracy, 0.5);
    // The presented answer is lost by the exchange, the counterfactual one is not won.
    assert_eq!(circuit.controls.interchange, Some(0.0));
    assert!(circuit.summary.contains("not as well on held-out"));
}

#[test]
fn a_tap_that_keeps_everything_changes_nothing() {
    let files = random_pair(3).sparse;
    let config = files.config;
    let question = Question::NotPresented { candidate: 7 };
    let token = |at: usize| (at % VOCABULARY) as u32;
    let pairs: Vec<PromptPair> = (0..PAIRS_A_PASS + 3)
        .map(|at| PromptPair {
            presented: vec![token(at), token(3 * at + 1), token(7 * at)],
            counterfactual: vec![token(at), token(5 * at + 2), token(7 * at)],
            question,
        })
        .collect();
    let ids: Vec<u32> = (0..64).map(|at| token(at * at + at / 5)).collect();
    let count: usize = node_locations(&config).iter().map(|at| at.1).sum();
    let subject = PrunedModel::new(config.clone(), files.tensors, vec![0.0; count], false).unwrap();
    let model = &subject.passes.transformer;
    let held = means(model, &ids, 16).unwrap();
    let prompts = prompts_of(&pairs);
    let run = |kept: &[bool]| {
        let mut tap = ablated(&config, kept, &held);
        answers(model, &pairs, &prompts, &mut tap).unwrap()
    };
    let plain = answers(model, &pairs, &prompts, &mut NoTap).unwrap();
    assert_eq!(run(&vec![true; count]), plain);
    // Where some are held, the passes that circuits are found with say the same.
    let kept: Vec<bool> = (0..count).map(|node| node % 3 > 0).collect();
    let subject =
        PrunedModel::new(config.clone(), subject.tensors.clone(), held.clone(), false).unwrap();
    let prepared = subject.prepare(&pairs).unwrap();
    let expected = subject.answers(&prepared, &kept).unwrap();
    let found = run(&kept);
    assert_ne!(found, plain);
    let both = found.presented.iter().zip(&expected.presented);
    for (found, expected) in both.chain(found.counterfactual.iter().zip(&expected.counterfactual)) {
        assert!((found - expected).abs() < 1e-3, "{found} {expected}");
    }
    // Inside the whole model every node is what it is.
    let all = vec![true; count];
    let nodes = as_nodes(&config, &kept);
    let same = correlations(&subject, &subject.passes.transformer, &pairs, &all, &nodes).unwrap();
    assert!(same.iter().any(Option::is_some));
    assert!(
        same.iter()
            .flatten()
            .all(|value| (value - 1.0).abs() < 1e-9)
    );
    let other = correlations(&subject, &subject.passes.transformer, &pairs, &kept, &nodes).unwrap();
    assert!(other.iter().flatten().any(|value| *value < 0.999));
}
