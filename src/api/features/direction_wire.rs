//! Directions as they are answered.

use serde::Serialize;
use utoipa::ToSchema;

use crate::features::direction::{DirectionSource, NamedDirection, ProjectionStatistics};

/// A named direction of a dense model.
#[derive(Debug, Serialize, ToSchema)]
pub struct DirectionObject {
    /// Its name, which edits and conditions take.
    #[schema(example = "formal")]
    pub id: String,
    #[schema(example = "direction")]
    pub object: &'static str,
    pub name: String,
    /// The model whose residual stream it is in.
    pub model: String,
    pub description: String,
    /// Where it came from.
    pub source: DirectionSource,
    /// What it is at each of its sites, in the order of the forward pass.
    pub directions: Vec<SiteObject>,
}

/// A direction at one site.
#[derive(Debug, Serialize, ToSchema)]
pub struct SiteObject {
    #[schema(example = "2.resid_in")]
    pub site: String,
    /// The length of its vector.
    pub norm: f64,
    /// Its projection over text; null where there was none to measure it over.
    #[schema(required = true)]
    pub stats: Option<ProjectionStatistics>,
    /// One number a channel of the residual stream; only where one direction is looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub vector: Option<Vec<f32>>,
}

impl DirectionObject {
    /// The wire form of a model's direction, with its vectors or without.
    pub fn new(model: &str, direction: &NamedDirection, vectors: bool) -> Self {
        let parts = direction.parts.iter();
        DirectionObject {
            id: direction.name.clone(),
            object: "direction",
            name: direction.name.clone(),
            model: model.to_owned(),
            description: direction.description.clone(),
            source: direction.source.clone(),
            directions: parts
                .map(|part| SiteObject {
                    site: part.site.clone(),
                    norm: part.norm(),
                    stats: part.stats,
                    vector: vectors.then(|| part.vector.clone()),
                })
                .collect(),
        }
    }
}
