//! `causeway eval quote`: the quote feature on strings of real files, and where it should do nothing.

use std::path::PathBuf;

use clap::Args;

use super::files::{find_feature, sources, unseen_packages, write_json};
use crate::cli::compute_on::ComputeOn;
use crate::evaluation::quotes;

#[derive(Debug, Args)]
pub struct QuoteArguments {
    #[arg(long)]
    pair: PathBuf,
    #[command(flatten)]
    on: ComputeOn,
    /// The recipe the pair was trained by: its held-out documents are used.
    #[arg(long)]
    recipe: PathBuf,
    /// A directory with a folder for each package that nothing of was trained on.
    #[arg(long)]
    unseen: Option<PathBuf>,
    #[arg(long, default_value = "quote_type")]
    feature: String,
    /// Pairs of generated programs.
    #[arg(long, default_value_t = 256)]
    pairs: usize,
    /// Strings, and prompts without one, of each source.
    #[arg(long, default_value_t = 128)]
    count: usize,
    #[arg(long)]
    output: Option<PathBuf>,
}

impl QuoteArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let models = self.on.pair(&self.pair)?;
        let feature = find_feature(&self.pair, &self.feature)?;
        let unseen = unseen_packages(self.unseen.as_deref())?;
        let texts = quotes::held_out_texts(&sources(&self.recipe)?, &unseen)?;
        let figures = quotes::measure(&models, &feature, &texts, self.pairs, self.count)?;
        println!("{}", serde_json::to_string_pretty(&figures)?);
        match &self.output {
            Some(path) => write_json(path, &figures),
            None => Ok(()),
        }
    }
}
