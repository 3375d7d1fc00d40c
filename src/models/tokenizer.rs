//! Text to token ids and back.
//!
//! A pair of models shares one tokenizer, stored as a Hugging Face `tokenizer.json`. A token of a byte-level tokenizer
//! stands for an exact run of bytes, which need not be whole characters ([`Tokenizer::token_bytes`]). What a token of
//! any other tokenizer stands for depends on the tokens around it: text is what the tokenizer's decoder makes of the
//! whole sequence, which [`decoding`] makes token by token. [`train_bpe`] makes a new tokenizer; [`formats`] and
//! [`classes`] convert other file formats.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, Encoding, SplitDelimiterBehavior, Token};

use self::byte_runs::ByteRuns;
use self::decoder_rules::{DecoderRules, decoded};
use self::error::LARGEST_ID;
pub use self::error::{END_OF_TEXT, TokenizerError};
use super::text_bounds::TextBounds;

mod byte_runs;
mod charsmap;
pub mod classes;
mod decoder_rules;
pub mod decoding;
pub mod error;
pub mod formats;
pub mod growth;
pub mod parts;
pub mod pieces;
mod sentencepiece;
pub mod settings;
pub mod splits;

/// The split pattern of `tinypython_2k`. It glues newlines to the punctuation before them.
pub const SPLIT_PATTERN: &str =
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Tokens that a byte-level BPE has before its first merge.
const BYTE_TOKENS: usize = 256;

/// A tokenizer and what is asked of it often.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The bytes of every token, by id; empty where an id is unused.
    pieces: ByteRuns,
    /// How far later tokens change what the decoder makes of earlier ones.
    rules: DecoderRules,
    end_of_text: Option<u32>,
    bounds: TextBounds,
    /// What the post-processor puts before a text.
    beginning: Vec<u32>,
    /// Characters of the longest token.
    longest: usize,
}

/// One token of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextToken {
    pub id: u32,
    /// The characters of the text that it stands for, as the tokenizer itself says; empty for a token that was added
    /// to the text. Two tokens may share a character, and a tokenizer may leave white space to none.
    pub characters: Range<usize>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("rules", &self.rules)
            .field("end_of_text", &self.end_of_text)
            .field("bounds", &self.bounds)
            .field("beginning", &self.beginning)
            .finish()
    }
}

/// A token may always stand for so many characters: those that a normalizer joins, white space between words.
const SHORTEST_LONGEST: usize = 16;

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        // The library panics on some damaged files: on broken JSON, and inside two of its normalizers.
        charsmap::check(json)?;
        let inner = catch_unwind(|| tokenizers::Tokenizer::from_bytes(json))
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
        // Merges are dropped at random while a model is trained. In service one text has one list of tokens.
        if let ModelWrapper::BPE(model) = inner.get_model()
            && model.dropout.is_some()
        {
            let mut model = model.clone();
            model.dropout = None;
            inner.with_model(model);
        }
        let rules = DecoderRules::of(inner.get_decoder())
            .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        let vocabulary = inner.get_vocab(true);
        let largest = vocabulary.values().copied().max();
        let Some(largest) = largest.filter(|&largest| largest < LARGEST_ID) else {
            let problem =
                format!("its largest token id is {largest:?}; ids run below {LARGEST_ID}");
            return Err(TokenizerError::Invalid(problem));
        };
        let bytes_of = byte_of_character();
        let mut pieces = vec![Vec::new(); largest as usize + 1];
        let anchors = match rules.is_byte_level() {
            true => Vec::new(),
            false => anchors(&inner, &vocabulary),
        };
        for (text, &id) in &vocabulary {
            pieces[id as usize] = if rules.is_byte_level() {
                byte_level_piece(text, &bytes_of)
            } else if let Some(byte) = rules.fallback_byte(text) {
                vec![byte]
            } else {
                piece_after(&inner, &anchors, id).unwrap_or_else(|| text.clone().into_bytes())
            };
        }
        let characters = |piece: &Vec<u8>| match std::str::from_utf8(piece) {
            Ok(text) => text.chars().count(),
            Err(_) => piece.len(),
        };
        let longest = pieces.iter().map(characters).max();
        let longest = longest.unwrap_or(0).max(SHORTEST_LONGEST);
        let pieces = ByteRuns::new(&pieces).ok_or_else(|| {
            TokenizerError::Invalid("its tokens have more than 4 GiB together".to_owned())
        })?;
        let end_of_text = inner.token_to_id(END_OF_TEXT);
        let mut tokenizer = Tokenizer {
            inner,
            pieces,
            rules,
            end_of_text,
            bounds: TextBounds::default(),
            beginning: Vec::new(),
            longest,
        };
        tokenizer.beginning = tokenizer.post_processor_s_beginning()?;
        Ok(tokenizer.with_bounds(TextBounds::default()))
    }

    /// The same tokenizer for a model whose texts begin and end with these tokens. Ids that the tokenizer does not have
    /// are passed over; where no end is left, a text ends with `<|endoftext|>`, and where no beginning is, it begins
    /// with what ends one.
    pub fn with_bounds(mut self, bounds: TextBounds) -> Self {
        let known = |id: &u32| (*id as usize) < self.pieces.count();
        let mut ends: Vec<u32> = bounds.ends.into_iter().filter(known).collect();
        if ends.is_empty() {
            ends.extend(self.end_of_text);
        }
        let beginning = bounds.beginning.filter(known);
        self.bounds = TextBounds {
            beginning: beginning.or(self.end_of_text).or(ends.first().copied()),
            ends,
        };
        self
    }

    /// The `tokenizer.json` of this tokenizer.
    pub fn to_json(&self) -> Result<Vec<u8>, TokenizerError> {
        let json = self.inner.to_string(true);
        json.map(String::into_bytes)
            .map_err(|error| TokenizerError::Invalid(error.to_string()))
    }

    /// One more than the largest id: the rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.pieces.count()
    }

    /// The ids of a prompt: what the tokenizer's post-processor puts before a text, and the text. What it puts behind one
    /// is left out, for the text is to be gone on with, and nothing is put before a text that begins with it already. An
    /// empty prompt is what comes before any text; it has no ids where the tokenizer knows of no such token.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let ids = self.encode(text)?;
        if ids.is_empty() && self.beginning.is_empty() {
            return Ok(self.bounds.beginning.into_iter().collect());
        }
        Ok(self.begun(ids))
    }

    /// The ids of a text behind what the post-processor puts before one.
    pub fn begun(&self, ids: Vec<u32>) -> Vec<u32> {
        match self.beginning_before(&ids) {
            [] => ids,
            before => before.iter().copied().chain(ids).collect(),
        }
    }

    /// The tokens of a text with the characters that each stands for: those that [`Self::encode_prompt`] makes, or with
    /// `as_prompt` unset those of the text alone.
    pub fn tokens_of(&self, text: &str, as_prompt: bool) -> Result<Vec<TextToken>, TokenizerError> {
        let encoding = encoded(|| self.inner.encode_char_offsets(text, false))?;
        let added = |&id: &u32| TextToken {
            id,
            characters: 0..0,
        };
        let ids = encoding.get_ids();
        let mut tokens: Vec<TextToken> = match as_prompt {
            true if ids.is_empty() => self.encode_prompt(text)?.iter().map(added).collect(),
            true => self.beginning_before(ids).iter().map(added).collect(),
            false => Vec::new(),
        };
        let own = ids.iter().zip(encoding.get_offsets());
        tokens.extend(own.map(|(&id, &(start, end))| TextToken {
            id,
            characters: start..end,
        }));
        Ok(tokens)
    }

    /// What is still to be put before the ids of a text.
    fn beginning_before(&self, ids: &[u32]) -> &[u32] {
        match ids.starts_with(&self.beginning) {
            true => &[],
            false => &self.beginning,
        }
    }

    /// The tokens that the post-processor puts before a text.
    fn post_processor_s_beginning(&self) -> Result<Vec<u32>, TokenizerError> {
        let text = Encoding::from_tokens(vec![Token::new(0, "a".to_owned(), (0, 1))], 0);
        // A template that names a token which it does not define makes the library panic.
        let processed = catch_unwind(AssertUnwindSafe(|| {
            self.inner.post_process(text, None, true)
        }))
        .map_err(|_| TokenizerError::Invalid("its post-processor fails on a text".to_owned()))?
        .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        let added = processed.get_special_tokens_mask().iter();
        let before = added.take_while(|&&is_added| is_added == 1).count();
        match before == processed.len() {
            // It leaves the text out.
            true => Ok(Vec::new()),
            false => Ok(processed.get_ids()[..before].to_vec()),
        }
    }

    /// The ids of `text`. No token is added at either end.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = encoded(|| self.inner.encode_fast(text, false))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of `text`, each with the bytes of `text` it stands for. The ranges of a byte-level tokenizer
    /// are exact and may cut a character in two.
    pub fn encode_with_offsets(
        &self,
        text: &str,
    ) -> Result<Vec<(u32, Range<usize>)>, TokenizerError> {
        let encoding = encoded(|| self.inner.encode(text, false))?;
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
            let piece = self.pieces.get(id)?;
            let range = start..start + piece.len();
            if text.get(range.clone()) != Some(piece) {
                return None;
            }
            start = range.end;
            ranges.push(range);
        }
        (start == text.len()).then_some(ranges)
    }

    /// The text of `ids`, special tokens included; bytes that are no UTF-8 become replacement characters.
    pub fn decode(&self, ids: &[u32]) -> String {
        if !self.rules.is_byte_level()
            && let Some(text) = decoded(&self.inner, ids)
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

    /// Whether a token is none of a text's own.
    fn is_special(&self, id: u32) -> bool {
        let token = self.inner.id_to_token(id);
        token.is_some_and(|token| self.inner.get_added_vocabulary().is_special_token(&token))
    }

    /// The exact bytes of one token; empty for an id that is not in the vocabulary. A tokenizer that is not
    /// byte-level answers with what the token adds to a text that has begun.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.pieces.get(id).unwrap_or(&[])
    }

    /// The token's bytes as text, for people; parts of characters become replacement characters.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// The id of `<|endoftext|>`, which separates the documents that models are trained on here.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// The most characters of a text that a token is taken to stand for: those of the longest token. White space that
    /// a tokenizer leaves out, and words that it does not know, may be longer.
    pub fn longest_token(&self) -> usize {
        self.longest
    }

    /// The tokens that end a completion.
    pub fn ends(&self) -> &[u32] {
        &self.bounds.ends
    }
}

/// What `encode` makes of a text. Rules that were read without complaint can make the library panic on one.
fn encoded(
    encode: impl FnOnce() -> tokenizers::Result<Encoding>,
) -> Result<Encoding, TokenizerError> {
    catch_unwind(AssertUnwindSafe(encode))
        .map_err(|_| TokenizerError::Encode("the tokenizer's rules fail on it".to_owned()))?
        .map_err(|error| TokenizerError::Encode(error.to_string()))
}

/// Two tokens that a text can begin with: the decoder makes letters of them, and of each after the other more.
fn anchors(inner: &tokenizers::Tokenizer, vocabulary: &HashMap<String, u32>) -> Vec<u32> {
    let mut words: Vec<(&String, u32)> = vocabulary
        .iter()
        .filter(|(text, _)| {
            text.chars()
                .all(|character| character.is_ascii_alphabetic())
        })
        .filter(|(text, _)| !text.is_empty())
        .map(|(text, &id)| (text, id))
        .collect();
    words.sort();
    let is_letters = |id: u32| {
        decoded(inner, &[id])
            .is_some_and(|text| text.contains(|character: char| character.is_alphabetic()))
    };
    let ids = words.into_iter().map(|(_, id)| id);
    ids.filter(|&id| is_letters(id)).take(2).collect()
}

/// What a token adds to a text that has begun: after the first of `anchors` that it is not itself, or alone where there
/// is none.
fn piece_after(inner: &tokenizers::Tokenizer, anchors: &[u32], id: u32) -> Option<Vec<u8>> {
    let anchor = anchors.iter().copied().find(|&anchor| anchor != id);
    let begun = anchor.and_then(|anchor| {
        let text = decoded(inner, &[anchor, id])?;
        let before = decoded(inner, &[anchor])?;
        text.strip_prefix(&before).map(str::to_owned)
    });
    let text = begun.or_else(|| decoded(inner, &[id]))?;
    Some(text.into_bytes())
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
