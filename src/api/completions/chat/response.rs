//! A chat completion as OpenAI's `chat.completion` object, whole or in pieces.

use std::collections::BTreeSet;

use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

use crate::api::completions::response::{Arm, FinishReason, Style, token_name};
use crate::api::completions::stream::event_data;
use crate::generation::request::{self, Delta, Token};
use crate::models::tokenizer::Tokenizer;

const ASSISTANT: &str = "assistant";

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    pub index: usize,
    pub message: AssistantMessage,
    /// Null unless they were asked for.
    #[schema(required = true)]
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: FinishReason,
    #[serde(flatten)]
    pub arm: Arm,
}

/// What the model says.
#[derive(Debug, Serialize, ToSchema)]
pub struct AssistantMessage {
    #[schema(example = "assistant")]
    pub role: &'static str,
    pub content: String,
    /// Always null: these models have no other voice to refuse in.
    #[schema(required = true)]
    pub refusal: Option<String>,
}

/// More of one answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatPiece {
    pub index: usize,
    pub delta: MessageDelta,
    /// Of the tokens whose text is now complete; null unless they were asked for.
    #[schema(required = true)]
    pub logprobs: Option<ChatLogprobs>,
    /// Null before the choice's end.
    #[schema(required = true)]
    pub finish_reason: Option<FinishReason>,
    #[serde(flatten)]
    pub arm: Arm,
}

/// One event of a stream.
#[derive(Debug, ToSchema)]
pub struct ChatEvent {
    #[schema(schema_with = event)]
    pub data: String,
}

fn event() -> RefOr<Schema> {
    event_data("Chunk_ChatPiece")
}

/// The role with a choice's first piece, more of its content with the next ones, nothing with the last.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct MessageDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "assistant")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// An entry for each token.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatLogprobs {
    pub content: Vec<TokenLogprob>,
    /// Always null.
    #[schema(required = true)]
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// One token and those that were most probable in its place.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenLogprob {
    #[serde(flatten)]
    pub token: TopLogprob,
    /// The most probable first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token and its log-probability.
#[derive(Debug, Serialize, ToSchema)]
pub struct TopLogprob {
    /// Its text; `bytes:\xe2\x82` where it is only a part of a character.
    pub token: String,
    /// In nats.
    pub logprob: f32,
    /// Null where the tokenizer does not know it.
    #[schema(required = true)]
    pub bytes: Option<Vec<u8>>,
}

/// The answers to one conversation.
#[derive(Debug)]
pub struct ChatStyle {
    logprobs: bool,
    /// The choices that a stream has said anything of.
    begun: BTreeSet<usize>,
}

impl ChatPiece {
    /// A piece with nothing of the tokens in it.
    fn empty(index: usize, delta: MessageDelta, arm: Arm) -> Self {
        ChatPiece {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            arm,
        }
    }
}

impl ChatStyle {
    pub fn new(logprobs: bool) -> Self {
        ChatStyle {
            logprobs,
            begun: BTreeSet::new(),
        }
    }

    fn logprobs(&self, tokens: &[Token], tokenizer: &Tokenizer) -> Option<ChatLogprobs> {
        let scored = |id: u32, logprob: f32| {
            let bytes = tokenizer.token_bytes(id);
            TopLogprob {
                token: token_name(bytes, id),
                logprob,
                bytes: (!bytes.is_empty()).then(|| bytes.to_vec()),
            }
        };
        let entry = |token: &Token| {
            Some(TokenLogprob {
                token: scored(token.id, token.logprob?),
                top_logprobs: token
                    .top
                    .iter()
                    .map(|&(id, logprob)| scored(id, logprob))
                    .collect(),
            })
        };
        self.logprobs.then(|| ChatLogprobs {
            content: tokens.iter().filter_map(entry).collect(),
            refusal: None,
        })
    }
}

impl Style for ChatStyle {
    const PROMPT_FIELD: &'static str = "messages";
    const IN_CONVERSATION: bool = true;
    const ID_PREFIX: &'static str = "chatcmpl";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";
    type Choice = ChatChoice;
    type Piece = ChatPiece;

    fn choices(&self, choices: Vec<request::Choice>, tokenizer: &Tokenizer) -> Vec<ChatChoice> {
        let choice = |(index, mut choice): (usize, request::Choice)| ChatChoice {
            index,
            message: AssistantMessage {
                role: ASSISTANT,
                content: std::mem::take(&mut choice.text),
                refusal: None,
            },
            logprobs: self.logprobs(&choice.tokens, tokenizer),
            finish_reason: choice.finish.into(),
            arm: Arm::of(choice),
        };
        choices.into_iter().enumerate().map(choice).collect()
    }

    /// The role comes before any content, the reason for the end after all of it.
    fn pieces(&mut self, delta: Delta, tokenizer: &Tokenizer) -> Vec<ChatPiece> {
        let (index, arm) = (delta.choice, Arm::begun(&delta));
        let piece = |delta: MessageDelta| ChatPiece::empty(index, delta, arm.clone());
        let mut pieces = Vec::new();
        if self.begun.insert(index) {
            pieces.push(piece(MessageDelta {
                role: Some(ASSISTANT),
                content: Some(String::new()),
            }));
        }
        if !delta.text.is_empty() || !delta.tokens.is_empty() {
            pieces.push(ChatPiece {
                logprobs: self.logprobs(&delta.tokens, tokenizer),
                ..piece(MessageDelta {
                    role: None,
                    content: Some(delta.text),
                })
            });
        }
        if let Some(finish) = delta.finish {
            pieces.push(ChatPiece {
                finish_reason: Some(finish.into()),
                ..piece(MessageDelta::default())
            });
        }
        pieces
    }

    fn report(&self, index: usize, arm: Arm) -> ChatPiece {
        ChatPiece::empty(index, MessageDelta::default(), arm)
    }
}
