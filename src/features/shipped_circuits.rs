//! The circuits that a pair comes with: `circuits/ID/circuit.json` of its directory, each of one of its two models.

use std::path::Path;
use std::sync::Arc;

use crate::artifacts::ArtifactId;
use crate::bridge::pair::PairError;
use crate::circuits::circuit::{Circuit, NamedCircuits};
use crate::circuits::directory::{self, CIRCUIT_FILE, CIRCUITS_FOLDER, CircuitError};
use crate::circuits::fitting;
use crate::models::config::TransformerConfig;

/// More circuits than these are not read.
const MOST_CIRCUITS: usize = 256;
/// Nor are more bytes of them.
const MOST_BYTES: u64 = 32 << 20;

/// A model of the pair, as circuits name it.
#[derive(Debug, Clone, Copy)]
pub struct CircuitHost<'a> {
    pub id: &'a str,
    /// Of its configuration and weights.
    pub fingerprint: &'a str,
    pub config: &'a TransformerConfig,
}

/// The circuits in a pair's directory by their ids, which are the names of their folders; none where it has no folder of
/// them. Each is of one of `hosts`, with the weights that it has now, and fits it.
pub fn read(directory: &Path, hosts: &[CircuitHost]) -> Result<NamedCircuits, PairError> {
    let folder = directory.join(CIRCUITS_FOLDER);
    let mut circuits = NamedCircuits::new();
    if !folder.is_dir() {
        return Ok(circuits);
    }
    let invalid = |path: &Path, problem: String| PairError::Invalid {
        path: path.display().to_string(),
        problem,
    };
    let unlisted = |error: std::io::Error| invalid(&folder, format!("cannot be listed: {error}"));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(unlisted)? {
        let name = entry.map_err(unlisted)?.file_name();
        let name = name.to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        names.push(name);
        if names.len() > MOST_CIRCUITS {
            let problem = format!("has more than {MOST_CIRCUITS} circuits");
            return Err(invalid(&folder, problem));
        }
    }
    names.sort();
    let mut bytes = 0;
    for name in names {
        let place = folder.join(&name);
        let id: ArtifactId = name
            .parse()
            .map_err(|error| invalid(&place, format!("{error}")))?;
        let path = place.join(CIRCUIT_FILE);
        bytes += std::fs::metadata(&path).map_or(0, |file| file.len());
        if bytes > MOST_BYTES {
            let problem = format!("has more than {} MiB of circuits", MOST_BYTES >> 20);
            return Err(invalid(&folder, problem));
        }
        let circuit = directory::read(&place)?;
        check(&circuit, &id, hosts).map_err(|problem| invalid(&path, problem))?;
        circuits.insert(name, Arc::new(circuit));
    }
    Ok(circuits)
}

fn check(circuit: &Circuit, id: &ArtifactId, hosts: &[CircuitHost]) -> Result<(), String> {
    if circuit.id != *id {
        return Err(format!(
            "the circuit calls itself {:?}; it is in the folder of {:?}",
            circuit.id.as_str(),
            id.as_str()
        ));
    }
    let host = hosts.iter().find(|host| host.id == circuit.model);
    let host = host.ok_or_else(|| {
        let ids: Vec<&str> = hosts.iter().map(|host| host.id).collect();
        let ids = ids.join(" and ");
        format!(
            "is of model {:?}; the pair's models are {ids}",
            circuit.model
        )
    })?;
    if circuit.model_fingerprint != host.fingerprint {
        return Err(format!(
            "was found in other weights than model {} has: its model_fingerprint is {:?}, the model's {:?}",
            host.id, circuit.model_fingerprint, host.fingerprint
        ));
    }
    fitting::check(circuit, host.config)
}

impl From<CircuitError> for PairError {
    fn from(error: CircuitError) -> Self {
        match error {
            CircuitError::Artifact(error) => error.into(),
            CircuitError::Invalid { path, problem } => PairError::Invalid { path, problem },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::features::pair::Pair;
    use crate::features::test_pair::random_pair;

    /// Writes a small circuit of the sparse model of the pair in `directory`, with a change of its record.
    fn write(directory: &Path, folder: &str, fingerprint: &str, change: impl FnOnce(&mut Value)) {
        let node = |place: &str, channel: usize| {
            json!({"node": place, "channel": channel, "held_at": 0.0, "effect": 0.5, "effect_in_whole_model": 0.1,
                "correlation": null, "presented": 1.0, "counterfactual": -1.0,
                "reference": {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "density": 1.0},
                "examples": [{"tokens": ["t1"], "values": [0.5]}]})
        };
        let mut record = json!({
            "id": folder, "model": "test-sparse", "model_fingerprint": fingerprint, "task": "single_double_quote",
            "summary": "Two nodes.",
            "method": {"ablation": "mean", "frozen_norms": false, "target_loss": 0.15, "learning_rate": 0.003,
                "node_penalty": 0.0001, "steps": 10, "batch_pairs": 4, "train_pairs": 8, "held_out_pairs": 4, "seed": 1,
                "reference_tokens": 64, "scale": 1.0, "shift": 0.0},
            "figures": {"nodes": 2, "edges": 1, "edges_before_pruning": 1, "task_loss": 0.1, "accuracy": 1.0,
                "task_loss_train": 0.1, "task_loss_unscaled": 0.1, "task_loss_whole": 0.1, "accuracy_whole": 1.0,
                "task_loss_without": 0.7, "accuracy_without": 0.5, "reaches_target": true},
            "controls": {"shuffled_labels": null, "random_model": null, "frozen_norms": null, "interchange": null,
                "interchange_random_nodes": null, "mean_correlation": null, "least_correlation": null,
                "beats_controls": null},
            "nodes": [node("0.mlp.act_in", 1), node("0.mlp.post_act", 2)],
            "edges": [{"from": {"node": "0.mlp.act_in", "channel": 1}, "to": {"node": "0.mlp.post_act", "channel": 2},
                "weight": 0.25, "effect": 0.1}],
            "sizes": []
        });
        change(&mut record);
        let place = directory.join(CIRCUITS_FOLDER).join(folder);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join(CIRCUIT_FILE), record.to_string()).unwrap();
    }

    #[test]
    fn a_pair_has_the_circuits_of_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        random_pair(1).write(directory);
        let without = Pair::read(directory).unwrap();
        assert!(without.circuits.is_empty());
        let fingerprint = without.sparse.fingerprint.clone();
        write(directory, "one", &fingerprint, |_| {});
        write(directory, "another.one", &fingerprint, |_| {});
        write(
            directory,
            "of-dense",
            &without.dense.fingerprint,
            |record| {
                record["model"] = json!("test-dense");
            },
        );
        let pair = Pair::read(directory).unwrap();
        let ids: Vec<&String> = pair.circuits.keys().collect();
        assert_eq!(ids, ["another.one", "of-dense", "one"]);
        assert_eq!(pair.circuits["one"].nodes.len(), 2);
    }

    #[test]
    fn a_circuit_that_does_not_fit_is_refused_with_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        random_pair(1).write(directory);
        let pair = Pair::read(directory).unwrap();
        let fingerprint = pair.sparse.fingerprint.clone();
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 9] = [
            (
                |record| record["id"] = json!("other"),
                "calls itself \"other\"",
            ),
            (
                |record| record["model"] = json!("nobody"),
                "the pair's models are test-dense and test-sparse",
            ),
            (
                |record| record["model_fingerprint"] = json!("00"),
                "found in other weights",
            ),
            (
                |record| record["nodes"][1]["channel"] = json!(100_000),
                "nodes[1] is 0.mlp.post_act:100000",
            ),
            (
                |record| record["nodes"][0]["node"] = json!("9.mlp.act_in"),
                "9.mlp.act_in",
            ),
            (
                |record| record["edges"][0]["to"]["channel"] = json!(3),
                "edges[0].to is 0.mlp.post_act:3",
            ),
            (
                |record| record["nodes"][0]["examples"][0]["values"] = json!([]),
                "needs one a token",
            ),
            (
                |record| record["nodes"][0]["held_at"] = json!(1e300),
                "number",
            ),
            (|record| record["nodes"] = json!([]), "no nodes"),
        ];
        for (change, told) in cases {
            write(directory, "one", &fingerprint, change);
            let error = Pair::read(directory).expect_err("a refusal").to_string();
            assert!(error.contains(told), "expected {told:?} in: {error}");
            assert!(error.contains("circuits/one"), "{error}");
        }
        write(directory, "one", &fingerprint, |_| {});
        std::fs::create_dir(directory.join("circuits/Not an id")).unwrap();
        let error = Pair::read(directory).expect_err("a refusal").to_string();
        assert!(error.contains("not a valid id"), "{error}");
    }
}
