//! What patching a feature does, as it is told in the registry and on a card: where in the prompt it acts, how many
//! answers it flips, beside what a mere exchange of the token would do, and layer by layer.
//!
//! Shares are of pairs: a *flip* makes the counterfactual's answer the more probable of the two, a *greedy flip* makes
//! it the most probable of all next tokens.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::group::Write;

/// What patching a feature does to the dense model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FeatureEffects {
    /// Held-out pairs of the feature's first task.
    pub pairs: usize,
    /// The feature itself.
    pub own: PatchEffect,
    /// The best group of at most 16 channels in each layer, for the same task; a layer where none does anything is
    /// left out.
    pub layers: Vec<PatchEffect>,
    /// The feature on prompts that people wrote, in styles that training programs do not have; null where there are
    /// none for its task.
    #[schema(required = true)]
    pub outside: Option<OutsideEffect>,
    /// Whether the feature does in the dense model what it does in the sparse one; null where it was not measured.
    #[serde(default)]
    #[schema(required = true)]
    pub twin: Option<TwinAgreement>,
}

/// How the effects of one edit agree, made in the sparse model itself and carried over the bridge into the dense one.
///
/// An effect is the change of the log odds of a pair's two answers, in nats, when the feature is patched from the one
/// prompt into the other, in either direction: two effects a pair.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TwinAgreement {
    pub pairs: usize,
    /// Pearson's correlation of the native effects with the bridged ones over both directions together; null where
    /// either never change.
    #[schema(required = true)]
    pub correlation: Option<f64>,
    /// The same within one direction alone, where all effects point one way: the mean of both. It asks whether prompts
    /// on which the edit does more natively are those on which it does more over the bridge.
    #[schema(required = true)]
    pub correlation_one_way: Option<f64>,
    /// The share of effects that have the same sign natively and over the bridge.
    pub same_sign: f64,
    /// The mean magnitude of effects, in nats.
    pub native: f64,
    pub bridged: f64,
}

/// What patching a group of channels of one node does to the dense model's answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchEffect {
    #[schema(example = "3.attn.act_in")]
    pub node: String,
    pub write: Write,
    /// Channels patched.
    pub channels: usize,
    /// The fewest of them, in their order, that flip half of the pairs; null where all of them do not.
    #[schema(required = true)]
    pub channels_to_flip: Option<usize>,
    /// Pairs that the dense model gets right, of the two answers.
    pub right: usize,
    /// Share of those that flip.
    pub flips: f64,
    /// Pairs whose right answer is the most probable of all next tokens.
    pub greedily_right: usize,
    /// Share of those whose most probable next token becomes the counterfactual's; null where there are none.
    #[schema(required = true)]
    pub greedy_flips: Option<f64>,
    /// Flips when, instead, only the embedding of each token that differs is exchanged for the other's, in the dense
    /// stream at this node's site: what a feature that is no more than the token would do there.
    pub token_swap_flips: f64,
    /// Flips of a random direction and of another live feature, of the same norm at every token.
    pub random_flips: f64,
    pub random_feature_flips: f64,
    pub acts_at: ActsAt,
}

/// Where in the prompts a patch changes the model: shares of its squared norm, which sum to one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ActsAt {
    /// At the first token that differs, unless it is the last.
    pub first_difference: f64,
    pub between: f64,
    /// At the prompt's last token.
    pub last: f64,
}

/// What patching a feature does on prompts unlike those it was found on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OutsideEffect {
    /// Prompts written for the task that both models' tokenizer cuts to equal lengths.
    pub pairs: usize,
    /// Those that the dense model gets right.
    pub right: usize,
    /// How many of those flip.
    pub flipped: usize,
}
