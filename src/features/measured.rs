//! Groups of channels that have been measured over a pair's reference text.
//!
//! A group's statistics do not follow from its channels': each takes a pass over the text.

use std::sync::Arc;

use super::group::Group;
use super::recent::Recent;
use super::registry::FeatureStatistics;

/// What was measured of one group.
#[derive(Debug, Clone, PartialEq)]
pub struct MeasuredGroup {
    pub group: Group,
    /// Of the group's value `<u, x>`.
    pub statistics: FeatureStatistics,
    /// The mean of each of its channels, in the group's order.
    pub channel_means: Vec<f32>,
}

/// What was measured for one request.
#[derive(Debug, Clone, Default)]
pub struct KnownGroups {
    /// Of the pair's sparse model.
    pub sparse: Vec<Arc<MeasuredGroup>>,
    /// Of its dense one.
    pub dense: Vec<Arc<MeasuredGroup>>,
}

/// The groups of a pair that were used last.
pub type MeasuredGroups = Recent<Group, MeasuredGroup, 256>;
