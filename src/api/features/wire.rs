//! Features as they are sent and answered.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::direction_wire::DirectionObject;
use super::lookup::Whose;
use crate::features::effects::FeatureEffects;
use crate::features::group::{WeightedChannel, Write};
use crate::features::registry::{self, FeatureTest};
use crate::interventions::request::VectorAddress;
use crate::serving::feature_store::{Origin, StoredFeature};
use crate::serving::snapshot::Snapshot;
use crate::tasks::Task;

/// One feature.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeatureObject {
    /// The name, or `NODE:CHANNEL` of a feature without one.
    #[schema(example = "quote_type")]
    pub id: String,
    #[schema(example = "feature")]
    pub object: &'static str,
    /// Null for a channel that nobody has named.
    #[schema(required = true)]
    pub name: Option<String>,
    pub bridge: String,
    /// A node location or residual site of the sparse model.
    #[schema(example = "3.attn.act_in")]
    pub node: String,
    /// Its channels with weights that, as a vector, have length one.
    pub channels: Vec<WeightedChannel>,
    pub description: String,
    /// How its changes enter the dense model unless a request says otherwise.
    pub write: Write,
    /// The tasks it implements, best first.
    pub tasks: Vec<Task>,
    /// Over reference text; null where it was not measured.
    #[schema(required = true)]
    pub stats: Option<Statistics>,
    /// What patching it does to the dense model; null where it was not measured.
    #[schema(required = true)]
    pub effects: Option<FeatureEffects>,
    /// Claims about it that `verify` runs again.
    pub tests: Vec<FeatureTest>,
    pub origin: FeatureOrigin,
    /// The circuits of the sparse model that have one of its channels as a node, by their ids.
    pub circuits: Vec<String>,
}

/// Where a feature is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FeatureOrigin {
    /// It came with the bridge.
    Shipped,
    /// It came with the bridge and was changed on this server.
    Changed,
    /// It was made on this server.
    Own,
    /// A channel without a name.
    Unnamed,
}

/// A feature's values `<u, x>` over reference text, `u` being its unit weights.
#[derive(Debug, Serialize, ToSchema)]
pub struct Statistics {
    pub mean: f64,
    /// The unit `std` of edits.
    pub std: f64,
    /// The unit `max` of edits.
    pub max: f64,
    pub min: f64,
    /// The share of tokens at which it is not zero.
    #[schema(minimum = 0, maximum = 1)]
    pub density: f64,
    /// The tokens these were taken over.
    pub tokens: usize,
    /// The fewest of its channels, in their order, that flip half of its first task's held-out pairs through
    /// the bridge; null where all of them together do not.
    #[schema(required = true)]
    pub channels_to_flip: Option<usize>,
}

/// A page of features.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeatureList {
    #[schema(example = "list")]
    pub object: &'static str,
    /// The model that was asked for, else the dense model of the bridge that was asked for or is the only one.
    #[schema(required = true)]
    pub model: Option<String>,
    pub data: Vec<ListedFeature>,
    /// The last feature of this page; the next page's `after`.
    #[schema(required = true)]
    pub last_id: Option<String>,
    pub has_more: bool,
}

/// What a list of features has.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum ListedFeature {
    Feature(Box<FeatureObject>),
    Direction(DirectionObject),
}

impl ListedFeature {
    /// A feature of a bridge, with the circuits that are served now.
    pub fn of(stored: StoredFeature, snapshot: &Snapshot) -> Self {
        let object = FeatureObject::from(stored).with_circuits(snapshot);
        ListedFeature::Feature(Box::new(object))
    }
}

/// Which features to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Features of bridges that join this model to another, and directions of this model.
    #[param(example = "tinypython")]
    pub model: Option<String>,
    /// Features of this bridge.
    #[param(example = "tinypython")]
    pub bridge: Option<String>,
    /// Features that implement this task, the ones for which it comes first leading.
    #[param(value_type = Option<Task>, example = "single_double_quote")]
    pub task: Option<String>,
    /// Features whose name, description, node or tasks hold this text, in any case.
    #[param(example = "quote")]
    pub query: Option<String>,
    /// At most so many.
    #[param(minimum = 1, maximum = 1000, default = 100, example = 10)]
    pub limit: Option<usize>,
    /// Only what comes after the feature of this id, the `last_id` of the page before.
    #[param(example = "quote_type")]
    pub after: Option<String>,
}

/// Which bridge a feature belongs to, or which model a direction does.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BridgeQuery {
    /// The bridge; needed where more than one has a feature of this id.
    #[param(example = "tinypython")]
    pub bridge: Option<String>,
    /// The model, of a direction; needed where more than one has a direction of this id, or a bridge has a feature of it.
    pub model: Option<String>,
}

impl BridgeQuery {
    /// Where the name is looked up.
    pub fn whose(&self) -> Whose<'_> {
        Whose {
            bridge: self.bridge.as_deref(),
            model: self.model.as_deref(),
        }
    }
}

/// A feature to be made: channels of a bridge's sparse model, or a direction of a dense model.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateFeature {
    /// The bridge whose sparse model has it; left out, the first that came into service. Not of a direction.
    pub bridge: Option<String>,
    /// 1 to 64 of a-z, 0-9, `.`, `_` and `-`, no dot first or beside another, not yet used in this bridge or model, and
    /// none of `contrast`, `direction` and `control_vector`.
    #[schema(pattern = r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?$", max_length = 64)]
    pub name: String,
    /// For people.
    #[serde(default)]
    #[schema(max_length = 10_000)]
    pub description: String,
    /// A node location or residual site of the sparse model, such as `3.attn.act_in`.
    pub node: Option<String>,
    /// Its channels, each once. Weights are scaled so that, as a vector, they have length one.
    #[schema(min_items = 1)]
    pub channels: Option<Vec<WeightedChannel>>,
    /// `sublayer` for `act_in` nodes and `residual` elsewhere, unless said.
    pub write: Option<Write>,
    /// The tasks it implements, best first.
    #[serde(default)]
    pub tasks: Vec<Task>,
    /// Claims about it that `verify` runs again.
    #[serde(default)]
    #[schema(max_items = 100)]
    pub tests: Vec<FeatureTest>,
    /// Of a direction: the dense model that it belongs to.
    pub model: Option<String>,
    /// Of a direction, in place of `node` and `channels`: its vector at each of its sites, each site once. What is done to
    /// the feature is done at all of them.
    #[schema(min_items = 1)]
    pub directions: Option<Vec<VectorAddress>>,
    /// Of a direction: texts to measure it over, which the units `std` and `max` are taken from. Left out, it is measured
    /// over the reference text of a bridge of its model; without either it has no statistics.
    #[schema(min_items = 1)]
    pub texts: Option<Vec<String>>,
}

/// Changes of a feature; what is left out stays as it is. A feature's node and channels are what it is: make
/// another one instead. Of a direction only the description can be changed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateFeature {
    #[schema(max_length = 10_000)]
    pub description: Option<String>,
    /// How its changes enter the dense model unless a request says otherwise.
    pub write: Option<Write>,
    /// The tasks it implements, best first.
    pub tasks: Option<Vec<Task>>,
    /// Claims about it that `verify` runs again.
    #[schema(max_items = 100)]
    pub tests: Option<Vec<FeatureTest>>,
}

/// A feature that is no more.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedFeature {
    pub id: String,
    #[schema(example = "feature")]
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

impl From<Origin> for FeatureOrigin {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Shipped => FeatureOrigin::Shipped,
            Origin::Changed => FeatureOrigin::Changed,
            Origin::Own => FeatureOrigin::Own,
        }
    }
}

impl From<StoredFeature> for FeatureObject {
    fn from(stored: StoredFeature) -> Self {
        let origin = FeatureOrigin::from(stored.origin);
        let id = stored.feature.name.clone();
        FeatureObject::new(id.clone(), Some(id), stored.bridge, stored.feature, origin)
    }
}

impl FeatureObject {
    /// The wire form of a feature, named or not.
    pub fn new(
        id: String,
        name: Option<String>,
        bridge: String,
        feature: registry::Feature,
        origin: FeatureOrigin,
    ) -> Self {
        FeatureObject {
            id,
            object: "feature",
            name,
            bridge,
            node: feature.node,
            channels: feature.channels,
            description: feature.description,
            write: feature.write,
            tasks: feature.tasks,
            stats: feature.stats.map(|stats| Statistics {
                mean: stats.mean,
                std: stats.std,
                max: stats.max,
                min: stats.min,
                density: stats.density,
                tokens: stats.tokens,
                channels_to_flip: stats.channels_to_flip,
            }),
            effects: feature.effects,
            tests: feature.tests,
            origin,
            circuits: Vec::new(),
        }
    }

    /// The same with the circuits that are served now.
    pub fn with_circuits(mut self, snapshot: &Snapshot) -> Self {
        if let Some(bridge) = snapshot.bridges.get(&self.bridge) {
            let model = bridge.record.sparse.as_str();
            self.circuits = snapshot.circuits_with(model, &self.node, &self.channels);
        }
        self
    }
}
