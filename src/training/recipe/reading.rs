//! Recipes as text: read, and written so that they can be read.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::checks::Check;
use crate::artifacts::atomic::read_small;
use crate::training::TrainingError;

/// The longest recipe that is read, in bytes.
pub const LONGEST: u64 = 1 << 16;
/// Reads and checks a recipe.
pub fn read<R: for<'de> Deserialize<'de> + Check>(path: &Path) -> Result<R, TrainingError> {
    let bytes = read_small(path, LONGEST)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| TrainingError::Recipe(format!("{} is not UTF-8", path.display())))?;
    let recipe: R = toml::from_str(&text)
        .map_err(|error| TrainingError::Recipe(format!("{}: {error}", path.display())))?;
    recipe
        .check()
        .map_err(|problem| TrainingError::Recipe(format!("{}: {problem}", path.display())))?;
    Ok(recipe)
}

/// A recipe as the text that [`read`] takes, or why it would not take it.
pub fn written<R: Serialize + for<'de> Deserialize<'de> + Check>(
    recipe: &R,
) -> Result<String, String> {
    let text = toml::to_string(recipe).map_err(|error| error.to_string())?;
    if text.len() as u64 > LONGEST {
        return Err(format!(
            "the recipe is {} bytes long; at most {LONGEST} are read",
            text.len()
        ));
    }
    let read: R = toml::from_str(&text).map_err(|error| error.to_string())?;
    read.check().map_err(|fault| fault.to_string())?;
    Ok(text)
}
