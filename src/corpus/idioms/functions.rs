//! Idioms of functions: the last parameter, `lambda` beside `def`, and what ends `return True`.

use super::contrast::{Contrast, Snippet};
use crate::corpus::draw::Draw;
use crate::corpus::statements::{INDENT, indented, short_statement};

/// The last parameter: `=None` after one that has a default (presented), `):` after one that has
/// none.
///
/// `=None` is exchanged for a suffix of the name, `_size`, so that both leads have as many tokens.
pub(crate) fn final_kwarg(draw: &mut Draw) -> Contrast {
    let function = draw.function_name();
    let how_many = draw.between(2, 4);
    let names = draw.distinct_nouns(how_many);
    // At least the one before the last has the default; sometimes the one before that has it too.
    let plain = if how_many > 2 {
        how_many - draw.between(2, 3)
    } else {
        0
    };
    let suffixes: Vec<&str> = (0..how_many).map(|_| draw.suffix()).collect();
    let in_class = draw.chance(0.25);
    let opening = if in_class {
        format!(
            "class {}:\n{INDENT}def {function}(self, ",
            draw.class_name()
        )
    } else {
        format!("def {function}(")
    };
    let depth = if in_class { 2 } else { 1 };
    let last = names[how_many - 1];
    let body = if draw.chance(0.5) {
        indented(&short_statement(draw), depth)
    } else {
        String::new()
    };
    let result = indented(&format!("return {last}\n"), depth);
    let form = |default: bool| {
        let parameters: String = names[..how_many - 1]
            .iter()
            .enumerate()
            .map(|(at, name)| match (at < plain, default) {
                (true, _) => format!("{name}, "),
                (false, true) => format!("{name}=None, "),
                (false, false) => format!("{name}_{}, ", suffixes[at]),
            })
            .collect();
        let (answer, check) = if default {
            let check = format!("if {last} is None:\n{INDENT}{last} = 0\n");
            ("=None):\n", indented(&check, depth))
        } else {
            ("):\n", String::new())
        };
        Snippet::new(
            format!("{opening}{parameters}{last}"),
            answer,
            format!("{check}{body}{result}"),
        )
    };
    Contrast::top(form(true), form(false))
}

/// `:` after `lambda x` (presented), the bracket after `def x`.
pub(crate) fn lambda_func(draw: &mut Draw) -> Contrast {
    let name = draw.name();
    let amount = draw.number();
    let operator = draw.pick(&["+", "*", "-"]);
    let body = if draw.chance(0.5) {
        format!("{INDENT}return {amount}\n")
    } else {
        format!("{INDENT}pass\n")
    };
    if draw.chance(0.65) {
        // `, lambda` goes on with the call where `)\n\ndef` has ended it: two tokens each.
        let function = draw.function_name();
        let target = draw.pick(&["", "", "result = ", "output = "]);
        let argument = draw.plural();
        let blank = if draw.chance(0.7) { "\n" } else { "" };
        Contrast::top(
            Snippet::new(
                format!("{target}{function}({argument}, lambda {name}"),
                format!(": {name} {operator} {amount})\n"),
                "",
            ),
            Snippet::new(
                format!("{target}{function}({argument})\n{blank}def {name}"),
                "():\n",
                body,
            ),
        )
    } else {
        let function = draw.function_name();
        let parameter = draw.name();
        let opening = format!("def {function}({parameter}):\n{INDENT}");
        Contrast::top(
            Snippet::new(
                format!("{opening}return lambda {name}"),
                format!(": {name} {operator} {parameter}\n"),
                "",
            ),
            Snippet::new(
                format!("{opening}async def {name}"),
                "():\n",
                format!("{}{INDENT}return {name}\n", indented(&body, 1)),
            ),
        )
    }
}

/// A newline after `return True` (presented), `:` after `while True`.
pub(crate) fn while_return_true(draw: &mut Draw) -> Contrast {
    let function = draw.function_name();
    let parameter = draw.name();
    let mark = draw.enter();
    draw.define(&parameter);
    let before = if draw.chance(0.4) {
        indented(&short_statement(draw), 1)
    } else {
        String::new()
    };
    let (opening, depth) = if draw.chance(0.8) {
        let header = match draw.between(0, 2) {
            0 => format!("for {} in {}", draw.name(), draw.plural()),
            _ => format!("if {}", draw.condition()),
        };
        (format!("{INDENT}{header}:\n{INDENT}"), 1)
    } else {
        (String::new(), 0)
    };
    let end = if depth == 1 || draw.chance(0.3) {
        format!("{INDENT}return False\n")
    } else {
        String::new()
    };
    let looped = indented(
        &format!("{INDENT}{}{INDENT}break\n", short_statement(draw)),
        depth + 1,
    );
    draw.leave(mark);
    let lead = format!("def {function}({parameter}):\n{before}{opening}{INDENT}");
    // Nothing follows a return in the same body.
    let after_return = if depth == 1 {
        end.clone()
    } else {
        String::new()
    };
    Contrast::top(
        Snippet::new(format!("{lead}return True"), "\n", after_return),
        Snippet::new(format!("{lead}while True"), ":\n", format!("{looped}{end}")),
    )
}
