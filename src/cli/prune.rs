//! `causeway prune`: a recipe in, a circuit out.

use std::path::PathBuf;

use clap::Args;

use crate::pruning::finding::prune;
use crate::pruning::recipe::PruneRecipe;
use crate::training::recipe;
use crate::training::run::{End, Mode};

/// Finding the smallest circuit of a model for a task.
#[derive(Debug, Args)]
pub struct PruneArguments {
    /// The recipe, a TOML file.
    #[arg(long)]
    recipe: PathBuf,
    /// Go on from the newest checkpoint in the recipe's directory.
    #[arg(long)]
    resume: bool,
    /// Do not prune: measure a few steps, and print what all of them would cost as JSON.
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
}

impl PruneArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let recipe: PruneRecipe = recipe::read(&self.recipe)?;
        let mode = match (self.dry_run, self.resume) {
            (true, _) => Mode::Measure,
            (_, true) => Mode::Resume,
            _ => Mode::Start,
        };
        if let End::Measured(cost) = prune(&recipe, mode)? {
            println!("{}", serde_json::to_string_pretty(&cost)?);
        }
        Ok(())
    }
}
