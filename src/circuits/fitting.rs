//! Whether a circuit's record fits a model: its places and channels are there, its edges join its nodes, and its numbers
//! are numbers. What was written elsewhere, or edited by hand, is held against the model before it is served.

use super::circuit::{Circuit, NodeName};
use super::nodes::NodeSet;
use crate::models::config::TransformerConfig;
use crate::models::location::Location;

/// Says what of a circuit a model of this configuration does not have, or what of its record contradicts the rest.
pub fn check(circuit: &Circuit, config: &TransformerConfig) -> Result<(), String> {
    let places = circuit.node_places(config.n_layers);
    let places = places.map_err(|error| error.to_string())?;
    if places.is_empty() {
        return Err("it has no nodes".to_owned());
    }
    for (index, &(node, channel)) in places.iter().enumerate() {
        let width = Location::Node(node).width(config);
        if channel >= width {
            return Err(format!(
                "nodes[{index}] is {node}:{channel}; {node} has channels 0 to {}",
                width.saturating_sub(1)
            ));
        }
    }
    let set = NodeSet::new(places.iter().copied());
    if set.len() != places.len() {
        return Err("it has a node twice".to_owned());
    }
    for (index, edge) in circuit.edges.iter().enumerate() {
        for (end, node) in [("from", &edge.from), ("to", &edge.to)] {
            if !has(&set, node, config) {
                return Err(format!(
                    "edges[{index}].{end} is {}:{}, which is none of its nodes",
                    node.node.as_str(),
                    node.channel
                ));
            }
        }
        if !(edge.weight.is_finite() && edge.effect.is_none_or(f64::is_finite)) {
            return Err(format!("edges[{index}] has a number without bounds"));
        }
    }
    for (index, node) in circuit.nodes.iter().enumerate() {
        let reference = &node.reference;
        let own = [node.held_at, node.presented, node.counterfactual];
        let over_text = [
            reference.mean,
            reference.std,
            reference.min,
            reference.max,
            reference.density,
        ];
        let examples = node.examples.iter().flat_map(|example| &example.values);
        let mut numbers = own.iter().chain(&over_text).chain(examples);
        if !numbers.all(|number| number.is_finite()) {
            return Err(format!("nodes[{index}] has a number without bounds"));
        }
        for (number, example) in node.examples.iter().enumerate() {
            let (tokens, values) = (example.tokens.len(), example.values.len());
            if tokens != values {
                return Err(format!(
                    "nodes[{index}].examples[{number}] has {values} values for {tokens} tokens; it needs one a token"
                ));
            }
        }
    }
    Ok(())
}

fn has(set: &NodeSet, name: &NodeName, config: &TransformerConfig) -> bool {
    match name.node.in_model(config.n_layers) {
        Ok(Location::Node(node)) => set.contains(node, name.channel),
        Ok(Location::Site(_)) | Err(_) => false,
    }
}
