//! Contrast prompts as they are sent, and as token ids.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::discovery::directions::reading::ContrastPrompt;
use crate::discovery::verify::split;
use crate::models::tokenizer::Tokenizer;
use crate::objects_only::objects_only;
use crate::serving::snapshot::ModelCard;
use crate::settings::Limits;

/// A contrast prompt: text or token ids, or a prompt with the answer that follows it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected text, a list of token ids, or an object with `prompt` and `answer`"
)]
pub enum DirectionPrompt {
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    WithAnswer(PromptWithAnswer),
}

/// A prompt and the answer that it is made to have. Both are text or both token ids; a text's answer begins where a token
/// begins.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct PromptWithAnswer {
    pub prompt: TextOrTokens,
    pub answer: TextOrTokens,
}

/// Text or token ids.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected text or a list of token ids")]
pub enum TextOrTokens {
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// A token by its id, or the first of a text.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected text or a token id")]
pub enum AnswerToken {
    /// What follows a prompt; its first token counts, as the tokenizer cuts it behind that prompt.
    Text(String),
    /// A token id.
    Id(u32),
}

objects_only!(PromptWithAnswer);

impl DirectionPrompt {
    /// Characters, or ids.
    pub fn length(&self) -> usize {
        match self {
            DirectionPrompt::Text(text) => text.chars().count(),
            DirectionPrompt::Tokens(ids) => ids.len(),
            DirectionPrompt::WithAnswer(both) => both.prompt.length() + both.answer.length(),
        }
    }

    /// Its text without the answer; none of ids.
    pub fn text(&self) -> Option<&str> {
        match self {
            DirectionPrompt::Text(text) => Some(text),
            DirectionPrompt::WithAnswer(PromptWithAnswer {
                prompt: TextOrTokens::Text(text),
                ..
            }) => Some(text),
            _ => None,
        }
    }

    pub fn has_answer(&self) -> bool {
        matches!(self, DirectionPrompt::WithAnswer(_))
    }
}

impl TextOrTokens {
    fn length(&self) -> usize {
        match self {
            TextOrTokens::Text(text) => text.chars().count(),
            TextOrTokens::Tokens(ids) => ids.len(),
        }
    }
}

/// A prompt or text is run whole; no longer one is, however much the model's context holds.
const LONGEST: usize = 2048;

/// Turns what is sent for one model into its token ids.
#[derive(Debug, Clone)]
pub struct Encoder {
    tokenizer: Arc<Tokenizer>,
    /// Tokens of one prompt or text.
    longest: usize,
    vocabulary: usize,
}

impl Encoder {
    pub fn of(card: &ModelCard) -> Self {
        Encoder {
            tokenizer: card.tokenizer.clone(),
            longest: card.config.context_length.min(LONGEST),
            vocabulary: card.config.vocab_size,
        }
    }

    /// Refuses texts of more characters than are taken, all together.
    pub fn check_characters<'t>(
        &self,
        texts: impl Iterator<Item = &'t str>,
        param: &str,
        limits: &Limits,
    ) -> Result<(), ApiError> {
        check_total(texts.map(|text| text.chars().count()).sum(), param, limits)
    }

    /// A text as a prompt.
    pub fn text(&self, text: &str, param: &str) -> Result<Vec<u32>, ApiError> {
        self.check_text(text, param)?;
        let ids = self.tokenizer.encode_prompt(text);
        let ids = ids.map_err(|error| ApiError::invalid(param, error.to_string()))?;
        self.check_ids(&ids, param)?;
        Ok(ids)
    }

    /// A contrast prompt.
    pub fn prompt(
        &self,
        prompt: &DirectionPrompt,
        param: &str,
    ) -> Result<ContrastPrompt, ApiError> {
        let whole = |tokens: Vec<u32>| ContrastPrompt {
            answer: tokens.len(),
            tokens,
        };
        match prompt {
            DirectionPrompt::Text(text) => self.text(text, param).map(whole),
            DirectionPrompt::Tokens(ids) => {
                self.check_ids(ids, param)?;
                Ok(whole(ids.clone()))
            }
            DirectionPrompt::WithAnswer(PromptWithAnswer { prompt, answer }) => {
                let (mut tokens, answer) = match (prompt, answer) {
                    (TextOrTokens::Text(prompt), TextOrTokens::Text(answer)) => {
                        self.check_text(prompt, param)?;
                        self.check_text(answer, param)?;
                        split(&self.tokenizer, prompt, answer)
                            .map_err(|error| ApiError::invalid(param, error.to_string()))?
                    }
                    (TextOrTokens::Tokens(prompt), TextOrTokens::Tokens(answer)) => {
                        (prompt.clone(), answer.clone())
                    }
                    _ => {
                        let message = "prompt and answer are both texts or both lists of token ids";
                        return Err(ApiError::invalid(param, message));
                    }
                };
                for (part, name) in [(&tokens, "prompt"), (&answer, "answer")] {
                    if part.is_empty() {
                        let message = format!("the {name} has no tokens; it needs at least one");
                        return Err(ApiError::invalid(format!("{param}.{name}"), message));
                    }
                }
                let from = tokens.len();
                tokens.extend(answer);
                self.check_ids(&tokens, param)?;
                Ok(ContrastPrompt {
                    tokens,
                    answer: from,
                })
            }
        }
    }

    /// The token that an answer begins with behind a prompt.
    pub fn answer(
        &self,
        answer: &AnswerToken,
        prompt: Option<&str>,
        param: &str,
    ) -> Result<u32, ApiError> {
        let id = match (answer, prompt) {
            (AnswerToken::Id(id), _) => *id,
            (AnswerToken::Text(text), Some(prompt)) => {
                self.check_text(text, param)?;
                let cut = split(&self.tokenizer, prompt, text);
                let (_, following) =
                    cut.map_err(|error| ApiError::invalid(param, error.to_string()))?;
                following[0]
            }
            (AnswerToken::Text(text), None) => {
                self.check_text(text, param)?;
                let ids = self.tokenizer.encode(text);
                let ids = ids.map_err(|error| ApiError::invalid(param, error.to_string()))?;
                *ids.first()
                    .ok_or_else(|| ApiError::invalid(param, "the answer has no tokens"))?
            }
        };
        match (id as usize) < self.vocabulary {
            true => Ok(id),
            false => Err(self.outside(id, param)),
        }
    }

    /// Refuses a text that cannot fit before it costs anything.
    fn check_text(&self, text: &str, param: &str) -> Result<(), ApiError> {
        let most = self.longest.saturating_mul(self.tokenizer.longest_token());
        let found = text.chars().count();
        match found <= most {
            true => Ok(()),
            false => Err(ApiError::invalid_with_code(
                param,
                "context_length_exceeded",
                format!(
                    "the text has {found} characters; at most {} tokens are run at once, which hold at most {most}",
                    self.longest
                ),
            )),
        }
    }

    fn check_ids(&self, ids: &[u32], param: &str) -> Result<(), ApiError> {
        if ids.is_empty() {
            let message = "the prompt has no tokens; it needs at least one";
            return Err(ApiError::invalid(param, message));
        }
        if ids.len() > self.longest {
            let message = format!(
                "it has {} tokens; at most {} of one prompt or text are run",
                ids.len(),
                self.longest
            );
            return Err(ApiError::invalid_with_code(
                param,
                "context_length_exceeded",
                message,
            ));
        }
        match ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            Some(id) => Err(self.outside(*id, param)),
            None => Ok(()),
        }
    }

    fn outside(&self, id: u32, param: &str) -> ApiError {
        let message = format!(
            "{id} is no token id; the model's ids run from 0 to {}",
            self.vocabulary - 1
        );
        ApiError::invalid(param, message)
    }
}

/// Refuses more characters, or ids, than are taken of one request.
pub fn check_total(characters: usize, param: &str, limits: &Limits) -> Result<(), ApiError> {
    let limit = limits.max_prompt_characters;
    match characters <= limit {
        true => Ok(()),
        false => Err(ApiError::invalid_with_code(
            param,
            "prompt_too_long",
            format!(
                "there are {characters} characters; at most {limit} are taken (limits.max_prompt_characters)"
            ),
        )),
    }
}
