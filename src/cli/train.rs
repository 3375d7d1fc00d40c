//! `causeway train`: recipes in, models out.

use std::path::PathBuf;

use candle_core::Device;
use clap::{Args, ValueEnum};

use crate::memory;
use crate::training::run::Mode;
use crate::training::{bridge, model, recipe, tokenizer};

/// The lowest priority.
const MOST_NICE: i32 = 19;

/// Training by a recipe; everything that decides the result is in the recipe's file.
#[derive(Debug, Args)]
pub struct TrainArguments {
    kind: Kind,
    /// The recipe, a TOML file; `configs/recipes` has examples.
    #[arg(long)]
    recipe: PathBuf,
    /// Go on from the newest checkpoint in the recipe's directory.
    #[arg(long)]
    resume: bool,
    /// Do not train: write the result of the newest checkpoint.
    #[arg(long, conflicts_with = "resume")]
    export: bool,
    /// End when standard input does: with the process that started this one.
    #[arg(long, hide = true)]
    attended: bool,
    /// Stand back behind other processes, 0 to 19; with 19 only idle cores are used.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..=19))]
    nice: i32,
    /// `cpu`, or `cuda:N` in a build with CUDA.
    #[arg(long, default_value = "cpu")]
    device: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Tokenizer,
    Dense,
    Sparse,
    Bridge,
}

impl TrainArguments {
    fn mode(&self) -> Mode {
        match (self.export, self.resume) {
            (true, _) => Mode::Export,
            (_, true) => Mode::Resume,
            _ => Mode::Start,
        }
    }

    pub fn run(self) -> anyhow::Result<()> {
        memory::keep_freed();
        if self.attended {
            std::thread::spawn(end_with_input);
        }
        if self.nice > 0 {
            rustix::process::setpriority_process(None, self.nice)?;
        }
        if self.nice == MOST_NICE {
            wait_for_idle_cores();
        }
        let device = device(&self.device)?;
        match self.kind {
            Kind::Tokenizer => {
                tokenizer::train_tokenizer(&recipe::read(&self.recipe)?)?;
            }
            Kind::Dense => {
                let recipe: recipe::ModelRecipe = recipe::read(&self.recipe)?;
                anyhow::ensure!(
                    recipe.sparsity.is_none(),
                    "a dense model's recipe has no [sparsity]"
                );
                model::train_model(&recipe, &device, self.mode())?;
            }
            Kind::Sparse => {
                let recipe: recipe::ModelRecipe = recipe::read(&self.recipe)?;
                anyhow::ensure!(
                    recipe.sparsity.is_some(),
                    "a sparse model's recipe needs [sparsity]"
                );
                model::train_model(&recipe, &device, self.mode())?;
            }
            Kind::Bridge => {
                bridge::train_bridge(&recipe::read(&self.recipe)?, &device, self.mode())?
            }
        }
        Ok(())
    }
}

/// Where the priority cannot be lower, the system is told that this is for cores that have nothing else to do: whoever
/// wakes up gets its core at once, not at the end of this process's turn.
fn wait_for_idle_cores() {
    #[cfg(target_os = "linux")]
    // SAFETY: the structure is plain data and outlives the call. A refusal leaves everything as it was.
    unsafe {
        let parameters = libc::sched_param { sched_priority: 0 };
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameters);
    }
}

/// Whoever started this process holds the other end and says nothing; when that is gone, so is the use of going on.
fn end_with_input() {
    // An error is an end as well.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    std::process::exit(1);
}

/// The device called `name`.
fn device(name: &str) -> anyhow::Result<Device> {
    match name.split_once(':') {
        None if name == "cpu" => Ok(Device::Cpu),
        Some(("cuda", index)) => Ok(Device::new_cuda(index.parse()?)?),
        _ => anyhow::bail!(
            "{name:?} is no device; use cpu, or cuda:0 in a build with --features cuda"
        ),
    }
}
