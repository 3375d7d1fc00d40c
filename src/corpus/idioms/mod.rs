//! The twenty idioms, each in the two forms that differ in one fact.
//!
//! An idiom function draws names, values and style once and writes both forms from them: a
//! [`Contrast`] of two [`Snippet`]s, cut at the token that the fact decides. Training documents use
//! one of the two forms; a task takes both. One function serves both ends, so what a model is asked
//! is what it was taught.
//!
//! The two leads must have the same number of tokens, which is what makes some idioms look the way
//! they do. The tokenizer splits a letter run with the one sign before it (`(path`, `=None`,
//! `_name`), glues the line break to the punctuation before it (`:\n`, `")\n`), and cuts an
//! indentation one space short (`   `, ` with`). So a fact is always one token exchanged for
//! another: `=None` for `_name`, an indentation for `if`, `)\n` for `)`.

mod brackets;
mod branches;
mod classes;
mod containers;
mod files;
mod functions;
mod loops;
mod strings;

pub(crate) use brackets::{bracket_brace, bracket_counting};
pub(crate) use branches::{else_elif, if_equals, if_ternary, var_if};
pub(crate) use classes::{class_init, var_swap};
pub(crate) use containers::{set_or_string, set_or_string_fixedvarname};
pub(crate) use files::{with_as, with_open};
pub(crate) use functions::{final_kwarg, lambda_func, while_return_true};
pub(crate) use loops::{enumerate_range, for_while, indent_for};
pub(crate) use strings::{fstring_brace, single_double_quote};

use super::draw::Draw;
use super::statements::indented;

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
    fn new(lead: impl Into<String>, answer: impl Into<String>, rest: impl Into<String>) -> Self {
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
    fn indented(&self, depth: usize) -> Self {
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
    fn anywhere(presented: Snippet, counterfactual: Snippet) -> Self {
        Self {
            presented,
            counterfactual,
            place: Place::Anywhere,
        }
    }

    fn top(presented: Snippet, counterfactual: Snippet) -> Self {
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

/// Draws an idiom's names and values and writes both forms.
pub(crate) type Idiom = fn(&mut Draw) -> Contrast;

/// The idioms that can stand in a body.
pub(crate) const IN_BODY: [Idiom; 12] = [
    single_double_quote,
    bracket_counting,
    bracket_brace,
    set_or_string,
    set_or_string_fixedvarname,
    with_open,
    for_while,
    else_elif,
    fstring_brace,
    indent_for,
    var_swap,
    enumerate_range,
];

/// The idioms that are written at the top level of a file, with the functions or classes around
/// them.
pub(crate) const AT_TOP: [Idiom; 8] = [
    class_init,
    with_as,
    final_kwarg,
    if_ternary,
    lambda_func,
    if_equals,
    var_if,
    while_return_true,
];
