//! Taking away the edges of a circuit that its task does not need.
//!
//! An edge is taken away by making its weight zero and leaving its mean contribution, the weight times what its first
//! node is held at, in the bias of its second. Where the edge leads through the heads, that is what it contributes to
//! heads without sinks. Where there are many, edges are sorted by how much they carry, `|weight|` times the root mean square
//! of how far their first node is from what it is held at, and bisection finds how few of the first ones reach the target.
//! What is left is trimmed ([`super::trimming`]).

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};

use super::answers::{LogitDiffs, Rescaling};
use super::evaluator::{Evaluator, sublayer_of};
use super::size::{NodeChoice, fitted_loss};
use super::subject::{PreparedPairs, PrunedModel};
use super::trimming::{THOROUGH, Trimmable, TrimmingPairs, trim};
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
    pairs: &TrimmingPairs,
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
    let mut kept = vec![true; all.len()];
    if all.len() > MOST_TRIMMED {
        let (mut low, mut high) = (0, all.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let passes = model.without(&divided(all, &first(middle)).1)?;
            let answers = subject.answers_of(&passes, &pairs.deciding, &choice.kept)?;
            let (rescaling, loss) = fitted_loss(&answers);
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
        let mut edges = Edges {
            model: &model,
            pairs,
            nodes: &choice.kept,
            all,
        };
        let trimmed = trim(&mut edges, kept, carried, target, THOROUGH)?;
        (found.rescaling, found.task_loss) = (trimmed.rescaling, trimmed.task_loss);
        kept = trimmed.kept;
    }
    found.edges = divided(all, &kept).0;
    Ok(found)
}

/// Edges that are kept, and those that are not.
fn divided(all: &[WeightedEdge], kept: &[bool]) -> (Vec<WeightedEdge>, Vec<WeightedEdge>) {
    let of = |side: bool| {
        let edges = all.iter().zip(kept).filter(|(_, kept)| **kept == side);
        edges.map(|(edge, _)| *edge).collect()
    };
    (of(true), of(false))
}

/// Edges that are taken away.
struct Edges<'a> {
    model: &'a EdgelessModel<'a>,
    pairs: &'a TrimmingPairs,
    nodes: &'a [bool],
    all: &'a [WeightedEdge],
}

impl Trimmable for Edges<'_> {
    fn loss(&mut self, kept: &[bool]) -> Result<(Rescaling, f64)> {
        let (_, removed) = divided(self.all, kept);
        let passes = self.model.without(&removed)?;
        let subject = self.model.subject;
        let answers = subject.answers_of(&passes, &self.pairs.deciding, self.nodes)?;
        Ok(fitted_loss(&answers))
    }

    fn rises(&mut self, kept: &[bool], round: usize) -> Result<Vec<f64>> {
        let pairs = self.pairs.judging(round);
        let edges = divided(self.all, kept);
        let edges = (edges.0.as_slice(), edges.1.as_slice());
        let of_kept = without_each_edge(self.model, pairs, self.nodes, edges, |answers| {
            fitted_loss(answers).1
        })?;
        let mut of_kept = of_kept.into_iter();
        let rises = kept.iter().map(|kept| match kept {
            true => of_kept.next().unwrap_or_default(),
            false => 0.0,
        });
        Ok(rises.collect())
    }
}

/// How much a loss of the answers rises without each of the `edges` alone; `removed` are the weights between the nodes that
/// are not there.
pub fn without_each_edge(
    model: &EdgelessModel,
    pairs: &PreparedPairs,
    nodes: &[bool],
    (edges, removed): (&[WeightedEdge], &[WeightedEdge]),
    loss: impl Fn(&LogitDiffs) -> f64,
) -> Result<Vec<f64>> {
    let circuit = model.without(removed)?;
    let mut evaluator = Evaluator::new(model.subject, pairs);
    let before = evaluator.try_nodes_of(&circuit, nodes)?;
    let loss_before = loss(&before.answers);
    evaluator.keep(before);
    let mut without = removed.to_vec();
    let rises = edges.iter().map(|edge| {
        without.push(*edge);
        let passes = model.changed(&circuit, edge.to.0.layer, &without);
        without.pop();
        let tried = evaluator.try_changed(&passes?, nodes, sublayer_of(edge.to.0))?;
        Ok(loss(&tried.answers) - loss_before)
    });
    rises.collect()
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
    pub fn without(&self, removed: &[WeightedEdge]) -> Result<Passes> {
        let tensors = self.tensors_without(removed.iter())?;
        Passes::new(self.config.clone(), &tensors, Purpose::Frozen)
    }

    /// `before`, a model that is without the removed edges in all layers but one, without those of that layer too. For
    /// masked passes alone, as [`Passes::with_layer`].
    pub fn changed(
        &self,
        before: &Passes,
        layer: usize,
        removed: &[WeightedEdge],
    ) -> Result<Passes> {
        let is_there = |edge: &&WeightedEdge| before.is_whole() || edge.to.0.layer == layer;
        let tensors = self.tensors_without(removed.iter().filter(is_there))?;
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
