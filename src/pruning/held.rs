//! What nodes are held at: the mean of each over reference text, or zero.
//!
//! One number a node, in the order of [`node_locations`].

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};

use crate::circuits::nodes::node_locations;
use crate::models::config::TransformerConfig;
use crate::models::location::{Location, Site};
use crate::models::tap::ResidualTap;
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::numerics::rows;
use crate::training::passes::masked::PaddedPrompts;

/// Tokens that go through the model together.
const TOKENS_A_PASS: usize = 4096;

/// The mean of every node over all tokens of `ids`, whole sequences of `length` one after another.
pub fn means(model: &Transformer, ids: &[u32], length: usize) -> Result<Vec<f32>> {
    let nodes = node_locations(&model.config).iter().map(|at| at.1).sum();
    let mut sums = vec![0f64; nodes];
    let (kept, held) = (vec![true; nodes], vec![0f32; nodes]);
    let sequences = (TOKENS_A_PASS / length.max(1)).max(1);
    for part in ids.chunks(sequences * length) {
        let mut rows = TokenRows::sequences(part, length, &Device::Cpu)?;
        let mut tap = HoldTap::new(&model.config, &kept, &held);
        tap.observer = Some(Box::new(|first, width, values| {
            for row in values.chunks_exact(width) {
                for (sum, value) in sums[first..].iter_mut().zip(row) {
                    *sum += f64::from(*value);
                }
            }
        }));
        let stream = model.embed(&rows)?;
        let first = Site::before_attention(0, model.config.n_layers);
        model.run(first, stream, &mut rows, &mut tap)?;
    }
    let tokens = ids.len().max(1) as f64;
    let means = sums.iter().map(|sum| (sum / tokens) as f32);
    Ok(means.collect())
}

/// The root mean square of how far each node is from what it is held at, over the rows of prompts in a circuit whose other
/// nodes are held.
pub fn deviations(
    model: &Transformer,
    prompts: &PaddedPrompts,
    kept: &[bool],
    held: &[f32],
) -> Result<Vec<f64>> {
    let mut squares = vec![0f64; held.len()];
    let mut tap = HoldTap::new(&model.config, kept, held);
    tap.observer = Some(Box::new(|first, width, values| {
        for row in values.chunks_exact(width) {
            let nodes = held[first..].iter().zip(&mut squares[first..]);
            for ((held, square), value) in nodes.zip(row) {
                *square += f64::from(value - held).powi(2);
            }
        }
    }));
    let mut rows = TokenRows::sequences(&prompts.ids, prompts.length, &Device::Cpu)?;
    let stream = model.embed(&rows)?;
    let first = Site::before_attention(0, model.config.n_layers);
    model.run(first, stream, &mut rows, &mut tap)?;
    drop(tap);
    let count = prompts.ids.len() as f64;
    Ok(squares
        .into_iter()
        .map(|square| (square / count).sqrt())
        .collect())
}

/// Is shown the index of a place's first node, the place's width, and what its nodes would be, `[rows, width]`.
type Observer<'a> = Box<dyn FnMut(usize, usize, &[f32]) + 'a>;

/// Holds every node of a pass that is not kept.
pub struct HoldTap<'a> {
    /// Every place with nodes, with the index of its first node and its width.
    places: BTreeMap<Location, (usize, usize)>,
    kept: &'a [bool],
    held: &'a [f32],
    pub observer: Option<Observer<'a>>,
}

impl<'a> HoldTap<'a> {
    pub fn new(config: &TransformerConfig, kept: &'a [bool], held: &'a [f32]) -> Self {
        let mut first = 0;
        let places = node_locations(config).into_iter().map(|(node, width)| {
            let place = (Location::Node(node), (first, width));
            first += width;
            place
        });
        HoldTap {
            places: places.collect(),
            kept,
            held,
            observer: None,
        }
    }
}

impl ResidualTap for HoldTap<'_> {
    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        let Some(&(first, width)) = self.places.get(&place) else {
            return Ok(value);
        };
        if let Some(observer) = &mut self.observer {
            rows::with_values(&value, |values| observer(first, width, values))?;
        }
        let kept = &self.kept[first..first + width];
        if kept.iter().all(|kept| *kept) {
            return Ok(value);
        }
        let mut values = rows::to_vec(&value)?;
        let held = &self.held[first..first + width];
        for row in values.chunks_exact_mut(width) {
            for ((value, kept), held) in row.iter_mut().zip(kept).zip(held) {
                *value = if *kept { *value } else { *held };
            }
        }
        Tensor::from_vec(values, value.shape(), value.device())
    }
}
