//! An idiom in its two forms, each cut at the token that its fact decides.

use crate::corpus::draw::Draw;
use crate::corpus::statements::indented;

/// Whole lines of code, cut at the token that the idiom's fact decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snippet {
    /// Up to the deciding token.
    pub(crate) lead: String,
    /// The deciding token and the rest of its line, with the newline.
    pub(crate) answer: String,
    /// Whole lines that complete the code.
    pub(crate) rest: String,
}

impl Snippet {
    pub(super) fn new(
        lead: impl Into<String>,
        answer: impl Into<String>,
        rest: impl Into<String>,
    ) -> Self {
        Self {
            lead: lead.into(),
            answer: answer.into(),
            rest: rest.into(),
        }
    }

    /// The uncut lines.
    pub(crate) fn text(&self) -> String {
        format!("{}{}{}", self.lead, self.answer, self.rest)
    }

    /// The same code moved right by `depth` levels.
    pub(super) fn indented(&self, depth: usize) -> Self {
        // Where the answer begins a line, that line's indentation is part of the answer.
        let answer = if self.lead.ends_with('\n') {
            indented(&self.answer, depth)
        } else {
            self.answer.clone()
        };
        Self::new(
            indented(&self.lead, depth),
            answer,
            indented(&self.rest, depth),
        )
    }
}

/// Where a contrast can stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Only at the top level of a file: it defines functions, or its fact is an indentation.
    Top,
    /// At the top level or in a body.
    Anywhere,
}

/// The two forms of an idiom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contrast {
    /// The form that a task presents.
    pub(crate) presented: Snippet,
    /// The form with the other fact.
    pub(crate) counterfactual: Snippet,
    /// Where both can stand.
    pub(crate) place: Place,
}

impl Contrast {
    pub(super) fn anywhere(presented: Snippet, counterfactual: Snippet) -> Self {
        Self {
            presented,
            counterfactual,
            place: Place::Anywhere,
        }
    }

    pub(super) fn top(presented: Snippet, counterfactual: Snippet) -> Self {
        Self {
            presented,
            counterfactual,
            place: Place::Top,
        }
    }

    /// Both forms moved right by `depth` levels.
    pub(crate) fn indented(&self, depth: usize) -> Self {
        Self {
            presented: self.presented.indented(depth),
            counterfactual: self.counterfactual.indented(depth),
            place: self.place,
        }
    }

    /// One of the two forms as whole lines.
    pub(crate) fn either(self, draw: &mut Draw) -> String {
        draw.either_order(self.presented, self.counterfactual)
            .0
            .text()
    }
}
