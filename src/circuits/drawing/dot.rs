//! A circuit for Graphviz: `dot -Tsvg`.
//!
//! Clusters are layers and their sublayers. A node's fill is as opaque as its effect is large; an edge's colour and style tell
//! the sign of its weight, its pen the magnitude. Dashed grey lines are the residual stream, and no edges.

use std::fmt::Write as _;

use super::drawn::{DrawnCircuit, short, signed_effect, told_effect};
use crate::circuits::circuit::Circuit;
use crate::models::config::TransformerConfig;
use crate::models::location::NodeKind;

/// Okabe and Ito's blue and vermilion, told apart by people who see few colours; the style tells them apart without.
const POSITIVE: &str = "color=\"#0072b2\", style=solid";
const NEGATIVE: &str = "color=\"#d55e00\", style=dashed";
const LINK: &str = "color=\"#8a8f98\", style=dotted, arrowsize=0.5, constraint=false";
const FILL: &str = "#f5b93f";
/// Of an edge whose weight is the largest.
const WIDEST: f64 = 6.0;

/// The circuit as a graph in the DOT language.
pub fn dot(circuit: &Circuit) -> String {
    write(&DrawnCircuit::new(circuit, None))
}

/// The same with the heads of queries, keys and values, which `config`, the model's, tells.
pub fn dot_of_model(circuit: &Circuit, config: &TransformerConfig) -> String {
    write(&DrawnCircuit::new(circuit, Some(config)))
}

fn write(drawn: &DrawnCircuit) -> String {
    let record = drawn.record;
    let mut out = String::new();
    let figures = &record.figures;
    let mut title = format!(
        "{}\n{} of {}: {} nodes, {} edges, task loss {} (whole model {}, without the circuit {})",
        record.task,
        record.id.as_str(),
        record.model,
        figures.nodes,
        figures.edges,
        short(figures.task_loss),
        short(figures.task_loss_whole),
        short(figures.task_loss_without)
    );
    if let Some(left_out) = drawn.left_out() {
        title.push('\n');
        title.push_str(&left_out);
    }
    // Writing to a string does not fail, here and below.
    let _ = writeln!(out, "digraph {} {{", quoted(record.id.as_str()));
    let _ = writeln!(
        out,
        "  graph [rankdir=TB, label={}, labelloc=t, fontname=\"sans-serif\", fontsize=14, ranksep=0.5, nodesep=0.2];",
        quoted(&title)
    );
    let _ = writeln!(
        out,
        "  node [shape=box, style=\"filled,rounded\", fontname=\"sans-serif\", fontsize=10, color=\"#8a5a00\", \
         margin=\"0.08,0.04\"];"
    );
    let _ = writeln!(
        out,
        "  edge [arrowsize=0.6, fontname=\"sans-serif\", fontsize=9];"
    );
    for layer in drawn.layers() {
        let _ = writeln!(out, "  subgraph \"cluster_{layer}\" {{");
        let _ = writeln!(out, "    label=\"layer {layer}\"; color=\"#8a8f98\";");
        for (name, is_mlp) in [("attention", false), ("MLP", true)] {
            cluster(&mut out, drawn, layer, name, is_mlp);
        }
        out.push_str("  }\n");
    }
    for edge in &drawn.edges {
        let weight = edge.record.weight;
        let style = match weight < 0.0 {
            true => NEGATIVE,
            false => POSITIVE,
        };
        let told = format!(
            "weight {weight}, effect {}",
            told_effect(edge.record.effect)
        );
        let _ = writeln!(
            out,
            "  n{} -> n{} [{style}, penwidth={:.2}, tooltip={}];",
            edge.from,
            edge.to,
            0.6 + (WIDEST - 0.6) * drawn.weight_share(edge),
            quoted(&told)
        );
    }
    for (from, to) in &drawn.links {
        let _ = writeln!(
            out,
            "  n{from} -> n{to} [{LINK}, tooltip=\"residual stream\"];"
        );
    }
    out.push_str("}\n");
    out
}

/// One sublayer's nodes.
fn cluster(out: &mut String, drawn: &DrawnCircuit, layer: usize, name: &str, is_mlp: bool) {
    let nodes = drawn.nodes.iter().enumerate();
    let nodes: Vec<_> = nodes
        .filter(|(_, node)| node.at.layer == layer && in_mlp(node.at.kind) == is_mlp)
        .collect();
    if nodes.is_empty() {
        return;
    }
    let _ = writeln!(out, "    subgraph \"cluster_{layer}_{name}\" {{");
    let _ = writeln!(out, "      label=\"{name}\"; color=\"#c9ced6\";");
    for (index, node) in nodes {
        let place = node.record.node.as_str();
        let mut label = format!("{place}:{}", node.record.channel);
        if let Some(head) = node.head {
            let _ = write!(label, "\nhead {head}");
        }
        let told = format!(
            "{place}:{}, effect {}, in the whole model {}, presented {}, counterfactual {}, held at {}",
            node.record.channel,
            signed_effect(node.record.effect),
            signed_effect(node.record.effect_in_whole_model),
            node.record.presented,
            node.record.counterfactual,
            node.record.held_at
        );
        let opacity = (40.0 + 215.0 * drawn.node_share(node)).round() as u8;
        let _ = writeln!(
            out,
            "      n{index} [label={}, fillcolor=\"{FILL}{opacity:02x}\", tooltip={}];",
            quoted(&label),
            quoted(&told)
        );
    }
    out.push_str("    }\n");
}

fn in_mlp(kind: NodeKind) -> bool {
    matches!(kind, NodeKind::MlpIn | NodeKind::PostAct | NodeKind::MlpOut)
}

/// A string of the DOT language that is shown as `text`.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            // Graphviz reads the names of characters in labels.
            '&' => quoted.push_str("&amp;"),
            control if control.is_control() => quoted.push(' '),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuits::drawing::test_circuit::{large, quotes};
    use crate::features::test_pair::random_pair;

    /// The tokens of a graph: quoted strings whole, everything else character by character.
    fn strings_closed(dot: &str) -> (usize, String) {
        let (mut strings, mut outside, mut inside, mut escaped) = (0, String::new(), false, false);
        for character in dot.chars() {
            match (inside, escaped, character) {
                (true, true, _) => escaped = false,
                (true, false, '\\') => escaped = true,
                (_, _, '"') => {
                    inside = !inside;
                    strings += usize::from(inside);
                }
                (true, ..) => assert!(character != '\n', "a string over two lines"),
                (false, _, other) => outside.push(other),
            }
        }
        assert!(!inside, "a string without an end");
        (strings, outside)
    }

    #[test]
    fn every_node_and_edge_is_in_the_graph() {
        let circuit = quotes();
        let graph = dot(&circuit);
        let (_, outside) = strings_closed(&graph);
        assert_eq!(outside.matches('{').count(), outside.matches('}').count());
        assert_eq!(graph.matches("fillcolor").count(), circuit.nodes.len());
        assert_eq!(graph.matches("penwidth").count(), circuit.edges.len());
        assert_eq!(graph.matches("residual stream").count(), 2);
        assert_eq!(graph.matches("style=dashed").count(), 3);
        for node in &circuit.nodes {
            let label = format!("label=\"{}:{}", node.node.as_str(), node.channel);
            assert_eq!(graph.matches(&label).count(), 1, "{label}");
        }
        // The largest weight has the widest pen, the largest effect is opaque.
        assert!(graph.contains("penwidth=6.00"));
        assert!(graph.contains("#f5b93fff"));
        let config = random_pair(1).sparse.config;
        assert!(dot_of_model(&circuit, &config).contains("1.attn.q:5\\nhead 1\""));
    }

    #[test]
    fn whatever_things_are_called_the_graph_can_be_read() {
        let mut circuit = quotes();
        circuit.task = "a\"];\\ \u{1b}[31m &lt; {x}\r\n<b>".to_owned();
        circuit.model = "\\".to_owned();
        let plain = strings_closed(&dot(&quotes()));
        let odd = dot(&circuit);
        assert_eq!(strings_closed(&odd), plain);
        assert!(!odd.contains('\u{1b}'));
        assert!(
            odd.contains("a\\\"];\\\\  [31m &amp;lt; {x} \\n<b>"),
            "{odd}"
        );
    }

    #[test]
    fn a_large_circuit_says_what_is_left_out() {
        let graph = dot(&large(700, 5_000));
        assert!(graph.contains("Not drawn: 300 nodes"));
        assert!(graph.matches("fillcolor").count() == 400);
    }
}
