//! From the id in an address to a feature: a name, or `NODE:CHANNEL`.

use std::sync::Arc;

use actix_web::HttpRequest;

use crate::api::ApiError;
use crate::api::examiner::Effort;
use crate::api::state::State;
use crate::discovery::patience::Patience;
use crate::features::direction::NamedDirection;
use crate::features::group::{WeightedChannel, Write};
use crate::features::pair::Pair;
use crate::features::registry::{Feature, FeatureStatistics};
use crate::features::statistics::{group_activations, of_signed_channel, statistics_of};
use crate::interventions::nearest::suggestion;
use crate::models::location::{Location, NodeKind};
use crate::serving::feature_store::StoredFeature;
use crate::serving::snapshot::{ModelCard, ServedPair, shortened};

/// What an id stands for.
#[derive(Debug)]
pub enum Found {
    Named(StoredFeature),
    /// A single channel, named by where it is.
    Unnamed {
        bridge: String,
        feature: Feature,
    },
    Direction(FoundDirection),
}

/// A named direction and its model.
#[derive(Debug)]
pub struct FoundDirection {
    pub model: String,
    pub direction: Arc<NamedDirection>,
}

/// Where a name is looked up: in all bridges and models, unless one is named.
#[derive(Debug, Clone, Copy)]
pub struct Whose<'a> {
    pub bridge: Option<&'a str>,
    pub model: Option<&'a str>,
}

/// The feature of this id, in the bridge or model named or in the only one that has it.
pub fn find(state: &State, id: &str, whose: Whose) -> Result<Found, ApiError> {
    match id.split_once(':') {
        Some((node, channel)) => find_unnamed(state, node, channel, whose.bridge),
        None => find_named(state, id, whose),
    }
}

/// The named feature or direction of this id.
pub fn find_named(state: &State, id: &str, whose: Whose) -> Result<Found, ApiError> {
    let snapshot = state.snapshot();
    let features = match whose {
        Whose {
            bridge: Some(_),
            model: Some(_),
        } => {
            let message = "model is of directions and bridge of other features; give one of them";
            return Err(ApiError::invalid("model", message));
        }
        Whose {
            bridge: Some(bridge),
            ..
        } => {
            let bridge = snapshot.bridge(bridge, Some("bridge"))?;
            state.features.of(bridge.record.id.as_str())
        }
        Whose { model: Some(_), .. } => Vec::new(),
        Whose { .. } => state.features.all(),
    };
    let directions = match whose {
        Whose {
            model: Some(model), ..
        } => {
            let known = snapshot.model(model);
            let card = known.map_err(|error| ApiError::invalid("model", error.to_string()))?;
            vec![(card.id.clone(), state.directions.of(&card.id))]
        }
        Whose { bridge: None, .. } => state.directions.all(),
        Whose { .. } => Vec::new(),
    };
    let of_bridges = features.iter().filter(|stored| stored.feature.name == id);
    let of_models = directions.iter().filter_map(|(model, directions)| {
        let (model, direction) = (model.clone(), directions.get(id)?.clone());
        Some(Found::Direction(FoundDirection { model, direction }))
    });
    let mut found = of_bridges.cloned().map(Found::Named).chain(of_models);
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only),
        (Some(_), Some(Found::Direction(_))) => Err(ApiError::invalid(
            "model",
            format!("several bridges or models have a feature {id:?}; say which is meant"),
        )),
        (Some(_), Some(_)) => Err(ApiError::invalid(
            "bridge",
            format!("several bridges have a feature {id:?}; say which is meant"),
        )),
        (None, _) => {
            let names = features.iter().map(|stored| stored.feature.name.as_str());
            let others = directions.iter().flat_map(|(_, named)| named.keys());
            let near = suggestion(&shortened(id), names.chain(others.map(String::as_str)));
            Err(ApiError::NotFound {
                message: format!("there is no feature {:?}{near}", shortened(id)),
                param: None,
                code: Some("feature_not_found"),
            })
        }
    }
}

/// The direction of this id.
pub fn find_direction(
    state: &State,
    id: &str,
    model: Option<&str>,
) -> Result<FoundDirection, ApiError> {
    let whose = Whose {
        bridge: None,
        model,
    };
    match find_named(state, id, whose)? {
        Found::Direction(found) => Ok(found),
        Found::Named(_) | Found::Unnamed { .. } => Err(ApiError::Invalid {
            message: format!(
                "{:?} is channels of a sparse model and no direction of a dense one",
                shortened(id)
            ),
            param: None,
            code: Some("not_a_direction"),
        }),
    }
}

fn find_unnamed(
    state: &State,
    node: &str,
    channel: &str,
    bridge: Option<&str>,
) -> Result<Found, ApiError> {
    let bridge = state.snapshot().bridge_or_first(bridge, "bridge")?;
    let not_found = |message: String| ApiError::NotFound {
        message,
        param: None,
        code: Some("feature_not_found"),
    };
    let model = sparse_model(state, &bridge)?;
    let config = &model.config;
    let place =
        Location::parse(node, config.n_layers).map_err(|error| not_found(error.to_string()))?;
    let width = place.width(config);
    let channel = channel
        .parse::<usize>()
        .ok()
        .filter(|channel| *channel < width)
        .ok_or_else(|| {
            not_found(format!(
                "{place} has no channel {:?}; they run from 0 to {}",
                shortened(channel),
                width - 1
            ))
        })?;
    let channels = vec![WeightedChannel {
        channel,
        weight: 1.0,
    }];
    let feature = Feature {
        name: format!("{place}:{channel}"),
        description: String::new(),
        node: place.to_string(),
        write: default_write(place),
        tasks: Vec::new(),
        stats: statistics(&bridge, place, &channels),
        effects: None,
        channels,
        tests: Vec::new(),
    };
    Ok(Found::Unnamed {
        bridge: bridge.record.id.to_string(),
        feature,
    })
}

/// What a feature of one channel does over reference text. A group's statistics do not follow from its
/// channels': [`group_statistics`] takes a pass.
pub fn statistics(
    bridge: &ServedPair,
    place: Location,
    channels: &[WeightedChannel],
) -> Option<FeatureStatistics> {
    match channels {
        [only] => of_signed_channel(&bridge.reference, place, only.channel, only.weight),
        _ => None,
    }
}

/// What a feature does over reference text: known of one channel, measured for a group on the excerpt that the
/// bridge came with; none where it came without.
pub async fn group_statistics(
    http: &HttpRequest,
    state: &State,
    bridge: &ServedPair,
    place: Location,
    channels: &[WeightedChannel],
) -> Result<Option<FeatureStatistics>, ApiError> {
    if channels.len() == 1 || bridge.reference.text.is_none() {
        return Ok(statistics(bridge, place, channels));
    }
    let channels = channels.to_vec();
    let measure = move |models: &Pair, _: &Patience| {
        let Some(text) = &models.reference.text else {
            return Ok(None);
        };
        let values =
            group_activations(&models.sparse, &text.tokens, text.length, place, &channels)?;
        Ok(Some(statistics_of(&values)))
    };
    state
        .examiner
        .examine(http, Effort::Look, bridge, "channels", measure)
        .await
}

/// The model whose features a bridge has.
pub fn sparse_model(state: &State, bridge: &ServedPair) -> Result<Arc<ModelCard>, ApiError> {
    let id = bridge.record.sparse.as_str();
    let card = state.snapshot().models.get(id).cloned();
    card.ok_or_else(|| ApiError::Internal(format!("model {id} of a bridge is not served")))
}

/// The place of a feature of a bridge.
pub fn place_of(state: &State, bridge: &str, feature: &Feature) -> Result<Location, ApiError> {
    let model = sparse_model(state, &*state.snapshot().bridge(bridge, None)?)?;
    Location::parse(&feature.node, model.config.n_layers).map_err(ApiError::internal)
}

/// How an edit enters the dense model where nobody has said: what a sublayer reads is changed for that
/// sublayer, everything else for all that follows.
pub fn default_write(place: Location) -> Write {
    match place {
        Location::Node(node) if matches!(node.kind, NodeKind::AttnIn | NodeKind::MlpIn) => {
            Write::Sublayer
        }
        _ => Write::Residual,
    }
}
