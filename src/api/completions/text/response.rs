//! A text completion as OpenAI's `text_completion` object, whole or in pieces.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

use super::parameters::BestOf;
use crate::api::completions::prompt::Prompt;
use crate::api::completions::response::{Arm, FinishReason, Style, token_name};
use crate::api::completions::stream::event_data;
use crate::generation::request::{self, Delta, Token};
use crate::models::tokenizer::Tokenizer;

/// One completion of one prompt.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextChoice {
    /// With `echo`, the prompt is its beginning.
    pub text: String,
    pub index: usize,
    /// Null unless they were asked for.
    #[schema(required = true)]
    pub logprobs: Option<Logprobs>,
    pub finish_reason: FinishReason,
    #[serde(flatten)]
    pub arm: Arm,
}

/// More of one choice.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextPiece {
    pub text: String,
    pub index: usize,
    /// Of the tokens whose text is now complete; null unless they were asked for.
    #[schema(required = true)]
    pub logprobs: Option<Logprobs>,
    /// Null before the choice's end.
    #[schema(required = true)]
    pub finish_reason: Option<FinishReason>,
    #[serde(flatten)]
    pub arm: Arm,
}

/// One event of a stream.
#[derive(Debug, ToSchema)]
pub struct TextEvent {
    #[schema(schema_with = event)]
    pub data: String,
}

fn event() -> RefOr<Schema> {
    event_data("Chunk_TextPiece")
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

/// The answers to one request for text.
#[derive(Debug)]
pub struct TextStyle {
    /// What each prompt's choices begin with, where `echo` asked for it.
    pub echoed: Option<Vec<String>>,
    pub logprobs: bool,
    pub best_of: Option<BestOf>,
    /// Choices of each prompt.
    pub per_prompt: usize,
    /// What a stream has told of each choice.
    pub progress: BTreeMap<usize, Progress>,
}

/// What a client has been told of one choice.
#[derive(Debug, Default)]
pub struct Progress {
    characters: usize,
    /// Where the generated text begins.
    begins: usize,
    /// The bytes of its generated tokens.
    bytes: Vec<u8>,
}

impl TextStyle {
    /// What the text of this choice begins with.
    fn beginning(&self, index: usize) -> String {
        let echoed = self.echoed.as_ref();
        let of_prompt = echoed.and_then(|echoed| echoed.get(index / self.per_prompt.max(1)));
        of_prompt.cloned().unwrap_or_default()
    }

    fn choice(&self, index: usize, choice: request::Choice, tokenizer: &Tokenizer) -> TextChoice {
        let mut text = self.beginning(index);
        let begins = text.chars().count();
        text += &choice.text;
        let logprobs = self.logprobs.then(|| {
            let mut logprobs = Logprobs::default();
            logprobs.extend(&choice.prompt, &mut Vec::new(), 0..=begins, tokenizer);
            let place = begins..=text.chars().count();
            logprobs.extend(&choice.tokens, &mut Vec::new(), place, tokenizer);
            logprobs
        });
        TextChoice {
            text,
            index,
            logprobs,
            finish_reason: choice.finish.into(),
            arm: Arm::of(choice),
        }
    }
}

impl Style for TextStyle {
    const PROMPT_FIELD: &'static str = "prompt";
    const ID_PREFIX: &'static str = "cmpl";
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";
    type Choice = TextChoice;
    type Piece = TextPiece;

    fn choices(&self, mut choices: Vec<request::Choice>, tokenizer: &Tokenizer) -> Vec<TextChoice> {
        if let Some(best_of) = self.best_of {
            keep_best(&mut choices, best_of);
        }
        let choices = choices.into_iter().enumerate();
        choices
            .map(|(index, choice)| self.choice(index, choice, tokenizer))
            .collect()
    }

    fn pieces(&mut self, delta: Delta, tokenizer: &Tokenizer) -> Vec<TextPiece> {
        let mut text = String::new();
        if !self.progress.contains_key(&delta.choice) {
            text = self.beginning(delta.choice);
        }
        let begins = text.chars().count();
        let progress = self.progress.entry(delta.choice).or_insert(Progress {
            begins,
            ..Progress::default()
        });
        text += &delta.text;
        progress.characters += text.chars().count();
        let logprobs = self.logprobs.then(|| {
            let mut logprobs = Logprobs::default();
            let echoed = 0..=progress.begins;
            logprobs.extend(&delta.prompt, &mut Vec::new(), echoed, tokenizer);
            let place = progress.begins..=progress.characters;
            logprobs.extend(&delta.tokens, &mut progress.bytes, place, tokenizer);
            logprobs
        });
        vec![TextPiece {
            text,
            index: delta.choice,
            logprobs,
            finish_reason: delta.finish.map(FinishReason::from),
            arm: Arm::begun(&delta),
        }]
    }

    fn report(&self, index: usize, arm: Arm) -> TextPiece {
        TextPiece {
            text: String::new(),
            index,
            logprobs: None,
            finish_reason: None,
            arm,
        }
    }
}

/// Keeps those of each prompt's samples with the highest mean log-probability a token; of equals the earlier one.
fn keep_best(choices: &mut Vec<request::Choice>, best_of: BestOf) {
    let mut best = Vec::new();
    let mut rest = std::mem::take(choices).into_iter().peekable();
    while rest.peek().is_some() {
        let mut of_prompt: Vec<request::Choice> = rest.by_ref().take(best_of.samples).collect();
        of_prompt.sort_by(|left, right| mean_logprob(right).total_cmp(&mean_logprob(left)));
        of_prompt.truncate(best_of.kept);
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
