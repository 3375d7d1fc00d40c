//! Idioms of repeated names: an attribute set from its parameter, and two variables exchanged.

use super::contrast::{Contrast, Snippet};
use crate::corpus::draw::Draw;
use crate::corpus::statements::INDENT;

/// `self.x = x`: the name just written, for one parameter (presented) or another.
pub(crate) fn class_init(draw: &mut Draw) -> Contrast {
    let how_many = draw.between(2, 4);
    let names = draw.distinct_names(how_many);
    let class = draw.class_name();
    let base = if draw.chance(0.15) {
        format!("({})", draw.class_name())
    } else {
        String::new()
    };
    let assignment = |name: &String| format!("{INDENT}{INDENT}self.{name} = {name}\n");
    // The assignments before the cut are the same in both forms; the two asked about are the next
    // ones.
    let done = draw.between(0, how_many as u32 - 2);
    let (one, other) = draw.either_order(done, done + 1);
    let mut lead = format!(
        "class {class}{base}:\n{INDENT}def __init__(self, {}):\n",
        names.join(", ")
    );
    lead.extend(names[..done].iter().map(assignment));
    let method = if draw.chance(0.6) {
        let name = &names[draw.between(0, how_many as u32 - 1)];
        format!(
            "\n{INDENT}def {}(self):\n{INDENT}{INDENT}return self.{name}\n",
            draw.verb()
        )
    } else {
        String::new()
    };
    let form = |asked: usize| {
        let name = &names[asked];
        let mut rest: String = (done..how_many)
            .filter(|&at| at != asked)
            .map(|at| assignment(&names[at]))
            .collect();
        rest += &method;
        Snippet::new(
            format!("{lead}{INDENT}{INDENT}self.{name} ="),
            format!(" {name}\n"),
            rest,
        )
    };
    Contrast::top(form(one), form(other))
}

/// `x, y = y, x`: the first name again (presented), and the same with the names exchanged.
pub(crate) fn var_swap(draw: &mut Draw) -> Contrast {
    let names = draw.distinct_names(2);
    let opening = match draw.between(0, 3) {
        0 => format!(
            "{} = {}\n{} = {}\n",
            names[0],
            draw.number(),
            names[1],
            draw.number()
        ),
        1 => format!(
            "{}, {} = {}, {}\n",
            names[0],
            names[1],
            draw.number(),
            draw.number()
        ),
        2 => format!("if {} > {}:\n{INDENT}", names[0], names[1]),
        _ => String::new(),
    };
    draw.define(&names[0]);
    draw.define(&names[1]);
    let form = |first: &str, second: &str| {
        Snippet::new(
            format!("{opening}{first}, {second} = {second},"),
            format!(" {first}\n"),
            "",
        )
    };
    Contrast::anywhere(form(&names[0], &names[1]), form(&names[1], &names[0]))
}
