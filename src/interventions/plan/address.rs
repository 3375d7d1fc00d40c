//! Addresses: which channels of a place, or which direction of a residual stream, an edit or a condition speaks of.

use super::circuit_nodes::{self, CircuitNodes};
use super::place_name::named_place;
use super::scene::{PlanError, Scene, refused};
use crate::features::direction::{DirectionPart, NamedDirection, check_vector, site_of};
use crate::features::group::Group;
use crate::features::group::{WeightedChannel, Write};
use crate::features::registry::FeatureStatistics;
use crate::interventions::nearest::suggestion;
use crate::interventions::request::FeatureAddress;
use crate::interventions::subject::{Direction, Subject};
use crate::models::location::{Location, Site};

/// An address with what the registry knows of it.
#[derive(Debug, Clone)]
pub struct Resolved {
    pub subject: Subject,
    pub name: Option<String>,
    pub statistics: Option<FeatureStatistics>,
    pub write: Option<Write>,
    /// What is known of its channels where they are nodes of a circuit.
    pub nodes: Option<CircuitNodes>,
}

/// Finds what `address` means for the model that answers where only one place can be meant. `param` is the address's own
/// path in the request.
pub fn resolve(
    address: &FeatureAddress,
    scene: &Scene,
    param: &str,
) -> Result<Resolved, PlanError> {
    let mut parts = resolve_parts(address, scene, param)?;
    match (parts.pop(), parts.len()) {
        (Some(only), 0) => match &only.subject {
            Subject::Channels(group) | Subject::OwnChannels(group)
                if only.nodes.is_some() && group.channels.len() > 1 =>
            {
                let message = format!(
                    "{} nodes of the circuit are meant, and here is room for one value; add a `channel` to name one",
                    group.channels.len()
                );
                Err(refused(message, param))
            }
            _ => Ok(only),
        },
        (Some(part), others) if part.nodes.is_some() => {
            let message = format!(
                "the circuit's nodes are at {} places and have no one value here; name one of them as {{\"circuit\": ..., \
                 \"node\": ..., \"channel\": ...}}",
                others + 1
            );
            Err(refused(message, param))
        }
        (last, others) => {
            let name = last.and_then(|part| part.name).unwrap_or_default();
            let message = format!(
                "direction {name:?} is at {} sites and has no one value here; give the vector of one of them as \
                 {{\"site\": ..., \"vector\": [...]}}",
                others + 1
            );
            Err(refused(message, param))
        }
    }
}

/// The same where what is done is done at every place that is meant: one, each site of a named direction, or each place
/// that has nodes of a circuit.
pub fn resolve_parts(
    address: &FeatureAddress,
    scene: &Scene,
    param: &str,
) -> Result<Vec<Resolved>, PlanError> {
    if let FeatureAddress::Named(name) = address
        && channel_of(name).is_none()
        && scene
            .pair
            .is_none_or(|pair| !pair.features.contains_key(name))
        && let Some(direction) = scene.directions.get(name)
    {
        let parts = direction.parts.iter();
        return parts
            .map(|part| part_of(direction, part, scene, param))
            .collect();
    }
    resolve_address(address, scene, param)
}

/// A named direction at one of its sites.
fn part_of(
    direction: &NamedDirection,
    part: &DirectionPart,
    scene: &Scene,
    param: &str,
) -> Result<Resolved, PlanError> {
    let site = site_of(&part.site, scene.n_layers()).map_err(|error| refused(error, param))?;
    let statistics = part.stats.map(|stats| FeatureStatistics {
        mean: stats.mean,
        std: stats.std,
        max: stats.max,
        min: stats.min,
        density: 1.0,
        tokens: stats.tokens,
        channels_to_flip: None,
    });
    Ok(Resolved {
        subject: Subject::Direction(self::direction(site, &part.vector, scene, param)?),
        name: Some(direction.name.clone()),
        statistics,
        write: None,
        nodes: None,
    })
}

fn resolve_address(
    address: &FeatureAddress,
    scene: &Scene,
    param: &str,
) -> Result<Vec<Resolved>, PlanError> {
    let unnamed = |subject| Resolved {
        subject,
        name: None,
        statistics: None,
        write: None,
        nodes: None,
    };
    let only = match address {
        FeatureAddress::Named(id) => match channel_of(id) {
            Some((node, channel)) => {
                let place = parse_place(node, scene, param)?;
                unnamed(single(place, channel, scene, param)?)
            }
            None => named(id, scene, param)?,
        },
        FeatureAddress::Channel(address) => {
            let place = parse_place(&address.node, scene, &format!("{param}.node"))?;
            unnamed(single(place, address.channel, scene, param)?)
        }
        FeatureAddress::Group(address) => {
            let place = parse_place(&address.node, scene, &format!("{param}.node"))?;
            let param = format!("{param}.channels");
            let group = group(place, &address.channels, scene, &param)?;
            unnamed(Subject::Channels(group))
        }
        FeatureAddress::Vector(address) => {
            let site_param = format!("{param}.site");
            let layers = scene.model.config.n_layers;
            let place = named_place(&address.site, layers, &site_param)?;
            let Location::Site(site) = place else {
                let message = format!("{place} is a node; a vector acts on a residual site");
                return Err(refused(message, &site_param));
            };
            let direction = direction(site, &address.vector, scene, &format!("{param}.vector"))?;
            unnamed(Subject::Direction(direction))
        }
        FeatureAddress::Circuit(address) => {
            let parts = circuit_nodes::parts(address, scene, param)?.into_iter();
            let resolved = parts.map(|(subject, nodes)| Resolved {
                nodes: Some(nodes),
                ..unnamed(subject)
            });
            return Ok(resolved.collect());
        }
    };
    Ok(vec![only])
}

/// The node and the channel of an id `NODE:CHANNEL`, which features without a name have.
fn channel_of(id: &str) -> Option<(&str, usize)> {
    let (node, channel) = id.split_once(':')?;
    Some((node, channel.parse().ok()?))
}

/// A feature of the registry.
fn named(name: &str, scene: &Scene, param: &str) -> Result<Resolved, PlanError> {
    let directions = scene.directions.keys().map(String::as_str);
    let pair = match scene.pair {
        Some(pair) => pair,
        None if scene.directions.is_empty() => scene.pair(param)?,
        None => {
            let near = suggestion(name, directions);
            let message = format!(
                "{:?} has no bridge, and no direction {name:?}{near}",
                scene.model_id
            );
            return Err(refused(message, param));
        }
    };
    let Some(feature) = pair.features.get(name) else {
        let near = suggestion(
            name,
            pair.features.keys().map(String::as_str).chain(directions),
        );
        let message = format!("bridge {:?} has no feature {name:?}{near}", pair.id());
        return Err(refused(message, param));
    };
    let place = parse_place(&feature.node, scene, param)?;
    let group = group(place, &feature.channels, scene, param)?;
    Ok(Resolved {
        subject: Subject::Channels(group),
        name: Some(feature.name.clone()),
        statistics: feature.stats,
        write: Some(feature.write),
        nodes: None,
    })
}

/// One channel by itself.
fn single(
    place: Location,
    channel: usize,
    scene: &Scene,
    param: &str,
) -> Result<Subject, PlanError> {
    let channels = [WeightedChannel {
        channel,
        weight: 1.0,
    }];
    group(place, &channels, scene, param).map(Subject::Channels)
}

/// A place of the sparse model.
fn parse_place(name: &str, scene: &Scene, param: &str) -> Result<Location, PlanError> {
    named_place(name, scene.sparse(param)?.config.n_layers, param)
}

fn group(
    place: Location,
    channels: &[WeightedChannel],
    scene: &Scene,
    param: &str,
) -> Result<Group, PlanError> {
    if channels.is_empty() {
        return Err(refused("a group has at least one channel", param));
    }
    let width = place.width(&scene.sparse(param)?.config);
    let mut seen = std::collections::BTreeSet::new();
    for entry in channels {
        let channel = entry.channel;
        if channel >= width {
            let message = format!(
                "{place} has channels 0 to {}; {channel} is none of them",
                width - 1
            );
            return Err(refused(message, param));
        }
        if !seen.insert(channel) {
            return Err(refused(format!("channel {channel} is named twice"), param));
        }
        if !entry.weight.is_finite() || entry.weight == 0.0 {
            let message = format!(
                "channel {channel} has weight {}; a weight is finite and not zero",
                entry.weight
            );
            return Err(refused(message, param));
        }
    }
    // Scaled by the largest first, so that no square overflows or vanishes.
    let largest = channels
        .iter()
        .fold(0f64, |largest, entry| largest.max(entry.weight.abs()));
    let squares: f64 = channels
        .iter()
        .map(|entry| (entry.weight / largest).powi(2))
        .sum();
    let length = squares.sqrt();
    Ok(Group {
        place,
        channels: channels.iter().map(|entry| entry.channel).collect(),
        weights: channels
            .iter()
            .map(|entry| entry.weight / largest / length)
            .collect(),
    })
}

fn direction(
    site: Site,
    vector: &[f32],
    scene: &Scene,
    param: &str,
) -> Result<Direction, PlanError> {
    check_vector(vector, scene.model.config.d_model).map_err(|error| refused(error, param))?;
    let squared_norm: f64 = vector.iter().map(|&value| f64::from(value).powi(2)).sum();
    Ok(Direction {
        site,
        vector: vector.to_vec(),
        squared_norm,
    })
}
