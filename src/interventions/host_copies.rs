//! Rows that the host looks at one by one, as conditions do: a tensor on a device comes to the host once, whole.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use candle_core::{Result, Tensor, TensorId};

use crate::numerics::{kernels, row_updates, rows};

/// What has come to the host, by tensors' identities.
#[derive(Debug, Default)]
pub struct HostCopies(RefCell<HashMap<TensorId, Vec<f32>>>);

impl HostCopies {
    /// One row of `values [_, width]`.
    pub fn row(&self, values: &Tensor, row: usize) -> Result<Vec<f32>> {
        if !kernels::run_on(values.device()) {
            return row_updates::gather(values, &[row as u32]);
        }
        let width = values.dim(1)?;
        let mut copies = self.0.borrow_mut();
        let copy = match copies.entry(values.id()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(rows::to_vec(values)?),
        };
        let row = copy.chunks_exact(width.max(1)).nth(row);
        row.map(<[f32]>::to_vec)
            .ok_or_else(|| candle_core::Error::msg("a condition looks at a row that is not there"))
    }
}
