//! Minimal pairs as text.

use serde::{Deserialize, Serialize};

use crate::corpus::Passage;

/// A prompt and what follows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Side {
    /// The text up to the token asked for.
    pub prompt: String,
    /// That token and the rest of its line, with the newline. `prompt + answer` is natural text,
    /// and its tokenisation holds the candidate as the model would meet it.
    pub answer: String,
}

impl Side {
    /// The prompt and the answer as one text.
    pub fn text(&self) -> String {
        format!("{}{}", self.prompt, self.answer)
    }
}

/// Two prompts that differ in one fact, each with its right answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextPair {
    /// The prompt that the model is given.
    pub presented: Side,
    /// The same with the other fact.
    pub counterfactual: Side,
    /// Whether the counterfactual answer is only one of many, so that what counts is that the
    /// presented candidate does not follow there: see [`super::Task::anything_else`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anything_else: bool,
}

impl TextPair {
    pub(super) fn from_passage(passage: &Passage, anything_else: bool) -> Self {
        let [presented, counterfactual] = passage
            .sides()
            .map(|(prompt, answer)| Side { prompt, answer });
        Self {
            presented,
            counterfactual,
            anything_else,
        }
    }

    /// The pair in the other direction. Where `anything_else` is set, the candidate that the loss
    /// is about is then the counterfactual's.
    pub fn swapped(self) -> Self {
        Self {
            presented: self.counterfactual,
            counterfactual: self.presented,
            anything_else: self.anything_else,
        }
    }
}
