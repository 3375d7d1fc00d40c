//! How much the task loss rises without each node and without each edge of a circuit.
//!
//! A node is taken away by holding it, an edge by making its weight zero with its mean contribution left in place. Losses
//! are over both prompts of every pair; those of the circuit are of its rescaled answers, those of the whole model of its
//! answers as they are.

use candle_core::Result;

use crate::circuits::edges::WeightedEdge;
use crate::pruning::answers::Rescaling;
use crate::pruning::edge_pruning::EdgelessModel;
use crate::pruning::evaluator::{Evaluator, sublayer_of};
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
    let of = |passes: &Passes, mut all: Vec<bool>, rescaling: Rescaling| -> Result<Vec<f64>> {
        let mut evaluator = Evaluator::new(subject, pairs);
        let before = evaluator.try_nodes_of(passes, &all)?;
        let loss = before.answers.loss(rescaling);
        evaluator.keep(before);
        let nodes = kept.iter().enumerate().filter(|(_, kept)| **kept);
        let effects = nodes.map(|(node, _)| {
            all[node] = false;
            let tried = evaluator.try_changed(passes, &all, usize::MAX);
            all[node] = true;
            Ok(tried?.answers.loss(rescaling) - loss)
        });
        effects.collect()
    };
    let in_circuit = of(passes, kept.to_vec(), rescaling)?;
    let in_whole_model = of(&subject.passes, vec![true; kept.len()], Rescaling::NONE)?;
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
    (edges, removed): (&[WeightedEdge], &[&WeightedEdge]),
    rescaling: Rescaling,
) -> Result<Vec<f64>> {
    let mut evaluator = Evaluator::new(subject, pairs);
    let model = EdgelessModel::new(subject)?;
    let circuit = model.without(removed)?;
    let before = evaluator.try_nodes_of(&circuit, kept)?;
    let loss = before.answers.loss(rescaling);
    evaluator.keep(before);
    let mut without = removed.to_vec();
    let effects = edges.iter().map(|edge| {
        without.push(edge);
        let passes = model.changed(&circuit, edge.to.0.layer, &without);
        without.pop();
        let tried = evaluator.try_changed(&passes?, kept, sublayer_of(edge.to.0))?;
        Ok(tried.answers.loss(rescaling) - loss)
    });
    effects.collect()
}
