//! `causeway train`: recipes in, models out.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use clap::{Args, ValueEnum};

use crate::evaluation::training_report;
use crate::memory;
use crate::training::exit::TrainingExit;
use crate::training::progress::tell_trained;
use crate::training::recipe::{self, Batches, BridgeRecipe, ModelRecipe, Output};
use crate::training::run::{ASKED_TO_END, End, Mode, STOP};
use crate::training::{bridge, model, tokenizer};

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
    /// Do not train: measure a few steps, and print what all of them would cost as JSON.
    #[arg(long, conflicts_with_all = ["resume", "export"])]
    dry_run: bool,
    /// End when standard input does, with the process that started this one; at once or, told `stop`, after a checkpoint.
    #[arg(long, hide = true)]
    attended: bool,
    /// Stand back behind other processes, 0 to 19; with 19 only idle cores are used. Above 0 it is also the first to go
    /// where the machine has no memory left.
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
        match (self.dry_run, self.export, self.resume) {
            (true, _, _) => Mode::Measure,
            (_, true, _) => Mode::Export,
            (_, _, true) => Mode::Resume,
            _ => Mode::Start,
        }
    }

    pub fn run(self) -> anyhow::Result<()> {
        memory::keep_freed();
        if self.attended {
            std::thread::spawn(end_with_input);
        }
        if self.nice > 0 {
            go_first_without_memory();
            rustix::process::setpriority_process(None, self.nice)?;
        }
        if self.nice == MOST_NICE {
            wait_for_idle_cores();
        }
        let device = device(&self.device)?;
        let mode = self.mode();
        let end = match self.kind {
            Kind::Tokenizer => {
                anyhow::ensure!(!self.dry_run, "a tokenizer's training is not measured");
                tokenizer::train_tokenizer(&recipe::read(&self.recipe)?)?;
                return Ok(());
            }
            Kind::Dense | Kind::Sparse => {
                let recipe: ModelRecipe = recipe::read(&self.recipe)?;
                match (matches!(self.kind, Kind::Sparse), &recipe.sparsity) {
                    (false, Some(_)) => anyhow::bail!("a dense model's recipe has no [sparsity]"),
                    (true, None) => anyhow::bail!("a sparse model's recipe needs [sparsity]"),
                    _ => {}
                }
                let ended = model::train_model(&recipe, &device, mode)?;
                if ended.end == End::Trained {
                    begin_evaluation(&recipe.output, &recipe.batches)?;
                    let folder = recipe.output.directory.join("model");
                    let sparse = recipe.sparsity.is_some();
                    let (batches, output) = (&recipe.batches, &recipe.output);
                    training_report::of_model(&folder, &ended.data, batches, output, sparse)?;
                }
                ended.end
            }
            Kind::Bridge => {
                let recipe: BridgeRecipe = recipe::read(&self.recipe)?;
                let ended = bridge::train_bridge(&recipe, &device, mode)?;
                if ended.end == End::Trained {
                    begin_evaluation(&recipe.output, &recipe.batches)?;
                    let folder = recipe.output.directory.join("pair");
                    training_report::of_pair(
                        &folder,
                        &ended.data,
                        &recipe.batches,
                        &recipe.output,
                    )?;
                }
                ended.end
            }
        };
        match end {
            End::Trained => {}
            End::Early => end_early(),
            End::Measured(cost) => println!("{}", serde_json::to_string_pretty(&cost)?),
        }
        Ok(())
    }
}

/// A training can be taken up again; what it runs beside cannot. Where the system does not know of this, nothing is lost.
fn go_first_without_memory() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
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

/// Whoever started this process holds the other end; when that is gone, so is the use of going on.
fn end_with_input() {
    // An error is an end as well.
    for line in std::io::stdin().lines().map_while(Result::ok) {
        if line == STOP.trim_end() {
            ASKED_TO_END.store(true, Ordering::SeqCst);
            end_if_asked();
        }
    }
    std::process::exit(1);
}

/// Set when the result is in its place.
static TRAINED: AtomicBool = AtomicBool::new(false);

/// From now on there is nothing to be kept before this process ends: the evaluation begins anew when it is taken up.
fn begin_evaluation(output: &Output, batches: &Batches) -> anyhow::Result<()> {
    TRAINED.store(true, Ordering::SeqCst);
    end_if_asked();
    Ok(tell_trained(&output.directory, batches.steps)?)
}

fn end_if_asked() {
    if TRAINED.load(Ordering::SeqCst) && ASKED_TO_END.load(Ordering::SeqCst) {
        end_early();
    }
}

fn end_early() -> ! {
    std::process::exit(i32::from(TrainingExit::Early.code()))
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
