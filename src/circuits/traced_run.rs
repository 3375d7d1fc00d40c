//! One prompt's run through a model with what stood at the places of a circuit, and what each node's value is made of.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Result, Tensor};

use super::circuit::Circuit;
use super::prompt_trace::{PromptTrace, TracedLogit};
use super::stream_links::{read_at, written_at};
use crate::models::config::{ActiveLocation, Norm, ResidualActivation, TransformerConfig};
use crate::models::layers::Linear;
use crate::models::location::{Location, Node, NodeKind, Site};
use crate::models::tap::{Recorder, ResidualTap};
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::models::variant::NormPlacement;
use crate::numerics::rows;

/// A prompt's run: what stood at the places that are needed.
pub struct TracedRun<'m> {
    model: &'m Transformer,
    ids: Vec<u32>,
    seen: BTreeMap<Location, Tensor>,
    /// What norms were told to multiply by.
    told: BTreeMap<Node, Tensor>,
    /// The stream at site 0 before anyone has looked at it, and at the last site: `[T, d_model]`.
    embedding: Tensor,
    last: Tensor,
}

/// Records what goes on behind another tap.
struct Behind<'t> {
    tap: &'t mut dyn ResidualTap,
    recorder: Recorder,
    told: BTreeMap<Node, Tensor>,
}

impl ResidualTap for Behind<'_> {
    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        let value = self.tap.visit(place, value)?;
        self.recorder.visit(place, value)
    }

    fn norm_scale(&mut self, input: Node) -> Option<Tensor> {
        let scale = self.tap.norm_scale(input)?;
        self.told.insert(input, scale.clone());
        Some(scale)
    }
}

impl<'m> TracedRun<'m> {
    pub fn new(
        model: &'m Transformer,
        ids: &[u32],
        places: &[(Node, usize)],
        heads: &[Option<usize>],
        tap: &mut dyn ResidualTap,
    ) -> Result<Self> {
        let n_layers = model.config.n_layers;
        let mut wanted = BTreeSet::new();
        for &(node, _) in places {
            wanted.insert(Location::Node(node));
            wanted.extend(read_by(node).map(Location::Node));
            if heads.iter().any(Option::is_some) && node.kind == NodeKind::AttnOut {
                let of = |kind| Location::Node(Node { kind, ..node });
                wanted.extend([of(NodeKind::Q), of(NodeKind::K)]);
            }
        }
        if gated(&model.config) {
            wanted.extend(Site::all(n_layers).map(Location::Site));
        }
        let read = places.iter();
        let read =
            read.filter_map(|(node, _)| read_at(*node, model.config.variant.parallel_sublayers));
        wanted.extend(read.filter_map(|index| Site::new(index, n_layers).map(Location::Site)));
        let mut behind = Behind {
            tap,
            recorder: Recorder::of(wanted),
            told: BTreeMap::new(),
        };
        let mut rows = TokenRows::sequences(ids, ids.len(), model.device())?;
        let embedding = model.embed(&rows)?;
        let first = Site::before_attention(0, n_layers);
        let last = model.run(first, embedding.clone(), &mut rows, &mut behind)?;
        Ok(TracedRun {
            model,
            ids: ids.to_vec(),
            seen: behind.recorder.into_values(),
            told: behind.told,
            embedding,
            last,
        })
    }

    fn seen(&self, place: Location) -> Result<&Tensor> {
        match self.seen.get(&place) {
            Some(value) => Ok(value),
            None => candle_core::bail!("{place} was not visited"),
        }
    }

    /// One channel of a place over the tokens.
    pub fn column(&self, place: Location, channel: usize) -> Result<Vec<f32>> {
        rows::to_vec(&self.seen(place)?.narrow(1, channel, 1)?)
    }

    /// Of the channels that nodes read and write, where the stream is more than a sum: whether each passed, site after site.
    pub fn gates(&self, places: &[(Node, usize)]) -> Result<Option<BTreeMap<usize, Vec<bool>>>> {
        if !gated(&self.model.config) {
            return Ok(None);
        }
        let d_model = self.model.config.d_model;
        let mut gates: BTreeMap<usize, Vec<bool>> = BTreeMap::new();
        let in_stream = |node: Node| written_at(node).or(read_at(node, false)).is_some();
        let channels: BTreeSet<usize> = (places.iter())
            .filter(|(node, channel)| in_stream(*node) && *channel < d_model)
            .map(|(_, channel)| *channel)
            .collect();
        for site in Site::all(self.model.config.n_layers) {
            for &channel in &channels {
                let values = self.column(Location::Site(site), channel)?;
                let open = gates.entry(channel).or_default();
                // What the first sublayer reads has passed nothing yet.
                open.extend(
                    values
                        .iter()
                        .map(|value| site.index() == 0 || *value != 0.0),
                );
            }
        }
        Ok(Some(gates))
    }

    pub fn patterns(
        &self,
        heads: &[Option<usize>],
        places: &[(Node, usize)],
        circuit: &Circuit,
    ) -> Result<BTreeMap<(usize, usize), Vec<f32>>> {
        let mut wanted: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        let layers: BTreeMap<&str, usize> = (circuit.nodes.iter().zip(places))
            .map(|(record, (node, _))| (record.node.as_str(), node.layer))
            .collect();
        for (edge, head) in circuit.edges.iter().zip(heads) {
            if let (Some(head), Some(layer)) = (head, layers.get(edge.from.node.as_str())) {
                wanted.entry(*layer).or_default().insert(*head);
            }
        }
        let mut patterns = BTreeMap::new();
        for (layer, heads) in wanted {
            let heads: Vec<usize> = heads.into_iter().collect();
            let at = |kind| self.seen(Location::Node(Node { layer, kind }));
            let (q, k) = (at(NodeKind::Q)?, at(NodeKind::K)?);
            let found = self.model.attention_patterns(layer, &heads, q, k)?;
            patterns.extend(heads.into_iter().map(|head| (layer, head)).zip(found));
        }
        Ok(patterns)
    }

    /// Fills what every node's parts add up to, what they are multiplied by, and the embedding's part.
    pub fn inputs(&self, traced: &mut PromptTrace) -> Result<()> {
        let mut by_place: BTreeMap<Node, Vec<usize>> = BTreeMap::new();
        for (index, (node, _)) in traced.places.iter().enumerate() {
            by_place.entry(*node).or_default().push(index);
        }
        for (node, indices) in by_place {
            match read_at(node, traced.parallel) {
                Some(site) => self.read_from_stream(traced, node, site, &indices)?,
                None => self.read_by_linear(traced, node, &indices)?,
            }
        }
        Ok(())
    }

    fn read_from_stream(
        &self,
        traced: &mut PromptTrace,
        node: Node,
        site: usize,
        indices: &[usize],
    ) -> Result<()> {
        let config = &self.model.config;
        let n_layers = config.n_layers;
        let (Some(at), Some(reader)) = (
            Site::new(site, n_layers),
            Site::new(
                2 * node.layer + usize::from(node.kind == NodeKind::MlpIn),
                n_layers,
            ),
        ) else {
            candle_core::bail!("{node} reads no site")
        };
        let Some(input) = self.model.sublayer_input(reader) else {
            candle_core::bail!("{node} reads no site")
        };
        let stream = self.seen(Location::Site(at))?;
        let scale = match self.told.get(&node) {
            Some(scale) => scale.clone(),
            None => input.norm.scale(stream)?,
        };
        let scale = rows::to_vec(&scale)?;
        let gain = rows::to_vec(&input.norm.gain)?;
        let centred =
            config.norm != Norm::Rms && config.variant.norm_placement != NormPlacement::After;
        let (stream, embedding) = match centred {
            true => (centre(stream)?, centre(&self.embedding)?),
            false => (stream.clone(), self.embedding.clone()),
        };
        let own = 1.0
            - if centred {
                1.0 / config.d_model as f32
            } else {
                0.0
            };
        for &index in indices {
            let channel = traced.places[index].1;
            if channel >= config.d_model {
                // A positional channel: nothing of the stream is in it.
                traced.sums[index] = traced.values[index].clone();
                continue;
            }
            let column = |of: &Tensor| rows::to_vec(&of.narrow(1, channel, 1)?);
            let (whole, begun) = (column(&stream)?, column(&embedding)?);
            let factor: Vec<f32> = scale.iter().map(|scale| scale * gain[channel]).collect();
            let scaled = |values: &[f32]| -> Vec<f32> {
                values
                    .iter()
                    .zip(&factor)
                    .map(|(value, factor)| value * factor)
                    .collect()
            };
            let passed = |token: usize| match traced.passes(channel, 0, site, token) {
                true => begun[token],
                false => 0.0,
            };
            let begun: Vec<f32> = (0..begun.len()).map(passed).collect();
            traced.sums[index] = scaled(&whole);
            traced.embedded[index] = scaled(&begun);
            traced.factors[index] = factor.iter().map(|factor| factor * own).collect();
        }
        Ok(())
    }

    fn read_by_linear(
        &self,
        traced: &mut PromptTrace,
        node: Node,
        indices: &[usize],
    ) -> Result<()> {
        let (Some(read), Some(linear)) = (read_by(node), linear(self.model, node)) else {
            // The heads' outputs are no node; a circuit that names them all the same has nothing that leads to them.
            for &index in indices {
                traced.sums[index] = traced.values[index].clone();
            }
            return Ok(());
        };
        let x = self.seen(Location::Node(read))?;
        let nothing = Tensor::zeros((1, x.dim(1)?), DType::F32, x.device())?;
        let given = linear.forward(&Tensor::cat(&[x, &nothing], 0)?)?;
        let tokens = self.ids.len();
        let normed = self.model.config.variant.norm_placement != NormPlacement::Before
            && written_at(node).is_some();
        for &index in indices {
            let column = rows::to_vec(&given.narrow(1, traced.places[index].1, 1)?)?;
            let bias = column[tokens];
            if normed {
                // The norm behind the layer multiplies by what makes the value of what the layer gives.
                let values = column.iter().zip(&traced.values[index]);
                let factor = values.map(|(given, value)| match *given == 0.0 {
                    true => 0.0,
                    false => value / given,
                });
                traced.factors[index] = factor.collect();
            }
            let sums = column[..tokens].iter().zip(&traced.factors[index]);
            traced.sums[index] = sums
                .map(|(given, factor)| (given - bias) * factor)
                .collect();
        }
        Ok(())
    }

    /// The likeliest next tokens with what their logits are made of.
    pub fn answers(
        &self,
        traced: &PromptTrace,
        most: usize,
        text: impl Fn(u32) -> String,
    ) -> Result<Vec<TracedLogit>> {
        let (model, config) = (self.model, &self.model.config);
        let token = self.ids.len() - 1;
        let stream = self.last.narrow(0, token, 1)?;
        let id = Tensor::new(&self.ids[token..], model.device())?;
        let logits = rows::to_vec(&model.unembed(&stream, &id)?)?;
        let probabilities = probabilities(&logits);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        order.truncate(most);
        let scale = rows::to_vec(&model.final_norm_scale(&stream)?)?[0];
        let centred = config.norm != Norm::Rms;
        let sites = 2 * config.n_layers;
        // The parts: the whole stream, the embedding, and each node that writes.
        let mut parts: Vec<(Option<usize>, Vec<f32>)> = vec![(None, rows::to_vec(&stream)?)];
        let mut begun = rows::to_vec(&self.embedding.narrow(0, token, 1)?)?;
        if gated(config) {
            let passed = self.passed_at(token)?;
            for (value, passed) in begun.iter_mut().zip(passed) {
                *value *= f32::from(u8::from(passed));
            }
        }
        parts.push((None, begun));
        for (index, (node, channel)) in traced.places.iter().enumerate() {
            let value = traced.values[index][token];
            if let Some(site) = written_at(*node)
                && value != 0.0
                && traced.passes(*channel, site, sites, token)
            {
                let mut part = vec![0.0; config.d_model];
                part[*channel] = value;
                parts.push((Some(index), part));
            }
        }
        let mut found: Vec<TracedLogit> = order
            .iter()
            .map(|&id| TracedLogit {
                id: id as u32,
                text: text(id as u32),
                logit: logits[id],
                probability: probabilities[id],
                sum: 0.0,
                from_nodes: vec![0.0; traced.places.len()],
                from_embedding: 0.0,
            })
            .collect();
        for (chunk, some) in parts.chunks(PARTS_A_PASS).enumerate() {
            let values: Vec<f32> = some.iter().flat_map(|(_, part)| part).copied().collect();
            let rows_of = Tensor::from_vec(values, (some.len(), config.d_model), model.device())?;
            let rows_of = if centred { centre(&rows_of)? } else { rows_of };
            let effects = model.direct_effect(&(rows_of * f64::from(scale))?)?;
            let effects = rows::to_vec(&effects)?;
            for (row, (node, _)) in some.iter().enumerate() {
                let effects = &effects[row * config.vocab_size..][..config.vocab_size];
                for (logit, id) in found.iter_mut().zip(&order) {
                    match (node, chunk, row) {
                        (Some(node), ..) => logit.from_nodes[*node] = effects[*id],
                        (None, 0, 0) => logit.sum = effects[*id],
                        (None, ..) => logit.from_embedding = effects[*id],
                    }
                }
            }
        }
        if config.bigram_table {
            let nothing = Tensor::zeros((1, config.vocab_size), DType::F32, model.device())?;
            let added = rows::to_vec(&model.add_bigrams(nothing, &id)?)?;
            for (logit, id) in found.iter_mut().zip(&order) {
                logit.sum += added[*id];
                logit.from_embedding += added[*id];
            }
        }
        Ok(found)
    }

    /// Which channels of a token's embedding passed every nonlinearity of the stream.
    fn passed_at(&self, token: usize) -> Result<Vec<bool>> {
        let mut passed = vec![true; self.model.config.d_model];
        for site in Site::all(self.model.config.n_layers).skip(1) {
            let row = self.seen(Location::Site(site))?.narrow(0, token, 1)?;
            for (passed, value) in passed.iter_mut().zip(rows::to_vec(&row)?) {
                *passed &= value != 0.0;
            }
        }
        Ok(passed)
    }
}

/// Parts whose effects on all logits are in memory at once.
const PARTS_A_PASS: usize = 16;

/// What the linear layer that gives a node reads; none for nodes that no linear layer gives.
fn read_by(node: Node) -> Option<Node> {
    let kind = match node.kind {
        NodeKind::Q | NodeKind::K | NodeKind::V => NodeKind::AttnIn,
        NodeKind::AttnOut => NodeKind::AttnY,
        NodeKind::PostAct => NodeKind::MlpIn,
        NodeKind::MlpOut => NodeKind::PostAct,
        NodeKind::AttnIn | NodeKind::AttnY | NodeKind::MlpIn => return None,
    };
    Some(Node { kind, ..node })
}

fn linear(model: &Transformer, node: Node) -> Option<&Linear> {
    let ([q, k, v, project], [expand, contract]) = model.layer_linears(node.layer)?;
    match node.kind {
        NodeKind::Q => Some(q),
        NodeKind::K => Some(k),
        NodeKind::V => Some(v),
        NodeKind::AttnOut => Some(project),
        NodeKind::PostAct => Some(expand),
        NodeKind::MlpOut => Some(contract),
        NodeKind::AttnIn | NodeKind::AttnY | NodeKind::MlpIn => None,
    }
}

/// Whether the stream is more than a sum of what is added to it.
fn gated(config: &TransformerConfig) -> bool {
    let places = [ActiveLocation::ResidPostAttn, ActiveLocation::ResidPostMlp];
    let active = |place| config.active_count(place, config.d_model).is_some();
    config.residual_activation == ResidualActivation::Relu || places.into_iter().any(active)
}

/// Without each row's mean.
fn centre(x: &Tensor) -> Result<Tensor> {
    x.broadcast_sub(&x.mean_keepdim(1)?)
}

fn probabilities(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights = logits.iter().map(|logit| f64::from(logit - largest).exp());
    let weights: Vec<f64> = weights.collect();
    let total: f64 = weights.iter().sum();
    weights
        .iter()
        .map(|weight| (weight / total) as f32)
        .collect()
}
