//! A text completion as OpenAI's `text_completion` object, whole or in pieces.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

use super::parameters::BestOf;
use crate::api::completions::prompt::EchoedText;
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
    /// Where in this choice's `text` each token begins, in characters: in an echoed prompt as its tokenizer says, behind
    /// it after the text that the tokenizer's decoder makes of the tokens before.
    pub text_offset: Vec<usize>,
}

/// The answers to one request for text.
#[derive(Debug)]
pub struct TextStyle {
    /// What each prompt's choices begin with; none where `echo` did not ask for it.
    pub echoed: Vec<EchoedText>,
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
}

impl TextStyle {
    /// What the text of this choice begins with.
    fn beginning(&self, index: usize) -> Option<&EchoedText> {
        self.echoed.get(index / self.per_prompt.max(1))
    }

    /// The log-probabilities of the prompt, where it is echoed, and of generated tokens of this choice, whose text is
    /// `place` of the whole in characters.
    fn logprobs(
        &self,
        index: usize,
        prompt: &[Token],
        generated: &[Token],
        place: RangeInclusive<usize>,
        tokenizer: &Tokenizer,
    ) -> Option<Logprobs> {
        self.logprobs.then(|| {
            let mut logprobs = Logprobs::default();
            let starts = self.beginning(index).map_or(&[][..], |text| &text.starts);
            for (token, start) in prompt.iter().zip(starts) {
                logprobs.push(token, *start, tokenizer);
            }
            for token in generated {
                // One that a stop cut off has the text's end.
                let start = place.start().saturating_add(token.start);
                logprobs.push(token, start.min(*place.end()), tokenizer);
            }
            logprobs
        })
    }

    fn choice(&self, index: usize, choice: request::Choice, tokenizer: &Tokenizer) -> TextChoice {
        let mut text = self
            .beginning(index)
            .map_or_else(String::new, |echoed| echoed.text.clone());
        let begins = text.chars().count();
        text += &choice.text;
        let place = begins..=text.chars().count();
        let logprobs = self.logprobs(index, &choice.prompt, &choice.tokens, place, tokenizer);
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
    const IN_CONVERSATION: bool = false;
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
        if !self.progress.contains_key(&delta.choice)
            && let Some(echoed) = self.beginning(delta.choice)
        {
            text += &echoed.text;
        }
        let begins = text.chars().count();
        let progress = self.progress.entry(delta.choice).or_insert(Progress {
            begins,
            ..Progress::default()
        });
        text += &delta.text;
        progress.characters += text.chars().count();
        let place = progress.begins..=progress.characters;
        let (index, prompt, tokens) = (delta.choice, &delta.prompt, &delta.tokens);
        let logprobs = self.logprobs(index, prompt, tokens, place, tokenizer);
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

impl Logprobs {
    /// Adds a token whose text begins after so many characters of the choice's.
    fn push(&mut self, token: &Token, start: usize, tokenizer: &Tokenizer) {
        let name = |id: u32| token_name(tokenizer.token_bytes(id), id);
        self.text_offset.push(start);
        self.tokens.push(name(token.id));
        self.token_logprobs.push(token.logprob);
        self.top_logprobs.push(token.logprob.map(|logprob| {
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
