//! What an edit or a condition speaks of, resolved: channels of a place, or a direction of a residual stream.

use super::request::WeightedChannel;
use crate::models::location::{Place, Site};

/// A feature by what it is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Subject {
    Channels(Group),
    Direction(Direction),
}

/// Channels of one place with a unit weight vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    pub place: Place,
    pub channels: Vec<usize>,
    pub weights: Vec<f64>,
}

/// A direction of the answering model's own residual stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Direction {
    pub site: Site,
    pub vector: Vec<f32>,
    pub squared_norm: f64,
}

impl Subject {
    /// Where it is read.
    pub fn place(&self) -> Place {
        match self {
            Subject::Channels(group) => group.place,
            Subject::Direction(direction) => Place::Site(direction.site),
        }
    }

    /// How many numbers are read for its value.
    pub fn width(&self) -> usize {
        match self {
            Subject::Channels(group) => group.channels.len(),
            Subject::Direction(direction) => direction.vector.len(),
        }
    }

    /// Its channels with their weights; none for a direction.
    pub fn channels(&self) -> Vec<WeightedChannel> {
        match self {
            Subject::Channels(group) => {
                let pairs = group.channels.iter().zip(&group.weights);
                pairs
                    .map(|(&channel, &weight)| WeightedChannel { channel, weight })
                    .collect()
            }
            Subject::Direction(_) => Vec::new(),
        }
    }
}
