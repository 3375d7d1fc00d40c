//! Prompts become token ids: bounded before, checked after, and not on the threads that serve. Conversations become
//! text first, by their model's chat template.

use std::sync::Arc;

use actix_web::web;

use crate::api::ApiError;
use crate::models::chat_template::{ChatTemplate, Message, RenderError};
use crate::models::tokenizer::Tokenizer;
use crate::serving::snapshot::ModelCard;
use crate::settings::Limits;

/// One prompt as it was sent.
#[derive(Debug, Clone)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Conversation {
        template: Arc<ChatTemplate>,
        messages: Vec<Message>,
    },
}

impl Prompt {
    /// The field of a request that it comes from.
    fn field(&self) -> &'static str {
        match self {
            Prompt::Text(_) | Prompt::Tokens(_) => "prompt",
            Prompt::Conversation { .. } => "messages",
        }
    }

    /// Characters, or ids.
    fn length(&self) -> usize {
        match self {
            Prompt::Text(text) => text.chars().count(),
            Prompt::Tokens(tokens) => tokens.len(),
            Prompt::Conversation { messages, .. } => messages
                .iter()
                .map(|message| message.content.chars().count())
                .sum(),
        }
    }

    fn encode(self, tokenizer: &Tokenizer, limit: usize) -> Result<Vec<u32>, ApiError> {
        let field = self.field();
        let text = match self {
            Prompt::Tokens(tokens) => return Ok(tokens),
            Prompt::Text(text) => text,
            Prompt::Conversation { template, messages } => template
                .render(&messages, limit)
                .map_err(|error| render_error(&error))?,
        };
        if text.is_empty() {
            // An empty text is what comes before a document.
            return match tokenizer.end_of_text() {
                Some(id) => Ok(vec![id]),
                None => Err(ApiError::invalid(
                    field,
                    "the prompt is empty, and the tokenizer has no end of text",
                )),
            };
        }
        tokenizer
            .encode(&text)
            .map_err(|error| ApiError::invalid(field, error.to_string()))
    }
}

fn render_error(error: &RenderError) -> ApiError {
    let code = match error {
        RenderError::TooLong { .. } => "prompt_too_long",
        RenderError::OutOfFuel | RenderError::Raised(_) | RenderError::Failed(_) => {
            "chat_template_failed"
        }
    };
    ApiError::invalid_with_code("messages", code, error.to_string())
}

/// The token ids of each prompt, none of them empty and none longer than the model's context.
pub async fn encode(
    prompts: Vec<Prompt>,
    card: &ModelCard,
    limits: &Limits,
) -> Result<Vec<Vec<u32>>, ApiError> {
    check_length(&prompts, limits)?;
    let fields: Vec<&str> = prompts.iter().map(Prompt::field).collect();
    let (tokenizer, limit) = (card.tokenizer.clone(), limits.max_prompt_characters);
    let encoded = web::block(move || {
        let encode = |prompt: Prompt| prompt.encode(&tokenizer, limit);
        prompts.into_iter().map(encode).collect()
    });
    let encoded: Result<Vec<Vec<u32>>, ApiError> = encoded.await.map_err(ApiError::internal)?;
    let encoded = encoded?;
    for (index, (tokens, field)) in encoded.iter().zip(fields).enumerate() {
        check_tokens(tokens, card, field, index)?;
    }
    Ok(encoded)
}

/// All prompts together: tokenising is what costs, and it comes before any token count.
fn check_length(prompts: &[Prompt], limits: &Limits) -> Result<(), ApiError> {
    let total: usize = prompts.iter().map(Prompt::length).sum();
    let limit = limits.max_prompt_characters;
    if total <= limit {
        return Ok(());
    }
    let field = prompts.first().map_or("prompt", Prompt::field);
    let message = format!("the prompts have {total} characters; at most {limit} are taken");
    Err(ApiError::invalid_with_code(
        field,
        "prompt_too_long",
        message,
    ))
}

fn check_tokens(
    tokens: &[u32],
    card: &ModelCard,
    field: &str,
    index: usize,
) -> Result<(), ApiError> {
    let (vocabulary, context) = (card.config.vocab_size, card.config.context_length);
    if tokens.is_empty() {
        return Err(ApiError::invalid(
            field,
            format!("prompt {index} has no tokens; it needs at least one"),
        ));
    }
    if tokens.len() > context {
        let message = format!(
            "prompt {index} has {} tokens; the model's context is {context}",
            tokens.len()
        );
        return Err(ApiError::invalid_with_code(
            field,
            "context_length_exceeded",
            message,
        ));
    }
    match tokens.iter().find(|&&id| id as usize >= vocabulary) {
        Some(id) => Err(ApiError::invalid(
            field,
            format!(
                "prompt {index} has the token id {id}; the model's ids run from 0 to {}",
                vocabulary - 1
            ),
        )),
        None => Ok(()),
    }
}
