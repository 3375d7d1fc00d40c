//! A circuit as text for the terminal, 100 columns wide: what it does and what it is compared with, then its nodes in the
//! order of the pass, each with what it means and what it reads, then the summary.

use std::fmt::Write as _;

use super::drawn::{DrawnCircuit, DrawnNode, short, signed, signed_effect, wrapped};
use crate::circuits::circuit::{Ablation, Circuit, ControlCircuit};
use crate::models::config::TransformerConfig;

/// Lines of words are not longer.
const COLUMNS: usize = 100;

/// The circuit as text.
pub fn text(circuit: &Circuit) -> String {
    write(&DrawnCircuit::new(circuit, None))
}

/// The same with the heads of queries, keys and values, which `config`, the model's, tells.
pub fn text_of_model(circuit: &Circuit, config: &TransformerConfig) -> String {
    write(&DrawnCircuit::new(circuit, Some(config)))
}

fn write(drawn: &DrawnCircuit) -> String {
    let mut out = String::new();
    header(&mut out, drawn.record);
    for layer in drawn.layers() {
        let _ = writeln!(out, "\nlayer {layer}");
        let nodes = drawn.nodes.iter().enumerate();
        for (index, node) in nodes.filter(|(_, node)| node.at.layer == layer) {
            describe(&mut out, drawn, index, node);
        }
    }
    if let Some(left_out) = drawn.left_out() {
        out.push('\n');
        paragraph(&mut out, &left_out);
    }
    out.push('\n');
    paragraph(&mut out, &drawn.record.summary);
    out
}

/// What the circuit is, what it does, its controls and how it was found.
fn header(out: &mut String, record: &Circuit) {
    let (figures, controls, method) = (&record.figures, &record.controls, &record.method);
    let (task, model) = (printable(&record.task), printable(&record.model));
    // Writing to a string does not fail, here and below.
    let _ = writeln!(out, "{task}: circuit {} of {model}", record.id.as_str());
    let _ = writeln!(
        out,
        "{} nodes, {} edges ({} before the edges were pruned)\n",
        figures.nodes, figures.edges, figures.edges_before_pruning
    );
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let mut measured = |what: &str, loss: f64, accuracy: f64| {
        let (loss, right) = (short(loss), percent(accuracy));
        let _ = writeln!(out, "  {what:<24}task loss {loss:<9}right {right}");
    };
    measured("circuit alone", figures.task_loss, figures.accuracy);
    measured(
        "whole model",
        figures.task_loss_whole,
        figures.accuracy_whole,
    );
    measured(
        "model without circuit",
        figures.task_loss_without,
        figures.accuracy_without,
    );
    let reached = match figures.reaches_target {
        true => "reached",
        false => "not reached",
    };
    let _ = writeln!(
        out,
        "  {:<24}task loss {:<9}target {} {reached}; chance is {}\n",
        "alone, chosen on",
        short(figures.task_loss_train),
        short(method.target_loss),
        short(std::f64::consts::LN_2)
    );
    let control = |found: &Option<ControlCircuit>| match found {
        None => "not measured".to_owned(),
        Some(found) => format!(
            "{} nodes, {} edges, task loss {}, target {}",
            found.nodes,
            found.edges,
            short(found.task_loss_train),
            if found.reaches_target {
                "reached"
            } else {
                "not reached"
            }
        ),
    };
    let share = |share: Option<f64>| share.map_or("not measured".to_owned(), percent);
    let number = |number: Option<f64>| number.map_or("not measured".to_owned(), short);
    let rows = [
        ("shuffled labels", control(&controls.shuffled_labels)),
        ("random model", control(&controls.random_model)),
        ("frozen norms", control(&controls.frozen_norms)),
        (
            "interchange",
            format!(
                "{} of answers follow; with random nodes {}",
                share(controls.interchange),
                share(controls.interchange_random_nodes)
            ),
        ),
        (
            "correlation",
            format!(
                "with the whole model: mean {}, least {}",
                number(controls.mean_correlation),
                number(controls.least_correlation)
            ),
        ),
        (
            "beats its controls",
            match controls.beats_controls {
                None => "not measured".to_owned(),
                Some(true) => "yes".to_owned(),
                Some(false) => "no".to_owned(),
            },
        ),
    ];
    for (what, told) in rows {
        let _ = writeln!(out, "  {what:<24}{told}");
    }
    let ablation = match method.ablation {
        Ablation::Mean => "means over reference text",
        Ablation::Zero => "zero",
    };
    let norms = match method.frozen_norms {
        true => ", norms frozen",
        false => "",
    };
    let _ = writeln!(
        out,
        "  {:<24}other nodes held at {ablation}{norms}\n  {:<24}{} steps of {} pairs, seed {}",
        "found with", "", method.steps, method.batch_pairs, method.seed
    );
}

/// One node, what it means and what it reads.
fn describe(out: &mut String, drawn: &DrawnCircuit, index: usize, node: &DrawnNode) {
    let record = node.record;
    let mut name = format!("{}:{}", record.node.as_str(), record.channel);
    if let Some(head) = node.head {
        let _ = write!(name, " (head {head})");
    }
    let correlation = match record.correlation {
        Some(correlation) => format!("r {}", short(correlation)),
        None => "r none".to_owned(),
    };
    let _ = writeln!(
        out,
        "  {name:<30}effect {:<9}in model {:<9}{correlation}",
        signed_effect(record.effect),
        signed_effect(record.effect_in_whole_model)
    );
    let _ = writeln!(
        out,
        "      presented {:<9}counterfactual {:<9}held at {:<9}active at {:.1}% of tokens",
        signed(record.presented.into()),
        signed(record.counterfactual.into()),
        signed(record.held_at.into()),
        100.0 * record.reference.density
    );
    let edges = drawn.edges.iter().filter(|edge| edge.to == index);
    for edge in edges {
        let from = &edge.record.from;
        let source = format!("{}:{}", from.node.as_str(), from.channel);
        let _ = writeln!(
            out,
            "      <- {source:<26}weight {:<9}effect {}",
            signed(edge.record.weight.into()),
            signed_effect(edge.record.effect)
        );
    }
    let links = drawn.links.iter().filter(|(_, to)| *to == index);
    let sources: Vec<&str> = links
        .map(|&(from, _)| drawn.nodes[from].record.node.as_str())
        .collect();
    if !sources.is_empty() {
        let told = format!("<- the stream's channel {}, which ", record.channel);
        let told = match sources.len() {
            1 => format!("{told}{} adds to", sources[0]),
            _ => format!("{told}these add to: {}", sources.join(", ")),
        };
        let lines = wrapped(&told, COLUMNS - 9);
        for (line, words) in lines.iter().enumerate() {
            let indent = if line == 0 { 6 } else { 9 };
            let _ = writeln!(out, "{:indent$}{words}", "");
        }
    }
}

fn paragraph(out: &mut String, words: &str) {
    for line in wrapped(&printable(words), COLUMNS) {
        let _ = writeln!(out, "{line}");
    }
}

/// Without what a terminal would take for a command.
fn printable(text: &str) -> String {
    let shown = |character: char| match character.is_control() {
        true => ' ',
        false => character,
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuits::drawing::test_circuit::{large, quotes};
    use crate::features::test_pair::random_pair;

    #[test]
    fn the_nodes_stand_in_the_order_of_the_pass_with_what_they_read() {
        let circuit = quotes();
        let told = text(&circuit);
        let mut last = 0;
        for node in &circuit.nodes {
            let name = format!("\n  {}:{} ", node.node.as_str(), node.channel);
            let at = told.find(&name).unwrap_or_else(|| panic!("{name}\n{told}"));
            assert!(at > last, "{name}");
            last = at;
        }
        let edges = told.lines().filter(|line| line.contains("weight "));
        assert_eq!(edges.count(), circuit.edges.len());
        let line = "      <- 1.attn.v:6                weight -1.94    effect +0.970";
        assert!(told.lines().any(|each| each == line), "{told}");
        let stream = "      <- the stream's channel 460, which 0.mlp.resid_delta adds to";
        assert!(told.lines().any(|each| each == stream), "{told}");
        assert!(told.lines().all(|line| line.chars().count() <= COLUMNS));
        let tail: Vec<&str> = told.lines().rev().take(2).collect();
        let tail = format!("{} {}", tail[1], tail[0]);
        assert!(
            circuit
                .summary
                .split_whitespace()
                .eq(tail.split_whitespace())
        );
        let config = random_pair(1).sparse.config;
        assert!(text_of_model(&circuit, &config).contains("1.attn.v:6 (head 1)"));
    }

    #[test]
    fn the_header_tells_losses_and_controls() {
        let mut circuit = quotes();
        let told = text(&circuit);
        for line in [
            "single_double_quote: circuit quotes of tiny-sparse",
            "12 nodes, 9 edges (13 before the edges were pruned)",
            "  circuit alone           task loss 0.0830   right 98.4%",
            "  model without circuit   task loss 1.93     right 52.0%",
            "  shuffled labels         34 nodes, 51 edges, task loss 0.410, target not reached",
            "  frozen norms            not measured",
            "  interchange             94.0% of answers follow; with random nodes 3.0%",
            "  beats its controls      yes",
        ] {
            assert!(told.lines().any(|each| each == line), "{line}\n{told}");
        }
        circuit.controls.beats_controls = Some(false);
        assert!(text(&circuit).contains("  beats its controls      no\n"));
    }

    #[test]
    fn no_text_is_a_command_to_the_terminal() {
        let mut circuit = quotes();
        circuit.summary = "a\u{1b}[2Jb\u{9b}c".to_owned();
        circuit.task = "x\u{7}".to_owned();
        let told = text(&circuit);
        assert!(told.chars().all(|c| c == '\n' || !c.is_control()));
        assert!(text(&large(700, 5_000)).contains("Not drawn: 300 nodes"));
    }
}
