//! Attribution graphs of random models: links add up to what their targets are made of, and the JSON has the format's fields.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Result, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use serde_json::json;

use super::*;
use crate::circuits::edges::edges;
use crate::circuits::nodes::{KINDS, NodeSet, node_locations};
use crate::circuits::trace::{TraceError, trace, trace_tokens};
use crate::features::test_pair::random_pair;
use crate::models::config::{
    ActiveLocation, Norm, Positions, ResidualActivation, TransformerConfig,
};
use crate::models::layers::Purpose;
use crate::models::location::{Location, NodeKind};
use crate::models::tap::{NoTap, Recorder, ResidualTap};
use crate::models::tensor_names::tensor_shapes;
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::models::variant::{ModelVariant, NormPlacement, Rotary};
use crate::numerics::rows;

mod format;

const IDS: [u32; 7] = [3, 17, 5, 5, 31, 8, 22];
/// What no node's value is.
const NEVER: f32 = 77.0;

type Tensors = BTreeMap<String, Tensor>;

/// A model of normal weights.
fn random_model(config: &TransformerConfig, seed: u64) -> (Transformer, Tensors) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let normal = Normal::new(0.0, 0.3).unwrap();
    let tensors: Tensors = tensor_shapes(config)
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|_| normal.sample(&mut rng) as f32).collect();
            let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap();
            (name, tensor)
        })
        .collect();
    let model = Transformer::new(config.clone(), &tensors, Purpose::Inference).unwrap();
    (model, tensors)
}

/// Some nodes of a model as a circuit with all edges between them.
fn circuit_of(model: &Transformer, nodes: &NodeSet) -> Circuit {
    let mut circuit = crate::circuits::drawing::test_circuit::quotes();
    let mut record = serde_json::to_value(&circuit).unwrap();
    let node = |(node, channel): (Node, usize)| {
        json!({"node": node.to_string(), "channel": channel, "held_at": NEVER, "effect": 0.1, "effect_in_whole_model": 0.1,
            "correlation": null, "presented": 0.0, "counterfactual": 0.0, "examples": [],
            "reference": {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "density": 1.0}})
    };
    record["nodes"] = nodes.iter().map(node).collect();
    let end =
        |(node, channel): (Node, usize)| json!({"node": node.to_string(), "channel": channel});
    let found = edges(model, nodes).unwrap();
    let edge = found.iter().map(|edge| {
        json!({"from": end(edge.from), "to": end(edge.to), "weight": edge.weight, "effect": 0.1})
    });
    record["edges"] = edge.collect();
    circuit = serde_json::from_value(record).unwrap();
    circuit
}

fn traced(circuit: &Circuit, model: &Transformer, tap: &mut dyn ResidualTap) -> PromptTrace {
    trace_tokens(circuit, model, &IDS, tap, (|id| format!("t{id}"), 5)).unwrap()
}

fn sparse_config() -> TransformerConfig {
    random_pair(1).sparse.config
}

fn bias(tensors: &Tensors, config: &TransformerConfig, node: Node) -> Vec<f32> {
    let layer = node.layer;
    let at = |name: &str| rows::to_vec(&tensors[&format!("transformer.h.{layer}.{name}")]).unwrap();
    let (queries, keys) = (config.d_attention(), config.d_key_value());
    match node.kind {
        NodeKind::Q => at("attn.c_attn.bias")[..queries].to_vec(),
        NodeKind::K => at("attn.c_attn.bias")[queries..queries + keys].to_vec(),
        NodeKind::V => at("attn.c_attn.bias")[queries + keys..].to_vec(),
        NodeKind::AttnOut => at("attn.c_proj.bias"),
        NodeKind::PostAct => at("mlp.c_fc.bias"),
        NodeKind::MlpOut => at("mlp.c_proj.bias"),
        _ => panic!("{node} has no bias"),
    }
}

/// The links of a graph by target, without the graph's own names for what is outside.
fn sums(graph: &AttributionGraph) -> (BTreeMap<String, f64>, BTreeMap<String, f64>) {
    let (mut inside, mut outside) = (BTreeMap::new(), BTreeMap::new());
    for link in &graph.links {
        let of = match link.source.contains("_-1_") {
            true => &mut outside,
            false => &mut inside,
        };
        *of.entry(link.target.clone()).or_insert(0.0) += f64::from(link.weight);
    }
    (inside, outside)
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 2e-4 * a.abs().max(b.abs()).max(1.0)
}

/// The circuit of all nodes of a model: what is outside adds nothing, so the parts of every node are known.
fn everything_adds_up(config: &TransformerConfig, seed: u64) {
    let (model, tensors) = random_model(config, seed);
    let circuit = circuit_of(&model, &NodeSet::all(config));
    let trace = traced(&circuit, &model, &mut NoTap);
    let graph = attribution_graph(&circuit, &trace);
    assert_eq!(graph.metadata.links_left_out, 0);
    let (inside, outside) = sums(&graph);
    let layers: BTreeMap<&str, usize> = graph
        .metadata
        .places
        .iter()
        .map(String::as_str)
        .zip(0..)
        .collect();
    let placed_norms = config.variant.norm_placement != NormPlacement::Before;
    let mut checked = BTreeMap::new();
    for (index, &(node, channel)) in trace.places.iter().enumerate() {
        let reads = matches!(node.kind, NodeKind::AttnIn | NodeKind::MlpIn);
        let normed = placed_norms && matches!(node.kind, NodeKind::AttnOut | NodeKind::MlpOut);
        if reads && channel >= config.d_model {
            continue;
        }
        for token in 0..IDS.len() {
            let value = trace.values[index][token];
            if value == 0.0 {
                continue;
            }
            let target = format!("{}_{channel}_{token}", layers[node.to_string().as_str()]);
            let found = inside.get(&target).copied().unwrap_or(0.0);
            let rest = outside.get(&target).copied().unwrap_or(0.0);
            let size = found
                .abs()
                .max(f64::from(trace.sums[index][token].abs()))
                .max(0.1);
            assert!(
                rest.abs() < 1e-4 * size,
                "{node}:{channel} at {token}: {rest} of {found}"
            );
            let expected = match node.kind {
                NodeKind::AttnIn | NodeKind::MlpIn => f64::from(value),
                // The nonlinearity, or the norm behind it, stands between the parts and the value.
                NodeKind::PostAct => f64::from(trace.sums[index][token]),
                _ if normed => f64::from(trace.sums[index][token]),
                _ => f64::from(value - bias(&tensors, config, node)[channel]),
            };
            assert!(
                near(found, expected),
                "{node}:{channel} at {token}: {found}, not {expected}"
            );
            *checked.entry(node.kind).or_insert(0) += 1;
        }
    }
    assert_eq!(checked.len(), KINDS.len(), "{checked:?}");
    for logit in &trace.logits {
        let target = format!("{}_{}_{}", layers.len() + 1, logit.id, IDS.len() - 1);
        let rest = outside.get(&target).copied().unwrap_or(0.0);
        assert!(
            rest.abs() < 1e-4 * f64::from(logit.sum.abs()).max(0.1),
            "{rest} of {}",
            logit.sum
        );
        let bias = tensors.get("final_logits_bias");
        let bias = bias.map_or(0.0, |bias| rows::to_vec(bias).unwrap()[logit.id as usize]);
        assert!(
            near(inside[&target], f64::from(logit.logit - bias)),
            "{target}"
        );
    }
}

#[test]
fn the_parts_of_every_node_and_logit_add_up() {
    everything_adds_up(&sparse_config(), 11);
}

#[test]
fn they_add_up_with_sinks_and_bigrams_and_a_stream_that_is_gated() {
    let plain = sparse_config();
    let everywhere = plain.active_locations.iter().copied().chain([
        ActiveLocation::ResidPostAttn,
        ActiveLocation::ResidPostMlp,
        ActiveLocation::AttnV,
        ActiveLocation::MlpNeuron,
    ]);
    let config = TransformerConfig {
        active_locations: everywhere.collect(),
        residual_activation: ResidualActivation::Relu,
        bigram_table: true,
        attention_sinks: true,
        positions: Positions::Concatenated { channels: 4 },
        ..plain
    };
    everything_adds_up(&config, 12);
}

#[test]
fn they_add_up_in_models_like_llama() {
    let plain = sparse_config();
    for (norm_placement, parallel_sublayers) in [
        (NormPlacement::Before, true),
        (NormPlacement::After, false),
        (NormPlacement::Both, false),
    ] {
        // Without an AbsTopK every channel is active: a model this small keeps below the most links of a graph.
        let config = TransformerConfig {
            n_heads: 4,
            d_model: 16,
            d_mlp: 20,
            active_fraction: None,
            active_locations: BTreeSet::new(),
            variant: ModelVariant {
                n_kv_heads: Some(2),
                norm_placement,
                parallel_sublayers,
                rotary: Some(Rotary {
                    base: 1e4,
                    channels: 4,
                    pairs: Default::default(),
                    scaling: Default::default(),
                    layers_without: BTreeSet::new(),
                }),
                ..ModelVariant::default()
            },
            ..plain.clone()
        };
        everything_adds_up(&config, 13);
    }
}

#[test]
fn a_mean_that_a_norm_takes_away_is_counted_as_outside() {
    let config = TransformerConfig {
        norm: Norm::Layer,
        ..sparse_config()
    };
    let (model, tensors) = random_model(&config, 14);
    let circuit = circuit_of(&model, &NodeSet::all(&config));
    let trace = traced(&circuit, &model, &mut NoTap);
    let (inside, outside) = sums(&attribution_graph(&circuit, &trace));
    let bias = rows::to_vec(&tensors["transformer.h.0.ln_2.bias"]).unwrap();
    let layer = 5;
    let mut checked = 0;
    for (index, &(node, channel)) in trace.places.iter().enumerate() {
        if node.to_string() != "0.mlp.act_in" {
            continue;
        }
        let value = trace.values[index][2];
        if value != 0.0 {
            let target = format!("{layer}_{channel}_2");
            let both = inside[&target] + outside[&target];
            assert!(near(both, f64::from(value - bias[channel])), "{target}");
            // The other channels of what the attention adds, each by its share of the mean.
            let others = trace.places.iter().zip(&trace.values);
            let others = others.filter(|((node, of), _)| {
                node.to_string() == "0.attn.resid_delta" && *of != channel
            });
            let others: f32 = others.map(|(_, values)| values[2]).sum();
            let factor = trace.factors[index][2] / (1.0 - 1.0 / config.d_model as f32);
            let expected = -others / config.d_model as f32 * factor;
            assert!(near(outside[&target], f64::from(expected)), "{target}");
            checked += 1;
        }
    }
    assert!(checked > 5);
}

/// Holds every node that is not kept.
struct HoldTap<'a> {
    kept: &'a NodeSet,
}

fn held(node: Node, channel: usize) -> f32 {
    ((node.layer * 31 + node.kind as usize * 7 + channel) % 9) as f32 / 8.0 - 0.5
}

impl ResidualTap for HoldTap<'_> {
    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        let Location::Node(node) = place else {
            return Ok(value);
        };
        if !KINDS.contains(&node.kind) {
            return Ok(value);
        }
        let shape = value.dims2()?;
        let mut values = rows::to_vec(&value)?;
        for row in values.chunks_exact_mut(shape.1) {
            for (channel, value) in row.iter_mut().enumerate() {
                if !self.kept.contains(node, channel) {
                    *value = held(node, channel);
                }
            }
        }
        Tensor::from_vec(values, shape, &Device::Cpu)
    }
}

/// A third of the nodes of every place.
fn third(config: &TransformerConfig) -> NodeSet {
    let places = node_locations(config).into_iter();
    NodeSet::new(places.flat_map(|(node, width)| {
        let own = (0..width).filter(move |channel| (channel + node.layer) % 3 == 0);
        own.map(move |channel| (node, channel))
    }))
}

#[test]
fn in_a_circuit_alone_links_and_held_nodes_and_bias_are_what_a_linear_layer_gives() {
    let config = sparse_config();
    let (model, tensors) = random_model(&config, 15);
    let kept = third(&config);
    let circuit = circuit_of(&model, &kept);
    let trace = traced(&circuit, &model, &mut HoldTap { kept: &kept });
    let graph = attribution_graph(&circuit, &trace);
    let (inside, outside) = sums(&graph);
    let layers: BTreeMap<&str, usize> = graph
        .metadata
        .places
        .iter()
        .map(String::as_str)
        .zip(0..)
        .collect();
    let mut checked = BTreeMap::new();
    for (index, &(node, channel)) in trace.places.iter().enumerate() {
        let read = |kind| Node { kind, ..node };
        let Some(([q, k, v, project], [expand, contract])) = model.layer_linears(node.layer) else {
            panic!("no layer {}", node.layer)
        };
        let (linear, from) = match node.kind {
            NodeKind::Q => (q, read(NodeKind::AttnIn)),
            NodeKind::K => (k, read(NodeKind::AttnIn)),
            NodeKind::V => (v, read(NodeKind::AttnIn)),
            // A head takes the whole of one held value, for its probabilities add up to one.
            NodeKind::AttnOut => (project, read(NodeKind::V)),
            NodeKind::PostAct => (expand, read(NodeKind::MlpIn)),
            NodeKind::MlpOut => (contract, read(NodeKind::PostAct)),
            _ => continue,
        };
        let weights = linear.weights_of_output(channel).unwrap().into_iter();
        let others = weights.filter(|(input, _)| !kept.contains(from, *input));
        let others: f32 = others
            .map(|(input, weight)| weight * held(from, input))
            .sum();
        for token in 0..IDS.len() {
            let value = trace.values[index][token];
            if value == 0.0 {
                continue;
            }
            let target = format!("{}_{channel}_{token}", layers[node.to_string().as_str()]);
            let found = outside.get(&target).copied().unwrap_or(0.0);
            assert!(
                near(found, f64::from(others)),
                "{target}: {found}, not {others}"
            );
            let given = inside.get(&target).copied().unwrap_or(0.0) + f64::from(others);
            let given = given + f64::from(bias(&tensors, &config, node)[channel]);
            let expected = match node.kind {
                NodeKind::PostAct => {
                    let x = Tensor::new(&[[given as f32]], &Device::Cpu).unwrap();
                    let x = crate::numerics::activation::gelu(&x).unwrap();
                    assert!(near(
                        f64::from(rows::to_vec(&x).unwrap()[0]),
                        f64::from(value)
                    ));
                    continue;
                }
                _ => f64::from(value),
            };
            assert!(near(given, expected), "{target}: {given}, not {expected}");
            *checked.entry(node.kind).or_insert(0) += 1;
        }
    }
    assert_eq!(checked.len(), 5, "{checked:?}");
}

#[test]
fn patterns_move_the_values_that_the_heads_give() {
    let config = TransformerConfig {
        attention_sinks: true,
        ..sparse_config()
    };
    let (model, _) = random_model(&config, 16);
    let at = |kind| Location::Node(Node { layer: 1, kind });
    let places = [NodeKind::Q, NodeKind::K, NodeKind::V, NodeKind::AttnY];
    let mut recorder = Recorder::of(places.map(at));
    let mut token_rows = TokenRows::sequences(&IDS, IDS.len(), &Device::Cpu).unwrap();
    model.forward(&mut token_rows, &mut recorder).unwrap();
    let seen = |kind| recorder.get(at(kind)).unwrap();
    let (q, k) = (seen(NodeKind::Q), seen(NodeKind::K));
    let patterns = model.attention_patterns(1, &[0, 1], q, k).unwrap();
    let (v, y) = (
        rows::to_vec(seen(NodeKind::V)).unwrap(),
        rows::to_vec(seen(NodeKind::AttnY)).unwrap(),
    );
    let width = config.d_attention();
    for (head, pattern) in patterns.iter().enumerate() {
        for (token, row) in pattern.chunks_exact(IDS.len()).enumerate() {
            // The sink takes the rest.
            let total: f32 = row.iter().sum();
            assert!(total > 0.0 && total < 1.0, "{total}");
            assert!(row[token + 1..].iter().all(|later| *later == 0.0));
            for channel in head * config.d_head..(head + 1) * config.d_head {
                let moved: f32 = (0..IDS.len())
                    .map(|from| row[from] * v[from * width + channel])
                    .sum();
                assert!((moved - y[token * width + channel]).abs() < 1e-5);
            }
        }
    }
    assert!(model.attention_patterns(1, &[2], q, k).is_err());
    assert!(model.attention_patterns(2, &[0], q, k).is_err());
}

#[test]
fn a_node_at_what_it_is_held_at_is_not_there() {
    let (model, _) = random_model(&sparse_config(), 17);
    let mut circuit = circuit_of(&model, &third(&model.config));
    let trace = traced(&circuit, &model, &mut NoTap);
    let node = trace
        .places
        .iter()
        .position(|(node, _)| node.kind == NodeKind::PostAct)
        .unwrap();
    let count = |circuit: &Circuit| {
        let graph = attribution_graph(circuit, &trace);
        let name = format!("{}:{}", trace.places[node].0, trace.places[node].1);
        graph.nodes.iter().filter(|node| node.clerp == name).count()
    };
    assert_eq!(count(&circuit), IDS.len());
    circuit.nodes[node].held_at = trace.values[node][4];
    assert_eq!(count(&circuit), IDS.len() - 1);
}

#[test]
fn a_large_graph_keeps_its_largest_links() {
    let mut links = Links::default();
    for index in 0..5 * MOST_LINKS {
        let weight = ((index * 7919) % 100_003) as f32 + 1.0;
        let to = End::Node {
            node: 0,
            token: index,
        };
        links.add(End::Embedding { token: index }, to, weight);
    }
    links.bound();
    assert_eq!(links.found.len(), MOST_LINKS);
    assert_eq!(links.left_out, 4 * MOST_LINKS);
    let least = links
        .found
        .iter()
        .map(|link| link.2)
        .fold(f32::INFINITY, f32::min);
    // Weights repeat every 100,003 links; a fifth of all is above this one.
    assert!(least > 70_000.0, "{least}");
}

#[test]
fn what_cannot_be_traced_is_told() {
    let pair = random_pair(2).pair();
    let model = &pair.sparse;
    let circuit = circuit_of(model, &third(&model.config));
    let long = vec!["t1"; 40].join(" ");
    let told = trace(&circuit, model, &long, 5).unwrap_err().to_string();
    assert!(
        told.contains("40 tokens") && told.contains("at most 32"),
        "{told}"
    );
    assert!(matches!(
        trace(&circuit, model, "", 5),
        Err(TraceError::Empty)
    ));
    let mut other = circuit.clone();
    other.nodes[0].channel = 500;
    let told = trace(&other, model, "t1", 5).unwrap_err().to_string();
    assert!(
        told.contains("0.attn.act_in:500") && told.contains("24 channels"),
        "{told}"
    );
    let told = trace(
        &crate::circuits::drawing::test_circuit::quotes(),
        model,
        "t1",
        5,
    );
    assert!(told.unwrap_err().to_string().contains("0.mlp.act_in"));
}
