//! `causeway trial`: what the server runs, in a process of its own, before it serves a directory that somebody has
//! put into its library.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::artifacts::tensors::FloatPrecision;
use crate::models::layout::ReadOptions;
use crate::numerics::device::Placement;
use crate::serving::trial;

/// A server reads its library on threads with two mebibytes of stack; what needs nearly as much is not safe there.
const STACK: usize = 3 << 19;

/// Nothing is written but a line; that may go to a file.
const MOST_WRITTEN: u64 = 1 << 20;

/// Let a model or a pair answer one token, within bounds, and print what it is; or say what is wrong with it.
#[derive(Debug, Args)]
pub struct TrialArguments {
    directory: PathBuf,
    /// MiB that a model may take, with the key-value cache of one sequence.
    #[arg(long)]
    max_model_mib: u64,
    /// Seconds of the processor that this may take.
    #[arg(long)]
    seconds: u64,
    /// Read pickled checkpoints too.
    #[arg(long)]
    pickles: bool,
}

impl TrialArguments {
    pub fn run(self) -> anyhow::Result<()> {
        for (resource, most) in [
            (Resource::Cpu, self.seconds),
            (Resource::Core, 0),
            (Resource::Fsize, MOST_WRITTEN),
        ] {
            let limit = Rlimit {
                current: Some(most),
                maximum: Some(most),
            };
            setrlimit(resource, limit)?;
        }
        let limits = ReadOptions {
            model_bytes: self.max_model_mib.saturating_mul(1 << 20),
            pickles: self.pickles,
            precision: FloatPrecision::AsStored,
            // A device is for what has been tried.
            placement: Placement::CPU,
        };
        let directory = self.directory;
        let trying = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || trial::bounded(&directory, limits))?;
        let tried = trying.join().ok().context("the trial panicked")??;
        println!("{}", serde_json::to_string(&tried)?);
        Ok(())
    }
}
