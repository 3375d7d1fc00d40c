//! Taps: what may look at, and change, the values inside a forward pass.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Result, Tensor};

use super::location::{Place, Site};

/// Sees every value of a forward pass on its way, `[rows, channels]`, and may put another in its place.
pub trait ResidualTap {
    /// Called once for each place in the order of the pass; what it returns goes on.
    fn visit(&mut self, place: Place, value: Tensor) -> Result<Tensor>;
}

/// Changes nothing.
pub struct NoTap;

impl ResidualTap for NoTap {
    fn visit(&mut self, _place: Place, value: Tensor) -> Result<Tensor> {
        Ok(value)
    }
}

/// Keeps the values of the places it was asked for; changes nothing.
#[derive(Default)]
pub struct Recorder {
    wanted: BTreeSet<Place>,
    values: BTreeMap<Place, Tensor>,
}

impl Recorder {
    pub fn of(places: impl IntoIterator<Item = Place>) -> Self {
        Recorder {
            wanted: places.into_iter().collect(),
            values: BTreeMap::new(),
        }
    }

    /// A recorder of the residual stream at every site.
    pub fn of_sites(n_layers: usize) -> Self {
        Self::of(Site::all(n_layers).map(Place::Site))
    }

    /// What was seen at `place`, if it was asked for and the pass has come by.
    pub fn get(&self, place: Place) -> Option<&Tensor> {
        self.values.get(&place)
    }

    pub fn into_values(self) -> BTreeMap<Place, Tensor> {
        self.values
    }

    /// The recorded residual stream, site after site.
    pub fn into_sites(self) -> Vec<Tensor> {
        self.values
            .into_iter()
            .filter(|(place, _)| matches!(place, Place::Site(_)))
            .map(|(_, value)| value)
            .collect()
    }
}

impl ResidualTap for Recorder {
    fn visit(&mut self, place: Place, value: Tensor) -> Result<Tensor> {
        if self.wanted.contains(&place) {
            self.values.insert(place, value.clone());
        }
        Ok(value)
    }
}
