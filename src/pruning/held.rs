//! What nodes are held at: the mean of each over reference text, or zero.
//!
//! One number a node, in the order of [`node_locations`].

use candle_core::{Device, Result, Tensor};

use crate::circuits::nodes::node_locations;
use crate::models::location::{Location, Site};
use crate::models::tap::ResidualTap;
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::numerics::rows;

/// Tokens that go through the model together.
const TOKENS_A_PASS: usize = 4096;

/// The mean of every node over all tokens of `ids`, whole sequences of `length` one after another.
pub fn means(model: &Transformer, ids: &[u32], length: usize) -> Result<Vec<f32>> {
    let places = node_locations(&model.config);
    let mut sums: Vec<Vec<f64>> = places.iter().map(|(_, width)| vec![0.0; *width]).collect();
    let sequences = (TOKENS_A_PASS / length.max(1)).max(1);
    for part in ids.chunks(sequences * length) {
        let mut rows = TokenRows::sequences(part, length, &Device::Cpu)?;
        let mut tap = SumTap {
            places: &places,
            sums: &mut sums,
        };
        let stream = model.embed(&rows)?;
        let first = Site::before_attention(0, model.config.n_layers);
        model.run(first, stream, &mut rows, &mut tap)?;
    }
    let tokens = ids.len().max(1) as f64;
    let means = sums.iter().flatten().map(|sum| (sum / tokens) as f32);
    Ok(means.collect())
}

/// Adds up every node over a pass's rows.
struct SumTap<'a> {
    places: &'a [(crate::models::location::Node, usize)],
    sums: &'a mut [Vec<f64>],
}

impl ResidualTap for SumTap<'_> {
    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        let places = self.places.iter().zip(self.sums.iter_mut());
        let found = places
            .into_iter()
            .find(|((node, _), _)| Location::Node(*node) == place);
        if let Some(((_, width), sums)) = found {
            rows::with_values(&value, |values| {
                for row in values.chunks_exact(*width) {
                    for (sum, value) in sums.iter_mut().zip(row) {
                        *sum += f64::from(*value);
                    }
                }
            })?;
        }
        Ok(value)
    }
}
