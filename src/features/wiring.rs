//! What a channel of a sparse model is connected to: the nonzero weights into it and out of it.
//!
//! A residual channel is read by every sublayer after it and written by every one before it; a sublayer's input
//! channel stands for the residual channel it normalises. Attention moves values between tokens, channel by
//! channel, with no weights of its own: `v` leads to the same channel of `y`.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::FeatureError;
use crate::models::config::TransformerConfig;
use crate::models::location::{Node, NodeKind, Place, Site};
use crate::numerics::rows;

/// One nonzero weight, seen from one of its ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Edge {
    /// The other end.
    pub node: Node,
    pub channel: usize,
    pub weight: f32,
}

/// All nonzero weights of a channel, the largest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wiring {
    pub incoming: Vec<Edge>,
    pub outgoing: Vec<Edge>,
}

/// The wiring of one channel of `place`, from a sparse model's `weights` by name.
pub fn wiring(
    weights: &BTreeMap<String, Tensor>,
    config: &TransformerConfig,
    place: Place,
    channel: usize,
) -> Result<Wiring, FeatureError> {
    let width = place.width(config);
    if channel >= width {
        let problem = format!("{place} has {width} channels; there is no channel {channel}");
        return Err(FeatureError::Invalid(problem));
    }
    let reader = Matrices { weights, config };
    let mut wiring = Wiring::default();
    match place {
        Place::Site(site) => {
            reader.writers(site, channel, &mut wiring.incoming)?;
            reader.readers(site, channel, &mut wiring.outgoing)?;
        }
        Place::Node(node) => reader.of_node(node, channel, &mut wiring)?,
    }
    for edges in [&mut wiring.incoming, &mut wiring.outgoing] {
        edges.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
    }
    Ok(wiring)
}

struct Matrices<'a> {
    weights: &'a BTreeMap<String, Tensor>,
    config: &'a TransformerConfig,
}

impl Matrices<'_> {
    fn of_node(&self, node: Node, channel: usize, wiring: &mut Wiring) -> Result<(), FeatureError> {
        let Node { layer, kind } = node;
        let n_layers = self.config.n_layers;
        let (before, between) = (
            Site::before_attention(layer, n_layers),
            Site::before_mlp(layer, n_layers),
        );
        let (incoming, outgoing) = (&mut wiring.incoming, &mut wiring.outgoing);
        match kind {
            NodeKind::AttnIn => {
                self.writers(before, channel, incoming)?;
                self.reads_attention(layer, channel, outgoing)
            }
            NodeKind::MlpIn => {
                self.writers(between, channel, incoming)?;
                self.reads_mlp(layer, channel, outgoing)
            }
            NodeKind::Q | NodeKind::K | NodeKind::V => {
                let block = [NodeKind::Q, NodeKind::K, NodeKind::V];
                let index = block.iter().position(|part| *part == kind).unwrap_or(0);
                let row = index * self.config.d_attention() + channel;
                let name = format!("transformer.h.{layer}.attn.c_attn.weight");
                self.row(&name, row, at(layer, NodeKind::AttnIn), incoming)
            }
            NodeKind::AttnY => {
                let name = format!("transformer.h.{layer}.attn.c_proj.weight");
                self.column(&name, channel, &[NodeKind::AttnOut], layer, outgoing)
            }
            NodeKind::AttnOut => {
                self.writes_attention(layer, channel, incoming)?;
                self.readers(between, channel, outgoing)
            }
            NodeKind::PostAct => {
                let (name, from) = (
                    format!("transformer.h.{layer}.mlp.c_fc.weight"),
                    NodeKind::MlpIn,
                );
                self.row(&name, channel, at(layer, from), incoming)?;
                let name = format!("transformer.h.{layer}.mlp.c_proj.weight");
                self.column(&name, channel, &[NodeKind::MlpOut], layer, outgoing)
            }
            NodeKind::MlpOut => {
                self.writes_mlp(layer, channel, incoming)?;
                match Site::new(2 * layer + 2, n_layers) {
                    Some(after) => self.readers(after, channel, outgoing),
                    None => Ok(()),
                }
            }
        }
    }

    /// What sublayers before `site` write to a residual channel.
    fn writers(
        &self,
        site: Site,
        channel: usize,
        into: &mut Vec<Edge>,
    ) -> Result<(), FeatureError> {
        // Positional channels are read beside the stream and written by nobody.
        if channel >= self.config.d_model {
            return Ok(());
        }
        for sublayer in 0..site.index() {
            match sublayer % 2 {
                0 => self.writes_attention(sublayer / 2, channel, into)?,
                _ => self.writes_mlp(sublayer / 2, channel, into)?,
            }
        }
        Ok(())
    }

    /// What sublayers after `site` read of a residual channel.
    fn readers(
        &self,
        site: Site,
        channel: usize,
        into: &mut Vec<Edge>,
    ) -> Result<(), FeatureError> {
        for sublayer in site.index()..2 * self.config.n_layers {
            match sublayer % 2 {
                0 => self.reads_attention(sublayer / 2, channel, into)?,
                _ => self.reads_mlp(sublayer / 2, channel, into)?,
            }
        }
        Ok(())
    }

    fn writes_attention(
        &self,
        layer: usize,
        channel: usize,
        into: &mut Vec<Edge>,
    ) -> Result<(), FeatureError> {
        let name = format!("transformer.h.{layer}.attn.c_proj.weight");
        self.row(&name, channel, at(layer, NodeKind::AttnY), into)
    }

    fn writes_mlp(
        &self,
        layer: usize,
        channel: usize,
        into: &mut Vec<Edge>,
    ) -> Result<(), FeatureError> {
        let name = format!("transformer.h.{layer}.mlp.c_proj.weight");
        self.row(&name, channel, at(layer, NodeKind::PostAct), into)
    }

    fn reads_attention(
        &self,
        layer: usize,
        channel: usize,
        into: &mut Vec<Edge>,
    ) -> Result<(), FeatureError> {
        let name = format!("transformer.h.{layer}.attn.c_attn.weight");
        let blocks = [NodeKind::Q, NodeKind::K, NodeKind::V];
        self.column(&name, channel, &blocks, layer, into)
    }

    fn reads_mlp(
        &self,
        layer: usize,
        channel: usize,
        into: &mut Vec<Edge>,
    ) -> Result<(), FeatureError> {
        let name = format!("transformer.h.{layer}.mlp.c_fc.weight");
        self.column(&name, channel, &[NodeKind::PostAct], layer, into)
    }

    /// The nonzero weights of one output; their other ends are channels of `from`.
    fn row(
        &self,
        name: &str,
        row: usize,
        from: Node,
        into: &mut Vec<Edge>,
    ) -> Result<(), FeatureError> {
        let values = rows::to_vec(&self.matrix(name)?.narrow(0, row, 1)?)?;
        into.extend(nonzero(&values).map(|(channel, weight)| Edge {
            node: from,
            channel,
            weight,
        }));
        Ok(())
    }

    /// The nonzero weights of one input; the outputs are the channels of `blocks`, one after the other.
    fn column(
        &self,
        name: &str,
        column: usize,
        blocks: &[NodeKind],
        layer: usize,
        into: &mut Vec<Edge>,
    ) -> Result<(), FeatureError> {
        let values = rows::to_vec(&self.matrix(name)?.narrow(1, column, 1)?.contiguous()?)?;
        let size = values.len() / blocks.len();
        into.extend(nonzero(&values).map(|(output, weight)| Edge {
            node: at(layer, blocks[output / size]),
            channel: output % size,
            weight,
        }));
        Ok(())
    }

    fn matrix(&self, name: &str) -> Result<&Tensor, FeatureError> {
        let missing = || FeatureError::Invalid(format!("the sparse model has no {name}"));
        self.weights.get(name).ok_or_else(missing)
    }
}

fn at(layer: usize, kind: NodeKind) -> Node {
    Node { layer, kind }
}

fn nonzero(values: &[f32]) -> impl Iterator<Item = (usize, f32)> {
    let values = values.iter().copied().enumerate();
    values.filter(|(_, weight)| *weight != 0.0)
}
