//! `causeway train`: recipes in, models out.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::carrying_out::{CarryingOut, end_early, nothing_to_keep};
use crate::evaluation::training_report;
use crate::numerics::device::{DeviceChoice, MatrixType};
use crate::numerics::linear;
use crate::training::progress::tell_trained;
use crate::training::recipe::{self, Batches, BridgeRecipe, ModelRecipe, Output};
use crate::training::run::End;
use crate::training::{bridge, model, tokenizer};

/// Training by a recipe; everything that decides the result is in the recipe's file.
#[derive(Debug, Args)]
pub struct TrainArguments {
    kind: Kind,
    /// The recipe, a TOML file; `configs/recipes` has examples.
    #[arg(long)]
    recipe: PathBuf,
    #[command(flatten)]
    how: CarryingOut,
    /// What to compute on: auto, cpu, or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// What a device takes products in: float32 or bfloat16. Weights, norms and losses are float32 either way.
    #[arg(long, value_name = "TYPE", default_value_t)]
    dtype: MatrixType,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Tokenizer,
    Dense,
    Sparse,
    Bridge,
}

impl TrainArguments {
    pub fn run(self) -> anyhow::Result<()> {
        self.how.begin()?;
        let device = self.device.open()?;
        linear::multiply_in(self.dtype);
        let mode = self.how.mode();
        let end = match self.kind {
            Kind::Tokenizer => {
                anyhow::ensure!(!self.how.dry_run, "a tokenizer's training is not measured");
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

/// What comes now is the evaluation, which begins anew when the training is taken up.
fn begin_evaluation(output: &Output, batches: &Batches) -> anyhow::Result<()> {
    nothing_to_keep();
    Ok(tell_trained(&output.directory, batches.steps)?)
}
