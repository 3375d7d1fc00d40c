//! Strings of real Python files as pairs: the code up to a string's closing quote, and the same with that string
//! opened by the other quote.

use super::EvaluationError;
use crate::corpus::literals::{Literal, line_end, literals};
use crate::discovery::question::PromptPair;
use crate::features::pair::Pair;
use crate::tasks::{Side, TextPair, token_pair};

/// Context before the string, in bytes at most; whole lines.
const CONTEXT: usize = 240;
/// A literal as a pair: presented with its own quote, counterfactually with the other.
pub fn text_pair(code: &str, literal: Literal) -> Option<TextPair> {
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
        counterfactual: side(literal.other_quote()),
        anything_else: false,
    })
}

/// Pairs cut from documents, one a document in the first round, then a second one each, until there are `count`.
/// Pairs that the tokenizer does not cut at the closing quote, or cuts to unequal lengths, are left out.
pub fn pairs(
    models: &Pair,
    documents: &[String],
    count: usize,
) -> Result<Vec<PromptPair>, EvaluationError> {
    let tokenizer = models.tokenizer();
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
