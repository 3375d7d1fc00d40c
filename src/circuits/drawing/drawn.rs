//! A circuit as it is drawn: which of its nodes and edges, where they belong, and how strong each is beside the others.
//!
//! Drawings have bounds. Of a circuit beyond them the nodes with the smallest effects are left out, then the edges; every
//! drawing says how many.

use std::collections::{BTreeMap, BTreeSet};

use crate::circuits::circuit::{Circuit, CircuitEdge, CircuitNode};
use crate::circuits::stream_links::stream_links;
use crate::models::config::TransformerConfig;
use crate::models::location::{Location, Node, NodeKind};

/// A drawing has no more nodes, and no more edges and links of each kind.
pub const MOST_NODES: usize = 400;
pub const MOST_EDGES: usize = 4_000;
/// Deeper than any model: a record does not say how many layers its model has.
const DEEPEST: usize = 1 << 20;

/// A circuit as it is drawn.
#[derive(Debug)]
pub struct DrawnCircuit<'a> {
    pub record: &'a Circuit,
    /// In the order of the pass, each place's by channel.
    pub nodes: Vec<DrawnNode<'a>>,
    pub edges: Vec<DrawnEdge<'a>>,
    /// Pairs of nodes that the residual stream joins: what a sublayer adds to a channel, and what a later one reads of it.
    pub links: Vec<(usize, usize)>,
    /// Nodes and edges of the record that are not drawn.
    pub nodes_left_out: usize,
    pub edges_left_out: usize,
    pub links_left_out: usize,
    largest: Largest,
}

/// A node with its place.
#[derive(Debug, Clone, Copy)]
pub struct DrawnNode<'a> {
    pub at: Node,
    /// Of a query, a key or a value, where the model's heads are known.
    pub head: Option<usize>,
    pub record: &'a CircuitNode,
}

/// An edge between two nodes, by their places in the list of nodes.
#[derive(Debug, Clone, Copy)]
pub struct DrawnEdge<'a> {
    pub from: usize,
    pub to: usize,
    pub record: &'a CircuitEdge,
}

impl DrawnNode<'_> {
    /// What nodes are ordered by; nothing where it was not measured.
    fn effect(&self) -> f64 {
        self.record.effect.unwrap_or(0.0)
    }
}

impl DrawnEdge<'_> {
    /// What edges are ordered by; nothing where it was not measured.
    fn effect(&self) -> f64 {
        self.record.effect.unwrap_or(0.0)
    }
}

/// The largest magnitudes.
#[derive(Debug, Clone, Copy, Default)]
struct Largest {
    node_effect: f64,
    edge_effect: f64,
    weight: f64,
}

impl<'a> DrawnCircuit<'a> {
    /// `config` is the model's, where it is known: only it says which channels are of which head, and whether attention and
    /// MLP read the same stream.
    pub fn new(record: &'a Circuit, config: Option<&TransformerConfig>) -> Self {
        let d_head = config.map(|config| config.d_head.max(1));
        let parallel = config.is_some_and(|config| config.variant.parallel_sublayers);
        let located = record.nodes.iter().filter_map(|node| {
            let at = match node.node.in_model(DEEPEST) {
                Ok(Location::Node(at)) => at,
                _ => return None,
            };
            let of_head = matches!(at.kind, NodeKind::Q | NodeKind::K | NodeKind::V);
            let head = d_head.filter(|_| of_head);
            Some(DrawnNode {
                at,
                head: head.map(|d_head| node.channel / d_head),
                record: node,
            })
        });
        let mut nodes = strongest(located.collect(), MOST_NODES, |node| node.effect());
        nodes.sort_by_key(|node| (node.at, node.record.channel));
        let index: BTreeMap<(&str, usize), usize> = (nodes.iter().enumerate())
            .map(|(index, node)| ((node.record.node.as_str(), node.record.channel), index))
            .collect();
        let joined = record.edges.iter().filter_map(|edge| {
            let of = |end: &crate::circuits::circuit::NodeName| {
                index.get(&(end.node.as_str(), end.channel)).copied()
            };
            Some(DrawnEdge {
                from: of(&edge.from)?,
                to: of(&edge.to)?,
                record: edge,
            })
        });
        let edges = strongest(joined.collect(), MOST_EDGES, |edge| edge.effect());
        let places: Vec<_> = (nodes.iter())
            .map(|node| (node.at, node.record.channel))
            .collect();
        let mut links = stream_links(&places, parallel);
        let links_left_out = links.len().saturating_sub(MOST_EDGES);
        links.truncate(MOST_EDGES);
        DrawnCircuit {
            largest: Largest {
                node_effect: largest(nodes.iter().map(DrawnNode::effect)),
                edge_effect: largest(edges.iter().map(DrawnEdge::effect)),
                weight: largest(edges.iter().map(|edge| f64::from(edge.record.weight))),
            },
            nodes_left_out: record.nodes.len() - nodes.len(),
            edges_left_out: record.edges.len() - edges.len(),
            links_left_out,
            record,
            nodes,
            edges,
            links,
        }
    }

    /// A node's effect as a share of the largest, by magnitude: 0 to 1.
    pub fn node_share(&self, node: &DrawnNode) -> f64 {
        share(node.effect(), self.largest.node_effect)
    }

    /// The same of an edge's effect.
    pub fn edge_share(&self, edge: &DrawnEdge) -> f64 {
        share(edge.effect(), self.largest.edge_effect)
    }

    /// The same of an edge's weight.
    pub fn weight_share(&self, edge: &DrawnEdge) -> f64 {
        share(f64::from(edge.record.weight), self.largest.weight)
    }

    pub fn largest_weight(&self) -> f64 {
        self.largest.weight
    }

    pub fn largest_effect(&self) -> f64 {
        self.largest.node_effect
    }

    /// The layers that have nodes, ascending.
    pub fn layers(&self) -> BTreeSet<usize> {
        self.nodes.iter().map(|node| node.at.layer).collect()
    }

    /// What is not drawn, in words; none where everything is.
    pub fn left_out(&self) -> Option<String> {
        let parts = [
            (self.nodes_left_out, "nodes"),
            (self.edges_left_out, "edges"),
            (self.links_left_out, "links through the residual stream"),
        ];
        let parts = parts.into_iter().filter(|(count, _)| *count > 0);
        let parts: Vec<String> = parts
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        (!parts.is_empty()).then(|| {
            let parts = parts.join(", ");
            format!("Not drawn: {parts}; of nodes and edges those with the smallest effects.")
        })
    }
}

/// At most `most` of `all`, those of the largest effects by magnitude, in the order in which they came.
fn strongest<T>(all: Vec<T>, most: usize, effect: impl Fn(&T) -> f64) -> Vec<T> {
    if all.len() <= most {
        return all;
    }
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (effect(&all[a]).abs(), effect(&all[b]).abs());
        b.total_cmp(&a)
    });
    let kept: BTreeSet<usize> = order.into_iter().take(most).collect();
    let all = all.into_iter().enumerate();
    all.filter(|(index, _)| kept.contains(index))
        .map(|(_, item)| item)
        .collect()
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    let values = values.map(f64::abs).filter(|value| value.is_finite());
    values.fold(0.0, f64::max)
}

fn share(value: f64, largest: f64) -> f64 {
    let share = value.abs() / largest;
    match share.is_finite() {
        true => share.min(1.0),
        false => 0.0,
    }
}

/// A number for people, with three significant digits.
pub fn short(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let magnitude = value.abs().log10().floor();
    match magnitude {
        -4.0..5.0 => format!("{value:.*}", (2.0 - magnitude).max(0.0) as usize),
        _ => format!("{value:.2e}"),
    }
}

/// The same with its sign.
pub fn signed(value: f64) -> String {
    match value > 0.0 {
        true => format!("+{}", short(value)),
        false => short(value),
    }
}

/// An effect as a number of the record's own digits, where it was measured.
pub fn told_effect(effect: Option<f64>) -> String {
    effect.map_or("not measured".to_owned(), |effect| effect.to_string())
}

/// An effect with three significant digits, where it was measured.
pub fn signed_effect(effect: Option<f64>) -> String {
    effect.map_or("not measured".to_owned(), signed)
}

/// Words in lines of at most `columns` characters, except where one word alone is longer.
pub fn wrapped(words: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words.split_whitespace() {
        let length = word.chars().count();
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + length <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuits::drawing::test_circuit::{large, quotes};
    use crate::features::test_pair::random_pair;

    #[test]
    fn all_of_a_small_circuit_is_drawn_with_its_links() {
        let circuit = quotes();
        let drawn = DrawnCircuit::new(&circuit, None);
        assert_eq!(drawn.nodes.len(), circuit.nodes.len());
        assert_eq!(drawn.edges.len(), circuit.edges.len());
        assert_eq!(drawn.left_out(), None);
        for edge in &drawn.edges {
            let (from, to) = (drawn.nodes[edge.from].record, drawn.nodes[edge.to].record);
            assert_eq!(
                (&from.node, from.channel),
                (&edge.record.from.node, edge.record.from.channel)
            );
            assert_eq!(
                (&to.node, to.channel),
                (&edge.record.to.node, edge.record.to.channel)
            );
        }
        // What the first MLP adds to channels 460 and 985 is read by the second layer's attention.
        assert_eq!(drawn.links.len(), 2);
        for &(from, to) in &drawn.links {
            let (from, to) = (drawn.nodes[from], drawn.nodes[to]);
            assert_eq!(from.at.kind, NodeKind::MlpOut);
            assert_eq!(to.at.kind, NodeKind::AttnIn);
            assert_eq!(from.record.channel, to.record.channel);
        }
        assert!(drawn.nodes.iter().all(|node| node.head.is_none()));
    }

    #[test]
    fn a_configuration_tells_the_heads() {
        let config = random_pair(1).sparse.config;
        let circuit = quotes();
        let drawn = DrawnCircuit::new(&circuit, Some(&config));
        for node in &drawn.nodes {
            let of_head = matches!(node.at.kind, NodeKind::Q | NodeKind::K | NodeKind::V);
            let expected = of_head.then(|| node.record.channel / config.d_head);
            assert_eq!(node.head, expected);
        }
    }

    #[test]
    fn the_weakest_parts_of_a_large_circuit_are_left_out() {
        let circuit = large(700, 5_000);
        let drawn = DrawnCircuit::new(&circuit, None);
        assert_eq!(drawn.nodes.len(), MOST_NODES);
        assert!(drawn.edges.len() <= MOST_EDGES);
        assert_eq!(drawn.nodes_left_out, 300);
        let weakest = drawn.nodes.iter().map(|node| node.effect().abs());
        let weakest = weakest.fold(f64::INFINITY, f64::min);
        let stronger = circuit.nodes.iter();
        let stronger = stronger
            .filter(|node| node.effect.is_some_and(|effect| effect.abs() > weakest))
            .count();
        assert!(stronger < MOST_NODES);
        let said = drawn.left_out().unwrap();
        assert!(said.contains("300 nodes"), "{said}");
    }

    #[test]
    fn numbers_have_three_significant_digits() {
        let shorts = [
            (0.0, "0"),
            (1.0, "1.00"),
            (-0.012345, "-0.0123"),
            (12.345, "12.3"),
            (1234.5, "1234"),
            (1e7, "1.00e7"),
            (0.00001234, "1.23e-5"),
        ];
        for (value, expected) in shorts {
            assert_eq!(short(value), expected);
        }
        assert_eq!(signed(2.0), "+2.00");
        assert_eq!(signed(-2.0), "-2.00");
    }
}
