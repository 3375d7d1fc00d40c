//! `--device` of the commands that run the models of a pair.

use std::path::Path;

use clap::Args;

use crate::bridge::pair::PairError;
use crate::features::pair::Pair;
use crate::models::layout::ReadOptions;
use crate::numerics::device::{DeviceChoice, MatrixType, Placement};

/// What a command computes on.
#[derive(Debug, Clone, Copy, Args)]
pub struct ComputeOn {
    /// What the models compute on: auto, cpu, or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// What a device holds dense matrices in: float32 or bfloat16.
    #[arg(long, value_name = "TYPE", default_value_t)]
    dtype: MatrixType,
}

impl ComputeOn {
    /// The pair in `directory`, its models and its bridge there.
    pub fn pair(self, directory: &Path) -> Result<Pair, PairError> {
        let options = ReadOptions {
            placement: Placement {
                matrices: self.dtype,
                ..Placement::both(self.device)
            },
            ..ReadOptions::UNBOUNDED
        };
        Pair::read_within(directory, options)
    }
}
