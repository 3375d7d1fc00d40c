//! Older tokenizer files turned into a `tokenizer.json`: GPT-2's `encoder.json` + `vocab.bpe`, and `.tiktoken`.
//!
//! Both describe the same kind of byte-level BPE. GPT-2's pair spells every token in a printable alphabet and
//! lists the merges in order; a `.tiktoken` file gives each token's bytes in base64 and its rank, and leaves
//! the merges to be recovered: the merge that makes a token joins the two parts that all merges of lower rank
//! leave of it.

use std::collections::{BTreeMap, HashMap};

use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};

use super::error::{END_OF_TEXT, LARGEST_ID, TokenizerError};
use super::{Tokenizer, byte_level, byte_level_splitting, character_of_byte};

/// No token is longer than this; recovering merges is quadratic in it.
const LONGEST_TOKEN: usize = 1024;

/// Converts GPT-2's `encoder.json` (token to id) and `vocab.bpe` (one merge a line, after a version line).
/// `<|endoftext|>` keeps the id it has there.
pub fn from_gpt2(
    encoder_json: &[u8],
    vocab_bpe: &str,
    split_pattern: &str,
) -> Result<Tokenizer, TokenizerError> {
    let vocabulary: HashMap<String, u32> = serde_json::from_slice(encoder_json)
        .map_err(|error| TokenizerError::Invalid(format!("encoder.json: {error}")))?;
    let merges = parse_merges("vocab.bpe", vocab_bpe)?;
    assemble(vocabulary, merges, split_pattern)
}

/// The merges of GPT-2's form of file: one a line, after a version line.
pub(super) fn parse_merges(
    file: &str,
    text: &str,
) -> Result<Vec<(String, String)>, TokenizerError> {
    let mut merges = Vec::new();
    for (index, line) in text.lines().enumerate() {
        // A merge's parts never hold a space, so the version line is told by its first word alone; `#` may
        // begin a merge anywhere else in the file.
        if line.is_empty() || (index == 0 && line.starts_with("#version")) {
            continue;
        }
        let Some((left, right)) = line.split_once(' ') else {
            let problem = format!("{file} line {}: {line:?} is not two tokens", index + 1);
            return Err(TokenizerError::Invalid(problem));
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

/// Converts a `.tiktoken` file: a line for each token, its bytes in base64 and its rank. The file names no
/// special tokens; `<|endoftext|>` becomes the first id after the last rank.
pub fn from_tiktoken(file: &str, split_pattern: &str) -> Result<Tokenizer, TokenizerError> {
    let mut ranks: HashMap<Vec<u8>, u32> = HashMap::new();
    let mut by_rank: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    for (index, line) in file.lines().enumerate() {
        if line.is_empty() {
            continue;
        }
        let parsed = line.split_once(' ').and_then(|(token, rank)| {
            let token = decode_base64(token)?;
            Some((token, rank.parse::<u32>().ok()?))
        });
        let Some((token, rank)) = parsed else {
            let problem = format!("line {}: {line:?} is not base64 and a rank", index + 1);
            return Err(TokenizerError::Invalid(problem));
        };
        if token.is_empty() || token.len() > LONGEST_TOKEN || rank >= LARGEST_ID {
            let problem = format!(
                "line {}: a token has 1 to {LONGEST_TOKEN} bytes and a rank below {LARGEST_ID}",
                index + 1
            );
            return Err(TokenizerError::Invalid(problem));
        }
        let twice = ranks.insert(token.clone(), rank).is_some();
        if by_rank.insert(rank, token).is_some() || twice {
            let problem = format!("line {}: the token or its rank stands twice", index + 1);
            return Err(TokenizerError::Invalid(problem));
        }
    }
    let alphabet = character_of_byte();
    let spell = |bytes: &[u8]| -> String {
        bytes
            .iter()
            .map(|&byte| alphabet[usize::from(byte)])
            .collect()
    };
    let mut merges = Vec::new();
    for (&rank, token) in &by_rank {
        if token.len() == 1 {
            continue;
        }
        let Some(middle) = last_join(token, rank, &ranks) else {
            let problem = format!(
                "rank {rank}: the token {:?} is not the join of two tokens of lower rank",
                String::from_utf8_lossy(token)
            );
            return Err(TokenizerError::Invalid(problem));
        };
        merges.push((spell(&token[..middle]), spell(&token[middle..])));
    }
    let vocabulary = ranks
        .iter()
        .map(|(token, &rank)| (spell(token), rank))
        .collect();
    assemble(vocabulary, merges, split_pattern)
}

fn assemble(
    vocabulary: HashMap<String, u32>,
    merges: Vec<(String, String)>,
    split_pattern: &str,
) -> Result<Tokenizer, TokenizerError> {
    let invalid = |error: tokenizers::Error| TokenizerError::Invalid(error.to_string());
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), merges)
        .build()
        .map_err(invalid)?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(byte_level_splitting(split_pattern)?));
    inner.with_decoder(Some(byte_level()));
    inner
        .add_special_tokens([AddedToken::from(END_OF_TEXT, true)])
        .map_err(invalid)?;
    Tokenizer::from_inner(inner)
}

/// Where the last merge that makes `token` joins its two parts: BPE with the merges below `rank` must leave
/// exactly two.
fn last_join(token: &[u8], rank: u32, ranks: &HashMap<Vec<u8>, u32>) -> Option<usize> {
    let mut starts: Vec<usize> = (0..=token.len()).collect();
    while starts.len() > 3 {
        let lowest = (0..starts.len() - 2)
            .filter_map(|index| {
                let joined = &token[starts[index]..starts[index + 2]];
                let joined_rank = ranks.get(joined).copied()?;
                (joined_rank < rank).then_some((joined_rank, index))
            })
            .min()?;
        starts.remove(lowest.1 + 1);
    }
    starts.get(1).copied()
}

/// Standard base64 with optional padding; none where the text is anything else.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0u32);
    for character in text.trim_end_matches('=').bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    // What is left over is padding: fewer than 6 bits, all zero.
    (count < 6 && bits == 0).then_some(bytes)
}
