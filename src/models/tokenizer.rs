//! Text to token ids and back, byte for byte.
//!
//! A pair of models shares one byte-level BPE tokenizer, stored as a Hugging Face `tokenizer.json`. A token of
//! such a tokenizer stands for an exact run of bytes, which need not be whole characters; streaming and
//! `text_offset` work on those bytes ([`Tokenizer::token_bytes`]), never on a decoded text with replacement
//! characters in it. [`train_bpe`] makes a new tokenizer; [`formats`] converts older file formats.

use std::collections::HashMap;
use std::ops::Range;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

pub mod formats;
pub mod growth;

/// The split pattern of `tinypython_2k`. It glues newlines to the punctuation before them.
pub const SPLIT_PATTERN: &str =
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The token that separates documents.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Tokens that a byte-level BPE has before its first merge.
const BYTE_TOKENS: usize = 256;

/// Why a tokenizer could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("the tokenizer file is not valid: {0}")]
    Invalid(String),
    #[error("the text could not be encoded: {0}")]
    Encode(String),
    #[error("training the tokenizer failed: {0}")]
    Train(String),
    #[error(
        "a byte-level vocabulary holds 256 bytes and {END_OF_TEXT}: {0} tokens are too few, at least 257 are needed"
    )]
    VocabularyTooSmall(usize),
    #[error(
        "the training text yields only {found} tokens of the {wanted} wanted; give more text or ask for fewer"
    )]
    TooLittleText { wanted: usize, found: usize },
}

/// A tokenizer and what is asked of it often.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The bytes of every token, by id; empty where an id is unused.
    pieces: Vec<Vec<u8>>,
    byte_level: bool,
    end_of_text: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("byte_level", &self.byte_level)
            .field("end_of_text", &self.end_of_text)
            .finish()
    }
}

/// Ids are indices into the embedding; one beyond this is a damaged file.
const LARGEST_ID: u32 = 1 << 20;

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        // The library panics on some damaged files: on broken JSON, and inside two of its normalizers.
        let _: serde::de::IgnoredAny = serde_json::from_slice(json)
            .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        let inner = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(json))
            .map_err(|_| TokenizerError::Invalid("its reader gave up on it".to_owned()))?
            .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        Self::from_inner(inner)
    }

    fn from_inner(mut inner: tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        // A prompt is never cut or padded silently; both are for the caller to decide.
        inner
            .with_truncation(None)
            .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        inner.with_padding(None);
        let byte_level = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let vocabulary = inner.get_vocab(true);
        let largest = vocabulary.values().copied().max();
        let Some(largest) = largest.filter(|&largest| largest < LARGEST_ID) else {
            let problem =
                format!("its largest token id is {largest:?}; ids run below {LARGEST_ID}");
            return Err(TokenizerError::Invalid(problem));
        };
        let added = inner.get_added_tokens_decoder();
        let bytes_of = byte_of_character();
        let mut pieces = vec![Vec::new(); largest as usize + 1];
        for (text, &id) in &vocabulary {
            pieces[id as usize] = if added.contains_key(&id) {
                text.clone().into_bytes()
            } else if byte_level {
                byte_level_piece(text, &bytes_of)
            } else {
                let decoded = inner.decode(&[id], false);
                decoded.unwrap_or_else(|_| text.clone()).into_bytes()
            };
        }
        let end_of_text = inner.token_to_id(END_OF_TEXT);
        Ok(Tokenizer {
            inner,
            pieces,
            byte_level,
            end_of_text,
        })
    }

    /// The `tokenizer.json` of this tokenizer.
    pub fn to_json(&self) -> Result<Vec<u8>, TokenizerError> {
        let json = self.inner.to_string(true);
        json.map(String::into_bytes)
            .map_err(|error| TokenizerError::Invalid(error.to_string()))
    }

    /// One more than the largest id: the rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The ids of `text`. No token is added at either end.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| TokenizerError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of `text`, each with the bytes of `text` it stands for. The ranges of a byte-level tokenizer
    /// are exact and may cut a character in two.
    pub fn encode_with_offsets(
        &self,
        text: &str,
    ) -> Result<Vec<(u32, Range<usize>)>, TokenizerError> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|error| TokenizerError::Encode(error.to_string()))?;
        let ids = encoding.get_ids();
        if let Some(ranges) = self.exact_ranges(ids, text.as_bytes()) {
            return Ok(ids.iter().copied().zip(ranges).collect());
        }
        let offsets = encoding.get_offsets().iter();
        Ok(ids
            .iter()
            .zip(offsets)
            .map(|(&id, &(start, end))| (id, start..end))
            .collect())
    }

    /// The ranges of tokens whose bytes, one after another, are `text`; none where they are not.
    fn exact_ranges(&self, ids: &[u32], text: &[u8]) -> Option<Vec<Range<usize>>> {
        let mut start = 0;
        let mut ranges = Vec::with_capacity(ids.len());
        for &id in ids {
            let piece = self.pieces.get(id as usize)?;
            let range = start..start + piece.len();
            if text.get(range.clone()) != Some(piece.as_slice()) {
                return None;
            }
            start = range.end;
            ranges.push(range);
        }
        (start == text.len()).then_some(ranges)
    }

    /// The text of `ids`, special tokens included; bytes that are no UTF-8 become replacement characters.
    pub fn decode(&self, ids: &[u32]) -> String {
        if !self.byte_level
            && let Ok(text) = self.inner.decode(ids, false)
        {
            return text;
        }
        let pieces: Vec<u8> = ids
            .iter()
            .flat_map(|&id| self.token_bytes(id))
            .copied()
            .collect();
        String::from_utf8_lossy(&pieces).into_owned()
    }

    /// The exact bytes of one token; empty for an id that is not in the vocabulary. A tokenizer that is not
    /// byte-level answers with what decoding the token alone gives.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.pieces.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// The token's bytes as text, for people; parts of characters become replacement characters.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// The id of `<|endoftext|>`.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }
}

/// Trains a byte-level BPE on `texts` with [`SPLIT_PATTERN`]: the 256 bytes come first, merges follow in
/// the order they were found, and `<|endoftext|>` is the last id, `vocab_size - 1`. The same texts, in any order,
/// give the same tokenizer: merges are ordered by count, then by id.
pub fn train_bpe(
    texts: impl Iterator<Item = String> + Send,
    vocab_size: usize,
) -> Result<Tokenizer, TokenizerError> {
    if vocab_size <= BYTE_TOKENS {
        return Err(TokenizerError::VocabularyTooSmall(vocab_size));
    }
    let failed = |error: tokenizers::Error| TokenizerError::Train(error.to_string());
    let mut inner = tokenizers::Tokenizer::new(BPE::default());
    inner.with_pre_tokenizer(Some(byte_level_splitting(SPLIT_PATTERN)?));
    inner.with_decoder(Some(byte_level()));
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size - 1)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut trainer = TrainerWrapper::BpeTrainer(trainer);
    // The separator is no text: as a known token it takes no part in the counts.
    let separator = AddedToken::from(END_OF_TEXT, true);
    let texts = texts.flat_map(|text| {
        let parts: Vec<String> = text.split(END_OF_TEXT).map(str::to_owned).collect();
        parts
    });
    inner.train(&mut trainer, texts).map_err(failed)?;
    let found = inner.get_vocab_size(false) + 1;
    if found != vocab_size {
        return Err(TokenizerError::TooLittleText {
            wanted: vocab_size,
            found,
        });
    }
    inner.add_special_tokens([separator]).map_err(failed)?;
    Tokenizer::from_inner(inner)
}

/// Splits by `pattern`, then writes each byte as one printable character.
fn byte_level_splitting(pattern: &str) -> Result<PreTokenizerWrapper, TokenizerError> {
    let split = Split::new(
        SplitPattern::Regex(pattern.to_owned()),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map_err(|error| TokenizerError::Invalid(format!("split pattern {pattern:?}: {error}")))?;
    let steps = vec![
        PreTokenizerWrapper::Split(split),
        PreTokenizerWrapper::ByteLevel(byte_level()),
    ];
    Ok(PreTokenizerWrapper::Sequence(Sequence::new(steps)))
}

fn byte_level() -> ByteLevel {
    ByteLevel::new(false, false, false)
}

/// GPT-2's byte alphabet: printable Latin-1 characters stand for themselves, the other bytes for the
/// characters from U+0100 on, in order.
fn character_of_byte() -> [char; 256] {
    let mut next = 256u32;
    std::array::from_fn(|byte| {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}

fn byte_of_character() -> HashMap<char, u8> {
    (0u8..=255)
        .zip(character_of_byte())
        .map(|(byte, character)| (character, byte))
        .collect()
}

/// The bytes of a token written in GPT-2's byte alphabet. A token with any other character in it stands for
/// itself, as in the library.
fn byte_level_piece(text: &str, bytes: &HashMap<char, u8>) -> Vec<u8> {
    let piece: Option<Vec<u8>> = text
        .chars()
        .map(|character| bytes.get(&character).copied())
        .collect();
    piece.unwrap_or_else(|| text.as_bytes().to_vec())
}
