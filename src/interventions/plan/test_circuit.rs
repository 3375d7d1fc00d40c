//! A circuit's record for tests: of whatever nodes, with figures that nobody has measured.

use serde_json::{Value, json};

use crate::circuits::circuit::Circuit;

/// The circuit `ring` of a model: the place, the channel and the mean of each node. Over reference text a node's standard
/// deviation is 0.5 and its largest value 2.
pub fn circuit(
    model: &str,
    fingerprint: &str,
    ablation: &str,
    nodes: &[(&str, usize, f32)],
) -> Circuit {
    let nodes = nodes.iter().map(|(node, channel, mean)| {
        json!({"node": node, "channel": channel, "held_at": if ablation == "mean" { *mean } else { 0.0 },
            "effect": 0.1, "effect_in_whole_model": 0.1, "correlation": null, "presented": 1.0, "counterfactual": -1.0,
            "reference": {"mean": mean, "std": 0.5, "min": -1.0, "max": 2.0, "density": 1.0}, "examples": []})
    });
    let nodes: Vec<Value> = nodes.collect();
    let record = json!({
        "id": "ring", "model": model, "model_fingerprint": fingerprint, "task": "single_double_quote", "summary": "",
        "method": {"ablation": ablation, "frozen_norms": false, "target_loss": 0.15, "learning_rate": 0.003,
            "node_penalty": 0.0001, "steps": 1, "batch_pairs": 1, "train_pairs": 8, "held_out_pairs": 8, "seed": 0,
            "reference_tokens": 64, "scale": 1.0, "shift": 0.0},
        "figures": {"nodes": nodes.len(), "edges": 0, "edges_before_pruning": 0, "task_loss": 0.1,
            "accuracy": 1.0, "task_loss_train": 0.1, "task_loss_unscaled": 0.1, "task_loss_whole": 0.1,
            "accuracy_whole": 1.0, "task_loss_without": 0.7, "accuracy_without": 0.5, "reaches_target": true},
        "controls": {"shuffled_labels": null, "random_model": null, "frozen_norms": null, "interchange": null,
            "interchange_random_nodes": null, "mean_correlation": null, "least_correlation": null,
            "beats_controls": null},
        "nodes": nodes, "edges": [], "sizes": [],
    });
    serde_json::from_value(record).expect("a circuit")
}
