//! `POST /v1/tokenize` and `POST /v1/detokenize`, also at `/tokenize` and `/detokenize`: a text's tokens with their
//! texts and offsets, and back. The fields have the names that vLLM's server gives them.

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiError;
use super::body::JsonBody;
use super::completions::chat::messages::{self, ChatMessage};
use super::completions::chat::parameters;
use super::completions::prompt::{self, Prompt};
use super::error::ErrorBody;
use super::state::State;

/// A text or a conversation: `prompt` or `messages`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTokens {
    /// The id of a dense or sparse model, or a preset's full name.
    pub model: String,
    /// A text.
    pub prompt: Option<String>,
    /// A conversation, which the model's chat template makes a text of.
    #[schema(min_items = 1)]
    pub messages: Option<Vec<ChatMessage>>,
    /// Whether the tokenizer's own tokens are put before the text, as in a completion; by default for a `prompt`, and not
    /// for `messages`, whose template writes them itself.
    pub add_special_tokens: Option<bool>,
    /// Whether `token_strs` is told; true unless said.
    #[schema(default = true)]
    pub return_token_strs: Option<bool>,
}

/// The tokens of a text.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokensObject {
    /// How many there are.
    pub count: usize,
    /// The model's context, in tokens.
    pub max_model_len: usize,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// Their texts; parts of characters are replacement characters. Null where they were not asked for.
    #[schema(required = true)]
    pub token_strs: Option<Vec<String>>,
    /// The characters of the text that each stands for: from the first up to, and without, the second. Two tokens can
    /// share a character; a token that was put before the text stands for none.
    #[schema(value_type = Vec<Vec<usize>>)]
    pub offsets: Vec<[usize; 2]>,
    /// What the chat template has made of `messages`: the text that `offsets` count in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub prompt: Option<String>,
}

/// Token ids whose text is wanted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateText {
    /// The id of a dense or sparse model, or a preset's full name.
    pub model: String,
    /// Token ids.
    pub tokens: Vec<u32>,
}

/// The text of tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextObject {
    /// The text that the tokenizer's decoder makes of all tokens together; bytes that are no text become replacement
    /// characters.
    pub prompt: String,
    /// The characters of it that stand before each token.
    pub starts: Vec<usize>,
}

/// The tokens of a text, or of a conversation, for a model: those that a completion of it begins with.
#[utoipa::path(post, path = "/v1/tokenize", tag = "tokens", operation_id = "tokenize",
    request_body(content = CreateTokens, example = json!({"model": "tinypython", "prompt": "print(\"hello world"})),
    responses(
        (status = 200, description = "The tokens", body = TokensObject),
        (status = 400, description = "A field is wrong, the text is longer than the context can hold, or the model has no \
            chat template (code `no_chat_template`)", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 503, description = "Too many texts wait to be tokenised: code `overloaded`", body = ErrorBody)
    ))]
pub async fn tokenize(
    state: web::Data<State>,
    body: JsonBody<CreateTokens>,
) -> Result<HttpResponse, ApiError> {
    let request = body.0;
    let card = &*state.snapshot().named_model(&request.model)?.card;
    let is_text = request.prompt.is_some();
    let prompt = match (request.prompt, request.messages) {
        (Some(text), None) => Prompt::Text(text),
        (None, Some(messages)) => Prompt::Conversation {
            template: parameters::template(card)?,
            messages: messages::check(messages)?,
        },
        (Some(_), Some(_)) => {
            let message = "prompt and messages are both given; give one of the two";
            return Err(ApiError::invalid("messages", message));
        }
        (None, None) => {
            let message = "there is nothing to tokenise; give a prompt, or messages";
            return Err(ApiError::invalid("prompt", message));
        }
    };
    let special = request.add_special_tokens.unwrap_or(is_text);
    let (text, tokens) = prompt::tokens(prompt, special, card, &state).await?;
    let strings = request.return_token_strs.unwrap_or(true);
    let text_of = |id: u32| card.tokenizer.token_text(id);
    Ok(HttpResponse::Ok().json(TokensObject {
        count: tokens.len(),
        max_model_len: card.config.context_length,
        token_strs: strings.then(|| tokens.iter().map(|token| text_of(token.id)).collect()),
        offsets: tokens
            .iter()
            .map(|token| [token.characters.start, token.characters.end])
            .collect(),
        tokens: tokens.into_iter().map(|token| token.id).collect(),
        prompt: (!is_text).then_some(text),
    }))
}

/// The same as `/v1/tokenize`, where other servers have it.
#[utoipa::path(post, path = "/tokenize", tag = "tokens", operation_id = "tokenizeAtRoot",
    request_body(content = CreateTokens, example = json!({"model": "tinypython", "prompt": "print(\"hello world"})),
    responses(
        (status = 200, description = "The tokens", body = TokensObject),
        (status = 400, description = "As at `/v1/tokenize`", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 503, description = "Too many texts wait to be tokenised: code `overloaded`", body = ErrorBody)
    ))]
pub async fn tokenize_at_root(
    state: web::Data<State>,
    body: JsonBody<CreateTokens>,
) -> Result<HttpResponse, ApiError> {
    tokenize(state, body).await
}

/// The text of token ids for a model.
#[utoipa::path(post, path = "/v1/detokenize", tag = "tokens", operation_id = "detokenize",
    request_body(content = CreateText, example = json!({"model": "tinypython", "tokens": [314, 7, 1, 71, 68]})),
    responses(
        (status = 200, description = "The text", body = TextObject),
        (status = 400, description = "A field is wrong, or an id is not the model's", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 503, description = "Too many texts wait to be tokenised: code `overloaded`", body = ErrorBody)
    ))]
pub async fn detokenize(
    state: web::Data<State>,
    body: JsonBody<CreateText>,
) -> Result<HttpResponse, ApiError> {
    let CreateText { model, tokens } = body.0;
    let card = &*state.snapshot().named_model(&model)?.card;
    let (limit, vocabulary) = (
        state.limits.max_prompt_characters,
        card.tokenizer.vocab_size(),
    );
    if tokens.len() > limit {
        let message = format!(
            "there are {} tokens; at most {limit} are taken (limits.max_prompt_characters)",
            tokens.len()
        );
        return Err(ApiError::invalid_with_code(
            "tokens",
            "prompt_too_long",
            message,
        ));
    }
    if let Some(at) = tokens.iter().position(|&id| id as usize >= vocabulary) {
        let message = format!(
            "{} is no token id of the model; they run from 0 to {}",
            tokens[at],
            vocabulary.saturating_sub(1)
        );
        return Err(ApiError::invalid(format!("tokens[{at}]"), message));
    }
    let tokenizer = card.tokenizer.clone();
    let decode = move || tokenizer.decode_with_starts(&tokens);
    let (prompt, starts) = prompt::tokenise(&state, decode).await?;
    Ok(HttpResponse::Ok().json(TextObject { prompt, starts }))
}

/// The same as `/v1/detokenize`, where other servers have it.
#[utoipa::path(post, path = "/detokenize", tag = "tokens", operation_id = "detokenizeAtRoot",
    request_body(content = CreateText, example = json!({"model": "tinypython", "tokens": [314, 7, 1, 71, 68]})),
    responses(
        (status = 200, description = "The text", body = TextObject),
        (status = 400, description = "As at `/v1/detokenize`", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 503, description = "Too many texts wait to be tokenised: code `overloaded`", body = ErrorBody)
    ))]
pub async fn detokenize_at_root(
    state: web::Data<State>,
    body: JsonBody<CreateText>,
) -> Result<HttpResponse, ApiError> {
    detokenize(state, body).await
}
