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
mod contrast;
mod files;
mod functions;
mod loops;
mod places;
mod strings;

pub(crate) use brackets::{bracket_brace, bracket_counting};
pub(crate) use branches::{else_elif, if_equals, if_ternary, var_if};
pub(crate) use classes::{class_init, var_swap};
pub(crate) use containers::{set_or_string, set_or_string_fixedvarname};
pub(crate) use contrast::{Contrast, Place, Snippet};
pub(crate) use files::{with_as, with_open};
pub(crate) use functions::{final_kwarg, lambda_func, while_return_true};
pub(crate) use loops::{enumerate_range, for_while, indent_for};
pub(crate) use places::{AT_TOP, IN_BODY, Idiom};
pub(crate) use strings::{fstring_brace, single_double_quote};
