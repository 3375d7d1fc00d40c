//! Checkpoints: what a training needs to go on exactly where it stopped.
//!
//! A checkpoint is a directory `step-N` with the weights, the optimizer's moments and a `state.json` that holds
//! the step and the hashes of the other two. It is written under another name, synced, and renamed; a reader
//! takes the newest one whose hashes are right and the recipe's hash is its own. Data and random draws follow
//! from the step, so nothing else is needed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::TrainingError;
use crate::artifacts::tensors::FloatPrecision;
use crate::artifacts::{ArtifactError, atomic, hexadecimal, tensors};

const WEIGHTS: &str = "weights.safetensors";
const MOMENTS: &str = "moments.safetensors";
const STATE: &str = "state.json";
/// Older checkpoints are removed once a newer one is safe.
const KEPT: usize = 2;

/// What a training has become after `step` steps.
pub struct Checkpoint {
    pub step: usize,
    pub weights: BTreeMap<String, Tensor>,
    pub moments: BTreeMap<String, Tensor>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    step: usize,
    recipe_sha256: String,
    weights_sha256: String,
    moments_sha256: String,
}

/// The hash a checkpoint carries to be continued by its own recipe only. Where the output goes and how often it is
/// written decides nothing, so a training may be taken up elsewhere.
pub fn recipe_hash(recipe: &impl Serialize) -> Result<String, TrainingError> {
    let unwritable = |error: serde_json::Error| TrainingError::Recipe(error.to_string());
    let mut recipe = serde_json::to_value(recipe).map_err(unwritable)?;
    if let Some(fields) = recipe.as_object_mut() {
        fields.remove("output");
    }
    let json = serde_json::to_vec(&recipe).map_err(unwritable)?;
    Ok(hexadecimal(&Sha256::digest(&json)))
}

fn file_hash(path: &Path) -> Result<String, TrainingError> {
    let bytes = atomic::read_small(path, u64::MAX)?;
    Ok(hexadecimal(&Sha256::digest(&bytes)))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> TrainingError + '_ {
    move |error| ArtifactError::io("replace", path)(error).into()
}

/// Whether a folder has all files of a checkpoint.
pub fn is_whole(folder: &Path) -> bool {
    [WEIGHTS, MOMENTS, STATE]
        .iter()
        .all(|file| folder.join(file).is_file())
}

impl Checkpoint {
    /// Whether there is any in a directory.
    pub fn is_in(directory: &Path) -> bool {
        existing(directory).is_ok_and(|found| !found.is_empty())
    }

    /// Writes the checkpoint below `directory` and removes the oldest ones.
    pub fn write(&self, directory: &Path, recipe_sha256: &str) -> Result<(), TrainingError> {
        let partial = directory.join(format!("partial-{}", self.step));
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(io(&partial))?;
        }
        fs::create_dir_all(&partial).map_err(io(&partial))?;
        tensors::write(&partial.join(WEIGHTS), &self.weights)?;
        tensors::write(&partial.join(MOMENTS), &self.moments)?;
        let state = State {
            step: self.step,
            recipe_sha256: recipe_sha256.to_string(),
            weights_sha256: file_hash(&partial.join(WEIGHTS))?,
            moments_sha256: file_hash(&partial.join(MOMENTS))?,
        };
        let json =
            serde_json::to_vec_pretty(&state).map_err(|error| TrainingError::Checkpoint {
                path: partial.display().to_string(),
                problem: error.to_string(),
            })?;
        atomic::write(&partial.join(STATE), &json)?;
        let whole = directory.join(format!("step-{}", self.step));
        if whole.exists() {
            fs::remove_dir_all(&whole).map_err(io(&whole))?;
        }
        fs::rename(&partial, &whole).map_err(io(&whole))?;
        atomic::sync_directory(directory)?;
        for (_, old) in existing(directory)?.into_iter().rev().skip(KEPT) {
            fs::remove_dir_all(&old).map_err(io(&old))?;
        }
        Ok(())
    }

    /// The newest checkpoint below `directory`, none if there is none. One that is damaged, or that another
    /// recipe made, is an error: going on from something else would not be what was asked for.
    pub fn newest(directory: &Path, recipe_sha256: &str) -> Result<Option<Self>, TrainingError> {
        match existing(directory)?.pop() {
            Some((step, path)) => Self::read(&path, step, recipe_sha256).map(Some),
            None => Ok(None),
        }
    }

    fn read(path: &Path, step: usize, recipe_sha256: &str) -> Result<Self, TrainingError> {
        let bad = |problem: String| TrainingError::Checkpoint {
            path: path.display().to_string(),
            problem,
        };
        let json = atomic::read_small(&path.join(STATE), 1 << 16)?;
        let state: State =
            serde_json::from_slice(&json).map_err(|error| bad(format!("{STATE}: {error}")))?;
        if state.recipe_sha256 != recipe_sha256 {
            return Err(bad(
                "made by another recipe; restore that recipe or start in another directory".into(),
            ));
        }
        // The state is the one file without a hash; a wrong step would repeat or leave out a part of the data.
        if state.step != step {
            return Err(bad(format!(
                "{STATE} is of step {}; remove this checkpoint to go on from the one before",
                state.step
            )));
        }
        for (name, expected) in [
            (WEIGHTS, &state.weights_sha256),
            (MOMENTS, &state.moments_sha256),
        ] {
            let found = file_hash(&path.join(name))?;
            if found != *expected {
                return Err(bad(format!(
                    "{name} has sha256 {found}, expected {expected}; remove this checkpoint to go on from the \
                     one before"
                )));
            }
        }
        Ok(Checkpoint {
            step: state.step,
            weights: tensors::read(&path.join(WEIGHTS), FloatPrecision::Single)?,
            moments: tensors::read(&path.join(MOMENTS), FloatPrecision::Single)?,
        })
    }
}

/// The finished checkpoints below a directory by ascending step.
fn existing(directory: &Path) -> Result<Vec<(usize, PathBuf)>, TrainingError> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(io(directory))? {
        let path = entry.map_err(io(directory))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if let Some(step) = name
            .strip_prefix("step-")
            .and_then(|step| step.parse().ok())
        {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}
