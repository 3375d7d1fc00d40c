//! Taking away the edges of a circuit that its task does not need.
//!
//! An edge is taken away by making its weight zero and leaving its mean contribution, the weight times what its first
//! node is held at, in the bias of its second. Where the edge leads through the heads, that is what it contributes to
//! heads without sinks. Edges are sorted by how much they carry, `|weight|` times the root mean square of how far their
//! first node is from what it is held at; bisection finds how few of the first ones reach the target, and then every edge
//! left is tried once.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};

use super::answers::Rescaling;
use super::size::{NodeChoice, fitted_loss, take_away};
use super::subject::{PreparedPairs, PrunedModel};
use crate::circuits::edges::WeightedEdge;
use crate::circuits::nodes::node_locations;
use crate::models::config::TransformerConfig;
use crate::models::layers::Purpose;
use crate::models::location::{Node, NodeKind};
use crate::models::tensor_names::tensor_shapes;
use crate::numerics::rows;
use crate::training::passes::Passes;

/// More edges than this are not tried one by one.
const MOST_TRIMMED: usize = 400;

/// Edges that a circuit does its task with.
#[derive(Debug, Clone)]
pub struct EdgeChoice {
    pub edges: Vec<WeightedEdge>,
    pub task_loss: f64,
    pub rescaling: Rescaling,
}

/// The edges of `all` that the task needs. `carried` is how much each of them carries.
pub fn pruned_edges(
    subject: &PrunedModel,
    pairs: &PreparedPairs,
    choice: &NodeChoice,
    all: &[WeightedEdge],
    carried: &[f64],
    target: f64,
) -> Result<EdgeChoice> {
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by(|&one, &other| {
        carried[other]
            .total_cmp(&carried[one])
            .then(one.cmp(&other))
    });
    let loss_without = |is_kept: &[bool]| -> Result<(Rescaling, f64)> {
        let removed: Vec<&WeightedEdge> = all
            .iter()
            .zip(is_kept)
            .filter(|(_, kept)| !**kept)
            .map(|(edge, _)| edge)
            .collect();
        let passes = without_edges(subject, &removed)?;
        Ok(fitted_loss(&subject.answers_of(
            &passes,
            pairs,
            &choice.kept,
        )?))
    };
    let first = |count: usize| {
        let mut kept = vec![false; all.len()];
        order[..count].iter().for_each(|&edge| kept[edge] = true);
        kept
    };
    let mut found = EdgeChoice {
        edges: all.to_vec(),
        task_loss: choice.task_loss,
        rescaling: choice.rescaling,
    };
    if !choice.reaches_target {
        return Ok(found);
    }
    let (mut low, mut high) = (0, all.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let (rescaling, loss) = loss_without(&first(middle))?;
        match loss <= target {
            true => {
                high = middle;
                (found.rescaling, found.task_loss) = (rescaling, loss);
            }
            false => low = middle + 1,
        }
    }
    let mut kept = first(high);
    if high <= MOST_TRIMMED {
        let least_first: Vec<usize> = order[..high].iter().rev().copied().collect();
        take_away(&mut kept, &least_first, &mut |kept| {
            let (rescaling, loss) = loss_without(kept)?;
            if loss <= target {
                (found.rescaling, found.task_loss) = (rescaling, loss);
            }
            Ok(loss <= target)
        })?;
    }
    let edges = all.iter().zip(&kept).filter(|(_, kept)| **kept);
    found.edges = edges.map(|(edge, _)| *edge).collect();
    Ok(found)
}

/// The model without some edges.
pub fn without_edges(subject: &PrunedModel, removed: &[&WeightedEdge]) -> Result<Passes> {
    let config = TransformerConfig {
        bias: true,
        ..subject.config().clone()
    };
    let mut tensors = subject.tensors.clone();
    for (name, shape) in tensor_shapes(&config) {
        // A model without biases gets biases of zero, for what edges leave behind.
        if !tensors.contains_key(&name) && name.ends_with(".bias") {
            tensors.insert(
                name,
                Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu)?,
            );
        }
    }
    let mut changed: BTreeMap<String, Vec<(usize, usize, f32)>> = BTreeMap::new();
    for edge in removed {
        let (name, output) = weight_of(&config, edge);
        let mean = held_at(subject, edge.from);
        let changes = changed.entry(name).or_default();
        changes.push((output, edge.input, edge.weight * mean));
    }
    for (name, changes) in changed {
        let (weight_name, bias_name) = (format!("{name}.weight"), format!("{name}.bias"));
        let (Some(weight), Some(bias)) = (tensors.get(&weight_name), tensors.get(&bias_name))
        else {
            candle_core::bail!("the model has no {weight_name} and {bias_name}")
        };
        let (outputs, inputs) = weight.dims2()?;
        let (mut weights, mut biases) = (rows::to_vec(weight)?, rows::to_vec(bias)?);
        for (output, input, mean) in changes {
            weights[output * inputs + input] = 0.0;
            biases[output] += mean;
        }
        let weight = Tensor::from_vec(weights, (outputs, inputs), &Device::Cpu)?;
        tensors.insert(weight_name, weight);
        tensors.insert(bias_name, Tensor::from_vec(biases, outputs, &Device::Cpu)?);
    }
    Passes::new(config, &tensors, Purpose::Frozen)
}

/// What a node is held at.
fn held_at(subject: &PrunedModel, (place, channel): (Node, usize)) -> f32 {
    let mut first = 0;
    for (node, width) in node_locations(subject.config()) {
        if node == place {
            return subject.held[first + channel];
        }
        first += width;
    }
    0.0
}

/// The name of the linear layer that an edge is a weight of, and its output there.
fn weight_of(config: &TransformerConfig, edge: &WeightedEdge) -> (String, usize) {
    let (Node { layer, kind }, channel) = edge.to;
    let (d_attention, d_key_value) = (config.d_attention(), config.d_key_value());
    let (layer_name, first) = match kind {
        NodeKind::Q => ("attn.c_attn", 0),
        NodeKind::K => ("attn.c_attn", d_attention),
        NodeKind::V => ("attn.c_attn", d_attention + d_key_value),
        NodeKind::AttnOut => ("attn.c_proj", 0),
        NodeKind::PostAct => ("mlp.c_fc", 0),
        _ => ("mlp.c_proj", 0),
    };
    (
        format!("transformer.h.{layer}.{layer_name}"),
        first + channel,
    )
}
