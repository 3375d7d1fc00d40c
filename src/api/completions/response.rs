//! The form of an answer: what frames the choices of both kinds of completion, whole or piece by piece.

use serde::Serialize;
use utoipa::ToSchema;

use crate::generation::request::{self, Delta, Finish, Generation};
use crate::interventions::receipt::{EditActivations, Receipt};
use crate::interventions::request::Variant;
use crate::models::tokenizer::Tokenizer;

/// One kind of completion: how its choices look. It keeps what a stream has told of them so far.
pub trait Style: 'static {
    /// The field that prompts are made of.
    const PROMPT_FIELD: &'static str;
    /// A chat template has written the prompt, whatever it begins with.
    const IN_CONVERSATION: bool;
    /// What an answer's id begins with.
    const ID_PREFIX: &'static str;
    const OBJECT: &'static str;
    const CHUNK_OBJECT: &'static str;
    /// A choice of a whole answer.
    type Choice: Serialize;
    /// More of a choice, in a stream.
    type Piece: Serialize;

    /// All choices of a whole answer.
    fn choices(&self, choices: Vec<request::Choice>, tokenizer: &Tokenizer) -> Vec<Self::Choice>;

    /// What has become certain of one choice, in one chunk or more.
    fn pieces(&mut self, delta: Delta, tokenizer: &Tokenizer) -> Vec<Self::Piece>;

    /// What is known of a choice only after all have ended.
    fn report(&self, index: usize, arm: Arm) -> Self::Piece;
}

/// The completions of one request.
#[derive(Debug, Serialize, ToSchema)]
pub struct Completion<C> {
    /// Begins with `cmpl-`, or with `chatcmpl-` in a chat.
    pub id: String,
    /// `text_completion` or `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    /// By prompt, then sample, then variant as requested, then strength.
    pub choices: Vec<C>,
    pub usage: Usage,
    /// A hash of the build, the model, the preset and the bridge: what changes an answer and is not in the request.
    pub system_fingerprint: String,
}

/// One event of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub struct Chunk<P> {
    /// The same in all chunks of a stream.
    pub id: String,
    /// `text_completion` or `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    /// One choice; none in the chunk with the usage.
    pub choices: Vec<P>,
    /// With `stream_options.include_usage`, null in every chunk but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    pub system_fingerprint: String,
}

/// Which arm of a steered request a choice is, and what was done to it. In a stream the receipt and the
/// activations come after all choices have ended.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Arm {
    /// Where the request named `variants`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub variant: Option<Variant>,
    /// The strength of this arm, in a sweep.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub strength: Option<f64>,
    /// What the edits did, where `steer.return` asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub receipt: Option<Receipt>,
    /// The edited features' activations, where `steer.return` asked for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub activations: Option<Vec<EditActivations>>,
}

impl Arm {
    /// All that is known once the choice has ended.
    pub fn of(choice: request::Choice) -> Self {
        Arm {
            variant: choice.variant,
            strength: choice.strength,
            receipt: choice.receipt,
            activations: choice.activations,
        }
    }

    /// What is known while it is made.
    pub fn begun(delta: &Delta) -> Self {
        Arm {
            variant: delta.variant,
            strength: delta.strength,
            ..Arm::default()
        }
    }
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// At one of the texts of `stop`, or at the end of a document or of a turn.
    Stop,
    /// The most tokens asked for or the model's context was reached.
    Length,
}

/// Tokens of the whole request. The samples that `best_of` dropped count too.
#[derive(Debug, Serialize, ToSchema)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptTokensDetails,
}

/// What is told of the prompts' tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Those that were not run again: an earlier request's prompt or answer began alike, and its edits did.
    pub cached_tokens: usize,
}

impl Usage {
    pub fn of(generation: &Generation) -> Self {
        let (prompt_tokens, completion_tokens) =
            (generation.prompt_tokens, generation.completion_tokens);
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails {
                cached_tokens: generation.cached_tokens,
            },
        }
    }
}

impl From<Finish> for FinishReason {
    fn from(finish: Finish) -> Self {
        match finish {
            Finish::Stop => FinishReason::Stop,
            Finish::Length => FinishReason::Length,
        }
    }
}

/// What an answer says besides what was generated.
#[derive(Debug)]
pub struct Frame {
    pub id: String,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
}

impl Frame {
    /// The answer in one piece.
    pub fn completion<S: Style>(
        self,
        style: &S,
        generation: Generation,
        tokenizer: &Tokenizer,
    ) -> Completion<S::Choice> {
        Completion {
            id: self.id,
            object: S::OBJECT,
            created: self.created,
            model: self.model,
            usage: Usage::of(&generation),
            choices: style.choices(generation.choices, tokenizer),
            system_fingerprint: self.system_fingerprint,
        }
    }
}

/// A token's text, or its bytes where they are no text; its id where the tokenizer does not know it.
pub fn token_name(bytes: &[u8], id: u32) -> String {
    match std::str::from_utf8(bytes) {
        Ok("") => format!("token:{id}"),
        Ok(text) => text.to_owned(),
        Err(_) => {
            let escaped: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{escaped}")
        }
    }
}
