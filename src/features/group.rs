//! What a feature is made of: channels of one place, each with its part in the feature's value.
//!
//! The value of a group with weights `u` at a token is `<u, x>`, `x` the activations of its channels there.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::documented::documented;
use crate::models::location::Location;
use crate::objects_only::objects_only;

/// Channels of one place with a unit weight vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    pub place: Location,
    pub channels: Vec<usize>,
    pub weights: Vec<f64>,
}

/// One channel of a group.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct WeightedChannel {
    /// Counted from 0.
    pub channel: usize,
    /// Its part in the group, positive or negative; never 0.
    pub weight: f64,
}

objects_only!(WeightedChannel);

documented! {
    /// How a change enters the dense model.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Write {
        /// Into the input of the same sublayer of the dense model, after its norm; in a deeper one, of the sublayer that
        /// reads the stream where the feature's site is joined.
        Sublayer,
        /// Into the dense residual stream at the feature's site, reaching every later layer.
        Residual,
    }
}
