//! A change of a row that waits for a place that the pass has still to come to: numbers on the host, or a row on the device
//! that made it.

use std::borrow::Cow;

use candle_core::Result;

use super::row_edits::add;
use crate::numerics::kernels::edit_table::DeviceRow;

/// A number for each channel of the row.
#[derive(Debug, Clone)]
pub enum Delta {
    OnHost(Vec<f32>),
    OnDevice(DeviceRow),
}

impl Delta {
    /// The numbers, brought to the host where they are not there.
    pub fn values(&self) -> Result<Cow<'_, [f32]>> {
        match self {
            Delta::OnHost(values) => Ok(Cow::Borrowed(values)),
            Delta::OnDevice(row) => row.values().map(Cow::Owned),
        }
    }

    /// Joins a change to those of the same row: what the host has becomes one.
    pub fn join(self, others: &mut Vec<Delta>) {
        match (self, others.last_mut()) {
            (Delta::OnHost(own), Some(Delta::OnHost(before))) => add(before, &own),
            (own, _) => others.push(own),
        }
    }
}
