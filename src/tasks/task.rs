//! One of the twenty tasks: its name, what it asks, and how its pairs are drawn.

use std::fmt;
use std::str::FromStr;

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::corpus::idioms::{self, Idiom};
use crate::corpus::{Passage, Split};

use super::pairs::TextPair;

/// One of the twenty things a model is asked to predict.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// `")` or `')`.
    SingleDoubleQuote,
    /// `]]` or `]`.
    BracketCounting,
    /// `:` or `,`.
    BracketBrace,
    /// `.add` or ` +=`.
    SetOrString,
    /// `.add` or ` +=` to a variable named `current`.
    SetOrStringFixedvarname,
    /// The name assigned to `self.name`.
    ClassInit,
    /// ` as` or anything else.
    WithAs,
    /// `r` or `w`.
    WithOpen,
    /// `=None` or `):`.
    FinalKwarg,
    /// ` in` or `:`.
    ForWhile,
    /// `:` or anything else.
    ElseElif,
    /// `{` or anything else.
    FstringBrace,
    /// `:` or anything else.
    IfTernary,
    /// The first name of an exchange.
    VarSwap,
    /// A deeper indentation or the same.
    IndentFor,
    /// `:` or the bracket of a parameter list.
    LambdaFunc,
    /// ` ==` or ` =`.
    IfEquals,
    /// ` enumerate` or ` range`.
    EnumerateRange,
    /// `:` or a newline.
    VarIf,
    /// A newline or `:`.
    WhileReturnTrue,
}

impl Task {
    /// All tasks, in the order of the published table.
    pub const ALL: [Task; 20] = [
        Task::SingleDoubleQuote,
        Task::BracketCounting,
        Task::BracketBrace,
        Task::SetOrString,
        Task::SetOrStringFixedvarname,
        Task::ClassInit,
        Task::WithAs,
        Task::WithOpen,
        Task::FinalKwarg,
        Task::ForWhile,
        Task::ElseElif,
        Task::FstringBrace,
        Task::IfTernary,
        Task::VarSwap,
        Task::IndentFor,
        Task::LambdaFunc,
        Task::IfEquals,
        Task::EnumerateRange,
        Task::VarIf,
        Task::WhileReturnTrue,
    ];

    /// The task's published name.
    pub fn name(self) -> &'static str {
        self.entry().0
    }

    /// What the model must predict, in a sentence. The presented side comes first.
    pub fn description(self) -> &'static str {
        self.entry().1
    }

    /// Whether the counterfactual side may be followed by anything but the presented candidate.
    ///
    /// The loss is then `-log p` of that candidate on the presented side and `-log(1 - p)` on the
    /// other.
    pub fn anything_else(self) -> bool {
        matches!(
            self,
            Task::ElseElif | Task::WithAs | Task::FstringBrace | Task::IfTernary
        )
    }

    /// Draws a minimal pair. The presented side is the one that [`Task::description`] names first.
    pub fn text_pair(self, rng: &mut ChaCha8Rng, split: Split) -> TextPair {
        TextPair::from_passage(&self.passage(rng, split), self.anything_else())
    }

    pub(super) fn passage(self, rng: &mut ChaCha8Rng, split: Split) -> Passage {
        Passage::draw(rng, split, self.entry().2)
    }

    fn entry(self) -> (&'static str, &'static str, Idiom) {
        match self {
            Task::SingleDoubleQuote => (
                "single_double_quote",
                "close the string with the quote that opened it: `\")` or `')`",
                idioms::single_double_quote,
            ),
            Task::BracketCounting => (
                "bracket_counting",
                "close as many brackets as are open: `]]` or `]`",
                idioms::bracket_counting,
            ),
            Task::BracketBrace => (
                "bracket_brace",
                "`:` after a key of a dictionary, `,` after an element of a list",
                idioms::bracket_brace,
            ),
            Task::SetOrString => (
                "set_or_string",
                "`.add` to a variable that began as a set, ` +=` to one that began as a string",
                idioms::set_or_string,
            ),
            Task::SetOrStringFixedvarname => (
                "set_or_string_fixedvarname",
                "`.add` or ` +=` by how the variable began, which is always named `current`",
                idioms::set_or_string_fixedvarname,
            ),
            Task::ClassInit => (
                "class_init",
                "the name being assigned, in `self.x = x`",
                idioms::class_init,
            ),
            Task::WithAs => (
                "with_as",
                "` as` after `with open(...)`, not after another `open(...)`",
                idioms::with_as,
            ),
            Task::WithOpen => (
                "with_open",
                "mode `r` for a file that is read, `w` for one that is written",
                idioms::with_open,
            ),
            Task::FinalKwarg => (
                "final_kwarg",
                "`=None` for the last parameter after one with a default, `):` after one without",
                idioms::final_kwarg,
            ),
            Task::ForWhile => (
                "for_while",
                "` in` after `for x`, `:` after `while x`",
                idioms::for_while,
            ),
            Task::ElseElif => (
                "else_elif",
                "`:` after `else`, not after `elif`",
                idioms::else_elif,
            ),
            Task::FstringBrace => (
                "fstring_brace",
                "`{` in an f-string, not in another string",
                idioms::fstring_brace,
            ),
            Task::IfTernary => (
                "if_ternary",
                "`:` after a statement `if`, not after one inside an expression",
                idioms::if_ternary,
            ),
            Task::VarSwap => (
                "var_swap",
                "the first name again, in `x, y = y, x`",
                idioms::var_swap,
            ),
            Task::IndentFor => (
                "indent_for",
                "a deeper indentation after `for ...:`, the same after a statement",
                idioms::indent_for,
            ),
            Task::LambdaFunc => (
                "lambda_func",
                "`:` after `lambda x`, `(` after `def x`",
                idioms::lambda_func,
            ),
            Task::IfEquals => (
                "if_equals",
                "` ==` after `if x`, ` =` after `x`",
                idioms::if_equals,
            ),
            Task::EnumerateRange => (
                "enumerate_range",
                "` enumerate` after two loop variables, ` range` after one",
                idioms::enumerate_range,
            ),
            Task::VarIf => (
                "var_if",
                "`:` after `if x == True`, a newline after `x = True`",
                idioms::var_if,
            ),
            Task::WhileReturnTrue => (
                "while_return_true",
                "a newline after `return True`, `:` after `while True`",
                idioms::while_return_true,
            ),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A name that no task has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no task is named `{name}`; the nearest names are {}", .near.join(", "))]
pub struct UnknownTask {
    /// The name that was asked for.
    pub name: String,
    /// The three tasks' names nearest to it, the nearest first.
    pub near: Vec<&'static str>,
}

impl FromStr for Task {
    type Err = UnknownTask;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if let Some(task) = Task::ALL.into_iter().find(|task| task.name() == name) {
            return Ok(task);
        }
        let mut near = Task::ALL.map(Task::name);
        near.sort_by_key(|known| strsim::levenshtein(name, known));
        Err(UnknownTask {
            name: name.to_owned(),
            near: near[..3].to_vec(),
        })
    }
}
