//! What an edit or a condition speaks of, resolved: channels of a place of the sparse model or of a dense model that
//! answers, or a direction of a residual stream.

use crate::bridge::site_map::SiteMap;
use crate::features::group::{Group, WeightedChannel};
use crate::models::location::{Location, Site};

/// A feature by what it is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Subject {
    /// Of the model that has the features: the sparse one, or the answering model where that is sparse itself.
    Channels(Group),
    /// Of a dense model that answers: nodes of its own, which no bridge is needed for.
    OwnChannels(Group),
    Direction(Direction),
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
    pub fn place(&self) -> Location {
        match self {
            Subject::Channels(group) | Subject::OwnChannels(group) => group.place,
            Subject::Direction(direction) => Location::Site(direction.site),
        }
    }

    /// The site of the answering model at which a change of it is computed: a direction's own, where its place in the
    /// sparse model is joined to the answering one, or the last one before its own place there.
    pub fn answering_site(&self, site_map: &SiteMap) -> Site {
        match self {
            Subject::Channels(group) => site_map.dense_site(group.place),
            Subject::OwnChannels(group) => group.place.site_before(site_map.dense_layers()),
            Subject::Direction(direction) => direction.site,
        }
    }

    /// Where the answering model is looked at for it.
    pub fn answering_place(&self, site_map: &SiteMap) -> Location {
        match self {
            Subject::OwnChannels(group) => group.place,
            Subject::Channels(_) | Subject::Direction(_) => {
                Location::Site(self.answering_site(site_map))
            }
        }
    }

    /// Whether it is of the dense model that answers, whatever bridge that has.
    pub fn is_dense(&self) -> bool {
        matches!(self, Subject::OwnChannels(_) | Subject::Direction(_))
    }

    /// How many numbers are read for its value.
    pub fn width(&self) -> usize {
        match self {
            Subject::Channels(group) | Subject::OwnChannels(group) => group.channels.len(),
            Subject::Direction(direction) => direction.vector.len(),
        }
    }

    /// Its value where this is what its place holds at a token.
    pub fn value_in(&self, row: &[f32]) -> f32 {
        match self {
            Subject::Channels(group) | Subject::OwnChannels(group) => {
                let parts = group.channels.iter().zip(&group.weights);
                let parts = parts.map(|(&channel, weight)| {
                    row.get(channel)
                        .map_or(0.0, |&value| f64::from(value) * weight)
                });
                parts.sum::<f64>() as f32
            }
            Subject::Direction(direction) => {
                let parts = direction.vector.iter().zip(row);
                let dot: f64 = parts
                    .map(|(&one, &other)| f64::from(one) * f64::from(other))
                    .sum();
                (dot / direction.squared_norm) as f32
            }
        }
    }

    /// Its channels with their weights; none for a direction.
    pub fn channels(&self) -> Vec<WeightedChannel> {
        match self {
            Subject::Channels(group) | Subject::OwnChannels(group) => {
                let pairs = group.channels.iter().zip(&group.weights);
                pairs
                    .map(|(&channel, &weight)| WeightedChannel { channel, weight })
                    .collect()
            }
            Subject::Direction(_) => Vec::new(),
        }
    }
}
