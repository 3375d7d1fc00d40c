//! One idiom in both its forms, with the same code before and after it.
//!
//! The code around an idiom is drawn once, in the manner of documents, so the two forms share every
//! name and every distractor. What precedes is kept short enough for a prompt of about 120 tokens.

use rand_chacha::ChaCha8Rng;

use super::document::function;
use super::draw::Draw;
use super::idioms::{Contrast, IN_BODY, Idiom, Place, Snippet};
use super::split::Split;
use super::statements::{imports, indented, parameters, statement};

/// Prompts are kept below this many bytes by leaving out what precedes; the idiom itself always
/// stays.
const PROMPT_BYTES: usize = 300;

/// An idiom in both its forms and the code around it.
#[derive(Debug, Clone)]
pub(crate) struct Passage {
    /// The code before both forms.
    context: String,
    contrast: Contrast,
    /// The code after both forms.
    tail: String,
    /// What parts the tail from a form that ends in a body of its own.
    tail_gap: &'static str,
}

impl Passage {
    /// Draws an idiom and the code around it.
    pub(crate) fn draw(rng: &mut ChaCha8Rng, split: Split, idiom: Idiom) -> Self {
        let mut draw = Draw::new(rng, split);
        let draw = &mut draw;
        let mut pieces = Vec::new();
        if draw.chance(0.2) {
            pieces.push(format!("{}\n", imports(draw)));
        }
        for _ in 0..draw.between(0, 4) {
            pieces.push(piece(draw));
        }
        let header = format!("def {}({}):\n", draw.function_name(), parameters(draw, 1));
        let opening: String = (0..draw.between(0, 2)).map(|_| statement(draw)).collect();
        let in_function = draw.chance(0.45);
        let contrast = idiom(draw);
        let tail: String = (0..draw.between(1, 2)).map(|_| statement(draw)).collect();

        let (contrast, tail, tail_gap) = match contrast.place {
            Place::Anywhere if in_function => {
                part(&mut pieces, draw.style.blank_lines);
                pieces.push(header);
                pieces.push(indented(&opening, 1));
                (contrast.indented(1), indented(&tail, 1), "")
            }
            Place::Anywhere => (contrast, tail, ""),
            Place::Top => {
                if ["def ", "class "]
                    .iter()
                    .any(|word| contrast.presented.lead.starts_with(word))
                {
                    part(&mut pieces, draw.style.blank_lines);
                }
                (contrast, tail, "\n")
            }
        };
        let own = contrast
            .presented
            .lead
            .len()
            .max(contrast.counterfactual.lead.len());
        Self {
            context: fitting(
                pieces,
                PROMPT_BYTES.saturating_sub(own),
                in_function,
                contrast.place,
            ),
            contrast,
            tail,
            tail_gap,
        }
    }

    /// The presented form, then the one with the other fact: what precedes the deciding token, and
    /// that token with the rest of its line.
    pub(crate) fn sides(&self) -> [(String, String); 2] {
        [&self.contrast.presented, &self.contrast.counterfactual].map(|snippet| {
            (
                format!("{}{}", self.context, snippet.lead),
                snippet.answer.clone(),
            )
        })
    }

    /// The same two as whole texts, with what follows.
    pub(crate) fn texts(&self) -> [String; 2] {
        [&self.contrast.presented, &self.contrast.counterfactual].map(|snippet| self.whole(snippet))
    }

    fn whole(&self, snippet: &Snippet) -> String {
        // A blank line would join the answer's own newline, so only a form that goes on after the
        // answer is parted from the tail.
        let gap = if snippet.rest.is_empty() {
            ""
        } else {
            self.tail_gap
        };
        format!("{}{}{gap}{}", self.context, snippet.text(), self.tail)
    }
}

/// A piece of the top level before the idiom.
fn piece(draw: &mut Draw) -> String {
    match draw.between(0, 9) {
        0 => format!("{}\n", function(draw)),
        1..=3 => {
            let idiom = draw.pick(&IN_BODY);
            idiom(draw).either(draw)
        }
        _ => statement(draw),
    }
}

/// Ends the last piece with blank lines, as documents part what they define from what precedes it.
fn part(pieces: &mut [String], blank_lines: usize) {
    if let Some(last) = pieces.last_mut() {
        last.truncate(last.trim_end_matches('\n').len() + 1);
        *last += &"\n".repeat(blank_lines);
    }
}

/// The last pieces that fit in `bytes`. The header of a function that the idiom stands in always
/// stays, and so may the statements at its beginning.
fn fitting(mut pieces: Vec<String>, bytes: usize, in_function: bool, place: Place) -> String {
    let mut end = String::new();
    if in_function && place == Place::Anywhere {
        let opening = pieces.pop().unwrap_or_default();
        let header = pieces.pop().unwrap_or_default();
        if header.len() + opening.len() <= bytes {
            end = header + &opening;
        } else {
            end = header;
        }
    }
    let mut room = bytes.saturating_sub(end.len());
    let mut first_kept = pieces.len();
    while first_kept > 0 && pieces[first_kept - 1].len() <= room {
        first_kept -= 1;
        room -= pieces[first_kept].len();
    }
    pieces[first_kept..].concat() + &end
}
