//! Features: named channels and groups of channels of a pair's sparse model, directions of a dense model, and what is
//! known of them. How they are found is `discovery`'s.
//!
//! - [`group`]: what a feature is made of. [`registry`]: the features of a pair, as they are stored.
//! - [`effects`]: what patching one does, as it is told in the registry.
//! - [`pair`]: both models, the bridge, and what is known of the channels, read once and shared.
//! - [`shipped_circuits`]: the circuits that a pair comes with.
//! - [`mod@reference`]: every channel's statistics over reference text, and the text; [`statistics`] makes them and those
//!   of groups; [`measured`] keeps what took a pass, among the [`recent`] findings.
//! - [`top_activations`]: where in a text a feature is strongest. [`wiring`]: the weights that read and write a channel.
//! - [`direction`]: named vectors of a dense model's own stream; [`control_vector`]: as files of other programs.
//! - [`logit_effects`]: the tokens that a feature promotes, and how that was measured.

pub mod control_vector;
pub mod direction;
pub mod effects;
pub mod group;
pub mod label;
pub mod logit_effects;
pub mod measured;
pub mod pair;
pub mod recent;
pub mod reference;
pub mod registry;
pub mod shipped_circuits;
pub mod statistics;
#[cfg(test)]
pub(crate) mod test_pair;
pub mod top_activations;
pub mod wiring;

/// Why something could not be said of a feature.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
    #[error("{0}")]
    Invalid(String),
}
