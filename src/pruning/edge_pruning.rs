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
use super::evaluator::{Evaluator, sublayer_of};
use super::size::{NodeChoice, RISES, fitted_loss, take_away};
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
const MOST_TRIMMED: usize = 600;

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
    let removed = |is_kept: &[bool]| -> Vec<&WeightedEdge> {
        let edges = all.iter().zip(is_kept);
        edges
            .filter(|(_, kept)| !**kept)
            .map(|(edge, _)| edge)
            .collect()
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
    let model = EdgelessModel::new(subject)?;
    let mut evaluator = Evaluator::new(subject, pairs);
    let mut kept = vec![true; all.len()];
    if all.len() > MOST_TRIMMED {
        let (mut low, mut high) = (0, all.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let passes = model.without(&removed(&first(middle)))?;
            let tried = evaluator.try_nodes_of(&passes, &choice.kept)?;
            let (rescaling, loss) = fitted_loss(&tried.answers);
            match loss <= target {
                true => {
                    high = middle;
                    (found.rescaling, found.task_loss) = (rescaling, loss);
                }
                false => low = middle + 1,
            }
        }
        kept = first(high);
    }
    if kept.iter().filter(|kept| **kept).count() <= MOST_TRIMMED {
        let sublayer = |edge: usize| sublayer_of(all[edge].to.0);
        let mut passes = model.without(&removed(&kept))?;
        evaluator.keep(evaluator.try_nodes_of(&passes, &choice.kept)?);
        let slack = target - found.task_loss;
        for share in RISES {
            let rise = share * slack.max(f64::MIN_POSITIVE);
            let least_first = order.iter().rev().copied();
            let mut left: Vec<usize> = least_first.filter(|&edge| kept[edge]).collect();
            // Those of the last sublayers first: what is before them stays as it was.
            left.sort_by_key(|&edge| std::cmp::Reverse(sublayer(edge)));
            for of_sublayer in left.chunk_by(|&one, &other| sublayer(one) == sublayer(other)) {
                let changed = sublayer(of_sublayer[0]);
                take_away(&mut kept, of_sublayer, &mut |kept, taken| {
                    let candidate = model.changed(&passes, changed / 2, &removed(kept))?;
                    let tried = evaluator.try_changed(&candidate, &choice.kept, changed)?;
                    let (rescaling, loss) = fitted_loss(&tried.answers);
                    let is_enough = loss <= target.min(found.task_loss + rise * taken as f64);
                    if is_enough {
                        (found.rescaling, found.task_loss) = (rescaling, loss);
                        evaluator.keep(tried);
                        passes = candidate;
                    }
                    Ok(is_enough)
                })?;
            }
        }
    }
    let edges = all.iter().zip(&kept).filter(|(_, kept)| **kept);
    found.edges = edges.map(|(edge, _)| *edge).collect();
    Ok(found)
}

/// A model whose edges can be taken away.
pub struct EdgelessModel<'a> {
    subject: &'a PrunedModel,
    /// With biases, for what edges leave behind.
    config: TransformerConfig,
    tensors: BTreeMap<String, Tensor>,
}

impl<'a> EdgelessModel<'a> {
    pub fn new(subject: &'a PrunedModel) -> Result<Self> {
        let config = TransformerConfig {
            bias: true,
            ..subject.config().clone()
        };
        let mut tensors = subject.tensors.clone();
        for (name, shape) in tensor_shapes(&config) {
            // A model without biases gets biases of zero.
            if !tensors.contains_key(&name) && name.ends_with(".bias") {
                let zeros = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu)?;
                tensors.insert(name, zeros);
            }
        }
        Ok(EdgelessModel {
            subject,
            config,
            tensors,
        })
    }

    /// The model without some edges.
    pub fn without(&self, removed: &[&WeightedEdge]) -> Result<Passes> {
        let tensors = self.tensors_without(removed.iter().copied())?;
        Passes::new(self.config.clone(), &tensors, Purpose::Frozen)
    }

    /// `before`, a model that is without the removed edges in all layers but one, without those of that layer too. For
    /// masked passes alone, as [`Passes::with_layer`].
    pub fn changed(
        &self,
        before: &Passes,
        layer: usize,
        removed: &[&WeightedEdge],
    ) -> Result<Passes> {
        let is_there = |edge: &&WeightedEdge| before.is_whole() || edge.to.0.layer == layer;
        let tensors = self.tensors_without(removed.iter().copied().filter(is_there))?;
        before.with_layer(&tensors, layer)
    }

    fn tensors_without<'e>(
        &self,
        removed: impl Iterator<Item = &'e WeightedEdge>,
    ) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = self.tensors.clone();
        let mut changed: BTreeMap<String, Vec<(usize, usize, f32)>> = BTreeMap::new();
        for edge in removed {
            let (name, output) = weight_of(&self.config, edge);
            let mean = held_at(self.subject, edge.from);
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
        Ok(tensors)
    }
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
