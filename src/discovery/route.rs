//! How a change of sparse channels enters a model: natively, or carried over the bridge into the dense one.

use std::fmt;

use serde::{Serialize, Serializer};

use super::DiscoveryError;
use crate::features::group::Write;
use crate::features::pair::Pair;
use crate::interventions::carry::{Carrier, NotCarried, is_sublayer_input};
use crate::models::location::Location;

/// Which model is edited, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The sparse model itself, at the feature's own place.
    Native,
    /// The dense model, through the decoder.
    Bridge(Write),
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Route::Native => "native",
            Route::Bridge(Write::Residual) => "residual",
            Route::Bridge(Write::Sublayer) => "sublayer",
        })
    }
}

impl Serialize for Route {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a unit change of each channel of a place is at the place edited, before the token's own factor.
#[derive(Debug, Clone)]
pub struct ChannelColumns {
    /// Where the edited model is changed.
    pub target: Location,
    /// Channels of the target.
    pub width: usize,
    /// The token's factor is the RMS of the sparse stream at the place's site.
    pub times_sparse_rms: bool,
    columns: Columns,
}

#[derive(Debug, Clone)]
enum Columns {
    /// Channel `c` of the place is channel `c` of the target.
    Own,
    /// `[channels][width]`, or why a channel has none.
    Carried(Vec<Result<Vec<f32>, NotCarried>>),
}

impl ChannelColumns {
    /// The columns of every channel of `place`.
    pub fn new(models: &Pair, place: Location, route: Route) -> Result<Self, DiscoveryError> {
        let channels = place.width(&models.sparse.config);
        let Route::Bridge(write) = route else {
            return Ok(ChannelColumns {
                target: place,
                width: channels,
                times_sparse_rms: false,
                columns: Columns::Own,
            });
        };
        if write == Write::Sublayer && !is_sublayer_input(place) {
            return Err(NotCarried::NoSublayer { place }.into());
        }
        let site = place.site(models.n_layers());
        let width = models.dense.config.d_model;
        let (mut target, mut times_sparse_rms) =
            (Location::Site(models.bridge.site_map.dense_of(site)), false);
        let mut columns = Vec::with_capacity(channels);
        for channel in 0..channels {
            let carrier = Carrier::new(
                &models.dense,
                &models.sparse,
                &models.bridge,
                place,
                &[channel],
                write,
                models.rms_ratio(site),
            )?;
            columns.push(carrier.map(|carrier| {
                (target, times_sparse_rms) = (carrier.target, carrier.times_sparse_rms);
                let mut column = vec![0.0; width];
                carrier.add(&[1.0], 1.0, &mut column);
                column
            }));
        }
        Ok(ChannelColumns {
            target,
            width,
            times_sparse_rms,
            columns: Columns::Carried(columns),
        })
    }

    /// Why a channel cannot be carried over, if it cannot.
    pub fn refusal(&self, channel: usize) -> Option<&NotCarried> {
        match &self.columns {
            Columns::Own => None,
            Columns::Carried(columns) => columns.get(channel)?.as_ref().err(),
        }
    }

    /// Adds `amount` times a channel's column; a channel that is not carried adds nothing.
    pub fn add(&self, channel: usize, amount: f32, out: &mut [f32]) {
        match &self.columns {
            Columns::Own => out[channel] += amount,
            Columns::Carried(columns) => {
                if let Some(Ok(column)) = columns.get(channel) {
                    for (out, value) in out.iter_mut().zip(column) {
                        *out += amount * value;
                    }
                }
            }
        }
    }

    /// The product of a gradient at the target with a channel's column.
    pub fn dot(&self, channel: usize, gradient: &[f32]) -> f32 {
        match &self.columns {
            Columns::Own => gradient[channel],
            Columns::Carried(columns) => match columns.get(channel) {
                Some(Ok(column)) => gradient.iter().zip(column).map(|(g, c)| g * c).sum(),
                _ => 0.0,
            },
        }
    }
}
