//! A change of a row that waits for a place that the pass has still to come to: numbers on the host, or a row on the device
//! that made it.

use std::borrow::Cow;

use candle_core::Result;

use crate::numerics::kernels::edit_table::DeviceRow;

/// A number for each channel of the row.
#[derive(Debug, Clone)]
pub enum RowDelta {
    OnHost(Vec<f32>),
    OnDevice(DeviceRow),
}

impl RowDelta {
    /// The numbers, brought to the host where they are not there.
    pub fn values(&self) -> Result<Cow<'_, [f32]>> {
        match self {
            RowDelta::OnHost(values) => Ok(Cow::Borrowed(values)),
            RowDelta::OnDevice(row) => row.values().map(Cow::Owned),
        }
    }

    /// Joins a change to those of the same row: what the host has becomes one.
    pub fn join(self, others: &mut Vec<RowDelta>) {
        match (self, others.last_mut()) {
            (RowDelta::OnHost(own), Some(RowDelta::OnHost(before))) => add(before, &own),
            (own, _) => others.push(own),
        }
    }
}

/// `row += change`.
pub fn add(row: &mut [f32], change: &[f32]) {
    for (value, change) in row.iter_mut().zip(change) {
        *value += change;
    }
}
