//! How a change of a sparse feature becomes a change of the dense model.
//!
//! The decoder is applied to the change, so its bias and reconstruction error cancel. A residual site's channels
//! stand before the norm and need no rescaling: `delta = da W'[:, c]`. A sublayer's input stands after it:
//!
//! - into the residual stream: `delta = da * rms(h_s) / gain_s[c] * W'[:, c]`;
//! - into the input of a dense sublayer, after its norm:
//!   `delta = da * r * gain_d * W'[:, c] / gain_s[c]`, `r` the ratio of the two streams' mean RMS; for a dense
//!   LayerNorm the column's mean is subtracted first.
//!
//! Where models differ in depth, the stream is the dense one at the site that the place's own is joined to
//! ([`crate::bridge::site_map`]), and the sublayer the one that reads the dense stream there: the same sublayer in models of
//! equal depth.
//!
//! Source: Gao et al. 2025, arXiv 2511.13653, appendix A.4.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::bridge::Bridge;
use crate::features::group::Write;
use crate::models::config::Norm;
use crate::models::location::{Location, NodeKind, Site};
use crate::models::transformer::Transformer;
use crate::numerics::rows;

/// Why a channel's change has no counterpart in the dense model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCarried {
    #[error("channel {channel} of {place} is positional: it has no place in the residual stream")]
    Positional { place: Location, channel: usize },
    #[error(
        "channel {channel} of {place} has a gain of zero in the sparse model's norm: nothing reads it"
    )]
    ZeroGain { place: Location, channel: usize },
    #[error("{place} is not a sublayer's input: only `residual` can write it")]
    NoSublayer { place: Location },
}

/// The dense counterpart of a place's channels: one row for each channel asked for.
#[derive(Debug, Clone)]
pub struct Carrier {
    /// Where the dense model is changed.
    pub target: Location,
    /// `[channels][D]`: what a change of one does, before the token's own factor.
    columns: Vec<Arc<[f32]>>,
    /// A sublayer input written to the residual stream: the factor is the RMS of the sparse stream there.
    pub times_sparse_rms: bool,
}

/// Columns that other carriers of a request have, by place, way of writing and channel: many edits of many channels
/// hold each of them once.
pub type KnownColumns = BTreeMap<(Location, Write, usize), Arc<[f32]>>;

impl Carrier {
    /// Carries changes of `channels` of `place`, a residual site, a sublayer's input or a residual delta.
    /// `rms_ratio` is the mean RMS of the sparse stream over that of the dense one at the place's site.
    pub fn new(
        dense: &Transformer,
        sparse: &Transformer,
        bridge: &Bridge,
        place: Location,
        channels: &[usize],
        write: Write,
        rms_ratio: f64,
    ) -> Result<std::result::Result<Self, NotCarried>> {
        let known = &mut KnownColumns::new();
        Self::sharing(
            dense, sparse, bridge, place, channels, write, rms_ratio, known,
        )
    }

    /// The same; columns that are `known` are shared, and those that are not become so.
    #[allow(clippy::too_many_arguments)]
    pub fn sharing(
        dense: &Transformer,
        sparse: &Transformer,
        bridge: &Bridge,
        place: Location,
        channels: &[usize],
        write: Write,
        rms_ratio: f64,
        known: &mut KnownColumns,
    ) -> Result<std::result::Result<Self, NotCarried>> {
        let site = place.site(sparse.config.n_layers);
        let behind_norm = is_sublayer_input(place);
        if !behind_norm && write == Write::Sublayer {
            return Ok(Err(NotCarried::NoSublayer { place }));
        }
        let gains = match behind_norm {
            true => input_gains(sparse, site)?,
            false => Vec::new(),
        };
        let dense_site = bridge.site_map.dense_of(site);
        let (target, dense_gains) = match (write, dense_site.read_by()) {
            (Write::Residual, _) => (Location::Site(dense_site), Vec::new()),
            (Write::Sublayer, Some(input)) => (input, input_gains(dense, dense_site)?),
            (Write::Sublayer, None) => candle_core::bail!("no sublayer reads {dense_site}"),
        };
        let mut columns = Vec::with_capacity(channels.len());
        for &channel in channels {
            if channel >= sparse.config.d_model {
                return Ok(Err(NotCarried::Positional { place, channel }));
            }
            if behind_norm && gains[channel] == 0.0 {
                return Ok(Err(NotCarried::ZeroGain { place, channel }));
            }
            let key = (place, write, channel);
            if let Some(column) = known.get(&key) {
                columns.push(column.clone());
                continue;
            }
            let mut column = bridge.decoder_column(site, channel)?;
            if behind_norm {
                let inverse = 1.0 / gains[channel];
                column.iter_mut().for_each(|value| *value *= inverse);
            }
            if write == Write::Sublayer {
                if dense.config.norm != Norm::Rms {
                    let mean = column.iter().sum::<f32>() / column.len() as f32;
                    column.iter_mut().for_each(|value| *value -= mean);
                }
                for (value, gain) in column.iter_mut().zip(&dense_gains) {
                    *value *= gain * rms_ratio as f32;
                }
            }
            let column: Arc<[f32]> = column.into();
            known.insert(key, column.clone());
            columns.push(column);
        }
        Ok(Ok(Carrier {
            target,
            columns,
            times_sparse_rms: behind_norm && write == Write::Residual,
        }))
    }

    /// One that writes these columns `[channels][D]` to a place.
    pub fn of_columns(target: Location, columns: Vec<Vec<f32>>, times_sparse_rms: bool) -> Self {
        Carrier {
            target,
            columns: columns.into_iter().map(Into::into).collect(),
            times_sparse_rms,
        }
    }

    /// Adds to `delta [D]` what the `changes` of the channels (in the order they were named) do at one token,
    /// whose sparse stream at the site has root mean square `sparse_rms`.
    pub fn add(&self, changes: &[f32], sparse_rms: f32, delta: &mut [f32]) {
        let factor = if self.times_sparse_rms {
            sparse_rms
        } else {
            1.0
        };
        for (column, &change) in self.columns.iter().zip(changes) {
            let change = change * factor;
            if change != 0.0 {
                for (delta, &value) in delta.iter_mut().zip(column.iter()) {
                    *delta += change * value;
                }
            }
        }
    }

    /// `[channels][D]`.
    pub fn columns(&self) -> impl Iterator<Item = &[f32]> {
        self.columns.iter().map(AsRef::as_ref)
    }

    /// Width of the dense stream.
    pub fn width(&self) -> usize {
        self.columns.first().map_or(0, |column| column.len())
    }

    /// Multiplications that carrying one token's change takes.
    pub fn work(&self) -> usize {
        self.columns.len() * self.width()
    }
}

/// Whether a place is what a sublayer reads after its norm.
pub fn is_sublayer_input(place: Location) -> bool {
    matches!(place, Location::Node(node) if matches!(node.kind, NodeKind::AttnIn | NodeKind::MlpIn))
}

/// The gains of the norm through which the sublayer after `site` reads the stream.
fn input_gains(model: &Transformer, site: Site) -> Result<Vec<f32>> {
    match model.sublayer_input(site) {
        Some(input) => rows::to_vec(&input.norm.gain),
        None => candle_core::bail!("no sublayer reads {site}"),
    }
}

/// The root mean square of each row of a stream `[rows, S]`.
pub fn row_rms(stream: &Tensor) -> Result<Vec<f32>> {
    let width = stream.dim(1)?;
    rows::with_values(stream, |values| {
        let rms = |row: &[f32]| crate::numerics::norm::root_mean_square(row, 0.0);
        values.chunks_exact(width).map(rms).collect()
    })
}
