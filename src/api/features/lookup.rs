//! From the id in an address to a feature: a name, or `NODE:CHANNEL`.

use std::sync::Arc;

use actix_web::HttpRequest;

use crate::api::ApiError;
use crate::api::examiner::Effort;
use crate::api::state::State;
use crate::discovery::patience::Patience;
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
}

/// The feature of this id, in the bridge named or in the only one that has it.
pub fn find(state: &State, id: &str, bridge: Option<&str>) -> Result<Found, ApiError> {
    match id.split_once(':') {
        Some((node, channel)) => find_unnamed(state, node, channel, bridge),
        None => find_named(state, id, bridge).map(Found::Named),
    }
}

/// The named feature of this id.
pub fn find_named(
    state: &State,
    id: &str,
    bridge: Option<&str>,
) -> Result<StoredFeature, ApiError> {
    let known = match bridge {
        Some(bridge) => state.features.of(state
            .snapshot()
            .bridge(bridge, Some("bridge"))?
            .record
            .id
            .as_str()),
        None => state.features.all(),
    };
    let mut found = known.iter().filter(|stored| stored.feature.name == id);
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only.clone()),
        (Some(_), Some(_)) => Err(ApiError::invalid(
            "bridge",
            format!("several bridges have a feature {id:?}; say which is meant"),
        )),
        (None, _) => {
            let near = suggestion(
                &shortened(id),
                known.iter().map(|stored| stored.feature.name.as_str()),
            );
            Err(ApiError::NotFound {
                message: format!("there is no feature {:?}{near}", shortened(id)),
                param: None,
                code: Some("feature_not_found"),
            })
        }
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
