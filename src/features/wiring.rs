//! What a channel of a sparse model is connected to: the nonzero weights into it and out of it.
//!
//! A residual channel is read by every sublayer after it and written by every one before it; a sublayer's input
//! channel stands for the residual channel it normalises. Attention moves values between tokens, channel by
//! channel, with no weights of its own: `v` leads to the same channel of `y`.

use super::FeatureError;
use crate::models::layers::Linear;
use crate::models::location::{Location, Node, NodeKind, Site};
use crate::models::transformer::Transformer;

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

/// The wiring of one channel of `place` of a sparse model.
pub fn wiring(
    model: &Transformer,
    place: Location,
    channel: usize,
) -> Result<Wiring, FeatureError> {
    let width = place.width(&model.config);
    if channel >= width {
        let problem = format!("{place} has {width} channels; there is no channel {channel}");
        return Err(FeatureError::Invalid(problem));
    }
    let reader = Matrices { model };
    let mut wiring = Wiring::default();
    match place {
        Location::Site(site) => {
            reader.writers(site, channel, &mut wiring.incoming)?;
            reader.readers(site, channel, &mut wiring.outgoing)?;
        }
        Location::Node(node) => reader.of_node(node, channel, &mut wiring)?,
    }
    for edges in [&mut wiring.incoming, &mut wiring.outgoing] {
        edges.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
    }
    Ok(wiring)
}

/// Queries, keys and values, in the order of the attention's first three layers.
const ATTENDED: [NodeKind; 3] = [NodeKind::Q, NodeKind::K, NodeKind::V];

struct Matrices<'a> {
    model: &'a Transformer,
}

impl<'a> Matrices<'a> {
    fn of_node(&self, node: Node, channel: usize, wiring: &mut Wiring) -> Result<(), FeatureError> {
        let Node { layer, kind } = node;
        let n_layers = self.model.config.n_layers;
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
                let [q, k, v, _] = self.attention(layer)?;
                let mut layers = [q, k, v].into_iter().zip(ATTENDED);
                match layers.find(|(_, part)| *part == kind) {
                    Some((linear, _)) => {
                        row(linear, channel, at(layer, NodeKind::AttnIn), incoming)
                    }
                    None => Ok(()),
                }
            }
            NodeKind::AttnY => {
                let [.., project] = self.attention(layer)?;
                column(project, channel, at(layer, NodeKind::AttnOut), outgoing)
            }
            NodeKind::AttnOut => {
                self.writes_attention(layer, channel, incoming)?;
                self.readers(between, channel, outgoing)
            }
            NodeKind::PostAct => {
                let [expand, project] = self.mlp(layer)?;
                row(expand, channel, at(layer, NodeKind::MlpIn), incoming)?;
                column(project, channel, at(layer, NodeKind::MlpOut), outgoing)
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
        if channel >= self.model.config.d_model {
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
        for sublayer in site.index()..2 * self.model.config.n_layers {
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
        let [.., project] = self.attention(layer)?;
        row(project, channel, at(layer, NodeKind::AttnY), into)
    }

    fn writes_mlp(
        &self,
        layer: usize,
        channel: usize,
        into: &mut Vec<Edge>,
    ) -> Result<(), FeatureError> {
        let [_, project] = self.mlp(layer)?;
        row(project, channel, at(layer, NodeKind::PostAct), into)
    }

    fn reads_attention(
        &self,
        layer: usize,
        channel: usize,
        into: &mut Vec<Edge>,
    ) -> Result<(), FeatureError> {
        let [q, k, v, _] = self.attention(layer)?;
        for (linear, kind) in [q, k, v].into_iter().zip(ATTENDED) {
            column(linear, channel, at(layer, kind), into)?;
        }
        Ok(())
    }

    fn reads_mlp(
        &self,
        layer: usize,
        channel: usize,
        into: &mut Vec<Edge>,
    ) -> Result<(), FeatureError> {
        let [expand, _] = self.mlp(layer)?;
        column(expand, channel, at(layer, NodeKind::PostAct), into)
    }

    /// Queries, keys, values and what projects the heads' outputs.
    fn attention(&self, layer: usize) -> Result<[&'a Linear; 4], FeatureError> {
        Ok(self.sublayers(layer)?.0)
    }

    /// Into the neurons and out of them.
    fn mlp(&self, layer: usize) -> Result<[&'a Linear; 2], FeatureError> {
        Ok(self.sublayers(layer)?.1)
    }

    fn sublayers(&self, layer: usize) -> Result<([&'a Linear; 4], [&'a Linear; 2]), FeatureError> {
        let missing = || FeatureError::Invalid(format!("the sparse model has no layer {layer}"));
        self.model.layer_linears(layer).ok_or_else(missing)
    }
}

/// The nonzero weights of one output; their other ends are channels of `from`.
fn row(
    linear: &Linear,
    output: usize,
    from: Node,
    into: &mut Vec<Edge>,
) -> Result<(), FeatureError> {
    extend(into, from, linear.weights_of_output(output)?);
    Ok(())
}

/// The nonzero weights of one input; their other ends are channels of `to`.
fn column(
    linear: &Linear,
    input: usize,
    to: Node,
    into: &mut Vec<Edge>,
) -> Result<(), FeatureError> {
    extend(into, to, linear.weights_of_input(input)?);
    Ok(())
}

fn extend(into: &mut Vec<Edge>, node: Node, weights: Vec<(usize, f32)>) {
    into.extend(weights.into_iter().map(|(channel, weight)| Edge {
        node,
        channel,
        weight,
    }));
}

fn at(layer: usize, kind: NodeKind) -> Node {
    Node { layer, kind }
}
