//! Ordinary statements: what stands between the idioms, and what distracts from them.
//!
//! Each function returns whole lines at indentation zero, every line with its newline, and puts the
//! names it assigns in scope. [`statement`] is the mixture; it holds the distractors on purpose:
//! strings with the other quote inside, unmatched brackets in comments, long and nested lists.

use super::draw::Draw;
use super::words::MODULES;

/// One level of indentation.
pub(crate) const INDENT: &str = "    ";

/// The lines, each non-empty one moved right by `depth` levels.
pub(crate) fn indented(lines: &str, depth: usize) -> String {
    let pad = INDENT.repeat(depth);
    lines
        .split_inclusive('\n')
        .map(|line| {
            if line == "\n" {
                line.to_owned()
            } else {
                format!("{pad}{line}")
            }
        })
        .collect()
}

/// One statement of any kind, with a comment now and then.
pub(crate) fn statement(draw: &mut Draw) -> String {
    let mut lines = String::new();
    if draw.chance(draw.style.comments) {
        lines += &comment(draw);
    }
    lines += &match draw.between(0, 19) {
        0..=3 => assign_value(draw),
        4..=5 => assign_string(draw),
        6..=7 => assign_list(draw),
        8 => assign_dictionary(draw),
        9..=12 => call_with_string(draw),
        13 => update(draw),
        14 => call(draw),
        15 => subscript(draw),
        16 => comprehension(draw),
        17 => formatted(draw),
        18 => long_literal(draw),
        _ => guard(draw),
    };
    lines
}

/// One statement on one line, without a comment: for the body of a short block.
pub(crate) fn short_statement(draw: &mut Draw) -> String {
    match draw.between(0, 6) {
        0..=1 => assign_value(draw),
        2 => assign_string(draw),
        3 => call_with_string(draw),
        4 => update(draw),
        5 => call(draw),
        _ => subscript(draw),
    }
}

/// The imports at the head of a file.
pub(crate) fn imports(draw: &mut Draw) -> String {
    let mut modules: Vec<(&str, &str)> = Vec::new();
    for _ in 0..draw.between(1, 3) {
        let module = draw.pick(MODULES);
        if !modules.contains(&module) {
            modules.push(module);
        }
    }
    modules
        .into_iter()
        .map(|(module, function)| {
            if draw.chance(0.3) {
                format!("from {module} import {function}\n")
            } else {
                format!("import {module}\n")
            }
        })
        .collect()
}

/// A comment line. Some hold an apostrophe, a quoted word or a bracket that nothing closes.
pub(crate) fn comment(draw: &mut Draw) -> String {
    let phrase = draw.phrase(1, 3);
    match draw.between(0, 7) {
        0 => format!("# don't {} the {phrase}\n", draw.verb()),
        1 => format!("# the '{}' of the {phrase}\n", draw.noun()),
        2 => format!("# \"{phrase}\" first\n"),
        3 => format!("# {} [ opens the {phrase}\n", draw.plural()),
        4 => format!("# see [{phrase}\n"),
        5 => format!("# TODO: {} {phrase}\n", draw.verb()),
        _ => format!("# {} the {phrase}\n", draw.verb()),
    }
}

/// The last line of a function.
pub(crate) fn return_line(draw: &mut Draw) -> String {
    match draw.between(0, 7) {
        0 => "return True\n".to_owned(),
        1 => "return False\n".to_owned(),
        2 => {
            let phrase = draw.phrase(1, 2);
            format!("return {}\n", draw.quoted(&phrase))
        }
        3 => format!(
            "return {} if {} else {}\n",
            draw.atom(),
            draw.condition(),
            draw.atom()
        ),
        _ => format!("return {}\n", draw.expression()),
    }
}

/// The parameters of a function, defaults last. The names are put in scope.
pub(crate) fn parameters(draw: &mut Draw, fewest: u32) -> String {
    let how_many = if draw.chance(0.25) {
        fewest as usize
    } else {
        draw.between(fewest.max(1), 3)
    };
    let names = draw.distinct_names(how_many);
    // From this parameter on all have a default: once one has, the later ones must.
    let first_default = if draw.chance(0.35) {
        draw.between(0, 2)
    } else {
        how_many
    };
    let mut written = Vec::with_capacity(how_many);
    for (position, name) in names.iter().enumerate() {
        draw.define(name);
        if position >= first_default {
            let default = draw.pick(&["None", "None", "None", "None", "0", "True"]);
            written.push(format!("{name}={default}"));
        } else {
            written.push(name.clone());
        }
    }
    written.join(", ")
}

fn assign_value(draw: &mut Draw) -> String {
    let value = match draw.between(0, 9) {
        0 => draw.pick(&["True", "False"]).to_owned(),
        1 => "None".to_owned(),
        2..=4 => draw.number(),
        _ => draw.expression(),
    };
    let name = draw.name();
    draw.define(&name);
    format!("{name} = {value}\n")
}

fn assign_string(draw: &mut Draw) -> String {
    let string = string(draw);
    let name = draw.name();
    draw.define(&name);
    format!("{name} = {string}\n")
}

/// A string, sometimes empty, with a number, or with the other quote inside.
fn string(draw: &mut Draw) -> String {
    let phrase = draw.phrase(1, 3);
    match draw.between(0, 11) {
        0 => draw.quoted(""),
        1 => {
            let number = draw.number();
            draw.quoted(&format!("{phrase} {number}"))
        }
        2 => {
            let word = draw.noun();
            if draw.quote() == '"' {
                format!("\"{phrase} '{word}' here\"")
            } else {
                format!("'{phrase} \"{word}\" here'")
            }
        }
        3 if draw.quote() == '"' => format!("\"it's {phrase}\""),
        4 => draw.quoted(&format!("{phrase}!")),
        _ => draw.quoted(&phrase),
    }
}

fn element(draw: &mut Draw, kind: usize) -> String {
    match kind {
        0 => draw.number(),
        1 => draw.known(),
        2 => draw.name(),
        _ => {
            let word = draw.noun();
            draw.quoted(word)
        }
    }
}

fn assign_list(draw: &mut Draw) -> String {
    let kind = draw.between(0, 3);
    let length = draw.between(2, 5);
    let name = if draw.chance(0.6) {
        draw.plural()
    } else {
        draw.name()
    };
    let value = match draw.between(0, 5) {
        0 => {
            let rows = draw.between(2, 3);
            let rows = draw.series(rows, |draw| {
                format!("[{}]", draw.series(2, |draw| element(draw, kind)))
            });
            format!("[{rows}]")
        }
        1 => format!("[[{}]]", draw.series(length, |draw| element(draw, kind))),
        2 => format!("({})", draw.series(length, |draw| element(draw, kind))),
        3 if draw.chance(0.5) => "[]".to_owned(),
        _ => format!("[{}]", draw.series(length, |draw| element(draw, kind))),
    };
    draw.define(&name);
    format!("{name} = {value}\n")
}

fn assign_dictionary(draw: &mut Draw) -> String {
    let length = draw.between(1, 3);
    let entries = draw.series(length, |draw| {
        let key = draw.noun();
        let key = draw.quoted(key);
        let value = if draw.chance(0.3) {
            string(draw)
        } else {
            draw.atom()
        };
        format!("{key}: {value}")
    });
    let name = draw.name();
    draw.define(&name);
    if draw.chance(0.15) {
        format!("{name} = {{}}\n")
    } else {
        format!("{name} = {{{entries}}}\n")
    }
}

fn call_with_string(draw: &mut Draw) -> String {
    let string = string(draw);
    match draw.between(0, 7) {
        0..=3 => format!("print({string})\n"),
        4 => format!("print({string}, {})\n", draw.known()),
        5 => format!("{}.append({string})\n", draw.plural()),
        6 => format!("{}({}, {string})\n", draw.function_name(), draw.known()),
        _ => format!("print({}, {string})\n", draw.known()),
    }
}

fn update(draw: &mut Draw) -> String {
    let operator = draw.pick(&["+=", "-=", "*=", "+="]);
    format!("{} {operator} {}\n", draw.known(), draw.atom())
}

fn call(draw: &mut Draw) -> String {
    match draw.between(0, 5) {
        0 => format!("{}.append({})\n", draw.plural(), draw.known()),
        1 => format!("print({})\n", draw.expression()),
        2 => format!("{}.{}({})\n", draw.known(), draw.verb(), draw.atom()),
        3 => format!("{}()\n", draw.function_name()),
        4 => format!(
            "{}.sort(key=lambda {}: {})\n",
            draw.plural(),
            draw.name(),
            draw.atom()
        ),
        _ => format!(
            "{}({}, {})\n",
            draw.function_name(),
            draw.known(),
            draw.atom()
        ),
    }
}

fn subscript(draw: &mut Draw) -> String {
    let key = if draw.chance(0.6) {
        let noun = draw.noun();
        draw.quoted(noun)
    } else {
        draw.atom()
    };
    if draw.chance(0.5) {
        format!("{}[{key}] = {}\n", draw.known(), draw.atom())
    } else {
        let name = draw.name();
        let line = format!("{name} = {}[{key}]\n", draw.known());
        draw.define(&name);
        line
    }
}

fn comprehension(draw: &mut Draw) -> String {
    let each = draw.name();
    let source = draw.plural();
    let name = draw.plural();
    draw.define(&name);
    match draw.between(0, 3) {
        0 => format!(
            "{name} = [{each} for {each} in {source} if {each} > {}]\n",
            draw.number()
        ),
        1 => format!(
            "{name} = [{each} * {} for {each} in range({})]\n",
            draw.number(),
            draw.number()
        ),
        2 => format!(
            "{name} = {{{each}: {} for {each} in {source}}}\n",
            draw.atom()
        ),
        _ => format!("{name} = [{each}.{} for {each} in {source}]\n", draw.noun()),
    }
}

fn formatted(draw: &mut Draw) -> String {
    let phrase = draw.phrase(1, 2);
    let text = format!("{phrase} {{{}}}", draw.known());
    let string = format!("f{}", draw.quoted(&text));
    if draw.chance(0.6) {
        format!("print({string})\n")
    } else {
        let name = draw.name();
        draw.define(&name);
        format!("{name} = {string}\n")
    }
}

/// A list or dictionary over several lines, or a long one on one line.
fn long_literal(draw: &mut Draw) -> String {
    let name = draw.name();
    let kind = draw.between(0, 3);
    let value = match draw.between(0, 2) {
        0 => format!("[{}]\n", draw.series(9, |draw| element(draw, kind))),
        1 => {
            let rows: String = (0..draw.between(2, 3))
                .map(|_| {
                    format!(
                        "{INDENT}[{}],\n",
                        draw.series(3, |draw| element(draw, kind))
                    )
                })
                .collect();
            format!("[\n{rows}]\n")
        }
        _ => {
            let entries: String = (0..draw.between(2, 3))
                .map(|_| {
                    let key = draw.noun();
                    format!("{INDENT}{}: {},\n", draw.quoted(key), element(draw, kind))
                })
                .collect();
            format!("{{\n{entries}}}\n")
        }
    };
    draw.define(&name);
    format!("{name} = {value}")
}

/// A check on a condition.
fn guard(draw: &mut Draw) -> String {
    if draw.chance(0.5) {
        format!("assert {}\n", draw.condition())
    } else {
        let phrase = draw.phrase(1, 3);
        let string = draw.quoted(&phrase);
        format!(
            "if {}:\n{INDENT}raise ValueError({string})\n",
            draw.condition()
        )
    }
}
