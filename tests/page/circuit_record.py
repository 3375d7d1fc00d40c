"""A circuit's record as the server would send it, as large as one is asked for."""

import random


def large_circuit(nodes, edges, layers=4):
    draw = random.Random(1)
    kinds = ["attn.act_in", "attn.q", "attn.k", "attn.v", "attn.resid_delta", "mlp.act_in", "mlp.post_act", "mlp.resid_delta"]
    places = [f"{layer}.{kind}" for layer in range(layers) for kind in kinds]
    reference = {"mean": 0.1, "std": 0.5, "min": -1.0, "max": 2.0, "density": 0.3}
    example = {"tokens": ['print("', "hello"], "values": [0.0, 1.5]}
    made = [{
        "node": places[at * len(places) // nodes], "channel": at, "held_at": 0.1, "effect": draw.random() ** 3, "effect_in_whole_model": 0.01,
        "correlation": 0.9, "presented": 1.0, "counterfactual": -1.0, "reference": reference, "examples": [example],
    } for at in range(nodes)]
    name = lambda node: {"node": node["node"], "channel": node["channel"]}
    joined = set()
    while len(joined) < edges:
        one, two = sorted(draw.sample(range(nodes), 2))
        if made[one]["node"] != made[two]["node"]:
            joined.add((one, two))
    control = {"nodes": 900, "edges": 4000, "task_loss_train": 0.4, "reaches_target": False}
    return {
        "id": "large", "object": "circuit", "model": "tinypython-sparse", "model_fingerprint": "0" * 64, "task": "single_double_quote",
        "summary": "Reaches its target with 400 nodes.", "stale": False, "nodes": made,
        "method": {"ablation": "mean", "frozen_norms": False, "target_loss": 0.15, "learning_rate": 0.03, "node_penalty": 0.01, "steps": 150,
                   "batch_pairs": 8, "train_pairs": 64, "held_out_pairs": 64, "seed": 0, "reference_tokens": 8192, "scale": 1.0, "shift": 0.0},
        "figures": {"nodes": nodes, "edges": edges, "edges_before_pruning": 2 * edges, "task_loss": 0.1, "accuracy": 0.97, "task_loss_train": 0.09,
                    "task_loss_unscaled": 0.2, "task_loss_whole": 0.02, "accuracy_whole": 1.0, "task_loss_without": 0.9, "accuracy_without": 0.4,
                    "reaches_target": True},
        "controls": {"shuffled_labels": control, "random_model": control, "frozen_norms": None, "interchange": 0.8, "interchange_random_nodes": 0.05,
                     "mean_correlation": 0.8, "least_correlation": 0.2, "beats_controls": True},
        "edges": [{"from": name(made[one]), "to": name(made[two]), "weight": draw.gauss(0, 1), "effect": draw.random() ** 4} for one, two in sorted(joined)],
        "sizes": [{"nodes": count, "task_loss": 0.7 / (1 + count / 100)} for count in (10, 50, 100, 200, 400)],
    }
