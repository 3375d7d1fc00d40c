//! Features: named channels and groups of channels, what is known of them, and how they are found.
//!
//! - [`registry`]: the features of a pair, as they are stored.
//! - [`contrast`]: the channels that make the difference between two sets of prompts; [`search`] over places.
//! - [`patching`]: minimal pairs run through both models, and the answers after a patch; [`route`] says how a
//!   patch enters a model, [`slopes`] what it would do to first order.
//! - [`statistics`], [`examples`]: channels and groups over reference text; [`measured`] keeps what
//!   took a pass, among the [`recent`] findings.
//! - [`wiring`], [`promotion`]: what a channel is connected to, and which tokens it speaks for ([`promoted_tokens`]).
//! - [`verify`]: a feature's own tests, run again. [`patience`] ends what nobody waits for any more.

pub mod contrast;
pub mod examples;
pub mod measured;
pub mod pair;
pub mod patching;
pub mod patience;
pub mod promoted_tokens;
pub mod promotion;
pub mod prompt_run;
pub mod question;
pub mod recent;
pub mod registry;
pub mod route;
pub mod search;
pub mod slopes;
pub mod statistics;
#[cfg(test)]
pub(crate) mod test_pair;
#[cfg(test)]
mod tests;
pub mod verify;
pub mod wiring;

use crate::artifacts::ArtifactError;
use crate::bridge::pair::PairError;
use crate::interventions::carry::NotCarried;
use crate::interventions::reference::ReferenceError;
use crate::models::location::UnknownPlace;
use crate::models::tokenizer::TokenizerError;

/// Why something could not be found out about a feature.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
    #[error(transparent)]
    NotCarried(#[from] NotCarried),
    #[error(transparent)]
    Place(#[from] UnknownPlace),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("{0}")]
    Invalid(String),
    #[error("the examination was given up")]
    GivenUp,
}
