//! Prompts become token ids: bounded before, checked after, and not on the threads that serve.

use actix_web::web;

use crate::api::ApiError;
use crate::api::inventory::ModelCard;
use crate::models::tokenizer::Tokenizer;
use crate::settings::Limits;

/// One prompt as it was sent.
#[derive(Debug, Clone)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// The token ids of each prompt, none of them empty and none longer than the model's context.
pub async fn encode(
    prompts: Vec<Prompt>,
    card: &ModelCard,
    limits: &Limits,
) -> Result<Vec<Vec<u32>>, ApiError> {
    check_length(&prompts, limits)?;
    let tokenizer = card.tokenizer.clone();
    let encoded = web::block(move || encode_all(prompts, &tokenizer)).await;
    let encoded = encoded.map_err(ApiError::internal)??;
    for (index, tokens) in encoded.iter().enumerate() {
        check_tokens(tokens, card, index)?;
    }
    Ok(encoded)
}

/// Characters, or ids, of all prompts together: tokenising is what costs, and it comes before any token count.
fn check_length(prompts: &[Prompt], limits: &Limits) -> Result<(), ApiError> {
    let length = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => text.chars().count(),
        Prompt::Tokens(tokens) => tokens.len(),
    };
    let total: usize = prompts.iter().map(length).sum();
    let limit = limits.max_prompt_characters;
    match total <= limit {
        true => Ok(()),
        false => Err(ApiError::invalid_with_code(
            "prompt",
            "prompt_too_long",
            format!("the prompts have {total} characters; at most {limit} are taken"),
        )),
    }
}

fn encode_all(prompts: Vec<Prompt>, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, ApiError> {
    let encode = |prompt| match prompt {
        Prompt::Tokens(tokens) => Ok(tokens),
        // An empty text is what comes before a document.
        Prompt::Text(text) if text.is_empty() => match tokenizer.end_of_text() {
            Some(id) => Ok(vec![id]),
            None => Err(ApiError::invalid(
                "prompt",
                "the prompt is empty, and the tokenizer has no end of text",
            )),
        },
        Prompt::Text(text) => tokenizer
            .encode(&text)
            .map_err(|error| ApiError::invalid("prompt", error.to_string())),
    };
    prompts.into_iter().map(encode).collect()
}

fn check_tokens(tokens: &[u32], card: &ModelCard, index: usize) -> Result<(), ApiError> {
    let (vocabulary, context) = (card.config.vocab_size, card.config.context_length);
    if tokens.is_empty() {
        return Err(ApiError::invalid(
            "prompt",
            format!("prompt {index} has no tokens; it needs at least one"),
        ));
    }
    if tokens.len() > context {
        let message = format!(
            "prompt {index} has {} tokens; the model's context is {context}",
            tokens.len()
        );
        return Err(ApiError::invalid_with_code(
            "prompt",
            "context_length_exceeded",
            message,
        ));
    }
    match tokens.iter().find(|&&id| id as usize >= vocabulary) {
        Some(id) => Err(ApiError::invalid(
            "prompt",
            format!(
                "prompt {index} has the token id {id}; the model's ids run from 0 to {}",
                vocabulary - 1
            ),
        )),
        None => Ok(()),
    }
}
