//! Whole documents: imports, functions, classes and top-level statements, with idioms among them.

use rand_chacha::ChaCha8Rng;

use super::draw::Draw;
use super::idioms::{self, Place};
use super::split::Split;
use super::statements::{INDENT, comment, imports, indented, parameters, return_line, statement};

/// Documents aim at no fewer than this many lines.
const FEWEST_LINES: u32 = 18;
/// Documents aim at no more than this many lines, so that the last piece keeps them below the
/// limit.
const MOST_LINES_AIMED_AT: u32 = 66;
/// No document is longer.
const LINE_LIMIT: usize = 80;

/// Writes one document.
pub(super) fn document(rng: &mut ChaCha8Rng, split: Split) -> String {
    let mut draw = Draw::new(rng, split);
    let goal = draw.between(FEWEST_LINES, MOST_LINES_AIMED_AT);
    let mut text = String::new();
    if draw.chance(0.15) {
        let phrase = draw.phrase(2, 4);
        text += &format!("\"\"\"{phrase}\"\"\"\n");
    }
    if draw.chance(0.85) {
        text += &imports(&mut draw);
    }
    loop {
        let lines = text.lines().count();
        if lines >= goal {
            break;
        }
        let (piece, definition) = piece(&mut draw);
        let gap = if text.is_empty() {
            0
        } else if definition {
            draw.style.blank_lines
        } else {
            1
        };
        // A document that would grow too long is done: it already has most of the lines it aimed
        // at.
        if lines + gap + piece.lines().count() > LINE_LIMIT {
            break;
        }
        text += &"\n".repeat(gap);
        text += &piece;
    }
    let lines = text.lines().count();
    if lines + 4 <= LINE_LIMIT && draw.chance(0.15) {
        let name = draw.quoted("__main__");
        text += &format!(
            "\nif __name__ == {name}:\n{INDENT}{}()\n",
            draw.function_name()
        );
    }
    text
}

/// One piece of the top level, and whether it defines something.
fn piece(draw: &mut Draw) -> (String, bool) {
    match draw.between(0, 19) {
        0..=5 => {
            let items = draw.between(2, 6);
            let lines = (0..items)
                .map(|_| {
                    if draw.chance(0.12) {
                        let idiom =
                            draw.pick(&[idioms::if_ternary, idioms::lambda_func, idioms::with_as]);
                        idiom(draw).either(draw)
                    } else {
                        item(draw)
                    }
                })
                .collect();
            (lines, false)
        }
        6..=9 => (function(draw), true),
        10..=11 => (class(draw), true),
        _ => {
            let idiom = draw.pick(&idioms::AT_TOP);
            (idiom(draw).either(draw), true)
        }
    }
}

/// A statement or an idiom that can stand anywhere.
fn item(draw: &mut Draw) -> String {
    if draw.chance(0.6) {
        let idiom = draw.pick(&idioms::IN_BODY);
        let contrast = idiom(draw);
        debug_assert_eq!(contrast.place, Place::Anywhere);
        contrast.either(draw)
    } else {
        statement(draw)
    }
}

/// A block with a header of its own around one or two items.
fn block(draw: &mut Draw) -> String {
    let header = match draw.between(0, 3) {
        0 => {
            let name = draw.name();
            draw.define(&name);
            format!("for {name} in {}", draw.plural())
        }
        1 => format!("while {}", draw.condition()),
        _ => format!("if {}", draw.condition()),
    };
    let items: String = (0..draw.between(1, 2)).map(|_| item(draw)).collect();
    format!("{header}:\n{}", indented(&items, 1))
}

/// The body of a function, at indentation zero.
fn body(draw: &mut Draw, most_items: u32) -> String {
    let mut lines = String::new();
    if draw.chance(draw.style.docstrings) {
        let phrase = draw.phrase(1, 4);
        lines += &format!("\"\"\"{phrase}\"\"\"\n");
    }
    for _ in 0..draw.between(1, most_items) {
        lines += &if draw.chance(0.15) {
            block(draw)
        } else {
            item(draw)
        };
    }
    if draw.chance(0.65) {
        lines += &return_line(draw);
    }
    lines
}

/// A function of its own.
pub(super) fn function(draw: &mut Draw) -> String {
    let mark = draw.enter();
    let name = draw.function_name();
    let parameters = parameters(draw, 0);
    let body = body(draw, 5);
    draw.leave(mark);
    let remark = if draw.chance(draw.style.comments) {
        comment(draw)
    } else {
        String::new()
    };
    format!("{remark}def {name}({parameters}):\n{}", indented(&body, 1))
}

/// A class: attributes set from parameters, then methods.
fn class(draw: &mut Draw) -> String {
    let mut lines = idioms::class_init(draw).either(draw);
    for _ in 0..draw.between(0, 2) {
        let mark = draw.enter();
        let name = draw.function_name();
        let parameters = parameters(draw, 0);
        let separator = if parameters.is_empty() { "" } else { ", " };
        let body = body(draw, 3);
        draw.leave(mark);
        lines += &format!("\n{INDENT}def {name}(self{separator}{parameters}):\n");
        lines += &indented(&body, 2);
    }
    lines
}
