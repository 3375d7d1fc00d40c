//! What addresses of circuits mean, and which are refused.

use std::sync::Arc;

use serde_json::{Value, json};

use super::test_circuit::circuit;
use super::{Plan, PlanError, Resolved, Scene};
use crate::circuits::circuit::NamedCircuits;
use crate::circuits::nodes::node_locations;
use crate::features::measured::KnownGroups;
use crate::features::pair::Pair;
use crate::features::test_pair::random_pair;
use crate::interventions::operation::Action;
use crate::interventions::plan::address::resolve_parts;
use crate::interventions::request::SteerRequest;
use crate::interventions::subject::Subject;
use crate::models::model::LoadedModel;

const PARAM: &str = "steer.edits[0].feature";
const NODES: [(&str, usize, f32); 5] = [
    ("1.mlp.post_act", 7, 0.5),
    ("0.attn.q", 1, -0.25),
    ("1.mlp.post_act", 2, 0.75),
    ("0.attn.act_in", 3, 0.0),
    ("1.attn.resid_delta", 6, 1.5),
];

struct Stage {
    pair: Pair,
    circuits: NamedCircuits,
}

impl Stage {
    fn new() -> Self {
        let pair = random_pair(1).pair();
        let of = |model: &LoadedModel, ablation: &str| {
            Arc::new(circuit(&model.id, &model.fingerprint, ablation, &NODES))
        };
        let stale = circuit("test-sparse", "other weights", "mean", &NODES);
        let foreign = circuit("somewhere-else", "other weights", "mean", &NODES);
        let beyond = circuit(
            "test-sparse",
            &pair.sparse.fingerprint,
            "mean",
            &[("1.mlp.post_act", 4000, 0.0)],
        );
        let circuits = [
            ("sparse-ring", of(&pair.sparse, "mean")),
            ("zero-ring", of(&pair.sparse, "zero")),
            ("dense-ring", of(&pair.dense, "mean")),
            ("stale", Arc::new(stale)),
            ("foreign", Arc::new(foreign)),
            ("beyond", Arc::new(beyond)),
        ];
        let circuits = circuits.map(|(id, circuit)| (id.to_owned(), circuit));
        Stage {
            pair,
            circuits: circuits.into(),
        }
    }

    /// Calls `see` with the scene of one of the models.
    fn with<T>(&self, native: bool, see: impl FnOnce(&Scene) -> T) -> T {
        let model = match native {
            true => &self.pair.sparse,
            false => &self.pair.dense,
        };
        see(&Scene {
            model: &model.transformer,
            model_id: &model.id,
            fingerprint: &model.fingerprint,
            native,
            pair: Some(&self.pair),
            directions: &Default::default(),
            circuits: &self.circuits,
            tokenizer: &model.tokenizer,
            prompts: &[vec![1, 2, 3]],
            measured: &KnownGroups::default(),
        })
    }

    fn parts(&self, native: bool, address: Value) -> Result<Vec<Resolved>, PlanError> {
        let address = serde_json::from_value(address).expect("an address");
        self.with(native, |scene| resolve_parts(&address, scene, PARAM))
    }

    fn plan(&self, native: bool, edit: Value) -> Result<Plan, PlanError> {
        let steer = json!({"edits": [edit]});
        let steer: SteerRequest = serde_json::from_value(steer).expect("a steer field");
        self.with(native, |scene| Plan::new(&steer, scene))
    }
}

fn shown(parts: &[Resolved]) -> Vec<(String, Vec<usize>)> {
    let parts = parts.iter().map(|part| match &part.subject {
        Subject::Channels(group) | Subject::OwnChannels(group) => {
            (group.place.to_string(), group.channels.clone())
        }
        Subject::Direction(_) => panic!("a direction"),
    });
    parts.collect()
}

#[test]
fn a_circuit_has_a_part_for_each_place_in_the_order_of_the_pass() {
    let stage = Stage::new();
    let parts = stage
        .parts(true, json!({"circuit": "sparse-ring"}))
        .expect("parts");
    let expected = [
        ("0.attn.act_in", vec![3]),
        ("0.attn.q", vec![1]),
        ("1.attn.resid_delta", vec![6]),
        ("1.mlp.post_act", vec![2, 7]),
    ];
    let expected = expected.map(|(place, channels)| (place.to_owned(), channels));
    assert_eq!(shown(&parts), expected);
    let known = parts[3].nodes.as_ref().expect("nodes").known.as_ref();
    let means: Vec<f32> = known
        .expect("a record")
        .iter()
        .map(|known| known.mean)
        .collect();
    assert_eq!(means, [0.75, 0.5]);
    // A node that was held at zero still has a mean.
    let zero = stage
        .parts(
            true,
            json!({"circuit": "zero-ring", "node": "1.mlp.post_act", "channel": 2}),
        )
        .expect("a part");
    let known = zero[0].nodes.as_ref().expect("nodes").known.as_ref();
    assert_eq!((zero.len(), known.expect("a record")[0].mean), (1, 0.75));
    let at = stage
        .parts(
            true,
            json!({"circuit": "sparse-ring", "node": "1.mlp.post_act"}),
        )
        .expect("a part");
    assert_eq!(shown(&at), expected[3..]);
}

#[test]
fn the_complement_is_every_other_node() {
    let stage = Stage::new();
    for (native, id) in [(true, "sparse-ring"), (false, "dense-ring")] {
        let parts = stage
            .parts(native, json!({"circuit": id, "complement": true}))
            .expect("parts");
        let config = match native {
            true => &stage.pair.sparse.config,
            false => &stage.pair.dense.config,
        };
        let all: usize = node_locations(config).iter().map(|(_, width)| width).sum();
        let outside: usize = parts.iter().map(|part| part.subject.width()).sum();
        assert_eq!(outside + NODES.len(), all, "{id}");
        let inside = |place: &str, channel| {
            NODES
                .iter()
                .any(|node| (node.0, node.1) == (place, channel))
        };
        for (place, channels) in shown(&parts) {
            assert!(!channels.iter().any(|&channel| inside(&place, channel)));
        }
        assert!(parts.iter().all(|part| {
            part.nodes
                .as_ref()
                .is_some_and(|nodes| nodes.known.is_none() && nodes.complement)
        }));
    }
}

/// Whose nodes they are follows from the weights that the circuit was found in.
#[test]
fn a_dense_model_has_nodes_of_its_own_and_its_partners() {
    let stage = Stage::new();
    let is_own = |id: &str| {
        let parts = stage.parts(false, json!({"circuit": id})).expect("parts");
        let own = parts
            .iter()
            .filter(|part| matches!(part.subject, Subject::OwnChannels(_)));
        assert!([0, parts.len()].contains(&own.clone().count()));
        own.count() > 0
    };
    assert!(is_own("dense-ring"));
    assert!(!is_own("sparse-ring"));
    let plan = stage
        .plan(
            false,
            json!({"feature": {"circuit": "dense-ring"}, "op": "ablate"}),
        )
        .expect("a plan");
    assert_eq!((plan.own_edits.len(), plan.steps.len()), (4, 0));
    assert_eq!(plan.places.len(), 4);
}

#[test]
fn every_operation_is_each_nodes_own() {
    let stage = Stage::new();
    let action = |edit: Value| {
        let mut whole = json!({"feature": {"circuit": "sparse-ring", "node": "1.mlp.post_act"}});
        for (name, value) in edit.as_object().expect("an object") {
            whole[name] = value.clone();
        }
        let mut edits = stage.plan(true, whole).expect("a plan").edits;
        edits.remove(0).action
    };
    for (edit, expected) in [
        (
            json!({"op": "add", "value": 3}),
            Action::AddEach(vec![3.0, 3.0]),
        ),
        (
            json!({"op": "add", "value": 3, "unit": "std"}),
            Action::AddEach(vec![1.5, 1.5]),
        ),
        (
            json!({"op": "set", "value": 3, "unit": "max"}),
            Action::Ablate(vec![6.0, 6.0]),
        ),
        (
            json!({"op": "clamp", "min": -1, "max": 3, "unit": "std"}),
            Action::ClampEach(vec![(-0.5, 1.5); 2]),
        ),
        (json!({"op": "scale", "value": 2}), Action::ScaleEach(2.0)),
        (json!({"op": "ablate"}), Action::Ablate(vec![0.0, 0.0])),
        (
            json!({"op": "ablate", "to": "mean"}),
            Action::Ablate(vec![0.75, 0.5]),
        ),
        (
            json!({"op": "patch", "to": {"value": 4}}),
            Action::Ablate(vec![4.0, 4.0]),
        ),
        (
            json!({"op": "patch", "to": {"prompt": [3, 2, 1]}}),
            Action::Patch { stream: 0 },
        ),
    ] {
        assert_eq!(action(edit.clone()), expected, "{edit}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused_with_the_field_and_the_way_out() {
    let stage = Stage::new();
    let ablated = |feature: Value| json!({"feature": feature, "op": "ablate"});
    let dense = json!({"circuit": "dense-ring"});
    let vector = json!({"site": "1.resid_in", "vector": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]});
    for (native, edit, param, said) in [
        (
            true,
            ablated(json!({"circuit": "sparse-rin"})),
            "feature.circuit",
            "\"sparse-ring\"",
        ),
        (
            true,
            ablated(json!({"circuit": "stale"})),
            "feature.circuit",
            "other weights",
        ),
        (
            true,
            ablated(json!({"circuit": "foreign"})),
            "feature.circuit",
            "somewhere-else",
        ),
        (
            true,
            ablated(dense.clone()),
            "feature.circuit",
            "test-dense",
        ),
        (
            true,
            ablated(json!({"circuit": "beyond"})),
            "feature.circuit",
            "4000",
        ),
        (
            true,
            ablated(json!({"circuit": "sparse-ring", "node": "0.atn.q"})),
            "feature.node",
            "0.attn.q",
        ),
        (
            true,
            ablated(json!({"circuit": "sparse-ring", "node": "0.attn.y"})),
            "feature.node",
            "no nodes",
        ),
        (
            true,
            ablated(json!({"circuit": "sparse-ring", "node": "1.resid_in"})),
            "feature.node",
            "no nodes",
        ),
        (
            true,
            ablated(json!({"circuit": "sparse-ring", "node": "0.attn.k"})),
            "feature.node",
            "1.mlp.post_act",
        ),
        (
            true,
            ablated(json!({"circuit": "sparse-ring", "node": "1.mlp.post_act", "channel": 3})),
            "feature.channel",
            "2, 7",
        ),
        (
            true,
            ablated(json!({"circuit": "sparse-ring", "channel": 3})),
            "feature.channel",
            "`node`",
        ),
        (
            true,
            ablated(
                json!({"circuit": "sparse-ring", "node": "0.attn.q", "channel": 1, "complement": true}),
            ),
            "feature.channel",
            "one channel",
        ),
        (
            true,
            json!({"feature": {"circuit": "sparse-ring", "node": "0.attn.q", "channel": 1}, "op": "swap", "with": 2}),
            "op",
            "partners",
        ),
        (
            true,
            json!({"feature": {"circuit": "sparse-ring", "complement": true}, "op": "add", "value": 1, "unit": "std"}),
            "unit",
            "`raw`",
        ),
        (
            true,
            json!({"feature": {"circuit": "sparse-ring"}, "op": "add", "value": 1, "unit": "residual"}),
            "unit",
            "vector",
        ),
        // Nothing is known of the nodes outside of it, and there is no text to find out.
        (
            true,
            json!({"feature": {"circuit": "sparse-ring", "complement": true}, "op": "ablate", "to": "mean"}),
            "to",
            "ablate them to zero",
        ),
        (
            false,
            json!({"feature": dense, "op": "ablate", "write": "residual"}),
            "write",
            "in place",
        ),
        (
            false,
            json!({"feature": dense, "op": "ablate", "read": "sparse"}),
            "read",
            "own nodes",
        ),
        (
            false,
            json!({"feature": vector, "op": "add", "value": 1, "when": {"all": [{"feature": dense, "gt": 0}]}}),
            "when.all[0].feature",
            "channel",
        ),
        (
            false,
            json!({"feature": vector, "op": "add", "value": 1,
                "when": {"all": [{"feature": {"circuit": "dense-ring", "node": "1.mlp.post_act"}, "gt": 0}]}}),
            "when.all[0].feature",
            "channel",
        ),
    ] {
        match stage.plan(native, edit.clone()) {
            Err(PlanError::Refused { message, param: at }) => {
                assert_eq!(at, format!("steer.edits[0].{param}"), "{edit}: {message}");
                assert!(message.contains(said), "{edit}: {message}");
            }
            other => panic!("{edit}: {other:?}"),
        }
    }
}

#[test]
fn so_many_nodes_are_edited_and_no_more() {
    let stage = Stage::new();
    let complement =
        json!({"feature": {"circuit": "sparse-ring", "complement": true}, "op": "ablate"});
    let plan = |count: usize| {
        let steer = json!({"edits": vec![complement.clone(); count]});
        let steer: SteerRequest = serde_json::from_value(steer).expect("a steer field");
        stage.with(true, |scene| Plan::new(&steer, scene))
    };
    assert_eq!(plan(64).expect("a plan").edits.len(), 1024);
    let Err(PlanError::Refused { message, .. }) = plan(65) else {
        panic!("65 edits are planned");
    };
    assert!(message.contains("64"), "{message}");
}
