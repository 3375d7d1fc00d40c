//! Where the passes of a step add up the gradients of a model's weights.
//!
//! Every pass of a step (the model's own, those of the hybrids, those of the twin term) adds to the same buffers, so
//! that no pass makes a gradient of its own and none is added to another afterwards.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;

/// A gradient of each of a model's weights, by the weight's name.
#[derive(Debug, Default)]
pub struct WeightGradients {
    buffers: BTreeMap<String, Mutex<Vec<f32>>>,
}

impl WeightGradients {
    /// Zeros for each of the named weights.
    pub fn new<'a>(weights: impl Iterator<Item = (&'a String, &'a Tensor)>) -> Self {
        let zeros = |(name, tensor): (&String, &Tensor)| {
            (name.clone(), Mutex::new(vec![0.0; tensor.elem_count()]))
        };
        WeightGradients {
            buffers: weights.map(zeros).collect(),
        }
    }

    /// A weight's gradient; none where it is not kept here.
    pub fn get(&self, name: &str) -> Option<MutexGuard<'_, Vec<f32>>> {
        let buffer = self.buffers.get(name)?;
        Some(buffer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Zeros again: a new step begins.
    pub fn clear(&self) {
        for buffer in self.buffers.values() {
            let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
            buffer.fill(0.0);
        }
    }
}
