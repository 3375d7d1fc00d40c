//! Circuits for tests of drawings.

use serde_json::json;

use crate::circuits::circuit::Circuit;

/// The quote circuit in small: a detector and a type neuron in the first MLP, a head of the second layer that takes the one as
/// key and the other as value.
pub fn quotes() -> Circuit {
    let nodes = [
        ("0.mlp.act_in", 33, 0.61, 0.9, 0.9),
        ("0.mlp.act_in", 71, 0.44, -1.2, 1.3),
        ("0.mlp.post_act", 12, 0.58, 1.1, 1.0),
        ("0.mlp.post_act", 40, 0.92, 2.4, -0.1),
        ("0.mlp.resid_delta", 460, 0.95, 1.9, -1.7),
        ("0.mlp.resid_delta", 985, 0.41, 0.8, 0.8),
        ("1.attn.act_in", 460, 0.93, 1.4, -1.5),
        ("1.attn.act_in", 985, 0.38, 0.7, 0.7),
        ("1.attn.q", 5, -0.02, 0.3, 0.3),
        ("1.attn.k", 5, 0.36, 1.6, 1.6),
        ("1.attn.v", 6, 0.9, 2.2, -2.0),
        ("1.attn.resid_delta", 83, 0.97, 3.1, -2.9),
    ];
    let edges = [
        ("0.mlp.act_in", 33, "0.mlp.post_act", 12, 0.83),
        ("0.mlp.act_in", 71, "0.mlp.post_act", 12, 0.21),
        ("0.mlp.act_in", 71, "0.mlp.post_act", 40, -1.37),
        ("0.mlp.post_act", 12, "0.mlp.resid_delta", 985, 0.66),
        ("0.mlp.post_act", 40, "0.mlp.resid_delta", 460, 1.52),
        ("1.attn.act_in", 985, "1.attn.k", 5, 0.74),
        ("1.attn.act_in", 460, "1.attn.v", 6, 1.19),
        ("1.attn.act_in", 460, "1.attn.q", 5, -0.08),
        ("1.attn.v", 6, "1.attn.resid_delta", 83, -1.94),
    ];
    circuit(
        nodes.map(|(place, channel, effect, presented, counterfactual)| {
            json!({"node": place, "channel": channel, "held_at": 0.05, "effect": effect,
                "effect_in_whole_model": effect / 2.0, "correlation": 0.93, "presented": presented,
                "counterfactual": counterfactual,
                "reference": {"mean": 0.05, "std": 0.4, "min": -2.0, "max": 3.0, "density": 0.07},
                "examples": [{"tokens": ["x", " =", " \""], "values": [0.0, 0.0, 1.25]}]})
        }),
        edges.map(|(from, a, to, b, weight): (_, usize, _, usize, f64)| {
            json!({"from": {"node": from, "channel": a}, "to": {"node": to, "channel": b}, "weight": weight,
                "effect": weight.abs() / 2.0})
        }),
    )
}

/// A circuit of so many neurons and what they write, joined by about so many edges.
pub fn large(nodes: usize, edges: usize) -> Circuit {
    let half = nodes / 2;
    let node = |index: usize| {
        let (place, channel) = match index < half {
            true => ("0.mlp.post_act", index),
            false => ("0.mlp.resid_delta", index - half),
        };
        (place, channel)
    };
    let effect = |index: usize| ((index * 7919) % 1009) as f64 / 1009.0;
    circuit(
        (0..nodes).map(|index| {
            let (place, channel) = node(index);
            json!({"node": place, "channel": channel, "held_at": 0.0, "effect": effect(index),
                "effect_in_whole_model": 0.0, "correlation": null, "presented": 0.0, "counterfactual": 0.0,
                "reference": {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "density": 1.0}, "examples": []})
        }),
        (0..edges).map(|index| {
            let (from, to) = (node(index % half), node(half + index / half % (nodes - half)));
            json!({"from": {"node": from.0, "channel": from.1}, "to": {"node": to.0, "channel": to.1},
                "weight": effect(index) - 0.5, "effect": effect(index + 3)})
        }),
    )
}

fn circuit(
    nodes: impl IntoIterator<Item = serde_json::Value>,
    edges: impl IntoIterator<Item = serde_json::Value>,
) -> Circuit {
    let (nodes, edges): (Vec<_>, Vec<_>) =
        (nodes.into_iter().collect(), edges.into_iter().collect());
    let (n_nodes, n_edges) = (nodes.len(), edges.len());
    let control =
        json!({"nodes": 34, "edges": 51, "task_loss_train": 0.41, "reaches_target": false});
    serde_json::from_value(json!({
        "id": "quotes", "model": "tiny-sparse", "model_fingerprint": "00ff", "task": "single_double_quote",
        "summary": "The circuit does its task: its loss is below the target, and it needs fewer nodes than the same \
            search finds on shuffled labels and in a model with random weights.",
        "method": {"ablation": "mean", "frozen_norms": false, "target_loss": 0.15, "learning_rate": 0.003,
            "node_penalty": 0.0001, "steps": 2000, "batch_pairs": 64, "train_pairs": 512, "held_out_pairs": 128,
            "seed": 1, "reference_tokens": 65536, "scale": 1.4, "shift": -0.1},
        "figures": {"nodes": n_nodes, "edges": n_edges, "edges_before_pruning": n_edges + 4, "task_loss": 0.083,
            "accuracy": 0.984, "task_loss_train": 0.079, "task_loss_unscaled": 0.112, "task_loss_whole": 0.021,
            "accuracy_whole": 0.996, "task_loss_without": 1.93, "accuracy_without": 0.52, "reaches_target": true},
        "controls": {"shuffled_labels": control, "random_model": control, "frozen_norms": null,
            "interchange": 0.94, "interchange_random_nodes": 0.03, "mean_correlation": 0.91,
            "least_correlation": 0.62, "beats_controls": true},
        "nodes": nodes, "edges": edges,
        "sizes": [{"nodes": 1, "task_loss": 0.69}, {"nodes": n_nodes, "task_loss": 0.08}],
    }))
    .unwrap()
}
