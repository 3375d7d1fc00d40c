//! How much the task loss rises without each node and without each edge of a circuit.
//!
//! A node is taken away by holding it, an edge by making its weight zero with its mean contribution left in place. Losses
//! are over both prompts of every pair; those of the circuit are of its rescaled answers, those of the whole model of its
//! answers as they are.

use candle_core::Result;

use crate::circuits::edges::WeightedEdge;
use crate::pruning::answers::Rescaling;
use crate::pruning::edge_pruning::without_edges;
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
    let in_circuit = |kept: &[bool]| -> Result<f64> {
        let answers = subject.answers_of(passes, pairs, kept)?;
        Ok(answers.loss(rescaling))
    };
    let in_whole_model = |kept: &[bool]| -> Result<f64> {
        let answers = subject.answers(pairs, kept)?;
        Ok(answers.loss(Rescaling::NONE))
    };
    let (mut circuit, mut whole) = (kept.to_vec(), vec![true; kept.len()]);
    let before = (in_circuit(&circuit)?, in_whole_model(&whole)?);
    let nodes = kept.iter().enumerate().filter(|(_, kept)| **kept);
    let effects = nodes.map(|(node, _)| {
        (circuit[node], whole[node]) = (false, false);
        let effect = NodeEffect {
            in_circuit: in_circuit(&circuit)? - before.0,
            in_whole_model: in_whole_model(&whole)? - before.1,
        };
        (circuit[node], whole[node]) = (true, true);
        Ok(effect)
    });
    effects.collect()
}

/// The effect of every edge of the circuit, in their order; `removed` are the weights between its nodes that are none.
pub fn edge_effects(
    subject: &PrunedModel,
    pairs: &PreparedPairs,
    kept: &[bool],
    (edges, removed): (&[WeightedEdge], &[&WeightedEdge]),
    rescaling: Rescaling,
) -> Result<Vec<f64>> {
    let loss = |removed: &[&WeightedEdge]| -> Result<f64> {
        let passes = without_edges(subject, removed)?;
        let answers = subject.answers_of(&passes, pairs, kept)?;
        Ok(answers.loss(rescaling))
    };
    let before = loss(removed)?;
    let mut without = removed.to_vec();
    let effects = edges.iter().map(|edge| {
        without.push(edge);
        let loss = loss(&without);
        without.pop();
        Ok(loss? - before)
    });
    effects.collect()
}
