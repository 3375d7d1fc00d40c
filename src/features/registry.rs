//! The features of a pair: named channels or small groups of channels with their statistics and tests.
//!
//! `features.json` of a pair's directory ships with it; what callers add lives in the server's data directory.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::interventions::request::{WeightedChannel, Write};
use crate::tasks::Task;

/// A named channel or group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// `[a-z0-9._-]`, unique within its bridge; the name it is addressed by.
    pub name: String,
    pub description: String,
    /// A node location or residual site of the sparse model.
    pub node: String,
    /// A weight vector of unit length over the channels.
    pub channels: Vec<WeightedChannel>,
    /// How its changes enter the dense model unless a request says otherwise.
    pub write: Write,
    /// The tasks it implements, best first.
    #[serde(default)]
    pub tasks: Vec<Task>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<FeatureStatistics>,
    #[serde(default)]
    pub tests: Vec<FeatureTest>,
}

/// A feature over reference text: `a = <u, x>` with its unit weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FeatureStatistics {
    pub mean: f64,
    pub std: f64,
    pub max: f64,
    pub min: f64,
    /// The share of tokens at which it is not zero.
    pub density: f64,
    /// The tokens these were taken over.
    pub tokens: usize,
    /// The fewest channels of its node, in the order given, that flip half of its first task's held-out pairs
    /// through the bridge; none where all of them do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels_to_flip: Option<usize>,
}

/// Patching the feature from `counterfactual` makes `expected` more probable than `instead`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Test)]
pub struct FeatureTest {
    pub prompt: String,
    /// The prompt whose value of the feature is taken.
    pub counterfactual: String,
    /// The token that the counterfactual calls for, as text.
    pub expected: String,
    /// The token that the prompt calls for, as text.
    pub instead: String,
    /// With the edit, `expected` has at least this share of the two tokens' probability.
    #[schema(minimum = 0, maximum = 1)]
    pub at_least: f64,
    /// And at most this without it.
    #[schema(minimum = 0, maximum = 1)]
    pub at_most_before: f64,
}
