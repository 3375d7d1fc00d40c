//! What every channel of a sparse model does over reference text: mean, standard deviation, largest value.
//!
//! `reference.safetensors` of a pair's directory holds, for a place called `P`, tensors `P.mean`, `P.std` and
//! `P.max` of shape `[channels]`. Without it everything works that needs no statistics; what does says so.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::models::config::TransformerConfig;
use crate::models::location::Place;
use crate::numerics::rows;

/// The statistics of all places that were measured.
#[derive(Debug, Clone, Default)]
pub struct ReferenceStatistics {
    places: BTreeMap<Place, PlaceStatistics>,
}

/// One place's statistics, each `[channels]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlaceStatistics {
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
    pub max: Vec<f32>,
}

impl ReferenceStatistics {
    /// From a file's tensors, held against the sparse model they describe. Tensors of other names are left
    /// for other readers.
    pub fn from_tensors(
        tensors: &BTreeMap<String, Tensor>,
        config: &TransformerConfig,
    ) -> Result<Self, String> {
        let mut places = BTreeMap::new();
        for place in Place::all(config.n_layers) {
            let read = |part: &str| -> Result<Option<Vec<f32>>, String> {
                let name = format!("{place}.{part}");
                let Some(tensor) = tensors.get(&name) else {
                    return Ok(None);
                };
                let expected = place.width(config);
                if tensor.dims() != [expected] {
                    let found = tensor.dims();
                    return Err(format!("{name} has shape {found:?}, expected [{expected}]"));
                }
                let values = rows::to_vec(tensor).map_err(|error| format!("{name}: {error}"))?;
                match values.iter().all(|value| value.is_finite()) {
                    true => Ok(Some(values)),
                    false => Err(format!("{name} holds numbers that are not finite")),
                }
            };
            match (read("mean")?, read("std")?, read("max")?) {
                (Some(mean), Some(std), Some(max)) => {
                    places.insert(place, PlaceStatistics { mean, std, max });
                }
                (None, None, None) => {}
                _ => {
                    return Err(format!(
                        "{place} has some of mean, std and max, but not all"
                    ));
                }
            }
        }
        Ok(ReferenceStatistics { places })
    }

    /// The statistics of one place, where it was measured.
    pub fn place(&self, place: Place) -> Option<&PlaceStatistics> {
        self.places.get(&place)
    }

    /// Adds or replaces one place's statistics.
    pub fn insert(&mut self, place: Place, statistics: PlaceStatistics) {
        self.places.insert(place, statistics);
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

impl PlaceStatistics {
    /// The channels that vary over reference text.
    pub fn live_channels(&self) -> impl Iterator<Item = usize> {
        let varies = self.std.iter().enumerate().filter(|(_, std)| **std > 0.0);
        varies.map(|(channel, _)| channel)
    }
}
