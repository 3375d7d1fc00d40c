//! Idioms of string literals: which quote closes, and whether a brace opens a replacement field.

use super::contrast::{Contrast, Snippet};
use crate::corpus::draw::Draw;

/// A call whose last argument is a string: `")` after a double quote (presented), `')` after a
/// single one.
pub(crate) fn single_double_quote(draw: &mut Draw) -> Contrast {
    let mut text = draw.phrase(1, 4);
    if draw.chance(0.15) {
        text = format!("{text} {}", draw.number());
    }
    let opening = match draw.between(0, 9) {
        0..=3 => "print(".to_owned(),
        4 => format!("print({}, ", draw.known()),
        5 => format!("{}(", draw.function_name()),
        6 => format!("{}.append(", draw.plural()),
        7 => format!("{}.{}(", draw.known(), draw.verb()),
        8 => format!("{}({}, ", draw.function_name(), draw.known()),
        _ => {
            let name = draw.name();
            let line = format!("{name} = {}(", draw.function_name());
            draw.define(&name);
            line
        }
    };
    let form =
        |quote: char| Snippet::new(format!("{opening}{quote}{text}"), format!("{quote})\n"), "");
    Contrast::anywhere(form('"'), form('\''))
}

/// `{` in an f-string (presented), a word in a raw, bytes or plain string.
pub(crate) fn fstring_brace(draw: &mut Draw) -> Contrast {
    let text = draw.phrase(1, 3);
    let last = draw.phrase(1, 1);
    let field = draw.known();
    let quote = draw.quote();
    // A prefix of one letter keeps the token count; with none the opening quote may join the first
    // word.
    let plain = draw.pick(&["r", "r", "u", "b", ""]);
    let (opening, closing) = match draw.between(0, 4) {
        0..=2 => ("print(".to_owned(), ")\n"),
        3 => {
            let name = draw.name();
            draw.define(&name);
            (format!("{name} = "), "\n")
        }
        _ => (format!("{}(", draw.function_name()), ")\n"),
    };
    Contrast::anywhere(
        Snippet::new(
            format!("{opening}f{quote}{text}"),
            format!(" {{{field}}}{quote}{closing}"),
            "",
        ),
        Snippet::new(
            format!("{opening}{plain}{quote}{text}"),
            format!(" {last}{quote}{closing}"),
            "",
        ),
    )
}
