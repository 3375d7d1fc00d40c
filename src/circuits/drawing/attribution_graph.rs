//! A circuit on one prompt as an attribution graph, in the format of circuit-tracer and Neuronpedia.
//!
//! A node of the graph is a node of the circuit at a token where it is active, neither zero nor at what it is held at
//! elsewhere; a token's embedding; or a likely next token. A link's weight is what its source adds to its target on this
//! prompt, with everything nonlinear as it is (norms' divisors, attention probabilities, which channels an AbsTopK keeps):
//! weight times activation, for a value also times the attention probability, and through the residual stream times the
//! norm's factor. What a target has of the biases is left out; what it has of everything outside of the circuit comes from
//! one node a place and token, called a reconstruction error as the format calls it, so that links into a target add up.
//! Neurons are reached before their nonlinearity. Queries and keys choose among tokens and add nothing: no link leaves them.
//!
//! The format knows rows of layers, and its layers here are the places that the circuit has nodes at, from bottom to top.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::circuits::circuit::Circuit;
use crate::circuits::prompt_trace::PromptTrace;
use crate::circuits::stream_links::{read_at, stream_links, written_at};
use crate::models::location::Node;

/// A graph has no more links; those of the smallest weights are left out.
pub const MOST_LINKS: usize = 50_000;
/// A node this near to what it is held at, relative to the larger of both, is at it.
const AT_HELD: f32 = 1e-5;

/// What sums in single precision may be off by, as a share of what was summed.
const ROUNDING: f64 = 2e-6;

/// What one prompt's tokens add to the next token's logits through a circuit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttributionGraph {
    pub metadata: AttributionMetadata,
    #[serde(rename = "qParams")]
    pub q_params: AttributionView,
    pub nodes: Vec<AttributionNode>,
    pub links: Vec<AttributionLink>,
}

/// What the graph is of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttributionMetadata {
    /// The circuit's id with a hash of the prompt.
    pub slug: String,
    /// The model.
    pub scan: String,
    pub prompt_tokens: Vec<String>,
    pub prompt: String,
    /// The form of the numbers of features: 1, a pairing of layer and channel.
    pub schema_version: u32,
    pub info: AttributionInfo,
    /// The places that the graph's layers 0, 1 and so on stand for.
    pub places: Vec<String>,
    /// Links that are not in the graph: those of the smallest weights beyond the first 50,000.
    pub links_left_out: usize,
}

/// What is told about the graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttributionInfo {
    pub description: String,
    pub generator: AttributionGenerator,
}

/// What made the graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttributionGenerator {
    pub name: String,
    pub version: String,
}

/// How a viewer begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttributionView {
    #[serde(rename = "linkType")]
    pub link_type: String,
    #[serde(rename = "pinnedIds")]
    pub pinned_ids: Vec<String>,
    #[serde(rename = "clickedId")]
    pub clicked_id: String,
    pub supernodes: Vec<Vec<String>>,
    pub sg_pos: String,
}

/// A node of the graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttributionNode {
    /// `layer_channel_token` of a circuit's node, `E_id_token` of an embedding, `layer_id_token` of a logit, and
    /// `layer_-1_token` of what is outside of the circuit.
    pub node_id: String,
    /// Layer and channel as one number, the token of an embedding, the id of a logit, or -1.
    pub feature: i64,
    pub layer: String,
    /// The token.
    pub ctx_idx: usize,
    /// `cross layer transcoder` of a circuit's node, the one kind that viewers show as a feature; `embedding`, `logit` or
    /// `mlp reconstruction error`.
    pub feature_type: String,
    pub token_prob: f32,
    pub is_target_logit: bool,
    pub run_idx: usize,
    pub reverse_ctx_idx: usize,
    #[serde(rename = "jsNodeId")]
    pub js_node_id: String,
    /// What it is called.
    pub clerp: String,
    /// The share of the influence on the logits that it has together with all nodes of more; null where no link leads on.
    #[schema(required = true)]
    pub influence: Option<f64>,
    /// The node's value; null of what is no node of the circuit.
    #[schema(required = true)]
    pub activation: Option<f32>,
}

/// A link of the graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttributionLink {
    pub source: String,
    pub target: String,
    /// What the source adds to the target.
    pub weight: f32,
}

/// An end of a link. In the order of the pass, embeddings first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Embedding {
        token: usize,
    },
    /// What is outside of the circuit, by the layer of the graph that it adds to.
    Outside {
        layer: usize,
        token: usize,
    },
    Node {
        node: usize,
        token: usize,
    },
    Logit {
        rank: usize,
    },
}

/// What is joined, with the weight.
type Link = (End, End, f32);

/// The circuit on the trace's prompt.
pub fn attribution_graph(circuit: &Circuit, trace: &PromptTrace) -> AttributionGraph {
    let places: BTreeSet<Node> = trace.places.iter().map(|(node, _)| *node).collect();
    let places: Vec<Node> = places.into_iter().collect();
    let layers: BTreeMap<Node, usize> = places.iter().copied().zip(0..).collect();
    let graph = Graph {
        circuit,
        trace,
        layers,
    };
    let (links, left_out) = graph.links();
    let influence = graph.influence(&links);
    let mut used: BTreeSet<End> = links
        .iter()
        .flat_map(|(from, to, _)| [*from, *to])
        .collect();
    // Tokens and logits are there whether anything leads to them or not.
    used.extend((0..trace.ids.len()).map(|token| End::Embedding { token }));
    used.extend((0..trace.logits.len()).map(|rank| End::Logit { rank }));
    for node in 0..trace.places.len() {
        for token in 0..trace.ids.len() {
            let alone = graph.is_active(node, token) && graph.is_small();
            used.extend(alone.then_some(End::Node { node, token }));
        }
    }
    let mut hash = Sha256::new();
    hash.update(trace.prompt.as_bytes());
    for id in &trace.ids {
        hash.update(id.to_le_bytes());
    }
    let hash: String = hash.finalize()[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let clicked = (!trace.logits.is_empty()).then(|| graph.id(End::Logit { rank: 0 }));
    AttributionGraph {
        metadata: AttributionMetadata {
            slug: format!("{}-{hash}", circuit.id.as_str()),
            scan: circuit.model.clone(),
            prompt_tokens: trace.tokens.clone(),
            prompt: trace.prompt.clone(),
            schema_version: 1,
            info: AttributionInfo {
                description: format!(
                    "The circuit {} of {} for {} on one prompt, inside the whole model. A link's weight is what its source \
                     adds to its target: exact with norms' divisors, attention probabilities and the choice of every AbsTopK \
                     as they are on this prompt, biases left out. Reconstruction errors are everything outside of the \
                     circuit. Links into neurons end before the nonlinearity, those into logits before a soft cap.",
                    circuit.id.as_str(),
                    circuit.model,
                    circuit.task
                ),
                generator: AttributionGenerator {
                    name: "Causeway".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                },
            },
            places: places.iter().map(Node::to_string).collect(),
            links_left_out: left_out,
        },
        q_params: AttributionView {
            link_type: "both".to_owned(),
            pinned_ids: Vec::new(),
            clicked_id: clicked.unwrap_or_default(),
            supernodes: Vec::new(),
            sg_pos: String::new(),
        },
        nodes: used
            .into_iter()
            .map(|end| graph.node(end, influence.get(&end).copied()))
            .collect(),
        links: links
            .iter()
            .map(|(from, to, weight)| AttributionLink {
                source: graph.id(*from),
                target: graph.id(*to),
                weight: *weight,
            })
            .collect(),
    }
}

/// A circuit with its trace.
struct Graph<'a> {
    circuit: &'a Circuit,
    trace: &'a PromptTrace,
    /// Of the graph, by place.
    layers: BTreeMap<Node, usize>,
}

/// Links as they are found, never many more than there may be.
#[derive(Default)]
struct Links {
    found: Vec<Link>,
    left_out: usize,
}

impl Links {
    fn add(&mut self, from: End, to: End, weight: f32) {
        if weight != 0.0 && weight.is_finite() {
            self.found.push((from, to, weight));
            if self.found.len() >= 4 * MOST_LINKS {
                self.bound();
            }
        }
    }

    /// Leaves the largest.
    fn bound(&mut self) {
        if self.found.len() > MOST_LINKS {
            self.found.sort_by(|a, b| {
                let sizes = b.2.abs().total_cmp(&a.2.abs());
                sizes.then((a.1, a.0).cmp(&(b.1, b.0)))
            });
            self.left_out += self.found.len() - MOST_LINKS;
            self.found.truncate(MOST_LINKS);
        }
    }
}

impl Graph<'_> {
    fn is_active(&self, node: usize, token: usize) -> bool {
        let (value, held) = (
            self.trace.values[node][token],
            self.circuit.nodes[node].held_at,
        );
        value != 0.0 && (value - held).abs() > AT_HELD * value.abs().max(held.abs())
    }

    /// Whether nodes without links can be there, too.
    fn is_small(&self) -> bool {
        self.trace.places.len() * self.trace.ids.len() <= MOST_LINKS
    }

    /// All links, ordered by target and source, and how many are left out.
    fn links(&self) -> (Vec<Link>, usize) {
        let trace = self.trace;
        let tokens = trace.ids.len();
        let mut links = Links::default();
        let streams = stream_links(&trace.places, trace.parallel);
        let mut into: Vec<Vec<Source>> = vec![Vec::new(); trace.places.len()];
        for (from, to) in streams {
            into[to].push(Source::Stream { from });
        }
        let index: BTreeMap<(&str, usize), usize> = (self.circuit.nodes.iter().enumerate())
            .map(|(index, node)| ((node.node.as_str(), node.channel), index))
            .collect();
        for (edge, head) in self.circuit.edges.iter().zip(&trace.heads) {
            let of = |end: &crate::circuits::circuit::NodeName| {
                index.get(&(end.node.as_str(), end.channel)).copied()
            };
            if let (Some(from), Some(to)) = (of(&edge.from), of(&edge.to)) {
                into[to].push(Source::Weight {
                    from,
                    weight: edge.weight,
                    head: *head,
                });
            }
        }
        for (to, sources) in into.iter().enumerate() {
            for token in (0..tokens).filter(|&token| self.is_active(to, token)) {
                self.add_links_of_node(&mut links, (to, token), sources);
            }
        }
        self.add_links_of_logits(&mut links);
        links.bound();
        let mut found = links.found;
        found.sort_by_key(|(from, to, _)| (*to, *from));
        (found, links.left_out)
    }

    /// The links into one node at one token.
    fn add_links_of_node(
        &self,
        links: &mut Links,
        (node, token): (usize, usize),
        sources: &[Source],
    ) {
        let trace = self.trace;
        let (place, channel) = trace.places[node];
        let to = End::Node { node, token };
        let factor = trace.factors[node][token];
        let mut rest = Rest::of(trace.sums[node][token]);
        let mut add = |from: End, weight: f32| {
            rest.take(weight);
            links.add(from, to, weight);
        };
        add(End::Embedding { token }, trace.embedded[node][token]);
        for source in sources {
            match *source {
                Source::Stream { from } => {
                    let written = written_at(trace.places[from].0).unwrap_or(0);
                    let read = read_at(place, trace.parallel).unwrap_or(written);
                    if self.is_active(from, token) && trace.passes(channel, written, read, token) {
                        let from = (from, token);
                        add(node_end(from), trace.values[from.0][token] * factor);
                    }
                }
                Source::Weight {
                    from,
                    weight,
                    head: None,
                } => {
                    if self.is_active(from, token) {
                        add(
                            node_end((from, token)),
                            weight * trace.values[from][token] * factor,
                        );
                    }
                }
                Source::Weight {
                    from,
                    weight,
                    head: Some(head),
                } => {
                    let Some(pattern) = trace.patterns.get(&(place.layer, head)) else {
                        continue;
                    };
                    for earlier in (0..=token).filter(|&token| self.is_active(from, token)) {
                        let attended = pattern[token * trace.ids.len() + earlier];
                        let moved = weight * attended * trace.values[from][earlier] * factor;
                        add(node_end((from, earlier)), moved);
                    }
                }
            }
        }
        let layer = self.layers[&place];
        links.add(End::Outside { layer, token }, to, rest.left());
    }

    /// The links into the logits.
    fn add_links_of_logits(&self, links: &mut Links) {
        let trace = self.trace;
        let token = trace.ids.len() - 1;
        let layer = self.layers.len();
        for (rank, logit) in trace.logits.iter().enumerate() {
            let to = End::Logit { rank };
            let mut rest = Rest::of(logit.sum);
            let mut add = |from: End, weight: f32| {
                rest.take(weight);
                links.add(from, to, weight);
            };
            add(End::Embedding { token }, logit.from_embedding);
            for (node, part) in logit.from_nodes.iter().enumerate() {
                if self.is_active(node, token) {
                    add(End::Node { node, token }, *part);
                }
            }
            links.add(End::Outside { layer, token }, to, rest.left());
        }
    }

    /// Each end's influence on the logits as circuit-tracer counts it: what a node has flows back along its links by the shares
    /// of their magnitudes, and a node's number is the share of all influence that nodes of at least as much have together.
    fn influence(&self, links: &[Link]) -> BTreeMap<End, f64> {
        let mut into: BTreeMap<End, Vec<(End, f64)>> = BTreeMap::new();
        for (from, to, weight) in links {
            let sources = into.entry(*to).or_default();
            sources.push((*from, f64::from(weight.abs())));
        }
        let mut own: BTreeMap<End, f64> = (self.trace.logits.iter().enumerate())
            .map(|(rank, logit)| (End::Logit { rank }, f64::from(logit.probability)))
            .collect();
        // From the logits down: links lead up the layers only.
        let mut targets: Vec<&End> = into.keys().collect();
        targets.sort_by_key(|end| std::cmp::Reverse(self.height(**end)));
        for target in targets {
            let sources = &into[target];
            let all: f64 = sources.iter().map(|(_, weight)| weight).sum();
            let given = own.get(target).copied().unwrap_or(0.0) / all;
            for (from, weight) in sources {
                *own.entry(*from).or_default() += weight * given;
            }
        }
        own.retain(|end, influence| !matches!(end, End::Logit { .. }) && *influence > 0.0);
        let mut order: Vec<(End, f64)> = own.into_iter().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let total: f64 = order.iter().map(|(_, influence)| influence).sum();
        let mut reached = 0.0;
        for (_, influence) in &mut order {
            reached += *influence;
            *influence = (reached / total).min(1.0);
        }
        order.into_iter().collect()
    }

    /// The row of the graph.
    fn height(&self, end: End) -> usize {
        match end {
            End::Embedding { .. } => 0,
            End::Outside { layer, .. } => layer + 1,
            End::Node { node, .. } => self.layers[&self.trace.places[node].0] + 1,
            End::Logit { .. } => self.layers.len() + 1,
        }
    }

    fn id(&self, end: End) -> String {
        let trace = self.trace;
        match end {
            End::Embedding { token } => format!("E_{}_{token}", trace.ids[token]),
            End::Outside { layer, token } => format!("{layer}_-1_{token}"),
            End::Node { node, token } => {
                let (place, channel) = trace.places[node];
                format!("{}_{channel}_{token}", self.layers[&place])
            }
            End::Logit { rank } => {
                let (layer, token) = (self.layers.len() + 1, trace.ids.len() - 1);
                format!("{layer}_{}_{token}", trace.logits[rank].id)
            }
        }
    }

    fn node(&self, end: End, influence: Option<f64>) -> AttributionNode {
        let trace = self.trace;
        let plain = AttributionNode {
            node_id: self.id(end),
            feature: -1,
            layer: String::new(),
            ctx_idx: 0,
            feature_type: String::new(),
            token_prob: 0.0,
            is_target_logit: false,
            run_idx: 0,
            reverse_ctx_idx: 0,
            js_node_id: String::new(),
            clerp: String::new(),
            influence,
            activation: None,
        };
        match end {
            End::Embedding { token } => AttributionNode {
                feature: token as i64,
                layer: "E".to_owned(),
                ctx_idx: token,
                feature_type: "embedding".to_owned(),
                js_node_id: format!("E_{}-{token}", trace.ids[token]),
                clerp: format!("Token {:?}", trace.tokens[token]),
                ..plain
            },
            End::Outside { layer, token } => AttributionNode {
                layer: layer.to_string(),
                ctx_idx: token,
                feature_type: "mlp reconstruction error".to_owned(),
                js_node_id: format!("{layer}_-1-{token}"),
                clerp: "outside of the circuit".to_owned(),
                ..plain
            },
            End::Node { node, token } => {
                let (place, channel) = trace.places[node];
                let layer = self.layers[&place];
                AttributionNode {
                    feature: paired(layer, channel),
                    layer: layer.to_string(),
                    ctx_idx: token,
                    feature_type: "cross layer transcoder".to_owned(),
                    js_node_id: format!("{layer}_{channel}-0"),
                    clerp: format!("{place}:{channel}"),
                    activation: Some(trace.values[node][token]),
                    ..plain
                }
            }
            End::Logit { rank } => {
                let (logit, layer) = (&trace.logits[rank], self.layers.len() + 1);
                let token = trace.ids.len() - 1;
                AttributionNode {
                    feature: i64::from(logit.id),
                    layer: layer.to_string(),
                    ctx_idx: token,
                    feature_type: "logit".to_owned(),
                    token_prob: logit.probability,
                    is_target_logit: rank == 0,
                    js_node_id: format!("L_{}-{token}", logit.id),
                    clerp: format!("Output {:?} (p={:.3})", logit.text, logit.probability),
                    activation: None,
                    ..plain
                }
            }
        }
    }
}

/// What a target has beside the parts that are known.
struct Rest {
    left: f64,
    /// The magnitudes of all that was added and taken: rounding leaves a share of it.
    handled: f64,
}

impl Rest {
    fn of(sum: f32) -> Self {
        Rest {
            left: f64::from(sum),
            handled: f64::from(sum.abs()),
        }
    }

    fn take(&mut self, part: f32) {
        self.left -= f64::from(part);
        self.handled += f64::from(part.abs());
    }

    /// Zero where it is no more than rounding.
    fn left(&self) -> f32 {
        match self.left.abs() > ROUNDING * self.handled {
            true => self.left as f32,
            false => 0.0,
        }
    }
}

/// What leads into a node.
#[derive(Debug, Clone, Copy)]
enum Source {
    Stream {
        from: usize,
    },
    Weight {
        from: usize,
        weight: f32,
        head: Option<usize>,
    },
}

fn node_end((node, token): (usize, usize)) -> End {
    End::Node { node, token }
}

/// Layer and channel as one number, by Cantor's pairing.
fn paired(layer: usize, channel: usize) -> i64 {
    let sum = (layer + channel) as i64;
    sum * (sum + 1) / 2 + channel as i64
}

#[cfg(test)]
mod tests;
