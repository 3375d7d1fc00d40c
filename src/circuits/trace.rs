//! What one prompt's run through a model gives to draw a circuit on that prompt: every node's values, and what they are made of.
//!
//! Everything here is exact on this prompt. Nonlinear parts are taken as they are: what a norm divides by, which channels an
//! AbsTopK lets through, attention probabilities. With those fixed, what a node reads is a sum, each part of which is of one
//! node, of the token's embedding, or of what is outside of the circuit.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Result, Tensor};

use super::circuit::Circuit;
use super::edges::edges;
use super::stream_links::{read_at, written_at};
use crate::models::config::{ActiveLocation, Norm, ResidualActivation, TransformerConfig};
use crate::models::layers::Linear;
use crate::models::location::{Location, Node, NodeKind, Site, UnknownLocation};
use crate::models::model::LoadedModel;
use crate::models::tap::{NoTap, Recorder, ResidualTap};
use crate::models::token_rows::TokenRows;
use crate::models::tokenizer::TokenizerError;
use crate::models::transformer::Transformer;
use crate::models::variant::NormPlacement;
use crate::numerics::rows;

/// A prompt with what a circuit does on it. `T` tokens; nodes and edges are those of the circuit's record, in its order.
#[derive(Debug, Clone)]
pub struct PromptTrace {
    /// What the circuit is run on.
    pub prompt: String,
    pub ids: Vec<u32>,
    /// One a token.
    pub tokens: Vec<String>,
    /// Where each node is.
    pub places: Vec<(Node, usize)>,
    /// Whether the attention and the MLP of a layer read the same stream.
    pub parallel: bool,
    /// Of each node, `[T]`: its value.
    pub values: Vec<Vec<f32>>,
    /// Of each node, `[T]`: what its parts add up to. It is the value of a node that reads the stream, and before nonlinearity,
    /// AbsTopK and bias what a linear layer gives.
    pub sums: Vec<Vec<f32>>,
    /// Of each node, `[T]`: what its parts are multiplied by. It is a norm's factor and gain in this channel, and one where no
    /// norm stands between.
    pub factors: Vec<Vec<f32>>,
    /// Of each node that reads the stream, `[T]`: the token's embedding's part, factor included; zeros for others.
    pub embedded: Vec<Vec<f32>>,
    /// Of each edge from a value: the head that moves it between tokens.
    pub heads: Vec<Option<usize>>,
    /// Attention probabilities by layer and head, `[T, T]`.
    pub patterns: BTreeMap<(usize, usize), Vec<f32>>,
    /// Channels of the stream in which a nonlinearity stands between sublayers, each with whether it let the channel through:
    /// `[sites, T]`. None where the stream only adds up.
    pub gates: Option<BTreeMap<usize, Vec<bool>>>,
    /// The likeliest next tokens, the likeliest first.
    pub logits: Vec<TracedLogit>,
}

/// A likely next token with what its logit is made of.
#[derive(Debug, Clone)]
pub struct TracedLogit {
    pub id: u32,
    pub text: String,
    pub logit: f32,
    pub probability: f32,
    /// What its parts add up to: the logit before a soft cap, without the bias.
    pub sum: f32,
    /// Each node's part: its value at the last token, in its channel of the stream, through the last norm and the unembedding.
    pub from_nodes: Vec<f32>,
    /// The last token's embedding's part, and what a bigram table adds.
    pub from_embedding: f32,
}

/// Why a circuit cannot be traced on a prompt.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("the prompt has no tokens; give at least one")]
    Empty,
    #[error("the prompt has {tokens} tokens; the model reads at most {most}")]
    TooLong { tokens: usize, most: usize },
    #[error(transparent)]
    Unknown(#[from] UnknownLocation),
    #[error("{node}:{channel} is not a node of the model: {node} has {width} channels")]
    NoChannel {
        node: String,
        channel: usize,
        width: usize,
    },
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// A circuit on a prompt, inside the whole model; of the next tokens, the `most_logits` likeliest.
pub fn trace(
    circuit: &Circuit,
    model: &LoadedModel,
    prompt: &str,
    most_logits: usize,
) -> std::result::Result<PromptTrace, TraceError> {
    let ids = model.tokenizer.encode_prompt(prompt)?;
    let text = |id: u32| model.tokenizer.token_text(id);
    let mut tap = NoTap;
    let traced = trace_tokens(
        circuit,
        &model.transformer,
        &ids,
        &mut tap,
        (text, most_logits),
    )?;
    Ok(PromptTrace {
        prompt: prompt.to_owned(),
        ..traced
    })
}

/// The same of token ids, with what `tap` does during the run; `answers` are how a token is written, and how many of the
/// likeliest next ones are wanted.
pub fn trace_tokens(
    circuit: &Circuit,
    model: &Transformer,
    ids: &[u32],
    tap: &mut dyn ResidualTap,
    answers: (impl Fn(u32) -> String, usize),
) -> std::result::Result<PromptTrace, TraceError> {
    let config = &model.config;
    let (text, most_logits) = answers;
    if ids.is_empty() {
        return Err(TraceError::Empty);
    }
    if ids.len() > config.context_length {
        return Err(TraceError::TooLong {
            tokens: ids.len(),
            most: config.context_length,
        });
    }
    let places = circuit.node_places(config.n_layers)?;
    for &(node, channel) in &places {
        let width = Location::Node(node).width(config);
        if channel >= width {
            return Err(TraceError::NoChannel {
                node: node.to_string(),
                channel,
                width,
            });
        }
    }
    let heads = heads(circuit, model, &places)?;
    let run = Run::new(model, ids, &places, &heads, tap)?;
    let gates = run.gates(&places)?;
    let mut traced = PromptTrace {
        prompt: ids.iter().map(|&id| text(id)).collect(),
        tokens: ids.iter().map(|&id| text(id)).collect(),
        ids: ids.to_vec(),
        parallel: config.variant.parallel_sublayers,
        values: places
            .iter()
            .map(|&(node, channel)| run.column(Location::Node(node), channel))
            .collect::<Result<_>>()?,
        sums: vec![Vec::new(); places.len()],
        factors: vec![vec![1.0; ids.len()]; places.len()],
        embedded: vec![vec![0.0; ids.len()]; places.len()],
        patterns: run.patterns(&heads, &places, circuit)?,
        heads,
        gates,
        logits: Vec::new(),
        places,
    };
    run.inputs(&mut traced)?;
    traced.logits = run.answers(&traced, most_logits, text)?;
    Ok(traced)
}

impl PromptTrace {
    /// Whether a channel of the stream passed every nonlinearity from site `from` to site `to` at a token.
    pub fn passes(&self, channel: usize, from: usize, to: usize, token: usize) -> bool {
        let Some(gates) = &self.gates else {
            return true;
        };
        let Some(open) = gates.get(&channel) else {
            return true;
        };
        let tokens = self.ids.len();
        (from..=to).all(|site| open.get(site * tokens + token) != Some(&false))
    }
}

/// The head of each of the circuit's edges from a value. Where heads share values, a pair of nodes is joined by several
/// weights; the one nearest to the edge's is the edge's.
fn heads(
    circuit: &Circuit,
    model: &Transformer,
    places: &[(Node, usize)],
) -> Result<Vec<Option<usize>>> {
    let is_value = |node: &str| node.ends_with(".attn.v");
    if !circuit
        .edges
        .iter()
        .any(|edge| is_value(edge.from.node.as_str()))
    {
        return Ok(vec![None; circuit.edges.len()]);
    }
    let of_attention = places.iter().copied();
    let of_attention =
        of_attention.filter(|(node, _)| matches!(node.kind, NodeKind::V | NodeKind::AttnOut));
    let set = super::nodes::NodeSet::new(of_attention);
    let mut weights: BTreeMap<(String, usize, String, usize), Vec<(usize, f32)>> = BTreeMap::new();
    for edge in edges(model, &set)? {
        let ((from, a), (to, b)) = (edge.from, edge.to);
        let ends = (from.to_string(), a, to.to_string(), b);
        weights
            .entry(ends)
            .or_default()
            .push((edge.input, edge.weight));
    }
    let mut heads = Vec::with_capacity(circuit.edges.len());
    for edge in &circuit.edges {
        let (from, to) = (&edge.from, &edge.to);
        if !is_value(from.node.as_str()) {
            heads.push(None);
            continue;
        }
        let (a, b) = (from.node.as_str(), to.node.as_str());
        let ends = (a.to_owned(), from.channel, b.to_owned(), to.channel);
        let found = weights.get_mut(&ends).and_then(|left| {
            let distance = |weight: f32| (weight - edge.weight).abs();
            let nearest = (0..left.len())
                .min_by(|&a, &b| distance(left[a].1).total_cmp(&distance(left[b].1)))?;
            Some(left.remove(nearest).0)
        });
        let Some(input) = found else {
            candle_core::bail!(
                "the model has no weight from {a}:{} to {b}:{}; the circuit is not one of this model",
                from.channel,
                to.channel
            )
        };
        heads.push(Some(input / model.config.d_head));
    }
    Ok(heads)
}

/// A prompt's run: what stood at the places that are needed.
struct Run<'m> {
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

impl<'m> Run<'m> {
    fn new(
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
        Ok(Run {
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
    fn column(&self, place: Location, channel: usize) -> Result<Vec<f32>> {
        rows::to_vec(&self.seen(place)?.narrow(1, channel, 1)?)
    }

    /// Of the channels that nodes read and write, where the stream is more than a sum: whether each passed, site after site.
    fn gates(&self, places: &[(Node, usize)]) -> Result<Option<BTreeMap<usize, Vec<bool>>>> {
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

    fn patterns(
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
    fn inputs(&self, traced: &mut PromptTrace) -> Result<()> {
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
    fn answers(
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
