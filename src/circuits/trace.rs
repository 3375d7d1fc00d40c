//! Runs a prompt through a model and takes down what a circuit does on it.

use std::collections::BTreeMap;

use candle_core::Result;

use super::circuit::{Circuit, NodeName};
use super::edges::edges;
use super::nodes::NodeSet;
use super::prompt_trace::PromptTrace;
use super::traced_run::TracedRun;
use crate::models::location::{Location, Node, NodeKind, UnknownLocation};
use crate::models::model::LoadedModel;
use crate::models::tap::{NoTap, ResidualTap};
use crate::models::tokenizer::TokenizerError;
use crate::models::transformer::Transformer;

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
    let run = TracedRun::new(model, ids, &places, &heads, tap)?;
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
    let set = NodeSet::new(of_attention);
    let mut weights: BTreeMap<[NodeName; 2], Vec<(usize, f32)>> = BTreeMap::new();
    let name = |(node, channel): (Node, usize)| NodeName {
        node: Location::Node(node).into(),
        channel,
    };
    for edge in edges(model, &set)? {
        let ends = [name(edge.from), name(edge.to)];
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
        let ends = [from.clone(), to.clone()];
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
