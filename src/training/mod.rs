//! Training: dense models, weight-sparse models, and bridges between them.
//!
//! A recipe (TOML) says everything that decides the result. [`run`] is the loop they share; what is minimised
//! is an [`run::Objective`]: [`model`] (dense or sparse) and [`bridge`], each readable top to bottom.

pub mod bridge;
pub mod checkpoint;
pub mod data;
pub mod exit;
pub mod initialise;
pub mod model;
pub mod optimizer;
pub mod parameters;
pub mod passes;
pub mod progress;
pub mod recipe;
pub mod run;
pub mod schedule;
pub mod task_pairs;
pub mod tokenizer;
pub mod twin;
pub mod weight_mask;
pub mod weighted_sum;
pub mod widen;

use crate::artifacts::ArtifactError;
use crate::bridge::pair::PairError;
use crate::models::layout::LayoutError;
use crate::models::tokenizer::TokenizerError;

/// Why a training could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    #[error("recipe: {0}")]
    Recipe(String),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
    #[error("training data: {0}")]
    Data(String),
    #[error("checkpoint {path}: {problem}")]
    Checkpoint { path: String, problem: String },
    #[error("step {step}: {term} is {value}; lower the learning rate or clip harder")]
    Diverged {
        step: usize,
        term: String,
        value: f32,
    },
}
