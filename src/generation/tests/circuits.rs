//! Circuits steered in a sparse model, in a dense model itself and over the bridge, held against passes written out.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use serde_json::{Value, json};

use super::forward::{OTHER, PROMPT, read};
use super::pair::{
    Catalog, D_DENSE, D_SPARSE, LAYERS, answer, assert_near, bits, first_distribution, pair,
    refusal, steered,
};
use super::prefixes::{self, Served, text};
use crate::circuits::circuit::NamedCircuits;
use crate::circuits::nodes::node_locations;
use crate::features::reference::ReferenceText;
use crate::features::statistics::visit_locations;
use crate::generation::activations::activations;
use crate::generation::capacity::Capacity;
use crate::generation::needed_groups::NeededGroups;
use crate::generation::request::{ActivationsRequest, EngineError, GenerationRequest};
use crate::interventions::plan::test_circuit::circuit;
use crate::models::location::Location;
use crate::models::tap::ResidualTap;
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;

const LENGTH: usize = 7;
/// Place, channel, and the mean of its record.
const NODES: [(&str, usize, f32); 6] = [
    ("0.attn.act_in", 3, 0.5),
    ("0.attn.v", 4, -0.25),
    ("0.mlp.post_act", 2, 0.75),
    ("0.mlp.post_act", 9, 0.1),
    ("1.attn.k", 1, 0.2),
    ("1.attn.resid_delta", 6, -0.3),
];

/// A pair with reference text.
fn catalog() -> Catalog {
    let mut pair = pair("pair", 3);
    let tokens = (0..12 * LENGTH as u32).map(|index| (index * 37 + index * index) % 269);
    Arc::make_mut(&mut pair.reference).text = Some(ReferenceText {
        tokens: tokens.collect(),
        length: LENGTH,
    });
    Catalog::of(pair)
}

/// The circuit `ring` of one of the models.
fn ring(catalog: &Catalog, model: &str, nodes: &[(&str, usize, f32)]) -> Arc<NamedCircuits> {
    let fingerprint = &catalog.models[model].fingerprint;
    let ring = circuit(model, fingerprint, "mean", nodes);
    Arc::new([("ring".to_owned(), Arc::new(ring))].into())
}

/// A request for edits of `model`, with the circuit of `of`.
fn asked(catalog: &Catalog, model: &str, of: &str, steer: Value) -> GenerationRequest {
    GenerationRequest {
        model: catalog.models[model].clone(),
        circuits: ring(catalog, of, &NODES),
        ..steered(&[PROMPT], steer)
    }
}

fn edits(edits: &[Value]) -> Value {
    json!({"edits": edits})
}

/// The logits after every token of the prompt.
fn logits(catalog: &Catalog, request: &GenerationRequest) -> Vec<Vec<u32>> {
    let mut run = GenerationRequest {
        max_tokens: 0,
        echo: true,
        logprobs: Some(0),
        ..catalog.resolved(request)
    };
    if let Some(needed) = NeededGroups::of(&run) {
        run.measured = needed.measure().expect("a measurement");
    }
    let asked = ActivationsRequest {
        run,
        places: Vec::new(),
        features: Vec::new(),
        attention: Vec::new(),
    };
    let logits = activations(&asked).expect("a run").logits;
    to_bits(logits.expect("logits"))
}

fn to_bits(rows: Vec<Vec<f32>>) -> Vec<Vec<u32>> {
    let rows = rows.into_iter();
    rows.map(|row| row.into_iter().map(f32::to_bits).collect())
        .collect()
}

/// What a node becomes: of its place, row, channel and value.
struct Each<F>(F);

impl<F: Fn(Location, usize, usize, f32) -> f32> ResidualTap for Each<F> {
    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        let mut rows: Vec<Vec<f32>> = value.to_vec2()?;
        for (at, row) in rows.iter_mut().enumerate() {
            for (channel, value) in row.iter_mut().enumerate() {
                *value = (self.0)(place, at, channel, *value);
            }
        }
        Tensor::new(rows, &Device::Cpu)
    }
}

/// The logits of a pass in which every value becomes what `each` says.
fn written_out(
    model: &Transformer,
    each: impl Fn(Location, usize, usize, f32) -> f32,
) -> Vec<Vec<u32>> {
    let mut rows = TokenRows::sequences(PROMPT, PROMPT.len(), &Device::Cpu).expect("rows");
    let logits = model.forward(&mut rows, &mut Each(each)).expect("logits");
    to_bits(logits.to_vec2().expect("rows"))
}

fn is_node(place: Location, channel: usize) -> Option<f32> {
    let name = place.to_string();
    let mut nodes = NODES.iter();
    let node = nodes.find(|node| node.0 == name && node.1 == channel);
    node.map(|node| node.2)
}

/// The mean of every channel of every place that has nodes: the files' where they have it, else over the text.
fn means(catalog: &Catalog, model: &str) -> BTreeMap<Location, Vec<f32>> {
    let reference = &catalog.pairs["pair"].reference;
    let text = reference.text.as_ref().expect("text");
    let transformer = &catalog.models[model].transformer;
    let places: Vec<Location> = node_locations(&transformer.config)
        .into_iter()
        .map(|(node, _)| Location::Node(node))
        .collect();
    let mut sums: BTreeMap<Location, Vec<f64>> = BTreeMap::new();
    let see = |_: usize, place: Location, values: &[f32], width: usize| {
        let sums = sums.entry(place).or_insert_with(|| vec![0.0; width]);
        for row in values.chunks_exact(width) {
            sums.iter_mut()
                .zip(row)
                .for_each(|(sum, &value)| *sum += f64::from(value));
        }
    };
    visit_locations(transformer, &text.tokens, text.length, &places, see).expect("a pass");
    let mean = |sum: f64| (sum / text.tokens.len() as f64) as f32;
    let mut means: BTreeMap<Location, Vec<f32>> = sums
        .into_iter()
        .map(|(place, sums)| (place, sums.into_iter().map(mean).collect()))
        .collect();
    if model == "sparse" {
        for (place, means) in &mut means {
            if let Some(known) = reference.place(*place) {
                *means = known.mean.clone();
            }
        }
    }
    means
}

#[test]
fn everything_but_the_circuit_is_held_at_its_mean_to_the_bit() {
    let catalog = catalog();
    for model in ["sparse", "dense"] {
        let edit = json!({"feature": {"circuit": "ring", "complement": true}, "op": "ablate", "to": "mean"});
        let found = logits(&catalog, &asked(&catalog, model, model, edits(&[edit])));
        let transformer = &catalog.models[model].transformer;
        let means = means(&catalog, model);
        assert_eq!(means.len(), 8 * LAYERS);
        let held = written_out(transformer, |place, _, channel, value| {
            match (means.get(&place), is_node(place, channel)) {
                (Some(means), None) => means[channel],
                _ => value,
            }
        });
        assert_eq!(found, held, "{model}");
        assert_ne!(found, written_out(transformer, |_, _, _, value| value));
    }
}

#[test]
fn the_circuit_is_ablated_to_the_means_of_its_record_or_to_zero() {
    let catalog = catalog();
    for model in ["sparse", "dense"] {
        let transformer = &catalog.models[model].transformer;
        for to in ["mean", "zero"] {
            let edit = json!({"feature": {"circuit": "ring"}, "op": "ablate", "to": to});
            let found = logits(&catalog, &asked(&catalog, model, model, edits(&[edit])));
            let expected = written_out(transformer, |place, _, channel, value| {
                match (is_node(place, channel), to) {
                    (None, _) => value,
                    (Some(mean), "mean") => mean,
                    (Some(_), _) => 0.0,
                }
            });
            assert_eq!(found, expected, "{model} {to}");
        }
    }
}

#[test]
fn operations_on_a_circuit_are_those_on_each_of_its_nodes() {
    let catalog = catalog();
    for model in ["sparse", "dense"] {
        for operation in [
            json!({"op": "add", "value": 1.5, "strength": -0.7}),
            json!({"op": "set", "value": 2, "unit": "std", "at": {"prompt": [1, -1]}}),
            json!({"op": "scale", "value": -2}),
            json!({"op": "clamp", "min": 0.1, "max": 0.4}),
        ] {
            let edit = |feature: Value| {
                let mut edit = operation.clone();
                edit["feature"] = feature;
                edit
            };
            let whole = edits(&[edit(json!({"circuit": "ring"}))]);
            let each: Vec<Value> = NODES
                .iter()
                .map(|(node, channel, _)| {
                    edit(json!({"circuit": "ring", "node": node, "channel": channel}))
                })
                .collect();
            let found = logits(&catalog, &asked(&catalog, model, model, whole));
            let expected = logits(&catalog, &asked(&catalog, model, model, edits(&each)));
            assert_eq!(found, expected, "{model} {operation}");
            assert_ne!(
                found,
                written_out(&catalog.models[model].transformer, |_, _, _, value| value)
            );
        }
        let scaled = json!({"feature": {"circuit": "ring"}, "op": "scale", "value": 0.5});
        let found = logits(&catalog, &asked(&catalog, model, model, edits(&[scaled])));
        let expected = written_out(
            &catalog.models[model].transformer,
            |place, _, channel, value| match is_node(place, channel) {
                Some(_) => value * 0.5,
                None => value,
            },
        );
        assert_eq!(found, expected, "{model}");
    }
}

#[test]
fn a_patch_takes_the_nodes_from_another_prompt() {
    let catalog = catalog();
    for model in ["sparse", "dense"] {
        let transformer = &catalog.models[model].transformer;
        let edit = json!({"feature": {"circuit": "ring"}, "op": "patch", "to": {"prompt": OTHER}});
        let found = logits(&catalog, &asked(&catalog, model, model, edits(&[edit])));
        let others: BTreeMap<&str, Vec<Vec<f32>>> = NODES
            .iter()
            .map(|(node, _, _)| (*node, read(transformer, OTHER, node)))
            .collect();
        let expected = written_out(transformer, |place, row, channel, value| {
            match is_node(place, channel) {
                Some(_) => others[place.to_string().as_str()][row][channel],
                None => value,
            }
        });
        assert_eq!(found, expected, "{model}");
    }
}

#[test]
fn a_circuit_is_carried_over_the_bridge_as_its_channels_are() {
    let catalog = catalog();
    let nodes = [NODES[0], NODES[1], NODES[2], NODES[5]];
    let ask = |edits: Vec<Value>| GenerationRequest {
        circuits: ring(&catalog, "sparse", &nodes),
        ..steered(
            &[PROMPT],
            json!({"edits": edits, "variants": ["steered", "random"]}),
        )
    };
    let plain = |edit: &dyn Fn(&(&str, usize, f32)) -> Value| {
        answer(&catalog, &ask(nodes.iter().map(edit).collect()))
    };
    let channel = |node: &(&str, usize, f32)| json!({"node": node.0, "channel": node.1});
    for (whole, each) in [
        (
            json!({"feature": {"circuit": "ring"}, "op": "scale", "value": 0.5}),
            plain(&|node| json!({"feature": channel(node), "op": "scale", "value": 0.5})),
        ),
        (
            json!({"feature": {"circuit": "ring"}, "op": "ablate", "to": "mean"}),
            plain(&|node| json!({"feature": channel(node), "op": "set", "value": node.2})),
        ),
    ] {
        let found = answer(&catalog, &ask(vec![whole.clone()]));
        for (found, expected) in found.choices.iter().zip(&each.choices) {
            assert_eq!(bits(found), bits(expected), "{whole}");
        }
        assert_ne!(bits(&found.choices[0]), bits(&found.choices[1]));
    }
    // All but one node of a place are a group, whose channels an ablation takes to zero one by one.
    let place = "1.attn.resid_delta";
    let others = (0..D_SPARSE).filter(|channel| *channel != 6);
    let others: Vec<Value> = others
        .map(|channel| json!({"channel": channel, "weight": 1}))
        .collect();
    let group = json!({"feature": {"node": place, "channels": others}, "op": "ablate"});
    let complement =
        json!({"feature": {"circuit": "ring", "node": place, "complement": true}, "op": "ablate"});
    let found = answer(&catalog, &ask(vec![complement]));
    let expected = answer(&catalog, &ask(vec![group]));
    assert_eq!(bits(&found.choices[0]), bits(&expected.choices[0]));
}

#[test]
fn two_nodes_of_one_place_are_carried_together() {
    let catalog = catalog();
    let nodes = [("1.attn.act_in", 2, 0.1), ("1.attn.act_in", 8, 0.2)];
    let ask = |edits: Value| GenerationRequest {
        circuits: ring(&catalog, "sparse", &nodes),
        ..steered(&[PROMPT], json!({"edits": edits}))
    };
    let each: Vec<Value> = nodes
        .iter()
        .map(|(node, channel, _)| {
            json!({"feature": {"node": node, "channel": channel}, "op": "add", "value": 3})
        })
        .collect();
    let whole = json!([{"feature": {"circuit": "ring"}, "op": "add", "value": 3}]);
    let found = first_distribution(&catalog, &ask(whole), 0);
    let expected = first_distribution(&catalog, &ask(json!(each)), 0);
    assert_near(&found, &expected, 1e-4);
}

#[test]
fn what_cannot_be_carried_is_refused_by_its_channel() {
    let catalog = catalog();
    let edit = json!({"feature": {"circuit": "ring", "complement": true, "node": "0.attn.act_in"}, "op": "ablate"});
    match refusal(
        &catalog,
        &asked(&catalog, "dense", "sparse", edits(&[edit])),
    ) {
        EngineError::Invalid { message, param } => {
            assert_eq!(param.as_deref(), Some("steer.edits[0].feature"));
            assert!(message.contains("channel 5 of 0.attn.act_in"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

/// Conditions see a dense model's nodes as they are without any edit, wherever they are.
#[test]
fn a_node_of_a_dense_model_can_be_a_condition() {
    let catalog = catalog();
    let values = read(
        &catalog.models["dense"].transformer,
        PROMPT,
        "0.mlp.post_act",
    );
    let values: Vec<f32> = values.iter().map(|row| row[2]).collect();
    let least = values.iter().copied().fold(f32::MAX, f32::min);
    let largest = values.iter().copied().fold(f32::MIN, f32::max);
    let bound = f64::from(least + largest) / 2.0;
    let expected: Vec<usize> = (0..PROMPT.len())
        .filter(|&at| f64::from(values[at]) > bound)
        .collect();
    assert!((1..PROMPT.len()).contains(&expected.len()), "{values:?}");
    let vector: Vec<f32> = (0..D_DENSE).map(|i| (i as f32 * 0.9).cos()).collect();
    let upstream =
        json!({"feature": {"site": "0.resid_in", "vector": vector}, "op": "add", "value": 40});
    let node = json!({"circuit": "ring", "node": "0.mlp.post_act", "channel": 2});
    let when = json!({"all": [{"feature": node, "gt": bound}]});
    for edited in [
        json!({"site": "1.resid_mid", "vector": vector}),
        json!({"circuit": "ring", "node": "1.attn.k"}),
        json!({"circuit": "ring", "node": "0.attn.v"}),
    ] {
        let conditional = json!({"feature": edited, "op": "add", "value": 0.5, "when": when,
            "at": {"generation": "none"}});
        let steer = json!({"edits": [upstream, conditional], "return": ["receipt"]});
        let choice = answer(&catalog, &asked(&catalog, "dense", "dense", steer))
            .choices
            .remove(0);
        let receipt = choice.receipt.expect("a receipt");
        let tokens = receipt.edits[1].tokens.iter();
        let touched: Vec<usize> = tokens.map(|token| token.position).collect();
        assert_eq!(touched, expected, "{edited}");
    }
}

#[test]
fn a_receipt_tells_the_circuit_and_what_was_done_at_each_place() {
    let catalog = catalog();
    for model in ["sparse", "dense"] {
        let edit = json!({"feature": {"circuit": "ring", "complement": true}, "op": "ablate",
            "at": {"prompt": [2], "generation": "none"}});
        let steer = json!({"edits": [edit], "return": ["receipt", "activations"]});
        let choice = answer(&catalog, &asked(&catalog, model, model, steer))
            .choices
            .remove(0);
        let receipt = choice.receipt.expect("a receipt");
        let config = &catalog.models[model].transformer.config;
        let places = node_locations(config);
        assert_eq!(receipt.edits.len(), places.len());
        for (edit, (place, width)) in receipt.edits.iter().zip(places) {
            let own = NODES.iter().filter(|node| node.0 == place.to_string());
            let part = edit.circuit.as_ref().expect("a circuit");
            assert_eq!((part.id.as_str(), part.complement), ("ring", true));
            assert_eq!(part.nodes, width - own.count(), "{model} {place}");
            assert_eq!(
                (&edit.node, edit.channels.len()),
                (&place.to_string(), part.nodes)
            );
            assert_eq!(edit.tokens_touched, 1);
            let token = &edit.tokens[0];
            assert_eq!((token.position, token.after), (2, 0.0));
            let outside = edit.channels.iter().map(|channel| channel.channel);
            let row = &before(&catalog, model, place.to_string().as_str())[2];
            if place.to_string() == "0.attn.act_in" {
                let squares: f32 = outside.map(|channel| row[channel].powi(2)).sum();
                assert!(
                    (token.change_norm - squares.sqrt()).abs() < 1e-4,
                    "{token:?}"
                );
            }
        }
        let activations = choice.activations.expect("activations");
        assert!(activations.iter().all(|edit| edit.circuit.is_some()));
    }
}

fn before(catalog: &Catalog, model: &str, place: &str) -> Vec<Vec<f32>> {
    read(&catalog.models[model].transformer, PROMPT, place)
}

#[test]
fn arms_of_a_dense_models_nodes_are_what_each_is_alone() {
    let catalog = catalog();
    for node in ["0.attn.v", "0.mlp.post_act", "1.attn.resid_delta"] {
        let ask = |strengths: Value| {
            let edit = json!({"feature": {"circuit": "ring", "node": node}, "op": "set", "value": 1.5,
                "strength": strengths});
            let steer = json!({"edits": [edit], "variants": ["steered", "random"], "return": ["activations"]});
            answer(&catalog, &asked(&catalog, "dense", "dense", steer)).choices
        };
        let together = ask(json!([0.5, 1, 2]));
        for (arm, strength) in [0.5, 1.0, 2.0].into_iter().enumerate() {
            let alone = ask(json!(strength));
            assert_eq!(bits(&together[arm]), bits(&alone[0]), "{node} {strength}");
            assert_eq!(
                bits(&together[3 + arm]),
                bits(&alone[1]),
                "{node} {strength}"
            );
            assert_ne!(bits(&alone[0]), bits(&alone[1]), "{node} {strength}");
        }
    }
}

#[test]
fn another_live_channel_of_a_dense_model_is_not_known() {
    let catalog = catalog();
    let edit = json!({"feature": {"circuit": "ring"}, "op": "scale", "value": 2});
    let steer = json!({"edits": [edit], "variants": ["random_feature"]});
    match refusal(&catalog, &asked(&catalog, "dense", "dense", steer)) {
        EngineError::Invalid { message, param } => {
            assert_eq!(param.as_deref(), Some("steer.variants"));
            assert!(message.contains("0.attn.act_in"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_edits_of_circuits_leave_is_taken_up_by_the_same_ones_alone() {
    let prompt = text(50);
    let catalog = prefixes::catalog();
    let mut served = Served::new(Capacity::default());
    for (model, second) in [("dense", 2.0), ("sparse", 2.0)] {
        let request = |nodes: &[(&str, usize, f32)], value: f64, from: usize| GenerationRequest {
            model: catalog.models[model].clone(),
            circuits: ring(&catalog, model, nodes),
            ..steered(
                &[&prompt],
                json!({"edits": [{"feature": {"circuit": "ring"}, "op": "scale", "value": value,
                    "at": {"prompt": [[from, null]]}}]}),
            )
        };
        assert_eq!(served.cached(&request(&NODES, 0.5, 40)), 0, "{model}");
        assert_eq!(
            served.cached(&request(&NODES, 0.5, 40)),
            48,
            "{model}, the same"
        );
        assert_eq!(
            served.cached(&request(&NODES, second, 40)),
            32,
            "{model}, another value"
        );
        assert_eq!(
            served.cached(&request(&NODES[1..], 0.5, 40)),
            32,
            "{model}, other nodes"
        );
        assert_eq!(
            served.cached(&request(&NODES, 0.5, 0)),
            0,
            "{model}, everywhere"
        );
    }
}
