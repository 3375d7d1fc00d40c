//! Idioms of opening files: what follows the call, and the mode.

use super::contrast::{Contrast, Snippet};
use crate::corpus::draw::Draw;
use crate::corpus::statements::INDENT;

/// ` as` after `with open(...)` (presented), something else after a plain `open(...)`.
///
/// `with` is one token and `f =` two, so the other form is `return open(...)`, or the `with` takes
/// a bracket. The plain call is followed by a condition or a comment: a line break would join its
/// bracket.
pub(crate) fn with_as(draw: &mut Draw) -> Contrast {
    let path = draw.pick(&["path", "path", "filename", "source", "name"]);
    let mode = match draw.between(0, 3) {
        0 => String::new(),
        1..=2 => format!(", {}", draw.quoted("r")),
        _ => format!(", {}", draw.quoted("w")),
    };
    let file = draw.pick(&["f", "f", "file", "handle"]);
    let phrase = draw.phrase(1, 2);
    let plain = match draw.between(0, 3) {
        0 => format!(" if {path} else None\n"),
        1 => format!(" if {} else {}\n", draw.condition(), draw.known()),
        2 => format!(" or {}\n", draw.known()),
        _ => format!("  # {phrase}\n"),
    };
    let name = draw.name();
    if draw.chance(0.65) {
        let function = draw.function_name();
        let extra = if draw.chance(0.4) {
            format!(", {}", draw.name())
        } else {
            String::new()
        };
        let before = if draw.chance(0.4) {
            format!("{INDENT}print({path})\n")
        } else {
            String::new()
        };
        let other = draw.pick(&["return", "return", "yield"]);
        let form = |word: &str, answer: String, rest: String| {
            Snippet::new(
                format!(
                    "def {function}({path}{extra}):\n{before}{INDENT}{word} open({path}{mode})"
                ),
                answer,
                rest,
            )
        };
        Contrast::top(
            form(
                "with",
                format!(" as {file}:\n"),
                format!("{INDENT}{INDENT}return {file}.read()\n"),
            ),
            form(other, plain, String::new()),
        )
    } else {
        let form = |opening: &str, answer: String, rest: String| {
            Snippet::new(format!("{opening}open({path}{mode})"), answer, rest)
        };
        Contrast::anywhere(
            form(
                "with (",
                format!(" as {file}):\n"),
                format!("{INDENT}{name} = {file}.read()\n"),
            ),
            form(
                &format!("{file} = "),
                plain,
                format!("{name} = {file}.read()\n{file}.close()\n"),
            ),
        )
    }
}

/// The mode of a file: `r` for one that is read (presented), `w` for one that is written.
pub(crate) fn with_open(draw: &mut Draw) -> Contrast {
    let quote = draw.quote();
    let file = draw.pick(&["f", "f", "file", "handle"]);
    let name = draw.name();
    // The role is told by the path's name or, just before, by what the program says it does.
    let (reading, writing) = if draw.chance(0.55) {
        draw.pick(&[
            ("source", "target"),
            ("src", "dst"),
            ("infile", "outfile"),
            ("input_path", "output_path"),
            ("input_file", "output_file"),
            ("read_path", "write_path"),
        ])
    } else {
        ("path", "path")
    };
    let (reading_line, writing_line) = if reading == writing {
        let phrase = draw.phrase(1, 2);
        match draw.between(0, 1) {
            0 => (
                format!("# read the {phrase}\n"),
                format!("# write the {phrase}\n"),
            ),
            _ => {
                let quote = draw.quote();
                (
                    format!("print({quote}reading {phrase}{quote})\n"),
                    format!("print({quote}writing {phrase}{quote})\n"),
                )
            }
        }
    } else {
        (String::new(), String::new())
    };
    let form = |line: String, path: &str, mode: char, body: String| {
        Snippet::new(
            format!("{line}with open({path}, {quote}"),
            format!("{mode}{quote}) as {file}:\n"),
            format!("{INDENT}{body}\n"),
        )
    };
    let read = format!("{name} = {file}.read()");
    let write = format!("{file}.write({name})");
    Contrast::anywhere(
        form(reading_line, reading, 'r', read),
        form(writing_line, writing, 'w', write),
    )
}
