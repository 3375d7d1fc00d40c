//! Which tokens a feature speaks for, and how that was found.

use super::group::{WeightedChannel, Write};
use super::recent::Recent;
use crate::models::location::Location;

/// A token and how far a feature leads towards it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    pub token: u32,
    /// In the unit of [`LogitEffectMethod`].
    pub score: f32,
}

/// How scores were found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LogitEffectMethod {
    /// Logits for a unit of the feature, the last norm's divisor taken as one, less their mean over the vocabulary:
    /// tokens of one feature compare, features do not.
    Unembedding,
    /// The mean change of the next token's log-probability, in nats, over `tokens` tokens of reference text, when
    /// `added` is added to the feature at every token.
    Measured { added: f64, tokens: usize },
}

/// The ends of the vocabulary, as one feature sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitEffects {
    pub method: LogitEffectMethod,
    /// Highest scores first.
    pub promoted: Vec<TokenScore>,
    /// Lowest scores first.
    pub suppressed: Vec<TokenScore>,
}

/// What a promotion is asked of: a group of channels of one place.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitEffectQuery {
    pub place: Location,
    pub group: Vec<WeightedChannel>,
    /// How the group's changes enter the dense model.
    pub write: Write,
    /// The group's standard deviation where it is known.
    pub std: Option<f64>,
    /// Tokens told at either end.
    pub count: usize,
}

/// The logit effects of a pair that were asked for last; none where there is nothing to tell.
pub type KnownLogitEffects = Recent<LogitEffectQuery, Option<LogitEffects>, 256>;
