//! The circuits of a snapshot: what they are called, and which model each was found in.

use std::sync::Arc;

use super::snapshot::{ModelCard, NotServed, ServedPair, Snapshot, shortened};
use crate::artifacts::ArtifactId;
use crate::circuits::circuit::Circuit;
use crate::features::group::WeightedChannel;
use crate::interventions::nearest::suggestion;

impl Snapshot {
    /// The same with a circuit that a job has found.
    pub fn with_circuit(&self, circuit: Circuit) -> Self {
        let mut with = self.clone();
        let id = circuit.id.to_string();
        with.found.insert(id, Arc::new(circuit));
        with.name_circuits();
        with
    }

    /// The same without a circuit that a job has found.
    pub fn without_circuit(&self, id: &str) -> Self {
        let mut without = self.clone();
        if without.found.remove(id).is_some() {
            without.name_circuits();
        }
        without
    }

    /// Gives every circuit the id that it is served under, which its record then has too.
    pub(super) fn name_circuits(&mut self) {
        let mut named = self.found.clone();
        let mut pairs: Vec<&Arc<ServedPair>> = self.bridges.values().collect();
        pairs.sort_by_key(|pair| pair.number);
        for pair in pairs {
            for (own, circuit) in pair.circuits.iter() {
                if !named.contains_key(own) {
                    named.insert(own.clone(), circuit.clone());
                    continue;
                }
                let name = format!("{}.{own}", pair.record.id);
                let id: Result<ArtifactId, _> = name.parse();
                match id {
                    Ok(id) if !named.contains_key(&name) => {
                        let mut circuit = Circuit::clone(circuit);
                        circuit.id = id;
                        named.insert(name, Arc::new(circuit));
                    }
                    _ => tracing::warn!(
                        circuit = own,
                        bridge = %pair.record.id,
                        "a circuit is not served: its id is another's, and {name:?} cannot be used"
                    ),
                }
            }
        }
        self.circuits = named;
    }

    /// The circuit that is served under this id.
    pub fn circuit(&self, id: &str) -> Result<Arc<Circuit>, NotServed> {
        self.circuits.get(id).cloned().ok_or_else(|| {
            let near = suggestion(&shortened(id), self.circuits.keys().map(String::as_str));
            let message = format!("there is no circuit {:?}{near}", shortened(id));
            NotServed::Circuit { message }
        })
    }

    /// The model that a circuit was found in; none where that is not served, or has other weights now.
    pub fn model_of_circuit(&self, circuit: &Circuit) -> Option<&Arc<ModelCard>> {
        let card = self.models.get(&circuit.model);
        card.filter(|card| card.fingerprint == circuit.model_fingerprint)
    }

    /// The ids of the circuits of `model`, as it is now, that have one of these channels of a place as a node.
    pub fn circuits_with(
        &self,
        model: &str,
        place: &str,
        channels: &[WeightedChannel],
    ) -> Vec<String> {
        let of_model = self.circuits.iter().filter(|(_, circuit)| {
            circuit.model == model && self.model_of_circuit(circuit).is_some()
        });
        let has_one = of_model.filter(|(_, circuit)| {
            circuit.nodes.iter().any(|node| {
                let mut channels = channels.iter();
                node.node.as_str() == place && channels.any(|member| member.channel == node.channel)
            })
        });
        has_one.map(|(id, _)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::circuits::drawing::test_circuit::quotes;
    use crate::features::test_pair::random_pair;
    use crate::serving::snapshot::{IncomingPair, Provenance};

    /// A circuit of the sparse model of test pairs.
    fn circuit(id: &str, fingerprint: &str) -> Circuit {
        Circuit {
            id: id.parse().expect("an id"),
            model: "test-sparse".to_owned(),
            model_fingerprint: fingerprint.to_owned(),
            ..quotes()
        }
    }

    /// A pair of the same two models, with circuits of these ids.
    fn incoming(bridge: &str, circuits: &[&str]) -> IncomingPair {
        let mut parts = random_pair(1);
        parts.record.id = bridge.parse().expect("an id");
        let mut pair = parts.pair();
        let fingerprint = pair.sparse.fingerprint.clone();
        let circuits = circuits.iter().map(|id| {
            let circuit = circuit(id, &fingerprint);
            ((*id).to_owned(), Arc::new(circuit))
        });
        pair.circuits = Arc::new(circuits.collect());
        IncomingPair::resident(pair, Provenance::new())
    }

    fn ids(snapshot: &Snapshot) -> Vec<&str> {
        snapshot.circuits.keys().map(String::as_str).collect()
    }

    #[test]
    fn every_circuit_has_an_id_of_its_own() {
        let directory = Path::new("somewhere");
        let none = Snapshot::default();
        let first = none.with_pair(incoming("one", &["quotes", "loops"]), directory);
        let first = first.expect("a pair");
        assert_eq!(ids(&first), ["loops", "quotes"]);
        let both = first.with_pair(incoming("other", &["quotes"]), directory);
        let both = both.expect("a pair");
        assert_eq!(ids(&both), ["loops", "other.quotes", "quotes"]);
        assert_eq!(
            both.circuits["other.quotes"].id.as_str(),
            "other.quotes",
            "its record has the id that it is served under"
        );
        let found = both.with_circuit(circuit("loops", "ff"));
        assert_eq!(
            ids(&found),
            ["loops", "one.loops", "other.quotes", "quotes"]
        );
        assert_eq!(ids(&found.without_circuit("loops")), ids(&both));
        assert_eq!(ids(&found.without_circuit("quotes")), ids(&found));
        assert_eq!(ids(&found.without_pair("one")), ["loops", "quotes"]);
        let NotServed::Circuit { message } = found.circuit("qoutes").expect_err("none") else {
            panic!("another refusal");
        };
        assert!(message.contains("\"quotes\""), "{message}");
    }

    #[test]
    fn circuits_of_other_weights_are_told_apart() {
        let directory = Path::new("somewhere");
        let served = Snapshot::default().with_pair(incoming("one", &["quotes"]), directory);
        let served = served.expect("a pair");
        let served = served.with_circuit(circuit("stale", "weights that are no more"));
        let card = |id: &str| served.model_of_circuit(&served.circuits[id]);
        assert_eq!(
            card("quotes").map(|card| card.id.as_str()),
            Some("test-sparse")
        );
        assert!(card("stale").is_none());
        let member = |channel| WeightedChannel {
            channel,
            weight: 1.0,
        };
        let with = |place: &str, channels: &[WeightedChannel]| {
            served.circuits_with("test-sparse", place, channels)
        };
        assert_eq!(with("0.mlp.post_act", &[member(3), member(12)]), ["quotes"]);
        assert!(with("0.mlp.post_act", &[member(3)]).is_empty());
        assert!(with("1.mlp.post_act", &[member(12)]).is_empty());
    }
}
