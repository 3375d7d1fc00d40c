//! `causeway eval quote`: the quote feature on strings of real files, and where it should do nothing.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use super::files::{find_feature, sources, write_json};
use crate::corpus::Split;
use crate::discovery::patching::Patching;
use crate::evaluation::{catalogue, real_strings, task_pairs, unrelated};
use crate::features::group::WeightedChannel;
use crate::features::pair::Pair;
use crate::models::location::Location;
use crate::tasks::Task;
use crate::training::data::documents;
use crate::training::recipe::Source;

/// Prompts without an open string have at most this many tokens.
const LONGEST_UNRELATED: usize = 96;

#[derive(Debug, Args)]
pub struct QuoteArguments {
    #[arg(long)]
    pair: PathBuf,
    /// The recipe the pair was trained by: its held-out documents are used.
    #[arg(long)]
    recipe: PathBuf,
    #[arg(long, default_value = "quote_type")]
    feature: String,
    /// Strings, and prompts without one.
    #[arg(long, default_value_t = 64)]
    count: usize,
    #[arg(long)]
    output: Option<PathBuf>,
}

/// What [`QuoteArguments`] measures.
#[derive(Debug, Serialize)]
struct QuoteFigures {
    feature: String,
    real_strings: catalogue::FeatureFlips,
    unrelated: Vec<SourceEffect>,
}

#[derive(Debug, Serialize)]
struct SourceEffect {
    source: &'static str,
    effect: unrelated::UnrelatedEffect,
}

impl QuoteArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let models = Pair::read(&self.pair)?;
        let feature = find_feature(&self.pair, &self.feature)?;
        let place = Location::parse(&feature.node, models.n_layers())?;
        let group: &[WeightedChannel] = &feature.channels;
        let pairs = task_pairs(&models, Task::SingleDoubleQuote, 128, 0, Split::Train)?;
        let values =
            unrelated::typical_values(&Patching::new(&models, pairs, &[place])?, place, group)?;
        let (mut strings, mut effects) = (Vec::new(), Vec::new());
        for source in sources(&self.recipe)? {
            let held_out = documents(&source)?.held_out;
            let prompts = unrelated::prompts_without_strings(
                &models,
                &held_out,
                self.count,
                LONGEST_UNRELATED,
            )?;
            for value in values {
                if prompts.is_empty() {
                    continue;
                }
                let effect = unrelated::set_everywhere(
                    &models,
                    &prompts,
                    place,
                    group,
                    feature.write,
                    value,
                )?;
                effects.push(SourceEffect {
                    source: source.name(),
                    effect,
                });
            }
            if source.name() != Source::GENERATED && strings.len() < self.count {
                let missing = self.count - strings.len();
                strings.extend(real_strings::pairs(&models, &held_out, missing)?);
            }
        }
        ensure!(
            !strings.is_empty(),
            "the recipe has no directory with strings in its held-out files"
        );
        let real_strings = catalogue::flips(&models, &feature, strings)?;
        let figures = QuoteFigures {
            feature: self.feature,
            real_strings,
            unrelated: effects,
        };
        println!("{}", serde_json::to_string_pretty(&figures)?);
        match &self.output {
            Some(path) => write_json(path, &figures),
            None => Ok(()),
        }
    }
}
