//! The features of a pair: named channels or small groups of channels with their statistics and tests.
//!
//! `features.json` of a pair's directory ships with it; what callers add lives in the server's data directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::effects::FeatureEffects;
use super::group::{WeightedChannel, Write};
use crate::artifacts::atomic;
use crate::bridge::pair::PairError;
use crate::models::config::TransformerConfig;
use crate::models::location::Location;
use crate::tasks::Task;

const FEATURES_FILE: &str = "features.json";
const LARGEST_FEATURES_FILE: u64 = 8 << 20;

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
    /// What patching it does; none where it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effects: Option<FeatureEffects>,
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

/// `features.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FeaturesFile {
    features: Vec<Feature>,
}

/// The features that the pair in `directory` came with, by name; `sparse` is its sparse model. None where it has no
/// `features.json`.
pub fn read_shipped(
    directory: &Path,
    sparse: &TransformerConfig,
) -> Result<BTreeMap<String, Feature>, PairError> {
    let path = directory.join(FEATURES_FILE);
    let mut features = BTreeMap::new();
    if !path.is_file() {
        return Ok(features);
    }
    let invalid = |problem: String| PairError::Invalid {
        path: path.display().to_string(),
        problem,
    };
    let json = atomic::read_small(&path, LARGEST_FEATURES_FILE)?;
    let file: FeaturesFile =
        serde_json::from_slice(&json).map_err(|error| invalid(error.to_string()))?;
    for feature in file.features {
        check(&feature, sparse).map_err(&invalid)?;
        let name = feature.name.clone();
        if features.insert(name.clone(), feature).is_some() {
            return Err(invalid(format!("has two features called {name:?}")));
        }
    }
    Ok(features)
}

/// Whether a feature's place and channels are the sparse model's, and its weights numbers that are not zero.
pub fn check(feature: &Feature, sparse: &TransformerConfig) -> Result<(), String> {
    let of = |problem: String| format!("feature {:?}: {problem}", feature.name);
    let place =
        Location::parse(&feature.node, sparse.n_layers).map_err(|error| of(error.to_string()))?;
    let width = place.width(sparse);
    let channels: BTreeSet<usize> = feature.channels.iter().map(|entry| entry.channel).collect();
    if channels.is_empty() || channels.len() != feature.channels.len() {
        return Err(of("names no channel, or one of them twice".into()));
    }
    if let Some(entry) = feature
        .channels
        .iter()
        .find(|entry| !entry.weight.is_finite() || entry.weight == 0.0)
    {
        return Err(of(format!(
            "{} is no weight: finite, not zero",
            entry.weight
        )));
    }
    match channels.iter().find(|&&channel| channel >= width) {
        Some(channel) => Err(of(format!(
            "{place} has {width} channels; {channel} is none of them"
        ))),
        None => Ok(()),
    }
}
