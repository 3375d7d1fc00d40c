//! `causeway eval losses`: held-out losses beside those of n-grams, and the bridge's fidelity.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;

use super::files::{sources, unseen_packages, write_outputs};
use crate::cli::compute_on::ComputeOn;
use crate::evaluation::{losses, report};
use crate::training::data::TrainingData;

#[derive(Debug, Args)]
pub struct LossesArguments {
    #[arg(long)]
    pair: PathBuf,
    #[command(flatten)]
    on: ComputeOn,
    /// The recipe the pair was trained by: its sources are measured.
    #[arg(long)]
    recipe: PathBuf,
    /// A directory with a folder for each package that nothing of was trained on: measured together and each alone.
    #[arg(long)]
    unseen: Option<PathBuf>,
    /// Held-out sequences of each source.
    #[arg(long, default_value_t = 64)]
    sequences: usize,
    /// Tokens a sequence; the models' context by default.
    #[arg(long)]
    length: Option<usize>,
    #[arg(long)]
    output: Vec<PathBuf>,
}

impl LossesArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let models = self.on.pair(&self.pair)?;
        let contexts = [&models.dense, &models.sparse].map(|model| model.config.context_length);
        let context = contexts[0].min(contexts[1]);
        let length = self.length.unwrap_or(context);
        ensure!(
            (2..=context).contains(&length),
            "--length must be between 2 and {context}"
        );
        let unseen = unseen_packages(self.unseen.as_deref())?;
        let data = TrainingData::load(&sources(&self.recipe)?, models.tokenizer(), length)?;
        let results = losses::measure(&models, &data, &unseen, self.sequences, length)?;
        let table = report::loss_tables(&results);
        print!("{table}");
        write_outputs(&self.output, &table, &results)
    }
}
