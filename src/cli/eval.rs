//! `causeway eval`: what a pair can do, in figures for its card.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::artifacts::atomic;
use crate::corpus::{CorpusGenerator, Split};
use crate::evaluation::catalogue::{self, FEATURES_FILE, FeaturesFile};
use crate::evaluation::steering::{Dose, dose_response};
use crate::evaluation::task_table::{TableOptions, TaskRow, task_row};
use crate::evaluation::{losses, real_strings, report, task_pairs, unrelated};
use crate::features::contrast::ContrastOptions;
use crate::features::paired_models::PairedModels;
use crate::features::patching::Patching;
use crate::features::registry::Feature;
use crate::features::statistics::ReferenceStatistics;
use crate::features::verify::verify;
use crate::interventions::carry::is_sublayer_input;
use crate::interventions::request::{WeightedChannel, Write};
use crate::models::location::Place;
use crate::tasks::Task;
use crate::training::data::{TrainingData, documents};
use crate::training::recipe::{self, Source};

/// A features file is small; a larger one is none.
const LARGEST_FEATURES_FILE: u64 = 64 << 20;
/// Tokens a reference sequence.
const REFERENCE_LENGTH: usize = 128;
/// Prompts without an open string have at most this many tokens.
const LONGEST_UNRELATED: usize = 96;

/// Measurements of a pair.
#[derive(Debug, Args)]
pub struct EvalArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The dose-response curve of one feature on a task's held-out pairs.
    Steering(SteeringArguments),
    /// The table of all tasks, natively and through the bridge.
    Tasks(TasksArguments),
    /// Held-out losses beside those of n-grams, and the bridge's fidelity at every site.
    Losses(LossesArguments),
    /// Find a pair's features; writes `features.json` and `reference.safetensors` into its directory.
    Features(FeaturesArguments),
    /// Run the features' own tests.
    Verify(VerifyArguments),
    /// The quote feature on strings of real files and on prompts that have nothing to do with it.
    Quote(QuoteArguments),
}

#[derive(Debug, Args)]
struct SteeringArguments {
    #[arg(long)]
    pair: PathBuf,
    /// A feature of the pair's `features.json`.
    #[arg(long, conflicts_with = "place")]
    feature: Option<String>,
    /// A node or residual site, with `--channels`.
    #[arg(long, requires = "channels")]
    place: Option<String>,
    /// Channels of the place, at most 16.
    #[arg(long, value_delimiter = ',')]
    channels: Vec<usize>,
    /// How changes enter the dense model; the feature's own by default.
    #[arg(long)]
    write: Option<WriteName>,
    /// The feature's first task by default.
    #[arg(long)]
    task: Option<Task>,
    /// Held-out pairs.
    #[arg(long, default_value_t = 256)]
    pairs: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long)]
    csv: Option<PathBuf>,
    #[arg(long)]
    svg: Option<PathBuf>,
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum WriteName {
    Residual,
    Sublayer,
}

#[derive(Debug, Args)]
struct TableArguments {
    /// Only these tasks.
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<Task>,
    /// Held-out pairs that figures are measured on.
    #[arg(long, default_value_t = 128)]
    pairs: usize,
    /// Training pairs that groups are selected on.
    #[arg(long, default_value_t = 64)]
    train_pairs: usize,
    /// Places searched in earnest for each way in.
    #[arg(long, default_value_t = 4)]
    refined: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Args)]
struct TasksArguments {
    #[arg(long)]
    pair: PathBuf,
    #[command(flatten)]
    table: TableArguments,
    /// Files to write: the table where the name ends in `.md`, every figure where it ends in `.json`.
    #[arg(long)]
    output: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct LossesArguments {
    #[arg(long)]
    pair: PathBuf,
    /// The recipe the pair was trained by: its sources are measured.
    #[arg(long)]
    recipe: PathBuf,
    /// Held-out sequences of each source.
    #[arg(long, default_value_t = 64)]
    sequences: usize,
    /// Tokens a sequence; the models' context by default.
    #[arg(long)]
    length: Option<usize>,
    #[arg(long)]
    output: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct FeaturesArguments {
    #[arg(long)]
    pair: PathBuf,
    #[command(flatten)]
    table: TableArguments,
    /// Reference text is drawn from the training part of this recipe's sources, in equal parts; without it,
    /// from generated programs.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Sequences of reference text.
    #[arg(long, default_value_t = 512)]
    reference_sequences: usize,
    /// Where to write; the pair's directory by default.
    #[arg(long)]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct VerifyArguments {
    #[arg(long)]
    pair: PathBuf,
    /// Only this feature.
    #[arg(long)]
    feature: Option<String>,
}

#[derive(Debug, Args)]
struct QuoteArguments {
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

impl EvalArguments {
    pub fn run(self) -> anyhow::Result<()> {
        match self.what {
            What::Steering(arguments) => arguments.run(),
            What::Tasks(arguments) => arguments.run(),
            What::Losses(arguments) => arguments.run(),
            What::Features(arguments) => arguments.run(),
            What::Verify(arguments) => arguments.run(),
            What::Quote(arguments) => arguments.run(),
        }
    }
}

impl SteeringArguments {
    fn run(self) -> anyhow::Result<()> {
        let models = PairedModels::read(&self.pair)?;
        let write = self.write.map(|write| match write {
            WriteName::Residual => Write::Residual,
            WriteName::Sublayer => Write::Sublayer,
        });
        let (name, place, channels, write, task) = match (&self.feature, &self.place) {
            (Some(name), _) => {
                let feature = find_feature(&self.pair, name)?;
                let place = Place::parse(&feature.node, models.n_layers())?;
                let channels = feature
                    .channels
                    .iter()
                    .map(|member| member.channel)
                    .collect();
                let task = self.task.or_else(|| feature.tasks.first().copied());
                (
                    name.clone(),
                    place,
                    channels,
                    write.unwrap_or(feature.write),
                    task,
                )
            }
            (None, Some(place)) => {
                let place = Place::parse(place, models.n_layers())?;
                let default = match is_sublayer_input(place) {
                    true => Write::Sublayer,
                    false => Write::Residual,
                };
                let channels = self.channels.clone();
                (
                    place.to_string(),
                    place,
                    channels,
                    write.unwrap_or(default),
                    self.task,
                )
            }
            (None, None) => bail!("name a --feature, or a --place with its --channels"),
        };
        ensure!(
            (1..=16).contains(&channels.len()),
            "a group has 1 to 16 channels"
        );
        let task = task.context("name a --task: the feature has none of its own")?;
        let pairs = |split| task_pairs(&models, task, self.pairs, self.seed, split);
        let mut held_out = Patching::new(&models, pairs(Split::HeldOut)?, &[place])?;
        let train = Patching::new(&models, pairs(Split::Train)?, &[])?;
        let dose = Dose {
            place,
            channels,
            write,
            seed: self.seed,
        };
        let response = dose_response(&mut held_out, &train, &dose)?;
        println!("{name} at {place} ({write:?}) on {task}");
        print!("{}", response.to_text());
        if let Some(path) = &self.csv {
            atomic::write(path, response.to_csv().as_bytes())?;
        }
        if let Some(path) = &self.svg {
            let svg = response.plot(&format!("{name} on {task}")).to_svg();
            atomic::write(path, svg.as_bytes())?;
        }
        if let Some(path) = &self.json {
            write_json(path, &response)?;
        }
        Ok(())
    }
}

impl TableArguments {
    /// Rows of the tasks asked for, with a line of progress each. A task that cannot be measured is left out
    /// with a warning.
    fn rows(&self, models: &PairedModels) -> Vec<TaskRow> {
        let options = TableOptions {
            train_pairs: self.train_pairs,
            held_out_pairs: self.pairs,
            refined: self.refined,
            seed: self.seed,
            contrast: ContrastOptions::default(),
        };
        let tasks = match self.tasks.is_empty() {
            true => Task::ALL.to_vec(),
            false => self.tasks.clone(),
        };
        let mut rows = Vec::new();
        for task in tasks {
            let started = Instant::now();
            match task_row(models, task, &options) {
                Ok(row) => {
                    let channels =
                        |figures: Option<&crate::evaluation::task_table::RouteFigures>| {
                            figures.map(|figures| {
                                (figures.place.as_str().to_owned(), figures.channels_to_flip)
                            })
                        };
                    tracing::info!(
                        task = task.name(),
                        dense = row.dense_accuracy,
                        sparse = row.sparse_accuracy,
                        native = ?channels(row.native.as_ref()),
                        residual = ?channels(row.residual.as_ref()),
                        sublayer = ?channels(row.sublayer.as_ref()),
                        seconds = started.elapsed().as_secs(),
                        "measured"
                    );
                    rows.push(row);
                }
                Err(error) => tracing::warn!(task = task.name(), "left out: {error}"),
            }
        }
        rows
    }
}

impl TasksArguments {
    fn run(self) -> anyhow::Result<()> {
        let models = PairedModels::read(&self.pair)?;
        let rows = self.table.rows(&models);
        let table = report::task_table(&rows);
        print!("{table}");
        write_outputs(&self.output, &table, &rows)
    }
}

impl LossesArguments {
    fn run(self) -> anyhow::Result<()> {
        let models = PairedModels::read(&self.pair)?;
        let contexts = [&models.dense, &models.sparse].map(|model| model.config.context_length);
        let context = contexts[0].min(contexts[1]);
        let length = self.length.unwrap_or(context);
        ensure!(
            (2..=context).contains(&length),
            "--length must be between 2 and {context}"
        );
        let data = TrainingData::load(&sources(&self.recipe)?, models.tokenizer()?, length)?;
        let results = losses::measure(&models, &data, self.sequences, length)?;
        let table = report::loss_tables(&results);
        print!("{table}");
        write_outputs(&self.output, &table, &results)
    }
}

impl FeaturesArguments {
    fn run(self) -> anyhow::Result<()> {
        let models = PairedModels::read(&self.pair)?;
        let directory = self.output.as_deref().unwrap_or(&self.pair);
        let length = REFERENCE_LENGTH
            .min(models.sparse.config.context_length)
            .min(models.dense.config.context_length);
        let reference = self.reference_tokens(&models, length)?;
        let places = models.described_places();
        let statistics = ReferenceStatistics::measure(&models.sparse, &reference, length, &places)?;
        statistics.write(directory)?;
        tracing::info!(
            tokens = reference.len(),
            places = places.len(),
            "reference statistics written"
        );
        let mut features = Vec::new();
        for row in self.table.rows(&models) {
            if let Some(feature) =
                catalogue::feature(&models, &row, &reference, length, self.table.seed)?
            {
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
        write_json(&directory.join(FEATURES_FILE), &FeaturesFile { features })
    }

    /// Sequences spread evenly over the training documents.
    fn reference_tokens(&self, models: &PairedModels, length: usize) -> anyhow::Result<Vec<u32>> {
        let tokenizer = models.tokenizer()?;
        let texts: Vec<Vec<String>> = match &self.recipe {
            Some(recipe) => sources(recipe)?
                .iter()
                .map(|source| Ok(documents(source)?.train))
                .collect::<anyhow::Result<_>>()?,
            None => {
                let programs = CorpusGenerator::new(1, Split::Train);
                vec![programs.take(self.reference_sequences).collect()]
            }
        };
        let share = self.reference_sequences.div_ceil(texts.len().max(1));
        let mut tokens = Vec::new();
        for documents in &texts {
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
                }
            }
        }
        ensure!(
            !tokens.is_empty(),
            "no training document has {length} tokens"
        );
        Ok(tokens)
    }
}

impl VerifyArguments {
    fn run(self) -> anyhow::Result<()> {
        let models = PairedModels::read(&self.pair)?;
        let features = match &self.feature {
            Some(name) => vec![find_feature(&self.pair, name)?],
            None => read_features(&self.pair)?,
        };
        let mut failed = 0;
        for feature in &features {
            for outcome in verify(&models, feature)? {
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
    fn run(self) -> anyhow::Result<()> {
        let models = PairedModels::read(&self.pair)?;
        let feature = find_feature(&self.pair, &self.feature)?;
        let place = Place::parse(&feature.node, models.n_layers())?;
        let group: &[WeightedChannel] = &feature.channels;
        let pairs = task_pairs(&models, Task::SingleDoubleQuote, 128, 0, Split::Train)?;
        let value =
            unrelated::typical_value(&Patching::new(&models, pairs, &[place])?, place, group)?;
        let (mut strings, mut effects) = (Vec::new(), Vec::new());
        for source in sources(&self.recipe)? {
            let held_out = documents(&source)?.held_out;
            let prompts = unrelated::prompts_without_strings(
                &models,
                &held_out,
                self.count,
                LONGEST_UNRELATED,
            )?;
            if !prompts.is_empty() {
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
            if matches!(source, Source::Directory { .. }) && strings.len() < self.count {
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

/// The sources of a recipe of either kind.
fn sources(path: &Path) -> anyhow::Result<Vec<Source>> {
    if let Ok(recipe) = recipe::read::<recipe::BridgeRecipe>(path) {
        return Ok(recipe.sources);
    }
    let recipe: recipe::ModelRecipe = recipe::read(path)?;
    Ok(recipe.sources)
}

fn read_features(pair: &Path) -> anyhow::Result<Vec<Feature>> {
    let path = pair.join(FEATURES_FILE);
    let json = atomic::read_small(&path, LARGEST_FEATURES_FILE)?;
    let file: FeaturesFile =
        serde_json::from_slice(&json).with_context(|| format!("{} is damaged", path.display()))?;
    Ok(file.features)
}

fn find_feature(pair: &Path, name: &str) -> anyhow::Result<Feature> {
    let features = read_features(pair)?;
    let names: Vec<String> = features
        .iter()
        .map(|feature| feature.name.clone())
        .collect();
    features
        .into_iter()
        .find(|feature| feature.name == name)
        .with_context(|| {
            format!(
                "the pair has no feature {name}; it has {}",
                names.join(", ")
            )
        })
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    Ok(atomic::write(path, &serde_json::to_vec_pretty(value)?)?)
}

/// Writes the table or the figures, by each file's ending.
fn write_outputs<T: Serialize>(paths: &[PathBuf], table: &str, figures: &T) -> anyhow::Result<()> {
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => write_json(path, figures)?,
            _ => atomic::write(path, table.as_bytes())?,
        }
    }
    Ok(())
}
