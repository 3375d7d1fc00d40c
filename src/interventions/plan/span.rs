//! Which tokens an edit touches, resolved against the prompts it is asked for.

use super::scene::{PlanError, refused};
use crate::interventions::request::{AllOrNone, At, PositionOrRange, TokenPositions};

/// Half-open ranges of positions.
type Ranges = Vec<(usize, usize)>;

/// The touched tokens of every prompt and of what is generated after it.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// For each prompt of the request.
    prompts: Vec<Ranges>,
    /// Counted from the first generated token.
    generation: Ranges,
}

impl Span {
    /// Resolves `at` for prompts of these lengths; `param` is its path in the request.
    pub fn new(at: Option<&At>, lengths: &[usize], param: &str) -> Result<Self, PlanError> {
        let everything = At::default();
        let at = at.unwrap_or(&everything);
        let prompt_param = format!("{param}.prompt");
        let prompts = lengths
            .iter()
            .map(|&length| ranges(&at.prompt, Some(length), &prompt_param));
        Ok(Span {
            prompts: prompts.collect::<Result<_, _>>()?,
            generation: ranges(&at.generation, None, &format!("{param}.generation"))?,
        })
    }

    /// Whether the token at `position` of a sequence that starts with prompt number `prompt` is touched.
    pub fn touches(&self, prompt: usize, prompt_length: usize, position: usize) -> bool {
        let within = |ranges: &Ranges, position| {
            ranges
                .iter()
                .any(|&(from, to)| (from..to).contains(&position))
        };
        match position.checked_sub(prompt_length) {
            None => self
                .prompts
                .get(prompt)
                .is_some_and(|ranges| within(ranges, position)),
            Some(generated) => within(&self.generation, generated),
        }
    }
}

/// `length` is the prompt's; generated text has none and no negative positions.
fn ranges(
    positions: &TokenPositions,
    length: Option<usize>,
    param: &str,
) -> Result<Ranges, PlanError> {
    let end = length.unwrap_or(usize::MAX);
    let list = match positions {
        TokenPositions::Word(AllOrNone::All) => return Ok(vec![(0, end)]),
        TokenPositions::Word(AllOrNone::None) => return Ok(Vec::new()),
        TokenPositions::List(list) => list,
    };
    let place = |position: i64| -> Result<usize, PlanError> {
        let resolved = match (length, usize::try_from(position)) {
            (_, Ok(position)) => Some(position),
            (Some(length), Err(_)) => usize::try_from(position.unsigned_abs())
                .ok()
                .and_then(|back| length.checked_sub(back)),
            (None, Err(_)) => None,
        };
        resolved.ok_or_else(|| match length {
            Some(length) => refused(
                format!("position {position} is before a prompt of {length} tokens"),
                param,
            ),
            None => refused(
                format!("position {position} is negative; generated tokens count from 0"),
                param,
            ),
        })
    };
    list.iter()
        .enumerate()
        .map(|(index, entry)| {
            let param = format!("{param}[{index}]");
            let (from, to) = match *entry {
                PositionOrRange::Position(position) => {
                    let position = place(position)?;
                    (position, position.saturating_add(1))
                }
                PositionOrRange::Range([from, to]) => {
                    (from.map_or(Ok(0), place)?, to.map_or(Ok(end), place)?)
                }
            };
            if to > end {
                let message = format!("position {} is past a prompt of {end} tokens", to - 1);
                return Err(refused(message, &param));
            }
            if from >= to {
                return Err(refused(
                    format!("the range from {from} to {to} is empty"),
                    &param,
                ));
            }
            Ok((from, to))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(json: &str, length: usize) -> Result<Span, PlanError> {
        let at: At = serde_json::from_str(json).expect("valid JSON");
        Span::new(Some(&at), &[length], "at")
    }

    fn touched(span: &Span, length: usize) -> Vec<usize> {
        (0..length + 3)
            .filter(|&position| span.touches(0, length, position))
            .collect()
    }

    #[test]
    fn positions_and_ranges_count_from_either_end() {
        let all = Span::new(None, &[4], "at").expect("everything");
        assert_eq!(touched(&all, 4), [0, 1, 2, 3, 4, 5, 6]);
        let some = span(r#"{"prompt": [-1, [0, 2]], "generation": [[1, null]]}"#, 5).expect("fits");
        assert_eq!(touched(&some, 5), [0, 1, 4, 6, 7]);
        let none = span(r#"{"prompt": "none", "generation": [0]}"#, 5).expect("fits");
        assert_eq!(touched(&none, 5), [5]);
    }

    #[test]
    fn positions_outside_the_prompt_are_refused() {
        for json in [
            r#"{"prompt": [5]}"#,
            r#"{"prompt": [-6]}"#,
            r#"{"prompt": [[0, 6]]}"#,
            r#"{"prompt": [[3, 3]]}"#,
            r#"{"prompt": [[4, 2]]}"#,
            r#"{"generation": [-1]}"#,
        ] {
            assert!(span(json, 5).is_err(), "{json}");
        }
    }
}
