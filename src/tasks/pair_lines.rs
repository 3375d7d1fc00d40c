//! Pairs of prompts as lines of JSON, and what a pair must be.

use serde_json::{Map, Value};

use super::pairs::{Side, TextPair};

/// The longest line of a file, and the most bytes that a pair's texts may have together.
pub const LONGEST_LINE: usize = 1 << 16;
/// Characters of an unknown field's name that an error repeats.
const LONGEST_SHOWN: usize = 60;

const PAIR: [&str; 3] = ["presented", "counterfactual", "anything_else"];
const SIDE: [&str; 2] = ["prompt", "answer"];

/// What is wrong with a pair.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {problem}", subject(.field))]
pub struct PairFault {
    /// Its path in the pair, such as `presented.prompt`; empty where it is the pair as a whole.
    pub field: String,
    /// What follows the field's name in a sentence.
    pub problem: String,
}

impl PairFault {
    pub(super) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        PairFault {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

fn subject(field: &str) -> &str {
    match field {
        "" => "it",
        field => field,
    }
}

/// The pair that a line says.
pub(super) fn pair_of_line(line: &str) -> Result<TextPair, PairFault> {
    let value: Value = serde_json::from_str(line).map_err(|error| {
        // The parser counts lines of its own, and there is one.
        let said = error.to_string();
        let said = said.split(" at line ").next().unwrap_or_default();
        PairFault::new(
            "",
            format!("is no JSON at column {}: {said}", error.column()),
        )
    })?;
    let mut pair = members(value, "", &PAIR)?;
    let presented = side(&mut pair, PAIR[0])?;
    let counterfactual = side(&mut pair, PAIR[1])?;
    let anything_else = match pair.remove(PAIR[2]) {
        None => false,
        Some(Value::Bool(anything_else)) => anything_else,
        Some(other) => return Err(wrong_kind(PAIR[2], "true or false", &other)),
    };
    Ok(TextPair {
        presented,
        counterfactual,
        anything_else,
    })
}

fn side(pair: &mut Map<String, Value>, name: &str) -> Result<Side, PairFault> {
    let value = pair.remove(name);
    let value = value.ok_or_else(|| PairFault::new(name, "is missing"))?;
    let mut side = members(value, name, &SIDE)?;
    let mut text = |field: &str| {
        let path = format!("{name}.{field}");
        match side.remove(field) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(wrong_kind(path, "a text", &other)),
            None => Err(PairFault::new(path, "is missing")),
        }
    };
    Ok(Side {
        prompt: text(SIDE[0])?,
        answer: text(SIDE[1])?,
    })
}

/// The members of an object that has no others than these.
fn members(value: Value, path: &str, known: &[&str]) -> Result<Map<String, Value>, PairFault> {
    let members = match value {
        Value::Object(members) => members,
        other => return Err(wrong_kind(path, "an object", &other)),
    };
    let unknown = members.keys().find(|name| !known.contains(&name.as_str()));
    let Some(unknown) = unknown else {
        return Ok(members);
    };
    let shown: String = unknown.chars().take(LONGEST_SHOWN).collect();
    let nearest = known
        .iter()
        .min_by_key(|name| strsim::levenshtein(&shown, name));
    let nearest = nearest.copied().unwrap_or_default();
    let field = match path {
        "" => shown,
        path => format!("{path}.{shown}"),
    };
    Err(PairFault::new(
        field,
        format!("is no field of a pair; the nearest is {nearest:?}"),
    ))
}

fn wrong_kind(field: impl Into<String>, wanted: &str, value: &Value) -> PairFault {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    PairFault::new(field, format!("is {kind}; it must be {wanted}"))
}

/// Refuses a pair that asks nothing.
pub(super) fn check(pair: &TextPair) -> Result<(), PairFault> {
    let texts = [
        ("presented.prompt", &pair.presented.prompt),
        ("presented.answer", &pair.presented.answer),
        ("counterfactual.prompt", &pair.counterfactual.prompt),
        ("counterfactual.answer", &pair.counterfactual.answer),
    ];
    if let Some((field, _)) = texts.iter().find(|(_, text)| text.is_empty()) {
        return Err(PairFault::new(*field, "is empty"));
    }
    let bytes: usize = texts.iter().map(|(_, text)| text.len()).sum();
    if bytes > LONGEST_LINE {
        let problem = format!("has {bytes} bytes of text; a pair may have {LONGEST_LINE}");
        return Err(PairFault::new("", problem));
    }
    if pair.presented.prompt == pair.counterfactual.prompt {
        let problem = "is the same as presented.prompt: nothing decides between the answers";
        return Err(PairFault::new("counterfactual.prompt", problem));
    }
    if pair.presented.answer == pair.counterfactual.answer {
        let problem = "is the same as presented.answer: there is nothing to tell apart";
        return Err(PairFault::new("counterfactual.answer", problem));
    }
    Ok(())
}
