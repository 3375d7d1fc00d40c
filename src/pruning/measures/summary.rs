//! What the figures of a circuit say, in words.

use std::f64::consts::LN_2;

use crate::circuits::circuit::{CircuitControls, CircuitFigures, ControlCircuit};

/// Whether the circuit reaches its target with fewer nodes than both controls; none where a control that could still say
/// no was not asked for.
pub fn beats_controls(figures: &CircuitFigures, controls: &CircuitControls) -> Option<bool> {
    let asked = [controls.shuffled_labels, controls.random_model];
    if asked.iter().all(Option::is_none) {
        return None;
    }
    let is_beaten =
        |control: ControlCircuit| !control.reaches_target || figures.nodes < control.nodes;
    let beats = figures.reaches_target && asked.into_iter().flatten().all(is_beaten);
    match beats {
        false => Some(false),
        true => asked.iter().all(Option::is_some).then_some(true),
    }
}

/// Does the circuit do its task, is it smaller than its controls, is it necessary, does the answer follow it?
pub fn summary(figures: &CircuitFigures, controls: &CircuitControls, target: f64) -> String {
    let sentences = [
        Some(of_task(figures, target)),
        of_controls(figures, controls),
        Some(of_necessity(figures, target)),
        of_interchange(controls),
        of_correlation(controls),
    ];
    let sentences: Vec<String> = sentences.into_iter().flatten().collect();
    sentences.join(" ")
}

fn of_task(figures: &CircuitFigures, target: f64) -> String {
    let does = match (figures.reaches_target, figures.task_loss <= target) {
        (true, true) => "The circuit does its task",
        (true, false) => {
            "The circuit does its task on the pairs that it was found on, but not as well on held-out ones"
        }
        (false, _) => "The circuit does not do its task: no number of nodes reached the target",
    };
    format!(
        "{does}: its task loss is {:.3} on the pairs that it was chosen on, {:.3} on held-out ones (target {target:.3}), of which it \
         answers {} rightly, with {} nodes and {} of {} edges; the whole model's is {:.3}, with {} right.",
        figures.task_loss_train,
        figures.task_loss,
        percent(figures.accuracy),
        figures.nodes,
        figures.edges,
        figures.edges_before_pruning,
        figures.task_loss_whole,
        percent(figures.accuracy_whole),
    )
}

fn of_controls(figures: &CircuitFigures, controls: &CircuitControls) -> Option<String> {
    let of = |name: &str, control: Option<ControlCircuit>| {
        control.map(|control| match control.reaches_target {
            true => format!("{} nodes {name}", control.nodes),
            false => format!("no circuit that reaches the target {name}"),
        })
    };
    let asked = [
        of("for shuffled labels", controls.shuffled_labels),
        of("in a model of random weights", controls.random_model),
    ];
    let asked: Vec<String> = asked.into_iter().flatten().collect();
    if asked.is_empty() {
        return Some(
            "Nothing says how large a circuit the same search finds where there is none."
                .to_owned(),
        );
    }
    let verdict = match (beats_controls(figures, controls), figures.reaches_target) {
        (Some(true), _) => "It is smaller than its controls",
        (Some(false), true) => {
            "It does not beat its controls, so that its size is no sign of a mechanism"
        }
        (Some(false), false) => {
            "It does not reach the target, so that it does not beat its controls"
        }
        (None, _) => "It is smaller than the one control that was asked for",
    };
    Some(format!(
        "{verdict}: the same search finds {}.",
        asked.join(" and ")
    ))
}

fn of_necessity(figures: &CircuitFigures, target: f64) -> String {
    let (without, right) = (figures.task_loss_without, figures.accuracy_without);
    let verdict = if figures.task_loss_whole >= LN_2 {
        "The whole model does no better than chance, so that nothing can be said about whether it is necessary"
    } else if without >= LN_2 {
        "It is necessary: without its nodes the whole model does no better than chance"
    } else if without <= target.max(figures.task_loss_whole) {
        "It is not necessary: without its nodes the whole model still does the task in another way"
    } else if without > figures.task_loss_whole {
        "It is necessary in part: without its nodes the whole model does the task less well"
    } else {
        "It is not necessary: without its nodes the whole model does the task no worse"
    };
    format!(
        "{verdict} (task loss {without:.3}, {} right).",
        percent(right)
    )
}

fn of_interchange(controls: &CircuitControls) -> Option<String> {
    let flipped = controls.interchange?;
    let random = controls.interchange_random_nodes;
    let verdict = match flipped > random.unwrap_or(0.0) {
        true if flipped >= 0.9 => "The answer follows its nodes",
        true if flipped >= 0.5 => "The answer mostly follows its nodes",
        true => "The answer seldom follows its nodes",
        false => "The answer does not follow its nodes more than others",
    };
    let random = random.map_or_else(String::new, |random| {
        format!(
            ", {} with as many random nodes of the same places",
            percent(random)
        )
    });
    Some(format!(
        "{verdict}: exchanged between the prompts of a pair in the whole model, they turn {} of the right \
         answers{random}.",
        percent(flipped)
    ))
}

fn of_correlation(controls: &CircuitControls) -> Option<String> {
    let (mean, least) = (controls.mean_correlation?, controls.least_correlation?);
    Some(format!(
        "Its nodes' activations inside the circuit correlate with those inside the whole model by {mean:.2} on average, \
         {least:.2} at least."
    ))
}

fn percent(share: f64) -> String {
    format!("{:.0}%", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> CircuitFigures {
        CircuitFigures {
            nodes: 10,
            edges: 8,
            edges_before_pruning: 12,
            task_loss: 0.12,
            accuracy: 0.97,
            task_loss_train: 0.14,
            task_loss_unscaled: 0.3,
            task_loss_whole: 0.02,
            accuracy_whole: 1.0,
            task_loss_without: 0.9,
            accuracy_without: 0.4,
            reaches_target: true,
        }
    }

    fn control(nodes: usize, reaches_target: bool) -> Option<ControlCircuit> {
        Some(ControlCircuit {
            nodes,
            edges: 3,
            task_loss_train: 0.1,
            reaches_target,
        })
    }

    fn controls(
        shuffled: Option<ControlCircuit>,
        random: Option<ControlCircuit>,
    ) -> CircuitControls {
        CircuitControls {
            shuffled_labels: shuffled,
            random_model: random,
            interchange: Some(0.95),
            interchange_random_nodes: Some(0.01),
            ..CircuitControls::default()
        }
    }

    #[test]
    fn a_circuit_beats_its_controls_where_it_is_smaller_than_both() {
        let beats = |shuffled, random| beats_controls(&figures(), &controls(shuffled, random));
        assert_eq!(beats(control(11, true), control(40, true)), Some(true));
        assert_eq!(beats(control(10, true), control(40, true)), Some(false));
        assert_eq!(beats(control(3, false), control(40, true)), Some(true));
        assert_eq!(beats(control(30, true), None), None);
        assert_eq!(beats(None, control(9, true)), Some(false));
        assert_eq!(beats(None, None), None);
        let short = CircuitFigures {
            reaches_target: false,
            ..figures()
        };
        let easy = controls(control(40, true), control(40, true));
        assert_eq!(beats_controls(&short, &easy), Some(false));
    }

    #[test]
    fn a_summary_says_what_speaks_against_the_circuit() {
        let good = summary(
            &figures(),
            &controls(control(30, true), control(4, false)),
            0.15,
        );
        assert!(good.starts_with("The circuit does its task: "), "{good}");
        assert!(good.contains("It is smaller than its controls"), "{good}");
        assert!(
            good.contains("no circuit that reaches the target in a model"),
            "{good}"
        );
        assert!(good.contains("It is necessary: "), "{good}");
        assert!(
            good.contains("turn 95% of the right answers, 1% with"),
            "{good}"
        );
        let bad = CircuitFigures {
            task_loss: 0.5,
            task_loss_without: 0.05,
            ..figures()
        };
        let mut against = controls(control(5, true), control(30, true));
        against.interchange = Some(0.01);
        let bad = summary(&bad, &against, 0.15);
        assert!(bad.contains("not as well on held-out"), "{bad}");
        assert!(bad.contains("It does not beat its controls"), "{bad}");
        assert!(bad.contains("It is not necessary"), "{bad}");
        assert!(bad.contains("does not follow its nodes"), "{bad}");
    }
}
