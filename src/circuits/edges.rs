//! The edges of a set of nodes: the nonzero weights that join two of them.
//!
//! A weight leads from what a sublayer reads to its queries, keys, values or neurons, and from neurons or values to what
//! the sublayer adds to the stream; a value's channel is the heads' channel that it becomes, and where heads share keys
//! and values, several of them. The stream between sublayers has no weights, and its links are no edges.

use candle_core::Result;

use super::nodes::NodeSet;
use crate::models::location::{Node, NodeKind};
use crate::models::transformer::Transformer;

/// A nonzero weight between two nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightedEdge {
    pub from: (Node, usize),
    pub to: (Node, usize),
    /// The input of the linear layer whose weight it is: `from`'s channel, or the channel of the heads' outputs that a
    /// value becomes.
    pub input: usize,
    pub weight: f32,
}

/// The kinds of nodes that weights join, each with the linear layer that they are of.
const JOINED: [(NodeKind, NodeKind); 6] = [
    (NodeKind::AttnIn, NodeKind::Q),
    (NodeKind::AttnIn, NodeKind::K),
    (NodeKind::AttnIn, NodeKind::V),
    (NodeKind::V, NodeKind::AttnOut),
    (NodeKind::MlpIn, NodeKind::PostAct),
    (NodeKind::PostAct, NodeKind::MlpOut),
];

/// Every edge between nodes of the set, in the order of the pass.
pub fn edges(model: &Transformer, nodes: &NodeSet) -> Result<Vec<WeightedEdge>> {
    let mut found = Vec::new();
    for layer in 0..model.config.n_layers {
        let Some(([q, k, v, project], [expand, contract])) = model.layer_linears(layer) else {
            candle_core::bail!("the model has no layer {layer}")
        };
        let linears = [q, k, v, project, expand, contract];
        for ((from, to), linear) in JOINED.into_iter().zip(linears) {
            let (from, to) = (Node { layer, kind: from }, Node { layer, kind: to });
            if nodes.of(from).is_empty() {
                continue;
            }
            for &output in nodes.of(to) {
                for (input, weight) in linear.weights_of_output(output)? {
                    let channel = match from.kind {
                        NodeKind::V => value_channel(model, input),
                        _ => input,
                    };
                    if nodes.contains(from, channel) {
                        found.push(WeightedEdge {
                            from: (from, channel),
                            to: (to, output),
                            input,
                            weight,
                        });
                    }
                }
            }
        }
    }
    Ok(found)
}

/// The channel of the values that a channel of the heads' outputs is made of.
fn value_channel(model: &Transformer, of_outputs: usize) -> usize {
    let config = &model.config;
    let (head, channel) = (of_outputs / config.d_head, of_outputs % config.d_head);
    let heads_a_value = (config.d_attention() / config.d_key_value()).max(1);
    head / heads_a_value * config.d_head + channel
}
