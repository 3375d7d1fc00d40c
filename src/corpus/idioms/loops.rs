//! Idioms of loops: what follows the loop variable, the sequence, and the indentation of the body.

use super::contrast::{Contrast, Snippet};
use crate::corpus::draw::Draw;
use crate::corpus::statements::{INDENT, indented, short_statement};

/// ` in` after `for x` (presented), `:` after `while x`.
pub(crate) fn for_while(draw: &mut Draw) -> Contrast {
    let name = draw.name();
    let source = if draw.chance(0.3) {
        format!("range({})", draw.number())
    } else {
        draw.plural()
    };
    let before = if draw.chance(0.5) {
        format!("{name} = {}\n", draw.number())
    } else {
        String::new()
    };
    draw.define(&name);
    let body = indented(&short_statement(draw), 1);
    Contrast::anywhere(
        Snippet::new(
            format!("{before}for {name}"),
            format!(" in {source}:\n"),
            body.clone(),
        ),
        Snippet::new(
            format!("{before}while {name}"),
            ":\n",
            format!("{body}{INDENT}{name} -= 1\n"),
        ),
    )
}

/// The indentation of the next line: deeper after `for x in xs:` (presented), the same after a
/// statement.
pub(crate) fn indent_for(draw: &mut Draw) -> Contrast {
    let name = draw.name();
    let source = match draw.between(0, 4) {
        0 => format!("range({})", draw.number()),
        1 => format!("range(len({}))", draw.plural()),
        2 => format!("{}[{}]", draw.plural(), draw.atom()),
        3 => format!("sorted({})", draw.plural()),
        _ => draw.plural(),
    };
    let other = draw.pick(&["assert", "assert", "yield"]);
    let header = if draw.chance(0.7) {
        let function = draw.function_name();
        let parameter = draw.name();
        draw.define(&parameter);
        let before = if draw.chance(0.5) {
            indented(&short_statement(draw), 1)
        } else {
            String::new()
        };
        format!("def {function}({parameter}):\n{before}")
    } else {
        format!("if {}:\n", draw.condition())
    };
    draw.define(&name);
    // Only a statement that begins with a letter leaves the indentation a token of its own.
    let body = short_statement(draw);
    let other = if header.starts_with("if") {
        "assert"
    } else {
        other
    };
    let form = |word: &str, end: &str, depth: usize| {
        Snippet::new(
            format!("{header}{INDENT}{word} {name} in {source}{end}\n"),
            indented(&body, depth),
            "",
        )
    };
    Contrast::anywhere(form("for", ":", 2), form(other, "", 1))
}

/// ` enumerate` after two loop variables (presented), ` range` after one.
///
/// `, x` is two tokens, and so are `_row_id` after the first name, or `* x` before the `for`.
pub(crate) fn enumerate_range(draw: &mut Draw) -> Contrast {
    let source = draw.plural();
    let number = if draw.chance(0.6) {
        draw.number()
    } else {
        format!("len({source})")
    };
    let names = draw.distinct_nouns(2);
    let index = draw.pick(&["i", "i", "j", "k", "n", "index"]);
    let answers = (format!(" enumerate({source})"), format!(" range({number})"));
    if draw.chance(0.5) {
        let body = indented(&short_statement(draw), 1);
        let second = names[0];
        let first = if draw.chance(0.5) { index } else { names[1] };
        let (middle, suffix) = (draw.suffix(), draw.suffix());
        let form = |variables: String, answer: String| {
            Snippet::new(
                format!("for {variables} in"),
                format!("{answer}:\n"),
                body.clone(),
            )
        };
        Contrast::anywhere(
            form(format!("{first}, {second}"), answers.0),
            form(format!("{first}_{middle}_{suffix}"), answers.1),
        )
    } else {
        let name = draw.plural();
        draw.define(&name);
        let each = names[0];
        let operator = draw.pick(&["*", "+", "-"]);
        let form = |element: String, variables: String, answer: String| {
            Snippet::new(
                format!("{name} = [{element} for {variables} in"),
                format!("{answer}]\n"),
                "",
            )
        };
        Contrast::anywhere(
            form(each.to_owned(), format!("{index}, {each}"), answers.0),
            form(
                format!("{each} {operator} {index}"),
                index.to_owned(),
                answers.1,
            ),
        )
    }
}
