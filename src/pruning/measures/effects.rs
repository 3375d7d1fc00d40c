//! How much the task loss rises without each node and without each edge of a circuit.
//!
//! A node is taken away by holding it, an edge by making its weight zero with its mean contribution left in place. Losses
//! are over both prompts of every pair; those of the circuit are of its rescaled answers, those of the whole model of its
//! answers as they are.

use candle_core::Result;

use crate::circuits::edges::WeightedEdge;
use crate::pruning::answers::Rescaling;
use crate::pruning::edge_pruning::{EdgelessModel, without_each_edge};
use crate::pruning::evaluator::without_each_node;
use crate::pruning::subject::{PreparedPairs, PrunedModel};
use crate::training::passes::Passes;

/// How much task losses rise, in nats, when one node is held too.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NodeEffect {
    pub in_circuit: f64,
    pub in_whole_model: f64,
}

/// The effect of every kept node, in the order of the pass. `passes` is the model with the circuit's edges alone.
pub fn node_effects(
    subject: &PrunedModel,
    passes: &Passes,
    pairs: &PreparedPairs,
    kept: &[bool],
    rescaling: Rescaling,
) -> Result<Vec<NodeEffect>> {
    let nodes: Vec<usize> = (0..kept.len()).filter(|&node| kept[node]).collect();
    let in_circuit = without_each_node(subject, passes, pairs, (kept, &nodes), |answers| {
        answers.loss(rescaling)
    })?;
    let whole = (vec![true; kept.len()], &subject.passes);
    let in_whole_model =
        without_each_node(subject, whole.1, pairs, (&whole.0, &nodes), |answers| {
            answers.loss(Rescaling::NONE)
        })?;
    let both = in_circuit.into_iter().zip(in_whole_model);
    let effects = both.map(|(in_circuit, in_whole_model)| NodeEffect {
        in_circuit,
        in_whole_model,
    });
    Ok(effects.collect())
}

/// The effect of every edge of the circuit, in their order; `removed` are the weights between its nodes that are none.
pub fn edge_effects(
    subject: &PrunedModel,
    pairs: &PreparedPairs,
    kept: &[bool],
    (edges, removed): (&[WeightedEdge], &[WeightedEdge]),
    rescaling: Rescaling,
) -> Result<Vec<f64>> {
    let model = EdgelessModel::new(subject)?;
    without_each_edge(&model, pairs, kept, (edges, removed), |answers| {
        answers.loss(rescaling)
    })
}
