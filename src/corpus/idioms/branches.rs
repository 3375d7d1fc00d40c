//! Idioms of branches: what ends the header, and whether a line compares or assigns.

use super::contrast::{Contrast, Snippet};
use crate::corpus::draw::Draw;
use crate::corpus::statements::{INDENT, indented, short_statement};

/// `:` after `else` (presented), a condition after `elif`.
pub(crate) fn else_elif(draw: &mut Draw) -> Contrast {
    let condition = draw.condition();
    let first = indented(&short_statement(draw), 1);
    let middle = if draw.chance(0.25) {
        format!(
            "elif {}:\n{}",
            draw.condition(),
            indented(&short_statement(draw), 1)
        )
    } else {
        String::new()
    };
    let second = indented(&short_statement(draw), 1);
    let other = draw.condition();
    let form = |word: &str, answer: String| {
        Snippet::new(
            format!("if {condition}:\n{first}{middle}{word}"),
            answer,
            second.clone(),
        )
    };
    Contrast::anywhere(
        form("else", ":\n".to_owned()),
        form("elif", format!(" {other}:\n")),
    )
}

/// `:` after a statement's `if` (presented), ` else` after one inside an expression.
///
/// The two differ in a line break alone, which joins the bracket or quote before it.
pub(crate) fn if_ternary(draw: &mut Draw) -> Contrast {
    let name = draw.name();
    let value = match draw.between(0, 4) {
        0 => {
            let phrase = draw.phrase(1, 2);
            draw.quoted(&phrase)
        }
        1 => format!("{}[{}]", draw.plural(), draw.atom()),
        2 => format!("{}()", draw.function_name()),
        3 => format!("len({})", draw.plural()),
        _ => format!("{}({})", draw.function_name(), draw.known()),
    };
    draw.define(&name);
    let condition = draw.condition();
    let body = indented(&short_statement(draw), 1);
    let other = draw.atom();
    let form = |gap: char, answer: String, rest: String| {
        Snippet::new(format!("{name} = {value}{gap}if {condition}"), answer, rest)
    };
    Contrast::top(
        form('\n', ":\n".to_owned(), body),
        form(' ', format!(" else {other}\n"), String::new()),
    )
}

/// Two leads that end in `if name` and in the same name to be assigned, each with as many tokens.
///
/// Either the line still belongs to the body above (its indentation in place of `if`), or the `if`
/// in a method is exchanged for `self` and the name for an attribute.
fn test_or_assign(draw: &mut Draw, name: &str) -> (String, String, usize, String) {
    if draw.chance(0.55) {
        let header = match draw.between(0, 3) {
            0 => format!("for {} in {}:\n", draw.name(), draw.plural()),
            1 => format!("if {}:\n", draw.condition()),
            2 => format!("while {}:\n", draw.condition()),
            _ => format!("def {}({}):\n", draw.function_name(), draw.name()),
        };
        let opening = format!("{header}{}", indented(&short_statement(draw), 1));
        (
            format!("{opening}if {name}"),
            format!("{opening}{INDENT}{name}"),
            1,
            String::new(),
        )
    } else {
        let method = format!(
            "class {}:\n{INDENT}def {}(self, {name}):\n",
            draw.class_name(),
            draw.verb()
        );
        let before = if draw.chance(0.3) {
            indented(&short_statement(draw), 2)
        } else {
            String::new()
        };
        let opening = format!("{method}{before}{INDENT}{INDENT}");
        let end = format!("{INDENT}{INDENT}return {}\n", draw.atom());
        (
            format!("{opening}if {name}"),
            format!("{opening}self.{name}"),
            3,
            end,
        )
    }
}

/// ` ==` after `if x` (presented), ` =` after `x`.
pub(crate) fn if_equals(draw: &mut Draw) -> Contrast {
    let name = draw.name();
    draw.define(&name);
    let (test, assignment, depth, end) = test_or_assign(draw, &name);
    let value = match draw.between(0, 2) {
        0 => draw.number(),
        1 => {
            let word = draw.noun();
            draw.quoted(word)
        }
        _ => draw.known(),
    };
    let body = indented(&short_statement(draw), depth);
    Contrast::top(
        Snippet::new(test, format!(" == {value}:\n"), format!("{body}{end}")),
        Snippet::new(assignment, format!(" = {value}\n"), end),
    )
}

/// `:` after `if x == True` (presented), a newline after `x = True`.
pub(crate) fn var_if(draw: &mut Draw) -> Contrast {
    let name = draw.name();
    draw.define(&name);
    let (test, assignment, depth, end) = test_or_assign(draw, &name);
    let value = draw.pick(&["True", "True", "False"]);
    let body = indented(&short_statement(draw), depth);
    Contrast::top(
        Snippet::new(format!("{test} == {value}"), ":\n", format!("{body}{end}")),
        Snippet::new(format!("{assignment} = {value}"), "\n", end),
    )
}
