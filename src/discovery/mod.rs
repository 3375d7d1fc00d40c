//! How features are found and tested.
//!
//! - [`patching`]: minimal pairs run through both models, and the answers after a patch, each a [`question`] put to
//!   the logits; [`route`] says how a patch enters a model, [`prompt_run`] runs what follows it again.
//! - [`attribution`]: what a change would do to first order. [`contrast`]: the channels that make the difference
//!   between two sets of prompts; [`search`] over places.
//! - [`directions`]: directions of a dense model's own stream from contrast prompts.
//! - [`logit_effects`]: the tokens that a feature promotes.
//! - [`verify`]: a feature's own tests, run again.
//! - [`patience`] ends what nobody waits for any more.

pub mod attribution;
pub mod binarised;
pub mod contrast;
pub mod directions;
pub mod logit_effects;
pub mod patching;
pub mod patience;
pub mod prompt_run;
pub mod question;
pub mod route;
pub mod search;
#[cfg(test)]
mod tests;
pub mod twin;
pub mod verify;

use crate::bridge::pair::PairError;
use crate::features::FeatureError;
use crate::interventions::carry::NotCarried;
use crate::models::location::UnknownLocation;
use crate::models::tokenizer::TokenizerError;

/// Why something could not be found out about a feature.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    #[error(transparent)]
    Feature(#[from] FeatureError),
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
    #[error(transparent)]
    NotCarried(#[from] NotCarried),
    #[error(transparent)]
    Location(#[from] UnknownLocation),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error("{0}")]
    Invalid(String),
    #[error("the examination was given up")]
    GivenUp,
}
