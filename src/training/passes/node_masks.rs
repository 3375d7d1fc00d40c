//! Masks over the nodes of a model: what is kept, and what everything else is held at.
//!
//! A mask is one number a node, in the order of [`node_locations`]: a kept node has its own value, any other the value it
//! is *held* at, the same at every token. A pass keeps what nodes would have been, so that its backward pass gives the
//! gradient of every node's mask, held ones included: `sum over tokens of grad * (value - held)`.

use std::sync::{Arc, Mutex, PoisonError};

use multiversion::multiversion;

use crate::circuits::nodes::node_locations;
use crate::models::config::TransformerConfig;
use crate::numerics::tiles::elementwise;

/// The masks of all places of a model.
#[derive(Debug)]
pub struct NodeMasks {
    /// In the order of [`node_locations`].
    places: Vec<PlaceMask>,
}

/// The mask of one place: of queries, say.
#[derive(Debug)]
pub struct PlaceMask {
    pub kept: Vec<bool>,
    /// The channels that are kept, ascending.
    pub kept_channels: Vec<usize>,
    pub held: Vec<f32>,
    /// Of the mask, added up over the sequences of a backward pass.
    gradient: Mutex<Vec<f32>>,
}

/// Places of a layer in the order of [`crate::circuits::nodes::KINDS`].
pub const ATTENTION_IN: usize = 0;
pub const QUERIES: usize = 1;
pub const KEYS: usize = 2;
pub const VALUES: usize = 3;
pub const ATTENTION_OUT: usize = 4;
pub const MLP_IN: usize = 5;
pub const NEURONS: usize = 6;
pub const MLP_OUT: usize = 7;
pub const PLACES: usize = 8;

impl NodeMasks {
    /// `kept` and `held` are of all nodes, place after place.
    pub fn new(config: &TransformerConfig, kept: &[bool], held: &[f32]) -> Arc<Self> {
        let mut first = 0;
        let places = node_locations(config).into_iter().map(|(_, width)| {
            let range = first..first + width;
            first += width;
            PlaceMask {
                kept: kept[range.clone()].to_vec(),
                kept_channels: (0..width).filter(|at| kept[range.start + at]).collect(),
                held: held[range].to_vec(),
                gradient: Mutex::new(vec![0.0; width]),
            }
        });
        Arc::new(NodeMasks {
            places: places.collect(),
        })
    }

    /// One place of a layer.
    pub fn place(&self, layer: usize, place: usize) -> &PlaceMask {
        &self.places[layer * PLACES + place]
    }

    pub fn places(&self) -> &[PlaceMask] {
        &self.places
    }

    /// The gradients of all nodes' masks, place after place.
    pub fn gradients(&self) -> Vec<f32> {
        let places = self.places.iter();
        places
            .flat_map(|place| {
                let gradient = place
                    .gradient
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                gradient.clone()
            })
            .collect()
    }
}

impl PlaceMask {
    /// `x [channels][width]` as it goes on: held channels at their values.
    pub fn hold(&self, x: &mut [f32], width: usize) {
        let channels = self.kept.iter().zip(&self.held);
        for (row, (kept, held)) in x.chunks_exact_mut(width).zip(channels) {
            if !kept {
                row.fill(*held);
            }
        }
    }

    /// `out [rows, channels]` becomes `h [rows, channels]` and what goes on of `x [channels][width]`: of held channels nothing
    /// is read.
    pub fn add_held(&self, x: &[f32], width: usize, h: &[f32], out: &mut [f32]) {
        let channels = self.held.len();
        let rows = out.chunks_exact_mut(channels).zip(h.chunks_exact(channels));
        for (token, (out, h)) in rows.enumerate() {
            out.copy_from_slice(h);
            elementwise::add(out, &self.held);
            for &channel in &self.kept_channels {
                out[channel] = x[channel * width + token] + h[channel];
            }
        }
    }

    /// The gradient of the mask by one sequence of `length` tokens, given what the nodes would have been and the gradient
    /// of what went on; the latter becomes that of what the nodes would have been.
    pub fn backward(&self, x: &[f32], grad: &mut [f32], width: usize, length: usize) -> Vec<f32> {
        mask_gradient(&self.kept, &self.held, x, grad, (width, length))
    }

    /// Adds one sequence's gradient.
    pub fn add(&self, gradient: &[f32]) {
        let mut sum = self.gradient.lock().unwrap_or_else(PoisonError::into_inner);
        for (sum, value) in sum.iter_mut().zip(gradient) {
            *sum += value;
        }
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn mask_gradient(
    kept: &[bool],
    held: &[f32],
    x: &[f32],
    grad: &mut [f32],
    (width, length): (usize, usize),
) -> Vec<f32> {
    let rows = x.chunks_exact(width).zip(grad.chunks_exact_mut(width));
    let channels = kept.iter().zip(held);
    rows.zip(channels)
        .map(|((x, grad), (kept, held))| {
            let mut lanes = [0f32; 16];
            let values = x[..length].chunks(16).zip(grad[..length].chunks(16));
            for (x, grad) in values {
                for ((lane, x), grad) in lanes.iter_mut().zip(x).zip(grad) {
                    *lane += grad * (x - held);
                }
            }
            if !kept {
                grad.fill(0.0);
            }
            lanes.iter().sum()
        })
        .collect()
}
