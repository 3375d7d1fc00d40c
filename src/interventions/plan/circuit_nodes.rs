//! Circuits as addresses: which nodes of which model are meant, and what the circuit's record knows of them.
//!
//! A circuit belongs to weights: those of the answering model, or of the sparse model whose edits are carried over to it.
//! The nodes of one place are one part; every edit of them acts on each of them alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::place_name::named_place;
use super::scene::{PlanError, Scene, refused};
use crate::circuits::circuit::{Ablation, Circuit, ReferenceActivations};
use crate::circuits::nodes::{NodeSet, node_locations};
use crate::features::group::Group;
use crate::interventions::nearest::suggestion;
use crate::interventions::request::CircuitAddress;
use crate::interventions::subject::Subject;
use crate::models::config::TransformerConfig;
use crate::models::location::{Location, Node};
use crate::models::transformer::Transformer;

/// So many names are listed in a refusal.
const LISTED: usize = 8;

/// What is known of the channels of a part.
#[derive(Debug, Clone)]
pub struct CircuitNodes {
    /// The circuit's id in the request.
    pub circuit: String,
    /// The nodes are those outside of it.
    pub complement: bool,
    /// Over reference text, by the circuit's record, in the part's order; none of nodes outside of it. The mean is what the
    /// circuit was found with.
    pub known: Option<Vec<ReferenceActivations>>,
}

/// The model that a circuit is of.
struct Host<'a> {
    model: &'a Transformer,
    /// A dense model that answers itself.
    is_own_dense: bool,
}

/// The nodes that are meant, place after place in the order of the pass.
pub fn parts(
    address: &CircuitAddress,
    scene: &Scene,
    param: &str,
) -> Result<Vec<(Subject, CircuitNodes)>, PlanError> {
    let circuit = named(&address.circuit, scene, &format!("{param}.circuit"))?;
    let host = host(
        &address.circuit,
        circuit,
        scene,
        &format!("{param}.circuit"),
    )?;
    let config = &host.model.config;
    let inside = nodes_of(
        &address.circuit,
        circuit,
        config,
        &format!("{param}.circuit"),
    )?;
    let chosen = chosen(address, &inside, config, param)?;
    let mut known = BTreeMap::new();
    if !address.complement {
        for node in &circuit.nodes {
            if let Ok(Location::Node(at)) = node.node.in_model(config.n_layers) {
                let mean = match circuit.method.ablation {
                    Ablation::Mean => node.held_at,
                    Ablation::Zero => node.reference.mean,
                };
                let reference = ReferenceActivations {
                    mean,
                    ..node.reference
                };
                known.insert((at, node.channel), reference);
            }
        }
    }
    let parts = chosen.into_iter().map(|(node, channels)| {
        let known = channels
            .iter()
            .map(|&channel| known.get(&(node, channel)).copied());
        let nodes = CircuitNodes {
            circuit: address.circuit.clone(),
            complement: address.complement,
            known: known.collect(),
        };
        let group = all_alike(Location::Node(node), channels);
        let subject = match host.is_own_dense {
            true => Subject::OwnChannels(group),
            false => Subject::Channels(group),
        };
        (subject, nodes)
    });
    Ok(parts.collect())
}

/// Channels of a place with equal weights, so that what is told of them as one value is their sum over the root of their
/// number.
pub fn all_alike(place: Location, channels: Vec<usize>) -> Group {
    let weight = 1.0 / (channels.len().max(1) as f64).sqrt();
    Group {
        place,
        weights: vec![weight; channels.len()],
        channels,
    }
}

fn named<'a>(id: &str, scene: &Scene<'a>, param: &str) -> Result<&'a Arc<Circuit>, PlanError> {
    let circuits = scene.circuits;
    circuits.get(id).ok_or_else(|| {
        let near = suggestion(id, circuits.keys().map(String::as_str));
        let shown: String = id.chars().take(80).collect();
        refused(format!("there is no circuit {shown:?}{near}"), param)
    })
}

fn host<'a>(
    id: &str,
    circuit: &Circuit,
    scene: &Scene<'a>,
    param: &str,
) -> Result<Host<'a>, PlanError> {
    if circuit.model_fingerprint == scene.fingerprint {
        return Ok(Host {
            model: scene.model,
            is_own_dense: !scene.native,
        });
    }
    let partner = scene.pair.filter(|_| !scene.native);
    if let Some(pair) = partner
        && circuit.model_fingerprint == pair.sparse.fingerprint
    {
        return Ok(Host {
            model: &pair.sparse,
            is_own_dense: false,
        });
    }
    let mut models = vec![scene.model_id];
    models.extend(partner.map(|pair| pair.sparse.id.as_str()));
    let message = match models.contains(&circuit.model.as_str()) {
        true => format!(
            "circuit {id:?} was found in other weights than model {:?} has now; find it anew",
            circuit.model
        ),
        false => format!(
            "circuit {id:?} is of model {:?}; here edits are of {}",
            circuit.model,
            models.join(" and of ")
        ),
    };
    Err(refused(message, param))
}

/// A circuit's nodes, all of which the model has.
fn nodes_of(
    id: &str,
    circuit: &Circuit,
    config: &TransformerConfig,
    param: &str,
) -> Result<NodeSet, PlanError> {
    let faulty = |problem: String| refused(format!("circuit {id:?} is faulty: {problem}"), param);
    let nodes = circuit.node_set(config.n_layers);
    let nodes = nodes.map_err(|error| faulty(error.to_string()))?;
    let widths: BTreeMap<Node, usize> = node_locations(config).into_iter().collect();
    for (node, channels) in nodes.places() {
        let width = widths.get(&node).copied().unwrap_or(0);
        if let Some(channel) = channels.last().filter(|channel| **channel >= width) {
            let problem = format!("{node} has {width} nodes; {channel} is none of them");
            return Err(faulty(problem));
        }
    }
    Ok(nodes)
}

/// The channels of each place that an address picks.
fn chosen(
    address: &CircuitAddress,
    inside: &NodeSet,
    config: &TransformerConfig,
    param: &str,
) -> Result<Vec<(Node, Vec<usize>)>, PlanError> {
    let id = &address.circuit;
    let channel_param = format!("{param}.channel");
    let at = match &address.node {
        None => None,
        Some(name) => Some(place(name, config, &format!("{param}.node"))?),
    };
    let Some(at) = at else {
        if address.channel.is_some() {
            let message = "a channel is one of a place's; name the place in `node`";
            return Err(refused(message, &channel_param));
        }
        let nodes = match address.complement {
            true => &inside.complement(config),
            false => inside,
        };
        if nodes.is_empty() {
            let message = match address.complement {
                true => format!("circuit {id:?} has every node of its model; there are no others"),
                false => format!("circuit {id:?} has no nodes"),
            };
            return Err(refused(message, &format!("{param}.circuit")));
        }
        let places = nodes.places();
        return Ok(places
            .map(|(node, channels)| (node, channels.to_vec()))
            .collect());
    };
    let own = inside.of(at);
    let channels = match (address.complement, address.channel) {
        (true, Some(_)) => {
            let message = "`complement` is of all nodes of a place or of the model; one channel is named without a \
                           circuit, by `node` and `channel`";
            return Err(refused(message, &channel_param));
        }
        (true, None) => inside.complement(config).of(at).to_vec(),
        (false, None) => own.to_vec(),
        (false, Some(channel)) => {
            if own.binary_search(&channel).is_err() {
                let message = match own.is_empty() {
                    true => no_node_at(id, at, inside),
                    false => format!(
                        "channel {channel} of {at} is no node of circuit {id:?}; its nodes there are channels {}",
                        listed(own.iter())
                    ),
                };
                return Err(refused(message, &channel_param));
            }
            vec![channel]
        }
    };
    if channels.is_empty() {
        let message = match address.complement {
            true => format!("circuit {id:?} has every node at {at}; there are no others"),
            false => no_node_at(id, at, inside),
        };
        return Err(refused(message, &format!("{param}.node")));
    }
    Ok(vec![(at, channels)])
}

fn no_node_at(id: &str, at: Node, inside: &NodeSet) -> String {
    format!(
        "circuit {id:?} has no node at {at}; it has some at {}",
        listed(inside.places().map(|(node, _)| node))
    )
}

fn listed(names: impl Iterator<Item = impl ToString>) -> String {
    let mut names: Vec<String> = names
        .take(LISTED + 1)
        .map(|name| name.to_string())
        .collect();
    if names.len() > LISTED {
        names[LISTED] = "others".to_owned();
    }
    names.join(", ")
}

/// The place called `name`, one of those that have nodes.
fn place(name: &str, config: &TransformerConfig, param: &str) -> Result<Node, PlanError> {
    let place = named_place(name, config.n_layers, param)?;
    let with_nodes = node_locations(config).into_iter().map(|(node, _)| node);
    with_nodes
        .into_iter()
        .find(|node| Location::Node(*node) == place)
        .ok_or_else(|| {
            let message = format!(
                "{place} has no nodes: those of circuits are at act_in, q, k, v, post_act and resid_delta of a sublayer"
            );
            refused(message, param)
        })
}
