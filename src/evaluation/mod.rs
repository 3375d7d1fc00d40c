//! Evaluation: what a pair can do, in figures that can be checked.
//!
//! - [`steering`]: the dose-response curve of one feature, drawn by [`crate::plot`].
//! - [`task_table`]: every task natively and through the bridge; [`report`] writes it as a table,
//!   [`site_table`] the bridge's figures.
//! - [`losses`]: held-out losses beside those of [`ngram`] models, and the bridge's fidelity.
//! - [`training_report`]: all that a training's end is worth writing down, for its card and its job.
//! - [`quotes`]: the quote features on generated and real strings ([`real_strings`]) and where they should do nothing
//!   ([`unrelated`]). [`unseen`]: code of packages that nothing of was trained on.
//! - [`card`]: the figures of a pair's card, as text.
//! - [`catalogue`]: a pair's features with their statistics and tests.
//! - [`controls`], [`interval`]: the arms a steered one is compared with, and the error bars.

pub mod card;
pub mod catalogue;
pub mod circuit_groups;
pub mod controls;
pub mod interval;
pub mod losses;
pub mod ngram;
pub mod quotes;
pub mod real_strings;
pub mod report;
pub mod site_table;
pub mod steering;
pub mod task_table;
#[cfg(test)]
mod tests;
pub mod training_report;
pub mod unrelated;
pub mod unseen;

use crate::corpus::Split;
use crate::discovery::DiscoveryError;
use crate::discovery::question::PromptPair;
use crate::features::FeatureError;
use crate::features::pair::Pair;
use crate::models::tokenizer::{Tokenizer, TokenizerError};
use crate::tasks::{AnyTask, PairsError, Task, token_pairs};
use crate::training::TrainingError;

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    #[error(transparent)]
    Feature(#[from] FeatureError),
    #[error(transparent)]
    Training(#[from] TrainingError),
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Pairs(#[from] PairsError<TokenizerError>),
    #[error("{0}")]
    Invalid(String),
}

/// `count` pairs of a task, cut with the pair's tokenizer.
pub fn task_pairs(
    models: &Pair,
    task: Task,
    count: usize,
    seed: u64,
    split: Split,
) -> Result<Vec<PromptPair>, EvaluationError> {
    let tokenizer = models.tokenizer();
    let encode = |text: &str| tokenizer.encode_with_offsets(text);
    let pairs = token_pairs(task, count, seed, split, encode)?;
    Ok(pairs.iter().map(PromptPair::from).collect())
}

/// At most `count` pairs of a task of either kind, cut with a model's tokenizer, whose prompts have no more than `context`
/// tokens: see [`AnyTask::token_pairs`].
pub fn any_task_pairs(
    tokenizer: &Tokenizer,
    context: usize,
    task: &AnyTask,
    count: usize,
    seed: u64,
    split: Split,
) -> Result<Vec<PromptPair>, EvaluationError> {
    let encode = |text: &str| tokenizer.encode_with_offsets(text);
    let pairs = task.token_pairs_within(context, count, seed, split, encode)?;
    Ok(pairs.iter().map(PromptPair::from).collect())
}
