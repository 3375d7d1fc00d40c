//! Training a tokenizer on samples of the training documents.

use super::TrainingError;
use super::data::documents;
use super::recipe::TokenizerRecipe;
use crate::artifacts::atomic;
use crate::models::tokenizer::{Tokenizer, train_bpe};

/// Trains the byte-pair tokenizer of a recipe and writes its `tokenizer.json`.
pub fn train_tokenizer(recipe: &TokenizerRecipe) -> Result<Tokenizer, TrainingError> {
    let total: f64 = recipe.sources.iter().map(|source| source.weight()).sum();
    let mut texts = Vec::new();
    for source in &recipe.sources {
        let all = documents(source)?.train;
        let share = (recipe.documents as f64 * source.weight() / total).round() as usize;
        // Evenly spread rather than the first ones: a directory's files come in the order of their names.
        let stride = (all.len() / share.max(1)).max(1);
        texts.extend(all.into_iter().step_by(stride).take(share));
    }
    let tokenizer = train_bpe(texts.into_iter(), recipe.vocab_size)?;
    if let Some(parent) = recipe.output.parent() {
        atomic::create_directory(parent)?;
    }
    atomic::write(&recipe.output, &tokenizer.to_json()?)?;
    Ok(tokenizer)
}
