//! Idioms of brackets: how many are open, and which kind.

use super::contrast::{Contrast, Snippet};
use crate::corpus::draw::Draw;

/// The elements of a list: all numbers, or all names.
fn elements(draw: &mut Draw, how_many: usize, numbers: bool) -> Vec<String> {
    (0..how_many)
        .map(|_| if numbers { draw.number() } else { draw.name() })
        .collect()
}

/// The end of a list: `]]` two levels deep (presented), `]` one level deep.
pub(crate) fn bracket_counting(draw: &mut Draw) -> Contrast {
    let numbers = draw.chance(0.6);
    let name = if draw.chance(0.5) {
        draw.plural()
    } else {
        draw.name()
    };
    draw.define(&name);
    let how_many = draw.between(1, 6);
    let last = elements(draw, how_many, numbers).join(", ");
    let how_many = draw.between(1, 3);
    let first = elements(draw, how_many, numbers).join(", ");
    let (deep, flat) = match draw.between(0, 3) {
        // [[1, 2]] and [1, 2]
        0..=1 => (format!("[[{last}"), format!("[{last}")),
        // [[1, 2, 3]] and [[1, 2], 3]: the inner bracket was closed already.
        2 => (format!("[[{first}, {last}"), format!("[[{first}], {last}")),
        // [[1, 2], [3]] and [1, 2], [3]
        _ => (
            format!("[[{first}], [{last}"),
            format!("[{first}], [{last}"),
        ),
    };
    let form = |value: String, closing: &str| {
        Snippet::new(format!("{name} = {value}"), format!("{closing}\n"), "")
    };
    Contrast::anywhere(form(deep, "]]"), form(flat, "]"))
}

/// After an element: `:` in a dictionary (presented), `,` in a list.
pub(crate) fn bracket_brace(draw: &mut Draw) -> Contrast {
    let numbers = draw.chance(0.5);
    let name = draw.name();
    draw.define(&name);
    let how_many = 2 * draw.between(1, 3);
    let elements = elements(draw, how_many, numbers);
    // An even number of elements precedes the cut, so the next one of a dictionary is a key.
    let cut = if how_many > 2 && draw.chance(0.4) {
        2
    } else {
        0
    };
    let separators = |at: usize, dictionary: bool| {
        if dictionary && at.is_multiple_of(2) {
            ": "
        } else {
            ", "
        }
    };
    let form = |dictionary: bool| {
        let (opening, closing) = if dictionary { ('{', '}') } else { ('[', ']') };
        let mut lead = format!("{name} = {opening}");
        let mut answer = String::new();
        for (at, element) in elements.iter().enumerate() {
            if at <= cut {
                lead += element;
                if at < cut {
                    lead += separators(at, dictionary);
                }
            } else {
                answer += separators(at - 1, dictionary);
                answer += element;
            }
        }
        Snippet::new(lead, format!("{answer}{closing}\n"), "")
    };
    Contrast::anywhere(form(true), form(false))
}
