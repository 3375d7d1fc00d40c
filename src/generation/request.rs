//! What the engine is asked and what it answers: token ids and numbers, never tensors.

use std::sync::Arc;
use std::time::Duration;

use super::sampling::Sampling;
use crate::circuits::circuit::NamedCircuits;
use crate::features::direction::NamedDirections;
use crate::features::measured::KnownGroups;
use crate::features::pair::Pair;
use crate::interventions::plan::Scene;
use crate::interventions::receipt::{EditActivations, Receipt};
use crate::interventions::request::{FeatureAddress, SteerRequest, Variant};
use crate::models::model::{LoadedModel, ModelKind};
use crate::numerics::device::DeviceLost;

/// A completion of one or more prompts.
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    /// The model that answers.
    pub model: Arc<LoadedModel>,
    /// The pair that its edits go over, where it has one.
    pub pair: Option<Arc<Pair>>,
    /// The model's own named directions.
    pub directions: Arc<NamedDirections>,
    /// Those that its edits may name.
    pub circuits: Arc<NamedCircuits>,
    pub prompts: Vec<Vec<u32>>,
    pub max_tokens: usize,
    /// Samples for each prompt.
    pub n: usize,
    pub sampling: Sampling,
    /// Text that ends a completion; it is not part of it.
    pub stop: Vec<String>,
    /// So many alternatives are reported beside each token's own log-probability; none reports nothing.
    pub logprobs: Option<usize>,
    /// The prompt is part of the answer, with its log-probabilities where they are asked for.
    pub echo: bool,
    pub steer: Option<SteerRequest>,
    /// Only requests of the same salt, or without one, share what their prompts' first tokens leave in the caches.
    pub cache_salt: Option<String>,
    /// What the edits need to know of groups that have no statistics of their own; the engine's handle fills it in.
    pub measured: KnownGroups,
    /// The most bytes that its log-probabilities, receipts, activations and control arms may take together.
    pub answer_bytes: Option<usize>,
    /// How long it may take, waiting included.
    pub deadline: Option<Duration>,
    /// How long its first token may take, waiting included; a prompt that is only scored has this long to begin.
    pub first_token_within: Option<Duration>,
}

impl GenerationRequest {
    /// What ends the request after so long, where it has begun to be answered and where it has not.
    pub fn overdue(&self, after: Duration, begun: bool) -> Option<EngineError> {
        let is_past = |limit: Option<Duration>| limit.is_some_and(|limit| after > limit);
        if !begun && is_past(self.first_token_within) {
            return Some(EngineError::Busy);
        }
        is_past(self.deadline).then_some(EngineError::Deadline)
    }
}

impl GenerationRequest {
    /// What its edits are held against.
    pub fn scene(&self) -> Scene<'_> {
        Scene {
            model: &self.model.transformer,
            model_id: &self.model.id,
            fingerprint: &self.model.fingerprint,
            native: self.model.kind == ModelKind::Sparse,
            pair: self.pair.as_deref(),
            directions: &self.directions,
            circuits: &self.circuits,
            tokenizer: &self.model.tokenizer,
            prompts: &self.prompts,
            measured: &self.measured,
        }
    }

    /// The most probable token after token 0: the least that makes a model work.
    pub fn of_one_token(model: Arc<LoadedModel>) -> Self {
        GenerationRequest {
            model,
            pair: None,
            directions: Arc::default(),
            circuits: Arc::default(),
            prompts: vec![vec![0]],
            max_tokens: 1,
            n: 1,
            sampling: Sampling::greedy(),
            stop: Vec::new(),
            logprobs: None,
            echo: false,
            steer: None,
            cache_salt: None,
            measured: KnownGroups::default(),
            answer_bytes: None,
            deadline: None,
            first_token_within: None,
        }
    }
}

impl GenerationRequest {
    /// A run over prompts that generates nothing; the logits after every token are computed with `logits`.
    pub fn of_prompts(model: Arc<LoadedModel>, prompts: Vec<Vec<u32>>, logits: bool) -> Self {
        GenerationRequest {
            prompts,
            max_tokens: 0,
            // A prompt that is repeated with its log-probabilities takes them.
            echo: logits,
            logprobs: logits.then_some(0),
            ..GenerationRequest::of_one_token(model)
        }
    }
}

/// The answer to a [`GenerationRequest`].
#[derive(Debug, Clone)]
pub struct Generation {
    /// Prompt-major, then sample, variant as requested, strength.
    pub choices: Vec<Choice>,
    pub prompt_tokens: usize,
    /// Those of them that were not run: earlier requests had computed them.
    pub cached_tokens: usize,
    pub completion_tokens: usize,
    /// From the request's arrival at the engine to its first slot, and to its first token.
    pub queued: Duration,
    pub to_first_token: Duration,
    /// The mean time between two tokens; none where no choice has two.
    pub between_tokens: Option<Duration>,
}

/// One completion.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Without the prompt, up to the stop text.
    pub text: String,
    /// The generated tokens the text is made of.
    pub tokens: Vec<Token>,
    /// The prompt's tokens, where `echo` asked for them.
    pub prompt: Vec<Token>,
    pub finish: Finish,
    /// Which arm this is, where the request named variants.
    pub variant: Option<Variant>,
    /// The strength of this arm, in a sweep.
    pub strength: Option<f64>,
    /// What was done, where it was asked for.
    pub receipt: Option<Receipt>,
    pub activations: Option<Vec<EditActivations>>,
}

/// What has become certain of one choice since the last piece.
#[derive(Debug, Clone)]
pub struct Delta {
    /// The choice's index in the answer.
    pub choice: usize,
    /// The prompt's tokens with the choice's first piece, where `echo` asked for them.
    pub prompt: Vec<Token>,
    pub text: String,
    /// The tokens whose text is now wholly told.
    pub tokens: Vec<Token>,
    /// Why the choice ended, with its last piece.
    pub finish: Option<Finish>,
    /// Which arm this is, as in [`Choice`].
    pub variant: Option<Variant>,
    pub strength: Option<f64>,
}

/// One token with its probability under the model that produced it.
#[derive(Debug, Clone)]
pub struct Token {
    pub id: u32,
    /// Of a generated token: the characters of the completion's text before it. One that begins inside a character has
    /// that character's start.
    pub start: usize,
    /// Nats; none for a first prompt token, which nothing predicted, and where logprobs were not asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens instead, most probable first.
    pub top: Vec<(u32, f32)>,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop text or a token that ends a text.
    Stop,
    /// `max_tokens` or the context's length.
    Length,
}

/// Activations of named places and features for one sequence of tokens.
#[derive(Debug, Clone)]
pub struct ActivationsRequest {
    /// One arm of one prompt, as [`GenerationRequest::of_prompts`] makes it, with its edits.
    pub run: GenerationRequest,
    pub places: Vec<String>,
    /// Read in the model itself where it is sparse, else in the unedited sparse model of its bridge.
    pub features: Vec<FeatureAddress>,
    /// Heads whose attention is asked for: layer and head.
    pub attention: Vec<(usize, usize)>,
}

/// The answer: for each place its width and its values, token-major.
#[derive(Debug, Clone)]
pub struct Activations {
    pub places: Vec<(String, usize, Vec<f32>)>,
    /// In the order of the request.
    pub features: Vec<FeatureValues>,
    /// `[tokens][vocabulary]`.
    pub logits: Option<Vec<Vec<f32>>>,
    /// Of each head that was asked for, `[tokens, tokens]`: a row says how much of each token's values its token takes.
    pub attention: Vec<Vec<f32>>,
}

/// One feature on every token.
#[derive(Debug, Clone)]
pub struct FeatureValues {
    /// The registered feature's name.
    pub name: Option<String>,
    pub node: String,
    pub values: Vec<f32>,
}

/// Why the engine does not answer; each carries what the caller can do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The request cannot be carried out as written.
    #[error("{message}")]
    Invalid {
        message: String,
        /// The field at fault, as a path such as `steer.edits[0].feature`.
        param: Option<String>,
    },
    /// The engine failed; the request may be tried again.
    #[error("the engine failed: {0}")]
    Failed(String),
    /// The machine's memory, or a device's, has no room for what the request needs.
    #[error("{0}")]
    NoMemory(String),
    /// What a model computes on can do nothing more in this process, which ends.
    #[error("{DeviceLost}: {0}")]
    DeviceLost(String),
    /// The request's deadline came before its end.
    #[error("the request took longer than it may")]
    Deadline,
    /// There is more to do than can be done: so many requests wait already, or this one waited for so long, that it
    /// was turned away.
    #[error("there are more requests than can be carried")]
    Busy,
    /// The engine is not running.
    #[error("the engine is not running")]
    Stopped,
}
