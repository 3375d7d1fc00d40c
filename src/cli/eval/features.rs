//! `causeway eval features`, `causeway eval verify` and `causeway eval twin`: a pair's features found, written, and tested
//! again.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;

use super::files::{find_feature, read_features, sources, write_json, write_outputs};
use super::tasks::TableArguments;
use crate::cli::compute_on::ComputeOn;
use crate::corpus::{CorpusGenerator, Split};
use crate::discovery::patience::Patience;
use crate::discovery::verify::verify;
use crate::evaluation::catalogue::{self, FEATURES_FILE, FeaturesFile, Measured, twin_of};
use crate::evaluation::report;
use crate::evaluation::task_pairs;
use crate::evaluation::task_table::TaskRow;
use crate::features::pair::Pair;
use crate::features::reference::ReferenceText;
use crate::features::registry::Feature;
use crate::features::statistics::measure;
use crate::training::data::documents;
use crate::training::recipe::Source;

/// Tokens a reference sequence.
const REFERENCE_LENGTH: usize = 128;
/// Sequences kept with the statistics to take examples from.
const EXCERPT_SEQUENCES: usize = 64;

#[derive(Debug, Args)]
pub struct FeaturesArguments {
    #[arg(long)]
    pub pair: PathBuf,
    #[command(flatten)]
    pub on: ComputeOn,
    #[command(flatten)]
    pub table: TableArguments,
    /// Reference text is drawn from the training part of this recipe's sources, in equal parts; without it,
    /// from generated programs.
    #[arg(long)]
    pub recipe: Option<PathBuf>,
    /// Sequences of reference text.
    #[arg(long, default_value_t = 512)]
    reference_sequences: usize,
    /// Keep all channels that were selected for a feature, also those that flip no further pair: they make its
    /// answers clearer.
    #[arg(long)]
    whole: bool,
    /// Where to write; the pair's directory by default.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Files for the table that the features come from, as `eval tasks` writes it: `.md`, `.json`.
    #[arg(long)]
    tasks_output: Vec<PathBuf>,
}

/// What was found, as it was written.
pub struct FoundFeatures {
    pub tasks: Vec<TaskRow>,
    pub features: Vec<Feature>,
}

impl FeaturesArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let models = self.on.pair(&self.pair)?;
        self.find(&models).map(|_| ())
    }

    /// Finds the features and writes them.
    pub fn find(&self, models: &Pair) -> anyhow::Result<FoundFeatures> {
        let directory = self.output.as_deref().unwrap_or(&self.pair);
        let length = REFERENCE_LENGTH
            .min(models.sparse.config.context_length)
            .min(models.dense.config.context_length);
        let (reference, excerpt) = self.reference_tokens(models, length)?;
        let places = models.described_locations();
        let mut statistics = measure(&models.sparse, &reference, length, &places)?;
        statistics.text = (!excerpt.is_empty()).then_some(ReferenceText {
            tokens: excerpt,
            length,
        });
        statistics.write(directory)?;
        tracing::info!(
            tokens = reference.len(),
            places = places.len(),
            "reference statistics written"
        );
        let mut features = Vec::new();
        let rows = self.table.rows(models);
        write_outputs(&self.tasks_output, &report::task_table(&rows), &rows)?;
        let measured = Measured {
            models,
            reference: &reference,
            length,
            seed: self.table.seed,
            whole: self.whole,
        };
        for row in &rows {
            for feature in catalogue::features(&measured, row)? {
                println!(
                    "{}: {} channels of {} ({:?}), {} tests",
                    feature.name,
                    feature.channels.len(),
                    feature.node,
                    feature.write,
                    feature.tests.len()
                );
                features.push(feature);
            }
        }
        let file = FeaturesFile { features };
        write_json(&directory.join(FEATURES_FILE), &file)?;
        Ok(FoundFeatures {
            tasks: rows,
            features: file.features,
        })
    }

    /// Sequences spread evenly over the training documents, and those of them that may be shown as examples:
    /// generated ones, since a pair's files should not carry other people's code.
    fn reference_tokens(
        &self,
        models: &Pair,
        length: usize,
    ) -> anyhow::Result<(Vec<u32>, Vec<u32>)> {
        let tokenizer = models.tokenizer();
        let texts: Vec<(bool, Vec<String>)> = match &self.recipe {
            Some(recipe) => sources(recipe)?
                .iter()
                .map(|source| {
                    let generated = source.name() == Source::GENERATED;
                    Ok((generated, documents(source)?.train))
                })
                .collect::<anyhow::Result<_>>()?,
            None => {
                let programs = CorpusGenerator::new(1, Split::Train);
                vec![(true, programs.take(self.reference_sequences).collect())]
            }
        };
        let share = self.reference_sequences.div_ceil(texts.len().max(1));
        let (mut tokens, mut excerpt) = (Vec::new(), Vec::new());
        for (generated, documents) in &texts {
            let stride = (documents.len() / share.max(1)).max(1);
            let mut taken = 0;
            for document in documents.iter().step_by(stride) {
                if taken == share {
                    break;
                }
                let ids = tokenizer.encode(document)?;
                // Not always a document's beginning.
                let start = (taken * length) % (ids.len().saturating_sub(length) + 1);
                if let Some(window) = ids.get(start..start + length) {
                    tokens.extend_from_slice(window);
                    taken += 1;
                    if *generated && taken <= EXCERPT_SEQUENCES {
                        excerpt.extend_from_slice(window);
                    }
                }
            }
        }
        ensure!(
            !tokens.is_empty(),
            "no training document has {length} tokens"
        );
        Ok((tokens, excerpt))
    }
}

#[derive(Debug, Args)]
pub struct VerifyArguments {
    #[arg(long)]
    pair: PathBuf,
    #[command(flatten)]
    pub on: ComputeOn,
    /// Only this feature.
    #[arg(long)]
    feature: Option<String>,
}

impl VerifyArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let models = self.on.pair(&self.pair)?;
        let features = match &self.feature {
            Some(name) => vec![find_feature(&self.pair, name)?],
            None => read_features(&self.pair)?,
        };
        let mut failed = 0;
        for feature in &features {
            for outcome in verify(&models, feature, Patience::endless())? {
                let verdict = if outcome.passed { "passed" } else { "failed" };
                failed += usize::from(!outcome.passed);
                println!(
                    "{} {verdict}: {:.3} -> {:.3}",
                    feature.name, outcome.before, outcome.after
                );
            }
        }
        ensure!(failed == 0, "{failed} tests failed");
        Ok(())
    }
}

#[derive(Debug, Args)]
pub struct TwinArguments {
    #[arg(long)]
    pair: PathBuf,
    #[command(flatten)]
    pub on: ComputeOn,
    /// Only this feature.
    #[arg(long, conflicts_with = "write")]
    feature: Option<String>,
    /// Held-out pairs of the feature's first task.
    #[arg(long, default_value_t = 128)]
    pairs: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write what was found into the pair's features.
    #[arg(long)]
    write: bool,
}

impl TwinArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let models = self.on.pair(&self.pair)?;
        let mut features = match &self.feature {
            Some(name) => vec![find_feature(&self.pair, name)?],
            None => read_features(&self.pair)?,
        };
        println!(
            "{:<28}{:>8}{:>12}{:>11}{:>9}{:>9}",
            "feature", "twin", "one way", "same sign", "native", "bridged"
        );
        for feature in &mut features {
            let Some(&task) = feature.tasks.first() else {
                continue;
            };
            let pairs = task_pairs(&models, task, self.pairs, self.seed, Split::HeldOut)?;
            let twin = twin_of(&models, feature, &pairs, Patience::endless())?;
            let told =
                |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
            println!(
                "{:<28}{:>8}{:>12}{:>11.3}{:>9.2}{:>9.2}",
                feature.name,
                told(twin.correlation),
                told(twin.correlation_one_way),
                twin.same_sign,
                twin.native,
                twin.bridged
            );
            if let Some(effects) = &mut feature.effects {
                effects.twin = Some(twin);
            }
        }
        if self.write {
            write_json(&self.pair.join(FEATURES_FILE), &FeaturesFile { features })?;
        }
        Ok(())
    }
}
