//! The record of a circuit that a search has found: everything that is measured on it, put together.
//!
//! Figures are of all held-out pairs; correlations and the interchange of the first 64 of them; effects, each of which costs
//! passes of its own, of the first 16.

use candle_core::{Result, bail};

use super::activations::{examples, over_reference, rounded, side_means};
use super::correlation::correlations;
use super::effects::{edge_effects, node_effects};
use super::interchange::interchange;
use super::summary::{beats_controls, summary};
use crate::artifacts::ArtifactId;
use crate::circuits::circuit::{
    Circuit, CircuitControls, CircuitEdge, CircuitFigures, CircuitNode, ControlCircuit, NodeName,
    PruningMethod,
};
use crate::circuits::edges::{WeightedEdge, edges};
use crate::discovery::question::PromptPair;
use crate::models::location::{Location, Node};
use crate::models::transformer::Transformer;
use crate::pruning::answers::Rescaling;
use crate::pruning::edge_pruning::{EdgeChoice, EdgelessModel};
use crate::pruning::size::NodeChoice;
use crate::pruning::subject::{PrunedModel, as_nodes};

/// Pairs that the effect of each node and edge is measured on, the first of the held-out ones.
const PAIRS_OF_EFFECTS: usize = 16;
/// Pairs that activations and the interchange are of, the first of the held-out ones.
const PAIRS_OF_ACTIVATIONS: usize = 64;
/// Tokens of reference text that activations are of, to whole sequences.
const REFERENCE_TOKENS: usize = 4096;
/// Nodes, and edges, that are taken away one by one at most; a circuit with more has no effects of them.
const MOST_EFFECTS: usize = 600;

/// A circuit as a search has found it, and what it is measured on.
pub struct Unmeasured<'a> {
    /// The whole model, held for inference.
    pub model: &'a Transformer,
    pub subject: &'a PrunedModel,
    pub choice: &'a NodeChoice,
    pub edges: &'a EdgeChoice,
    pub held_out: &'a [PromptPair],
    /// Reference text: whole sequences of so many tokens one after another.
    pub reference: (&'a [u32], usize),
    /// What a token is written as.
    pub token_text: &'a dyn Fn(u32) -> String,
    /// Of the nodes that are exchanged at random.
    pub seed: u64,
}

/// What a record says about where it comes from.
#[derive(Debug, Clone)]
pub struct CircuitProvenance {
    pub id: ArtifactId,
    pub model: String,
    pub model_fingerprint: String,
    pub task: String,
    pub method: PruningMethod,
}

/// What the same search finds where there should be nothing, or by other rules.
#[derive(Debug, Clone, Copy, Default)]
pub struct SearchedControls {
    pub shuffled_labels: Option<ControlCircuit>,
    pub random_model: Option<ControlCircuit>,
    pub frozen_norms: Option<ControlCircuit>,
}

/// Measures a circuit.
pub fn measured(
    found: &Unmeasured,
    provenance: CircuitProvenance,
    searched: SearchedControls,
) -> Result<Circuit> {
    let (subject, choice) = (found.subject, found.choice);
    let model = found.model;
    let nodes = as_nodes(subject.config(), &choice.kept);
    let all = edges(model, &nodes)?;
    let kept_edges = &found.edges.edges;
    let removed: Vec<WeightedEdge> = all
        .iter()
        .filter(|edge| !kept_edges.contains(edge))
        .copied()
        .collect();
    let circuit = EdgelessModel::new(subject)?.without(&removed)?;
    let pairs = subject.prepare(found.held_out)?;
    let rescaling = found.edges.rescaling;

    let alone = subject.answers_of(&circuit, &pairs, &choice.kept)?;
    let whole = subject.answers(&pairs, &vec![true; choice.kept.len()])?;
    let others: Vec<bool> = choice.kept.iter().map(|kept| !kept).collect();
    let without = subject.answers(&pairs, &others)?;
    let figures = CircuitFigures {
        nodes: nodes.len(),
        edges: kept_edges.len(),
        edges_before_pruning: all.len(),
        task_loss: alone.loss(rescaling),
        accuracy: alone.accuracy(rescaling),
        task_loss_train: found.edges.task_loss,
        task_loss_unscaled: alone.loss(Rescaling::NONE),
        task_loss_whole: whole.loss(Rescaling::NONE),
        accuracy_whole: whole.accuracy(Rescaling::NONE),
        task_loss_without: without.loss(Rescaling::NONE),
        accuracy_without: without.accuracy(Rescaling::NONE),
        reaches_target: choice.reaches_target,
    };
    let some = &found.held_out[..PAIRS_OF_EFFECTS.min(found.held_out.len())];
    let some = subject.prepare(some)?;
    let of_nodes = match nodes.len() <= MOST_EFFECTS {
        true => {
            let found = node_effects(subject, &circuit, &some, &choice.kept, rescaling)?;
            found.into_iter().map(Some).collect()
        }
        false => vec![None; nodes.len()],
    };
    let of_edges = match kept_edges.len() <= MOST_EFFECTS {
        true => {
            let edges = (kept_edges.as_slice(), removed.as_slice());
            let found = edge_effects(subject, &some, &choice.kept, edges, rescaling)?;
            found.into_iter().map(Some).collect()
        }
        false => vec![None; kept_edges.len()],
    };
    // JSON has no infinite numbers: a record that holds one could not be read again.
    let losses = [
        figures.task_loss,
        figures.task_loss_train,
        figures.task_loss_unscaled,
        figures.task_loss_whole,
        figures.task_loss_without,
    ];
    let effects = of_nodes
        .iter()
        .flatten()
        .flat_map(|effect| [effect.in_circuit, effect.in_whole_model]);
    let of_each_edge = of_edges.iter().flatten().copied();
    let mut measures = losses.into_iter().chain(effects).chain(of_each_edge);
    if measures.any(|value| !value.is_finite()) {
        bail!("a task loss of the circuit is no finite number: the model's logits overflow")
    }

    let held_out = &found.held_out[..PAIRS_OF_ACTIVATIONS.min(found.held_out.len())];
    let kept = &choice.kept;
    let correlations = correlations(subject, &circuit.transformer, held_out, kept, &nodes)?;
    let sides = side_means(model, held_out, &nodes)?;
    let (ids, length) = found.reference;
    let ids = &ids[..ids
        .len()
        .min(REFERENCE_TOKENS.next_multiple_of(length.max(1)))];
    let reference = over_reference(model, &nodes, ids, length)?;
    let examples = examples(model, held_out, &nodes, found.token_text)?;
    let flipped = interchange(model, held_out, &nodes, found.seed)?;

    let held = subject.held.iter().zip(kept).filter(|(_, kept)| **kept);
    let of_each = of_nodes.into_iter().zip(&correlations).zip(sides);
    let of_each = of_each.zip(reference.into_iter().zip(examples));
    let records = nodes.iter().zip(held).zip(of_each);
    let records = records.map(|(((node, channel), (held, _)), of_node)| {
        let (((effect, correlation), side), (reference, examples)) = of_node;
        CircuitNode {
            node: Location::Node(node).into(),
            channel,
            held_at: *held,
            effect: effect.map(|effect| effect.in_circuit),
            effect_in_whole_model: effect.map(|effect| effect.in_whole_model),
            correlation: *correlation,
            presented: rounded(side.presented),
            counterfactual: rounded(side.counterfactual),
            reference,
            examples,
        }
    });
    let known: Vec<f64> = correlations.iter().copied().flatten().collect();
    let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
    let mut controls = CircuitControls {
        shuffled_labels: searched.shuffled_labels,
        random_model: searched.random_model,
        frozen_norms: searched.frozen_norms,
        interchange: flipped.circuit,
        interchange_random_nodes: flipped.random_nodes,
        mean_correlation: (!known.is_empty()).then_some(mean),
        least_correlation: known.iter().copied().min_by(f64::total_cmp),
        beats_controls: None,
    };
    controls.beats_controls = beats_controls(&figures, &controls);
    let edges = kept_edges.iter().zip(of_edges);
    Ok(Circuit {
        id: provenance.id,
        model: provenance.model,
        model_fingerprint: provenance.model_fingerprint,
        task: provenance.task,
        summary: summary(&figures, &controls, provenance.method.target_loss),
        method: provenance.method,
        figures,
        controls,
        nodes: records.collect(),
        edges: edges
            .map(|(edge, effect)| CircuitEdge {
                from: name(edge.from),
                to: name(edge.to),
                weight: edge.weight,
                effect,
            })
            .collect(),
        sizes: choice.sizes.clone(),
    })
}

fn name((node, channel): (Node, usize)) -> NodeName {
    NodeName {
        node: Location::Node(node).into(),
        channel,
    }
}
