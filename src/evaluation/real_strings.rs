//! Strings of real Python files as pairs: the code up to a string's closing quote, and the same with that string
//! opened by the other quote.

use std::ops::Range;

use super::EvaluationError;
use crate::features::paired_models::PairedModels;
use crate::features::question::PromptPair;
use crate::tasks::{Side, TextPair, token_pair};

/// Context before the string, in bytes at most; whole lines.
const CONTEXT: usize = 240;
/// The string's own length in bytes.
const SHORTEST: usize = 3;
const LONGEST: usize = 60;

/// A string literal on one line: where its quotes stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Literal {
    pub open: usize,
    pub close: usize,
    pub quote: char,
}

/// The plain one-line string literals of Python code: no prefix, no escape, no quote of either kind inside, and
/// not triple-quoted.
pub fn literals(code: &str) -> Vec<Literal> {
    scan(code).1
}

/// Where the strings and comments of Python code are.
pub fn strings_and_comments(code: &str) -> Vec<Range<usize>> {
    scan(code).0
}

fn scan(code: &str) -> (Vec<Range<usize>>, Vec<Literal>) {
    let bytes = code.as_bytes();
    let (mut spans, mut found) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            b'#' => at += line_end(&bytes[at..]),
            quote @ (b'"' | b'\'') if bytes[at..].starts_with(&[quote; 3]) => {
                at = end_of_triple(bytes, at, quote);
            }
            quote @ (b'"' | b'\'') => {
                let (end, plain) = end_of_string(bytes, at, quote);
                let prefixed = at > 0 && bytes[at - 1].is_ascii_alphanumeric();
                let length = end.saturating_sub(at + 1);
                if plain && !prefixed && (SHORTEST..=LONGEST).contains(&length) {
                    found.push(Literal {
                        open: at,
                        close: end,
                        quote: char::from(quote),
                    });
                }
                at = end + 1;
            }
            _ => {
                at += 1;
                continue;
            }
        }
        spans.push(start..at);
    }
    (spans, found)
}

fn line_end(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .position(|&byte| byte == b'\n')
        .unwrap_or(bytes.len())
        .max(1)
}

fn end_of_triple(bytes: &[u8], at: usize, quote: u8) -> usize {
    let mut end = at + 3;
    while end < bytes.len() && !bytes[end..].starts_with(&[quote; 3]) {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    end + 3
}

/// The closing quote's index (or the line's end), and whether the string has neither escapes nor other quotes
/// and is closed at all.
fn end_of_string(bytes: &[u8], at: usize, quote: u8) -> (usize, bool) {
    let mut end = at + 1;
    let mut plain = true;
    while end < bytes.len() && bytes[end] != quote {
        match bytes[end] {
            b'\n' => return (end, false),
            b'\\' => {
                plain = false;
                end += 1;
            }
            b'"' | b'\'' => plain = false,
            _ => {}
        }
        end += 1;
    }
    (end, plain && end < bytes.len())
}

/// A literal as a pair: presented with its own quote, counterfactually with the other.
pub fn text_pair(code: &str, literal: Literal) -> Option<TextPair> {
    let other = if literal.quote == '"' { '\'' } else { '"' };
    let rest_end = literal.close + 1 + line_end(&code.as_bytes()[literal.close + 1..]);
    let rest = code.get(literal.close + 1..(rest_end + 1).min(code.len()))?;
    let before = code.get(..literal.open)?;
    let mut start = literal.open.saturating_sub(CONTEXT);
    // Whole lines, unless the string's own line is longer than the context.
    let line = before.rfind('\n').map_or(0, |newline| newline + 1);
    if start > 0 {
        while !code.is_char_boundary(start) {
            start += 1;
        }
        start = before[start..]
            .find('\n')
            .map_or(line, |newline| start + newline + 1);
    }
    let before = code.get(start.min(line)..literal.open)?;
    let text = code.get(literal.open + 1..literal.close)?;
    let side = |quote: char| Side {
        prompt: format!("{before}{quote}{text}"),
        answer: format!("{quote}{rest}"),
    };
    Some(TextPair {
        presented: side(literal.quote),
        counterfactual: side(other),
        anything_else: false,
    })
}

/// Pairs cut from documents, one a document in the first round, then a second one each, until there are `count`.
/// Pairs that the tokenizer does not cut at the closing quote, or cuts to unequal lengths, are left out.
pub fn pairs(
    models: &PairedModels,
    documents: &[String],
    count: usize,
) -> Result<Vec<PromptPair>, EvaluationError> {
    let tokenizer = models.tokenizer()?;
    let longest = models
        .dense
        .config
        .context_length
        .min(models.sparse.config.context_length);
    let found: Vec<Vec<Literal>> = documents.iter().map(|code| literals(code)).collect();
    let rounds = found.iter().map(Vec::len).max().unwrap_or(0);
    let mut pairs = Vec::new();
    for round in 0..rounds {
        for (code, literals) in documents.iter().zip(&found) {
            if pairs.len() == count {
                return Ok(pairs);
            }
            // From the middle outwards: a file's first strings are often alike.
            let Some(&literal) = literals.get((literals.len() / 2 + round) % literals.len().max(1))
            else {
                continue;
            };
            if round >= literals.len() {
                continue;
            }
            let Some(text) = text_pair(code, literal) else {
                continue;
            };
            let pair = token_pair(&text, |text| tokenizer.encode_with_offsets(text))?;
            if let Ok(pair) = pair
                && pair.presented.prompt.len() <= longest
            {
                pairs.push(PromptPair::from(&pair));
            }
        }
    }
    Ok(pairs)
}
