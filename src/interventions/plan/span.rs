//! Which tokens an edit touches, resolved against the prompts it is asked for.

use super::scene::{PlanError, refused};
use crate::interventions::request::{AllOrNone, At, PositionOrRange, TextOfPrompt, TokenPositions};

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

/// A prompt's text, and the characters of it that stand before each of its tokens.
pub type TextWithStarts = (String, Vec<usize>);

/// The prompts that an edit is resolved against.
pub struct Prompts<'a> {
    /// Of each prompt, in tokens.
    pub lengths: &'a [usize],
    /// The text of one of them; it is made only where a token is named by its text.
    pub text: &'a dyn Fn(usize) -> TextWithStarts,
}

impl Span {
    /// Resolves `at` for these prompts; `param` is its path in the request.
    pub fn new(at: Option<&At>, prompts: &Prompts, param: &str) -> Result<Self, PlanError> {
        let everything = At::default();
        let at = at.unwrap_or(&everything);
        let text_param = format!("{param}.text");
        let all = TokenPositions::Word(AllOrNone::All);
        let none = TokenPositions::Word(AllOrNone::None);
        let (named, otherwise) = match (&at.text, &at.prompt, at.occurrence) {
            (Some(_), Some(_), _) => {
                let message =
                    "`at` has both `text` and `prompt`; put {\"text\": ...} into the list `prompt`";
                return Err(refused(message, &text_param));
            }
            (None, _, Some(_)) => {
                let message = "`occurrence` is of a `text`, and there is none";
                return Err(refused(message, &format!("{param}.occurrence")));
            }
            (Some(text), None, occurrence) => {
                let text = text.clone();
                (Some(TextOfPrompt { text, occurrence }), none)
            }
            (None, _, None) => (None, all.clone()),
        };
        let prompt_param = format!("{param}.prompt");
        if prompts.lengths.is_empty() {
            match (&named, &at.prompt) {
                (Some(named), _) => {
                    occurrence_of(named, param)?;
                }
                (None, Some(positions)) => check_without_prompt(positions, &prompt_param)?,
                (None, None) => {}
            }
        }
        let resolved = prompts
            .lengths
            .iter()
            .enumerate()
            .map(|(prompt, &length)| match &named {
                Some(named) => Ok(vec![overlapping(named, prompt, prompts, param)?]),
                None => {
                    let positions = at.prompt.as_ref().unwrap_or(&all);
                    let within = Within {
                        length,
                        prompt,
                        prompts,
                    };
                    ranges(positions, Some(&within), &prompt_param)
                }
            });
        let generation = at.generation.as_ref().unwrap_or(&otherwise);
        Ok(Span {
            prompts: resolved.collect::<Result<_, _>>()?,
            generation: ranges(generation, None, &format!("{param}.generation"))?,
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

/// The prompt that positions are in.
struct Within<'a> {
    length: usize,
    /// Its number.
    prompt: usize,
    prompts: &'a Prompts<'a>,
}

/// Of a prompt, or of generated text: that has no text yet and no negative positions.
fn ranges(
    positions: &TokenPositions,
    within: Option<&Within>,
    param: &str,
) -> Result<Ranges, PlanError> {
    let length = within.map(|within| within.length);
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
            let (from, to) = match entry {
                PositionOrRange::Position(position) => {
                    let position = place(*position)?;
                    (position, position.saturating_add(1))
                }
                PositionOrRange::Range([from, to]) => {
                    (from.map_or(Ok(0), place)?, to.map_or(Ok(end), place)?)
                }
                PositionOrRange::Text(named) => match within {
                    Some(within) => overlapping(named, within.prompt, within.prompts, &param)?,
                    None => {
                        let message = "generated tokens have no text yet; only those of the prompt are named by theirs";
                        return Err(refused(message, &param));
                    }
                },
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

/// Refuses what no prompt could have, where there is none to hold it against.
fn check_without_prompt(positions: &TokenPositions, param: &str) -> Result<(), PlanError> {
    let TokenPositions::List(list) = positions else {
        return Ok(());
    };
    for (index, entry) in list.iter().enumerate() {
        let param = format!("{param}[{index}]");
        match entry {
            PositionOrRange::Position(_) | PositionOrRange::Range([_, None]) => {}
            PositionOrRange::Range([from, Some(to)]) => {
                let from = from.unwrap_or(0);
                // Where one counts from the prompt's end, its length decides.
                if (from < 0) == (*to < 0) && from >= *to {
                    let message = format!("the range from {from} to {to} is empty");
                    return Err(refused(message, &param));
                }
            }
            PositionOrRange::Text(named) => {
                occurrence_of(named, &param)?;
            }
        }
    }
    Ok(())
}

/// Which occurrence of a text is meant, where one can be.
fn occurrence_of(named: &TextOfPrompt, param: &str) -> Result<i64, PlanError> {
    if named.text.is_empty() {
        let message = "the text is empty; it overlaps no token";
        return Err(refused(message, &format!("{param}.text")));
    }
    match named.occurrence.unwrap_or(1) {
        0 => {
            let message = "occurrence is 0; 1 is the first one and -1 the last";
            Err(refused(message, &format!("{param}.occurrence")))
        }
        occurrence => Ok(occurrence),
    }
}

/// Characters of a prompt that an error shows.
const SHOWN: usize = 60;

/// The tokens of a prompt that a text in it overlaps.
fn overlapping(
    named: &TextOfPrompt,
    prompt: usize,
    prompts: &Prompts,
    param: &str,
) -> Result<(usize, usize), PlanError> {
    let text = &named.text;
    let occurrence = occurrence_of(named, param)?;
    let (text_param, occurrence_param) = (format!("{param}.text"), format!("{param}.occurrence"));
    let (whole, starts) = (prompts.text)(prompt);
    let found: Vec<usize> = whole
        .match_indices(text.as_str())
        .map(|(at, _)| at)
        .collect();
    if found.is_empty() {
        let message = format!(
            "the text {} does not occur in prompt {prompt}, {}{}",
            shown(text),
            shown(&whole),
            otherwise_written(text, &whole)
        );
        return Err(refused(message, &text_param));
    }
    let index = match usize::try_from(occurrence) {
        Ok(from_start) => Some(from_start - 1),
        Err(_) => usize::try_from(occurrence.unsigned_abs())
            .ok()
            .and_then(|from_end| found.len().checked_sub(from_end)),
    };
    let Some(&at) = index.and_then(|index| found.get(index)) else {
        let times = match found.len() {
            1 => "once".to_owned(),
            count => format!("{count} times"),
        };
        let message = format!(
            "the text {} occurs {times} in prompt {prompt}; there is no occurrence {occurrence}",
            shown(text)
        );
        return Err(refused(message, &occurrence_param));
    };
    let from = whole[..at].chars().count();
    let to = from + text.chars().count();
    // A token that is part of a character overlaps it.
    let end_of = |token: usize| {
        let next = starts.get(token + 1).copied().unwrap_or(usize::MAX);
        next.max(starts[token].saturating_add(1))
    };
    let mut tokens = (0..starts.len()).filter(|&token| starts[token] < to && end_of(token) > from);
    match (tokens.next(), tokens.next_back()) {
        (Some(first), last) => Ok((first, last.unwrap_or(first) + 1)),
        (None, _) => {
            let message = format!("no token of prompt {prompt} overlaps {}", shown(text));
            Err(refused(message, &text_param))
        }
    }
}

/// A text as errors show it: in quotes, and its beginning only where it is long.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

/// What is there instead of a text, where only white space or capitals differ.
fn otherwise_written(text: &str, whole: &str) -> String {
    let trimmed = text.trim();
    if trimmed != text && !trimmed.is_empty() && whole.contains(trimmed) {
        return format!("; {} does", shown(trimmed));
    }
    let lower = text.to_lowercase();
    let starts = whole.char_indices().map(|(at, _)| at);
    let length = text.chars().count();
    let same = starts
        .map(|at| whole[at..].chars().take(length).collect::<String>())
        .find(|piece| piece.to_lowercase() == lower);
    same.map_or_else(String::new, |piece| format!("; {} does", shown(&piece)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(json: &str, length: usize) -> Result<Span, PlanError> {
        let at: At = serde_json::from_str(json).expect("valid JSON");
        let prompts = Prompts {
            lengths: &[length],
            text: &|_| (String::new(), Vec::new()),
        };
        Span::new(Some(&at), &prompts, "at")
    }

    /// Of a prompt of the tokens `The`, ` hello`, ` ca`, two halves of `é`, ` hello` and `!`.
    fn in_text(json: &str) -> Result<Vec<usize>, String> {
        let at: At = serde_json::from_str(json).expect("valid JSON");
        let prompts = Prompts {
            lengths: &[7],
            text: &|_| ("The hello caé hello!".into(), vec![0, 3, 9, 12, 12, 13, 19]),
        };
        match Span::new(Some(&at), &prompts, "at") {
            Ok(span) => Ok(touched(&span, 7)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn touched(span: &Span, length: usize) -> Vec<usize> {
        (0..length + 3)
            .filter(|&position| span.touches(0, length, position))
            .collect()
    }

    #[test]
    fn positions_and_ranges_count_from_either_end() {
        let all = span("{}", 4).expect("everything");
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

    #[test]
    fn tokens_are_named_by_the_text_that_they_overlap() {
        for (json, tokens) in [
            (r#"{"text": "hello"}"#, vec![1]),
            (r#"{"text": "hello", "occurrence": 1}"#, vec![1]),
            (r#"{"text": "hello", "occurrence": 2}"#, vec![5]),
            (r#"{"text": "hello", "occurrence": -1}"#, vec![5]),
            (r#"{"text": "e hel"}"#, vec![0, 1]),
            (r#"{"text": "é"}"#, vec![3, 4]),
            (r#"{"text": "!", "generation": [0]}"#, vec![6, 7]),
            (
                r#"{"prompt": [0, {"text": "ca"}], "generation": "none"}"#,
                vec![0, 2],
            ),
        ] {
            assert_eq!(in_text(json), Ok(tokens), "{json}");
        }
    }

    #[test]
    fn a_text_that_does_not_occur_is_refused_with_what_is_there() {
        for (json, said) in [
            (
                r#"{"text": "helo"}"#,
                r#""helo" does not occur in prompt 0, "The hello caé hello!""#,
            ),
            (r#"{"text": "HELLO"}"#, r#""hello" does"#),
            (r#"{"text": "hello  "}"#, r#""hello" does"#),
            (
                r#"{"text": "hello", "occurrence": 3}"#,
                "occurs 2 times in prompt 0; there is no occurrence 3",
            ),
            (r#"{"text": "ca", "occurrence": -2}"#, "occurs once"),
            (r#"{"text": "ca", "occurrence": 0}"#, "1 is the first"),
            (r#"{"text": ""}"#, "empty"),
            (r#"{"occurrence": 1}"#, "there is none"),
            (r#"{"text": "ca", "prompt": [0]}"#, "both"),
            (r#"{"generation": [{"text": "ca"}]}"#, "no text yet"),
        ] {
            let error = in_text(json).expect_err(json);
            assert!(error.contains(said), "{json}: {error}");
        }
    }
}
