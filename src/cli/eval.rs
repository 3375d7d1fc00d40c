//! `causeway eval`: what a pair can do, in figures for its card.

pub mod features;
pub mod losses;
pub mod quote;
pub mod steering;
pub mod tasks;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::artifacts::atomic;
use crate::evaluation::catalogue::{FEATURES_FILE, FeaturesFile};
use crate::features::registry::Feature;
use crate::training::recipe::{self, Source};

/// A features file is small; a larger one is none.
const LARGEST_FEATURES_FILE: u64 = 64 << 20;

/// Measurements of a pair.
#[derive(Debug, Args)]
pub struct EvalArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The dose-response curve of one feature on a task's held-out pairs.
    Steering(steering::SteeringArguments),
    /// The table of all tasks, natively and through the bridge.
    Tasks(tasks::TasksArguments),
    /// Held-out losses beside those of n-grams, and the bridge's fidelity at every site.
    Losses(losses::LossesArguments),
    /// Find a pair's features; writes `features.json` and `reference.safetensors` into its directory.
    Features(features::FeaturesArguments),
    /// Run the features' own tests.
    Verify(features::VerifyArguments),
    /// The quote feature on strings of real files and on prompts that have nothing to do with it.
    Quote(quote::QuoteArguments),
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
