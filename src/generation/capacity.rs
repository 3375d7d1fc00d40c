//! What an engine has to do its work with: how much it takes on at once, and the devices that models compute on.

use serde::{Deserialize, Serialize};

use crate::numerics::device::{DeviceChoice, MatrixType, Placement, or_empty};

/// How much the engine does at once, and on what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capacity {
    /// Sequences that grow together, of each model: its cache has room for so many full contexts.
    pub sequences: usize,
    /// Prompt tokens that one step takes beside a token of every sequence being generated: more answer long
    /// prompts sooner, fewer hold up the others less.
    pub prefill_tokens: usize,
    /// Requests that may wait for room; more are turned away.
    pub waiting: usize,
    /// Mebibytes of keys and values that are kept after their requests, so that a prompt that begins like an earlier
    /// one need not be run from its start; 0 keeps none.
    pub prefix_cache_mib: usize,
    /// What models compute on.
    pub device: DeviceChoice,
    /// What sparse ones do, where it is something else.
    #[serde(with = "or_empty")]
    pub sparse_device: Option<DeviceChoice>,
    /// What a device holds dense matrices in.
    pub dtype: MatrixType,
}

impl Default for Capacity {
    fn default() -> Self {
        Capacity {
            sequences: 128,
            prefill_tokens: 512,
            waiting: 256,
            prefix_cache_mib: 256,
            device: DeviceChoice::Auto,
            sparse_device: None,
            dtype: MatrixType::Float32,
        }
    }
}

impl Capacity {
    /// Where dense and sparse models go.
    pub fn placement(&self) -> Placement {
        Placement {
            dense: self.device,
            sparse: self.sparse_device.unwrap_or(self.device),
            matrices: self.dtype,
        }
    }
}
