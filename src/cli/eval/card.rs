//! `causeway eval card`: everything a pair's card tells, measured and written by one command.
//!
//! It finds the features (`features.json`, `reference.safetensors`), measures tasks, losses, steering and quotes, and
//! writes the figures into the pair's `README.md`, the curve of the first quote feature as `quote_type.csv` and `.svg`,
//! and every figure to the file that `--figures` names.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::features::{FeaturesArguments, FoundFeatures};
use super::files::{sources, unseen_packages, write_json};
use crate::artifacts::atomic;
use crate::corpus::Split;
use crate::discovery::patching::Patching;
use crate::evaluation::card::{self, CardFigures};
use crate::evaluation::steering::{Dose, dose_response};
use crate::evaluation::{losses, quotes, task_pairs};
use crate::models::location::Location;
use crate::tasks::Task;
use crate::training::data::TrainingData;

const CARD: &str = "README.md";
/// A card is small; a larger one is none.
const LARGEST_CARD: u64 = 4 << 20;
/// Pairs of the curve, and of the quote features on generated programs.
const QUOTE_PAIRS: usize = 256;

#[derive(Debug, Args)]
pub struct CardArguments {
    #[command(flatten)]
    features: FeaturesArguments,
    /// A directory with a folder for each package that nothing of was trained on.
    #[arg(long)]
    unseen: Option<PathBuf>,
    /// Held-out sequences of each source, as long as the models' context.
    #[arg(long, default_value_t = 64)]
    sequences: usize,
    /// Strings of each source, and prompts without one.
    #[arg(long, default_value_t = 128)]
    strings: usize,
    /// A file for every figure.
    #[arg(long)]
    figures: Option<PathBuf>,
}

impl CardArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let directory = &self.features.pair;
        let models = self.features.on.pair(directory)?;
        let recipe = self.features.recipe.as_deref().context(
            "name the --recipe that the pair was trained by: its held-out text is measured",
        )?;
        let unseen = unseen_packages(self.unseen.as_deref())?;
        let FoundFeatures { tasks, features } = self.features.find(&models)?;
        let is_quote = |task: &Task| *task == Task::SingleDoubleQuote;
        let of_quotes: Vec<_> = features
            .iter()
            .filter(|feature| feature.tasks.iter().any(is_quote))
            .collect();
        let first = of_quotes
            .first()
            .context("the pair has no feature that decides a quote")?;
        let place = Location::parse(&first.node, models.n_layers())?;
        let pairs = |split| task_pairs(&models, Task::SingleDoubleQuote, QUOTE_PAIRS, 0, split);
        let mut held_out = Patching::new(&models, pairs(Split::HeldOut)?, &[place])?;
        let train = Patching::new(&models, pairs(Split::Train)?, &[])?;
        let dose = Dose {
            place,
            channels: first.channels.iter().map(|member| member.channel).collect(),
            write: first.write,
            seed: 0,
        };
        let steering = dose_response(&mut held_out, &train, &dose)?;
        tracing::info!("the curve is measured");
        let sources = sources(recipe)?;
        let texts = quotes::held_out_texts(&sources, &unseen)?;
        let quotes = of_quotes
            .iter()
            .map(|feature| quotes::measure(&models, feature, &texts, QUOTE_PAIRS, self.strings))
            .collect::<Result<_, _>>()?;
        tracing::info!("quotes are measured");
        let length = models.dense.config.context_length;
        let length = length.min(models.sparse.config.context_length);
        let data = TrainingData::load(&sources, models.tokenizer(), length)?;
        let figures = CardFigures {
            losses: losses::measure(&models, &data, &unseen, self.sequences, length)?,
            steering,
            quotes,
            tasks,
        };
        let svg = figures
            .steering
            .plot(&format!("{} on {}", first.name, Task::SingleDoubleQuote));
        atomic::write(
            &directory.join("quote_type.csv"),
            figures.steering.to_csv().as_bytes(),
        )?;
        atomic::write(&directory.join("quote_type.svg"), svg.to_svg().as_bytes())?;
        let path = directory.join(CARD);
        let written = match path.is_file() {
            true => String::from_utf8(atomic::read_small(&path, LARGEST_CARD)?)?,
            false => format!("# {}\n", models.id()),
        };
        let text = card::figures(&models, &features, &figures)?;
        atomic::write(&path, card::with_figures(&written, &text).as_bytes())?;
        match &self.figures {
            Some(path) => write_json(path, &figures),
            None => Ok(()),
        }
    }
}
