//! Prompts become token ids: bounded before, checked after, and not on the threads that serve. Conversations become
//! text first, by their model's chat template.

use std::sync::Arc;
use std::time::Duration;

use actix_web::web;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::ApiError;
use crate::api::state::State;
use crate::interventions::request::{CounterfactualPrompt, Destination, SteerRequest};
use crate::models::chat_template::{ChatTemplate, Message, RenderError};
use crate::models::tokenizer::{TextToken, Tokenizer, TokenizerError};
use crate::serving::snapshot::ModelCard;
use crate::serving::template_process::TemplateFailure;
use crate::settings::Limits;

/// One prompt as it was sent.
#[derive(Debug, Clone)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    /// A conversation that a chat template has written out.
    Written(String),
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
            Prompt::Written(_) | Prompt::Conversation { .. } => "messages",
        }
    }

    /// Characters, or ids.
    fn length(&self) -> usize {
        match self {
            Prompt::Text(text) | Prompt::Written(text) => text.chars().count(),
            Prompt::Tokens(tokens) => tokens.len(),
            Prompt::Conversation { messages, .. } => messages
                .iter()
                .map(|message| message.content.chars().count())
                .sum(),
        }
    }

    /// Refuses what cannot fit and what is no token of the model, as far as that is seen without tokenising.
    fn check(&self, index: usize, room: &Room) -> Result<(), ApiError> {
        match self {
            Prompt::Text(text) => room.check(text, &format!("prompt {index}"), self.field()),
            Prompt::Tokens(tokens) => check_tokens(tokens, room, self.field(), index),
            // A template says itself how long its text may be.
            Prompt::Written(_) | Prompt::Conversation { .. } => Ok(()),
        }
    }

    /// The ids of a prompt that is checked, and with `echo` its text and where its tokens begin in it.
    fn encode(self, index: usize, room: &Room, echo: bool) -> Result<EncodedPrompt, ApiError> {
        let field = self.field();
        let tokenizer = &*room.tokenizer;
        let failed = |error: TokenizerError| ApiError::invalid(field, error.to_string());
        let plain = |ids: Vec<u32>| EncodedPrompt { ids, echoed: None };
        let prompt = match self {
            Prompt::Tokens(tokens) => plain(tokens),
            Prompt::Text(text) if echo && !text.is_empty() => {
                echoed(&text, tokenizer).map_err(failed)?
            }
            Prompt::Text(text) => plain(tokenizer.encode_prompt(&text).map_err(failed)?),
            // The template has written what a text begins with, but nothing comes from nothing.
            Prompt::Written(text) if !text.is_empty() => {
                plain(tokenizer.encode(&text).map_err(failed)?)
            }
            Prompt::Written(_) | Prompt::Conversation { .. } => {
                plain(tokenizer.encode_prompt("").map_err(failed)?)
            }
        };
        if prompt.ids.is_empty() {
            return Err(ApiError::invalid(
                field,
                "the prompt is empty, and the model names no token that a text begins or ends with: its \
                 generation_config.json and its config.json have neither bos_token_id nor eos_token_id",
            ));
        }
        check_tokens(&prompt.ids, room, field, index)?;
        Ok(match (echo, &prompt.echoed) {
            (true, None) => {
                let (text, starts) = tokenizer.decode_with_starts(&prompt.ids);
                EncodedPrompt {
                    echoed: Some(EchoedText { text, starts }),
                    ..prompt
                }
            }
            _ => prompt,
        })
    }
}

/// A prompt's tokens.
#[derive(Debug)]
pub struct EncodedPrompt {
    pub ids: Vec<u32>,
    /// Where it was asked for.
    pub echoed: Option<EchoedText>,
}

/// What a completion begins with that repeats its prompt.
#[derive(Debug, Clone)]
pub struct EchoedText {
    pub text: String,
    /// The characters of it before each of the prompt's tokens.
    pub starts: Vec<usize>,
}

fn echoed(text: &str, tokenizer: &Tokenizer) -> Result<EncodedPrompt, TokenizerError> {
    let tokens = tokenizer.tokens_of(text, true)?;
    Ok(EncodedPrompt {
        ids: tokens.iter().map(|token| token.id).collect(),
        echoed: Some(EchoedText {
            text: text.to_owned(),
            starts: tokens.iter().map(|token| token.characters.start).collect(),
        }),
    })
}

/// What there is room for in a model's context.
struct Room {
    tokenizer: Arc<Tokenizer>,
    context: usize,
    vocabulary: usize,
    /// `limits.max_prompt_characters`.
    limit: usize,
}

impl Room {
    fn of(card: &ModelCard, limits: &Limits) -> Self {
        Room {
            tokenizer: card.tokenizer.clone(),
            context: card.config.context_length,
            vocabulary: card.config.vocab_size,
            limit: limits.max_prompt_characters,
        }
    }

    /// The most characters that the context holds, were each token as long as the longest.
    fn in_context(&self) -> usize {
        self.context.saturating_mul(self.tokenizer.longest_token())
    }

    /// The most characters that are tokenised.
    fn characters(&self) -> usize {
        self.limit.min(self.in_context())
    }

    /// Refuses a text that cannot fit before it costs anything.
    fn check(&self, text: &str, name: &str, field: &str) -> Result<(), ApiError> {
        let (found, most) = (text.chars().count(), self.in_context());
        match found <= most {
            true => Ok(()),
            false => Err(ApiError::invalid_with_code(
                field,
                "context_length_exceeded",
                format!(
                    "{name} has {found} characters; the model's context is {} tokens, which hold at most {most}",
                    self.context
                ),
            )),
        }
    }
}

fn failure(error: TemplateFailure, room: &Room) -> ApiError {
    let code = match &error {
        TemplateFailure::Refused(RenderError::TooLong { .. }) if room.characters() < room.limit => {
            "context_length_exceeded"
        }
        TemplateFailure::Refused(RenderError::TooLong { .. }) => "prompt_too_long",
        TemplateFailure::System(_) => return ApiError::internal(error),
        _ => "chat_template_failed",
    };
    ApiError::invalid_with_code("messages", code, error.to_string())
}

/// The token ids of each prompt, none of them empty and none longer than the model's context.
pub async fn encode(
    prompts: Vec<Prompt>,
    card: &ModelCard,
    state: &State,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let encoded = encode_echoed(prompts, card, state, false).await?;
    Ok(encoded.into_iter().map(|prompt| prompt.ids).collect())
}

/// The same, with the prompts' texts where `echo` asks for them.
pub async fn encode_echoed(
    prompts: Vec<Prompt>,
    card: &ModelCard,
    state: &State,
    echo: bool,
) -> Result<Vec<EncodedPrompt>, ApiError> {
    check_length(&prompts, &state.limits)?;
    let room = Room::of(card, &state.limits);
    let mut written = Vec::with_capacity(prompts.len());
    // Before they wait for their turn, which prompts that are too long would do in all their length.
    for (index, prompt) in prompts.iter().enumerate() {
        prompt.check(index, &room)?;
    }
    for prompt in prompts {
        written.push(written_out(prompt, &room, state).await?);
    }
    tokenise(state, move || {
        let prompts = written.into_iter().enumerate();
        prompts
            .map(|(index, prompt)| prompt.encode(index, &room, echo))
            .collect()
    })
    .await?
}

/// The same prompt, and of a conversation what its template makes of it.
async fn written_out(prompt: Prompt, room: &Room, state: &State) -> Result<Prompt, ApiError> {
    let Prompt::Conversation { template, messages } = prompt else {
        return Ok(prompt);
    };
    // As many templates run at a time as texts are tokenised.
    let _permit = permit(state).await?;
    let rendered = state
        .templates
        .render(&template, &messages, room.characters());
    let text = rendered.await.map_err(|error| failure(error, room))?;
    Ok(Prompt::Written(text))
}

/// The text of a prompt and its tokens; with `special`, what the tokenizer puts before a text too.
pub async fn tokens(
    prompt: Prompt,
    special: bool,
    card: &ModelCard,
    state: &State,
) -> Result<(String, Vec<TextToken>), ApiError> {
    check_length(std::slice::from_ref(&prompt), &state.limits)?;
    let room = Room::of(card, &state.limits);
    let field = prompt.field();
    let written = written_out(prompt, &room, state).await?;
    tokenise(state, move || {
        let text = match written {
            Prompt::Text(text) | Prompt::Written(text) => text,
            Prompt::Tokens(tokens) => room.tokenizer.decode(&tokens),
            Prompt::Conversation { .. } => String::new(),
        };
        room.check(&text, "the text", field)?;
        let tokens = room.tokenizer.tokens_of(&text, special);
        let tokens = tokens.map_err(|error| ApiError::invalid(field, error.to_string()))?;
        Ok((text, tokens))
    })
    .await?
}

/// Edits whose counterfactual prompts are ids and no texts any more. As any prompt's, a text's ids begin with what the
/// tokenizer puts before a text; in a conversation the template has that said.
pub async fn encode_counterfactuals(
    mut steer: SteerRequest,
    card: &ModelCard,
    state: &State,
    in_conversation: bool,
) -> Result<SteerRequest, ApiError> {
    let texts = |prompt: &CounterfactualPrompt| {
        use CounterfactualPrompt::{Text, Texts};
        matches!(prompt, Text(_) | Texts(_))
    };
    let has_texts = steer.edits.iter().any(|edit| match &edit.to {
        Some(Destination::Counterfactual(to)) => to.prompt.as_ref().is_some_and(texts),
        _ => false,
    });
    if !has_texts {
        return Ok(steer);
    }
    let room = Room::of(card, &state.limits);
    tokenise(state, move || {
        for (index, edit) in steer.edits.iter_mut().enumerate() {
            let Some(Destination::Counterfactual(to)) = &mut edit.to else {
                continue;
            };
            let param = format!("steer.edits[{index}].to.prompt");
            let encode = |text: &String| {
                room.check(text, "the counterfactual prompt", &param)?;
                let ids = match in_conversation || text.is_empty() {
                    true => room.tokenizer.encode(text),
                    false => room.tokenizer.encode_prompt(text),
                };
                ids.map_err(|error| ApiError::invalid(&param, error.to_string()))
            };
            to.prompt = match to.prompt.take() {
                Some(CounterfactualPrompt::Text(text)) => {
                    Some(CounterfactualPrompt::Tokens(encode(&text)?))
                }
                Some(CounterfactualPrompt::Texts(texts)) => {
                    let lists = texts.iter().map(encode).collect::<Result<_, _>>()?;
                    Some(CounterfactualPrompt::TokenLists(lists))
                }
                prompt => prompt,
            };
        }
        Ok(steer)
    })
    .await?
}

/// Waits until a text may be tokenised. A request that waits as long as its first token may take is turned away.
async fn permit(state: &State) -> Result<OwnedSemaphorePermit, ApiError> {
    let patience = Duration::from_secs(state.limits.first_token_seconds);
    let permit = Semaphore::acquire_owned(state.tokenising.clone());
    let permit = tokio::time::timeout(patience, permit).await;
    permit
        .map_err(|_| ApiError::Busy)?
        .map_err(ApiError::internal)
}

/// Does work that tokenises texts on a thread of its own, a few at a time: each takes hundreds of bytes a character.
pub async fn tokenise<T: Send + 'static>(
    state: &State,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let permit = permit(state).await?;
    let done = web::block(move || {
        let done = work();
        // Held to the end, also where nobody waits for it any more.
        drop(permit);
        done
    });
    done.await.map_err(ApiError::internal)
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

fn check_tokens(tokens: &[u32], room: &Room, field: &str, index: usize) -> Result<(), ApiError> {
    let (vocabulary, context) = (room.vocabulary, room.context);
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
