//! Circuits as a Markdown table: one line a task, with what says how much of its circuit to believe, and what all of them
//! come to together.

use std::fmt::Write as _;

use crate::circuits::circuit::{Circuit, ControlCircuit};

/// The table of `circuits`. Where there are `others`, circuits of another model for the same tasks, it tells how many times as
/// many edges these have.
pub fn table(circuits: &[Circuit], others: &[Circuit]) -> String {
    let mut out = String::new();
    let beside = |column: &'static str| if others.is_empty() { "" } else { column };
    let edges = beside(" edges of the other model | ratio |");
    let rule = beside("---|---|");
    // Writing to a string does not fail, here and below.
    let _ = writeln!(
        out,
        "| task | nodes | edges | loss | right | whole model | without the circuit | interchange (random) | shuffled labels \
         | random model | frozen norms | correlation |{edges}"
    );
    let _ = writeln!(
        out,
        "|---|---|---|---|---|---|---|---|---|---|---|---|{rule}"
    );
    for circuit in circuits {
        line(&mut out, circuit, others);
    }
    out.push('\n');
    let does = |circuit: &&Circuit| does_its_task(circuit);
    let _ = writeln!(
        out,
        "{} of {} circuits reach the loss that was asked for on held-out pairs.",
        circuits.iter().filter(does).count(),
        circuits.len()
    );
    let interchanges = circuits.iter().filter_map(|of| of.controls.interchange);
    let _ = writeln!(out, "Mean interchange: {}.", share(mean(interchanges)));
    let ratios: Vec<f64> = circuits.iter().filter_map(|of| ratio(of, others)).collect();
    if !others.is_empty() {
        let logarithms = ratios.iter().map(|ratio| ratio.ln());
        let _ = writeln!(
            out,
            "Geometric mean of the ratios of edges, over the {} tasks that both models do: {}.",
            ratios.len(),
            mean(logarithms).map_or("–".to_owned(), |mean| format!("{:.1}", mean.exp()))
        );
    }
    out
}

fn line(out: &mut String, circuit: &Circuit, others: &[Circuit]) {
    let (figures, controls) = (&circuit.figures, &circuit.controls);
    let percent = |share: f64| format!("{:.0}%", 100.0 * share);
    let _ = write!(
        out,
        "| {} | {} | {} of {} | {:.3} | {} | {:.3}, {} | {:.3}, {} | {} ({}) | {} | {} | {} | {} |",
        circuit.task,
        figures.nodes,
        figures.edges,
        figures.edges_before_pruning,
        figures.task_loss,
        percent(figures.accuracy),
        figures.task_loss_whole,
        percent(figures.accuracy_whole),
        figures.task_loss_without,
        percent(figures.accuracy_without),
        share(controls.interchange),
        share(controls.interchange_random_nodes),
        control(controls.shuffled_labels),
        control(controls.random_model),
        control(controls.frozen_norms),
        share(controls.mean_correlation),
    );
    if !others.is_empty() {
        let other = others.iter().find(|other| other.task == circuit.task);
        let edges = other.map_or("–".to_owned(), |other| match does_its_task(other) {
            true => other.figures.edges.to_string(),
            false => format!(
                "{} (loss {:.3})",
                other.figures.edges, other.figures.task_loss
            ),
        });
        let ratio = ratio(circuit, others);
        let ratio = ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.1}"));
        let _ = write!(out, " {edges} | {ratio} |");
    }
    out.push('\n');
}

/// Whether a circuit reaches what was asked of it on held-out pairs too.
fn does_its_task(circuit: &Circuit) -> bool {
    circuit.figures.reaches_target && circuit.figures.task_loss <= circuit.method.target_loss
}

/// How many times as many edges the other model's circuit has; none where one of the two does not do the task.
fn ratio(circuit: &Circuit, others: &[Circuit]) -> Option<f64> {
    let other = others.iter().find(|other| other.task == circuit.task)?;
    let edges = circuit.figures.edges;
    let is_known = does_its_task(circuit) && does_its_task(other) && edges > 0;
    is_known.then(|| other.figures.edges as f64 / edges as f64)
}

/// The nodes of a control, or its loss where it does not reach the target.
fn control(control: Option<ControlCircuit>) -> String {
    match control {
        None => "–".to_owned(),
        Some(found) if found.reaches_target => format!("{} nodes", found.nodes),
        Some(found) => format!("none (loss {:.3})", found.task_loss_train),
    }
}

fn share(share: Option<f64>) -> String {
    share.map_or("–".to_owned(), |share| format!("{share:.2}"))
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    let count = values.len() as f64;
    (!values.is_empty()).then(|| values.into_iter().sum::<f64>() / count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuits::drawing::test_circuit::quotes;

    fn of_task(task: &str, edges: usize, task_loss: f64) -> Circuit {
        let mut circuit = quotes();
        circuit.task = task.to_owned();
        circuit.figures.edges = edges;
        circuit.figures.task_loss = task_loss;
        circuit.figures.reaches_target = true;
        circuit.method.target_loss = 0.15;
        circuit
    }

    #[test]
    fn ratios_are_of_tasks_that_both_models_do() {
        let sparse = [
            of_task("one", 10, 0.1),
            of_task("two", 10, 0.1),
            of_task("three", 10, 0.3),
            of_task("four", 10, 0.1),
        ];
        let dense = [
            of_task("one", 40, 0.1),
            of_task("two", 90, 0.1),
            of_task("three", 90, 0.1),
            of_task("four", 90, 0.4),
        ];
        let table = table(&sparse, &dense);
        assert!(
            table.contains("over the 2 tasks that both models do: 6.0."),
            "{table}"
        );
        assert!(
            table.starts_with("| task |") && table.contains("3 of 4 circuits"),
            "{table}"
        );
        let columns = |line: &str| line.matches('|').count();
        let lines: Vec<&str> = table.lines().take(6).collect();
        assert!(
            lines.iter().all(|line| columns(line) == columns(lines[0])),
            "{table}"
        );
        assert!(!super::table(&sparse, &[]).contains("ratio"));
    }
}
