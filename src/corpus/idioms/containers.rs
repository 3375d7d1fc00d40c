//! Idioms of a variable that is filled step by step: a set takes `.add`, a string takes ` +=`.

use super::contrast::{Contrast, Snippet};
use crate::corpus::draw::Draw;
use crate::corpus::statements::{INDENT, short_statement};

/// `.add` to what began as a set (presented), ` +=` to what began as a string.
pub(crate) fn set_or_string(draw: &mut Draw) -> Contrast {
    let name = draw.name();
    growing(draw, &name)
}

/// The same with the variable always named `current`.
pub(crate) fn set_or_string_fixedvarname(draw: &mut Draw) -> Contrast {
    growing(draw, "current")
}

fn growing(draw: &mut Draw, name: &str) -> Contrast {
    // Each beginning has as many tokens for the set as for the string, which `""` has not.
    let (set, string) = match draw.between(0, 5) {
        0..=2 => ("set()".to_owned(), "str()".to_owned()),
        3 => {
            let source = draw.plural();
            (format!("set({source})"), format!("str({source})"))
        }
        4 => {
            let number = draw.number();
            (format!("{{{number}}}"), draw.quoted(&number))
        }
        _ => {
            let word = draw.noun();
            (format!("{{{word}}}"), draw.quoted(word))
        }
    };
    let between = if draw.chance(0.35) {
        short_statement(draw)
    } else {
        String::new()
    };
    let (opening, pad, item) = if draw.chance(0.65) {
        let item = draw.name();
        (format!("for {item} in {}:\n", draw.plural()), INDENT, item)
    } else {
        (String::new(), "", draw.known())
    };
    let inside = if !opening.is_empty() && draw.chance(0.2) {
        format!("{pad}print({item})\n")
    } else {
        String::new()
    };
    let rest = if draw.chance(0.4) {
        format!("print({name})\n")
    } else {
        String::new()
    };
    draw.define(name);
    let form = |beginning: &str, answer: String| {
        Snippet::new(
            format!("{name} = {beginning}\n{between}{opening}{inside}{pad}{name}"),
            answer,
            rest.clone(),
        )
    };
    Contrast::anywhere(
        form(&set, format!(".add({item})\n")),
        form(&string, format!(" += {item}\n")),
    )
}
