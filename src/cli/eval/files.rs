//! The files that measurements of a pair read and write.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use crate::artifacts::atomic;
use crate::evaluation::catalogue::{FEATURES_FILE, FeaturesFile};
use crate::evaluation::unseen::{self, UnseenPackage};
use crate::features::registry::Feature;
use crate::training::recipe::{self, Source};

/// A features file is small; a larger one is none.
const LARGEST_FEATURES_FILE: u64 = 64 << 20;

/// The sources of a recipe of either kind.
pub fn sources(path: &Path) -> anyhow::Result<Vec<Source>> {
    if let Ok(recipe) = recipe::read::<recipe::BridgeRecipe>(path) {
        return Ok(recipe.sources);
    }
    let recipe: recipe::ModelRecipe = recipe::read(path)?;
    Ok(recipe.sources)
}

/// The packages in the directory of `--unseen`, where it is given.
pub fn unseen_packages(directory: Option<&Path>) -> anyhow::Result<Vec<UnseenPackage>> {
    match directory {
        Some(directory) => Ok(unseen::packages(directory)?),
        None => Ok(Vec::new()),
    }
}

pub fn read_features(pair: &Path) -> anyhow::Result<Vec<Feature>> {
    let path = pair.join(FEATURES_FILE);
    let json = atomic::read_small(&path, LARGEST_FEATURES_FILE)?;
    let file: FeaturesFile =
        serde_json::from_slice(&json).with_context(|| format!("{} is damaged", path.display()))?;
    Ok(file.features)
}

pub fn find_feature(pair: &Path, name: &str) -> anyhow::Result<Feature> {
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

pub fn write_json<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    Ok(atomic::write(path, &serde_json::to_vec_pretty(value)?)?)
}

/// Writes the table or the figures, by each file's ending.
pub fn write_outputs<T: Serialize>(
    paths: &[PathBuf],
    table: &str,
    figures: &T,
) -> anyhow::Result<()> {
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => write_json(path, figures)?,
            _ => atomic::write(path, table.as_bytes())?,
        }
    }
    Ok(())
}
