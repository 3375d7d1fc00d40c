//! A completion as OpenAI's `text_completion` object.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::prompt::Prompt;
use crate::generation::request::{self, Finish, Generation, Token};
use crate::interventions::receipt::{EditActivations, Receipt};
use crate::interventions::request::Variant;
use crate::models::tokenizer::Tokenizer;

/// The completions of one request.
#[derive(Debug, Serialize, ToSchema)]
pub struct Completion {
    #[schema(example = "cmpl-0a1b2c3d4e5f60718293a4b5c6d7e8f9")]
    pub id: String,
    #[schema(example = "text_completion")]
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    /// By prompt, then sample, then variant as requested, then strength.
    pub choices: Vec<Choice>,
    pub usage: Usage,
    /// A hash of the build, the model and the bridge: what changes an answer and is not in the request.
    pub system_fingerprint: String,
}

/// One completion of one prompt.
#[derive(Debug, Serialize, ToSchema)]
pub struct Choice {
    /// With `echo`, the prompt is its beginning.
    pub text: String,
    pub index: usize,
    /// Null unless they were asked for.
    #[schema(required = true)]
    pub logprobs: Option<Logprobs>,
    pub finish_reason: FinishReason,
    /// The arm that this is, where the request named `variants`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub variant: Option<Variant>,
    /// The strength of this arm, in a sweep.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub strength: Option<f64>,
    /// What the edits did, where `steer.return` asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Receipt, required = false)]
    pub receipt: Option<serde_json::Value>,
    /// The edited features' activations, where `steer.return` asked for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<EditActivations>, required = false)]
    pub activations: Option<serde_json::Value>,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// At one of the texts of `stop`, or at the end of a document.
    Stop,
    /// `max_tokens` or the model's context was reached.
    Length,
}

/// Four lists of equal length, an entry a token.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Logprobs {
    /// Each token's text; `bytes:\xe2\x82` where it is only a part of a character.
    pub tokens: Vec<String>,
    /// In nats; null for a prompt's first token, which nothing predicted.
    pub token_logprobs: Vec<Option<f32>>,
    /// The most probable tokens and the one that was taken, with their log-probabilities.
    pub top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Where in this choice's `text` each token begins, in characters.
    pub text_offset: Vec<usize>,
}

/// Tokens of the whole request. The samples that `best_of` dropped count too.
#[derive(Debug, Serialize, ToSchema)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
}

impl Usage {
    pub fn of(generation: &Generation) -> Self {
        let (prompt_tokens, completion_tokens) =
            (generation.prompt_tokens, generation.completion_tokens);
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
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
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
    pub echo: bool,
    pub logprobs: Option<usize>,
}

/// Keeps the `kept` choices of each prompt's `samples` with the highest mean log-probability a token; of equals
/// the earlier one.
pub fn keep_best(choices: &mut Vec<request::Choice>, samples: usize, kept: usize) {
    let mut best = Vec::new();
    let mut rest = std::mem::take(choices).into_iter().peekable();
    while rest.peek().is_some() {
        let mut of_prompt: Vec<request::Choice> = rest.by_ref().take(samples).collect();
        of_prompt.sort_by(|left, right| mean_logprob(right).total_cmp(&mean_logprob(left)));
        of_prompt.truncate(kept);
        best.append(&mut of_prompt);
    }
    *choices = best;
}

/// A completion without tokens is as good as certain.
fn mean_logprob(choice: &request::Choice) -> f64 {
    let logprobs: Vec<f64> = choice
        .tokens
        .iter()
        .filter_map(|token| token.logprob)
        .map(f64::from)
        .collect();
    logprobs.iter().sum::<f64>() / logprobs.len().max(1) as f64
}

/// What `echo` begins a completion of each prompt with: the text as sent, or what the token ids say.
pub fn echoed(texts: &[Prompt], prompts: &[Vec<u32>], tokenizer: &Tokenizer) -> Vec<String> {
    let both = texts.iter().zip(prompts);
    both.map(|(text, tokens)| match text {
        Prompt::Text(text) if !text.is_empty() => text.clone(),
        _ => tokenizer.decode(tokens),
    })
    .collect()
}

/// A new id for a completion.
pub fn new_id() -> String {
    format!("cmpl-{}", Uuid::new_v4().simple())
}

/// The answer. `echoed` is what [`echoed`] says.
pub fn completion(
    frame: Frame,
    generation: Generation,
    echoed: &[String],
    tokenizer: &Tokenizer,
) -> Completion {
    let usage = Usage::of(&generation);
    let per_prompt = (generation.choices.len() / echoed.len().max(1)).max(1);
    let choices = generation
        .choices
        .into_iter()
        .enumerate()
        .map(|(index, choice)| {
            let prompt = index / per_prompt;
            let echoed = match frame.echo {
                true => echoed.get(prompt).cloned().unwrap_or_default(),
                false => String::new(),
            };
            let begins = echoed.chars().count();
            let text = echoed + &choice.text;
            let logprobs = frame.logprobs.map(|_| {
                let mut logprobs = Logprobs::default();
                if frame.echo {
                    logprobs.extend(&choice.prompt, &mut Vec::new(), 0..=begins, tokenizer);
                }
                let place = begins..=text.chars().count();
                logprobs.extend(&choice.tokens, &mut Vec::new(), place, tokenizer);
                logprobs
            });
            Choice {
                text,
                index,
                logprobs,
                finish_reason: choice.finish.into(),
                variant: choice.variant,
                strength: choice.strength,
                receipt: choice.receipt,
                activations: choice.activations,
            }
        });
    Completion {
        id: new_id(),
        object: "text_completion",
        created: frame.created,
        model: frame.model,
        choices: choices.collect(),
        usage,
        system_fingerprint: frame.system_fingerprint,
    }
}

impl Logprobs {
    /// Adds tokens that go on after the bytes `before`, which they are added to; together they are the characters
    /// `place` of the choice's text. A token that begins inside a character has that character's offset; one
    /// that a stop cut off has the text's end.
    pub fn extend(
        &mut self,
        tokens: &[Token],
        before: &mut Vec<u8>,
        place: RangeInclusive<usize>,
        tokenizer: &Tokenizer,
    ) {
        let bytes_of = |id: u32| tokenizer.token_bytes(id);
        let mut start = before.len();
        before.extend(tokens.iter().flat_map(|token| bytes_of(token.id)));
        let characters = character_of_byte(before);
        for token in tokens {
            let own = bytes_of(token.id);
            let character = characters.get(start).copied().unwrap_or(usize::MAX);
            start += own.len();
            self.text_offset
                .push(place.start().saturating_add(character).min(*place.end()));
            self.tokens.push(token_name(own, token.id));
            self.token_logprobs.push(token.logprob);
            self.top_logprobs.push(token.logprob.map(|logprob| {
                let name = |id: u32| token_name(bytes_of(id), id);
                let mut top: BTreeMap<String, f32> = token
                    .top
                    .iter()
                    .map(|&(id, logprob)| (name(id), logprob))
                    .collect();
                top.insert(name(token.id), logprob);
                top
            }));
        }
    }
}

/// For each byte the index of the character it is part of, once every run of bytes that is no UTF-8 has become
/// one replacement character.
fn character_of_byte(bytes: &[u8]) -> Vec<usize> {
    let mut indices = Vec::with_capacity(bytes.len());
    let mut index = 0;
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            indices.extend(std::iter::repeat_n(index, character.len_utf8()));
            index += 1;
        }
        if !chunk.invalid().is_empty() {
            indices.extend(std::iter::repeat_n(index, chunk.invalid().len()));
            index += 1;
        }
    }
    indices
}

/// A token's text, or its bytes where they are no text; its id where the tokenizer does not know it.
fn token_name(bytes: &[u8], id: u32) -> String {
    match std::str::from_utf8(bytes) {
        Ok("") => format!("token:{id}"),
        Ok(text) => text.to_owned(),
        Err(_) => {
            let escaped: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{escaped}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_belong_to_the_characters_that_decoding_makes_of_them() {
        for bytes in [
            &b"a\xc3\xa9b"[..],
            b"\xa9\xa9x",
            b"\xe2\x82x",
            b"\xf0\x9f\x98\x80",
            b"",
        ] {
            let text = String::from_utf8_lossy(bytes);
            let indices = character_of_byte(bytes);
            assert_eq!(indices.len(), bytes.len());
            assert_eq!(
                indices.last().map_or(0, |last| last + 1),
                text.chars().count(),
                "{text}"
            );
        }
        assert_eq!(character_of_byte(b"a\xc3\xa9b"), [0, 1, 1, 2]);
    }
}
