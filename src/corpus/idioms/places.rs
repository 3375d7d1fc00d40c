//! Which idioms stand where.

use super::brackets::{bracket_brace, bracket_counting};
use super::branches::{else_elif, if_equals, if_ternary, var_if};
use super::classes::{class_init, var_swap};
use super::containers::{set_or_string, set_or_string_fixedvarname};
use super::contrast::Contrast;
use super::files::{with_as, with_open};
use super::functions::{final_kwarg, lambda_func, while_return_true};
use super::loops::{enumerate_range, for_while, indent_for};
use super::strings::{fstring_brace, single_double_quote};
use crate::corpus::draw::Draw;

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
