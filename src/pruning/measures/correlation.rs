//! Whether nodes do inside a circuit what they do inside the whole model.
//!
//! The correlation of each node's activations in both, over all tokens of some pairs' prompts. Nodes that mean something
//! else inside the circuit than outside of it show here.

use candle_core::Result;

use super::node_tap::{
    PAIRS_A_PASS, ablated, own_rows, prompts_of, run, watching, whole_norm_scales,
};
use crate::circuits::nodes::NodeSet;
use crate::discovery::question::PromptPair;
use crate::models::transformer::Transformer;
use crate::numerics::correlation::Correlation;
use crate::pruning::subject::PrunedModel;

/// Of every node of the set, in the order of the pass. `circuit` is the model with the circuit's edges alone.
pub fn correlations(
    subject: &PrunedModel,
    circuit: &Transformer,
    pairs: &[PromptPair],
    kept: &[bool],
    nodes: &NodeSet,
) -> Result<Vec<Option<f64>>> {
    let whole = &subject.passes.transformer;
    let mut found = vec![Correlation::default(); nodes.len()];
    for pairs in pairs.chunks(PAIRS_A_PASS) {
        let prompts = prompts_of(pairs);
        let mut outside = watching(nodes);
        run(whole, &prompts, &mut outside)?;
        let mut inside = ablated(subject.config(), kept, &subject.held).watch(nodes);
        if subject.frozen_norms {
            inside = inside.with_norm_scales(whole_norm_scales(whole, &prompts)?);
        }
        run(circuit, &prompts, &mut inside)?;
        let (outside, inside) = (outside.into_values(), inside.into_values());
        let mut rest = found.as_mut_slice();
        for (node, channels) in nodes.places() {
            let (of_place, others) = rest.split_at_mut(channels.len());
            rest = others;
            let (Some(outside), Some(inside)) = (outside.get(&node), inside.get(&node)) else {
                continue;
            };
            for row in own_rows(&prompts) {
                let row = row * channels.len()..(row + 1) * channels.len();
                let values = inside[row.clone()].iter().zip(&outside[row]);
                for (correlation, (inside, outside)) in of_place.iter_mut().zip(values) {
                    correlation.add(*inside, *outside);
                }
            }
        }
    }
    Ok(found.iter().map(Correlation::value).collect())
}
