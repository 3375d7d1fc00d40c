//! The text of a sequence that grows token by token, as the tokenizer's own decoder gives it.
//!
//! A decoder looks at a whole sequence: it strips the first token's space, joins bytes to characters, or replaces what
//! two tokens make together. A sequence is therefore decoded with the tokens before it, a window of them at a time, and
//! what later tokens can still change is held back. The pieces of text, joined, are the decoder's text of the whole.

use super::Tokenizer;
use super::decoder_rules::{Held, decoded};

/// Tokens that are decoded again with each new one, at most, unless the decoder holds text back.
const WINDOW: usize = 64;
/// Those of them that a new window begins with: more than any decoder's rules for a text's beginning reach.
const CONTEXT: usize = 8;

/// Bytes of text, and the tokens that they are of.
#[derive(Debug, Clone, Default)]
pub struct TokenText {
    pub bytes: Vec<u8>,
    /// Where each token's bytes end. Tokens whose text later ones can still change are not in it.
    pub ends: Vec<usize>,
    /// The beginning of a character, and the characters before it.
    counted: (usize, usize),
}

impl TokenText {
    /// The byte that a token begins at.
    pub fn begins_at(&self, token: usize) -> usize {
        match token.checked_sub(1) {
            None => 0,
            Some(before) => self.ends.get(before).copied().unwrap_or(self.bytes.len()),
        }
    }

    /// The characters that end before a token begins, once bytes that are no UTF-8 have become replacement characters.
    /// Tokens are asked for in their order.
    pub fn start_of(&mut self, token: usize) -> usize {
        let until = self.begins_at(token);
        let (mut at, mut characters) = self.counted;
        // A character, or a run of bytes that is none, is told from what follows by at most four bytes.
        let seen = self.bytes.len().min(until + 4);
        'counting: for chunk in self.bytes[at.min(seen)..seen].utf8_chunks() {
            let valid = chunk.valid().chars().map(char::len_utf8);
            let invalid = Some(chunk.invalid().len()).filter(|&length| length > 0);
            for length in valid.chain(invalid) {
                if at + length > until {
                    break 'counting;
                }
                at += length;
                characters += 1;
            }
        }
        self.counted = (at, characters);
        characters
    }

    /// The text, with replacement characters where it is none.
    pub fn lossy(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Decodes a sequence token by token.
#[derive(Debug, Clone)]
pub struct TextDecoder {
    /// What has become certain.
    pub text: TokenText,
    /// The last tokens, for a decoder that looks at more than one.
    window: Vec<u32>,
    /// Bytes of the window's text that are in `text`, or belong to the tokens before it.
    told: usize,
    /// For each token that is held back, where its text would end if nothing came after it.
    tentative: Vec<usize>,
}

impl Tokenizer {
    /// The text of `ids`, and the characters of it that stand before each of them.
    pub fn decode_with_starts(&self, ids: &[u32]) -> (String, Vec<usize>) {
        let mut decoder = TextDecoder::after(&[], self);
        for &id in ids {
            decoder.push(self, id);
        }
        decoder.finish(self);
        let starts = (0..ids.len())
            .map(|index| decoder.text.start_of(index))
            .collect();
        (decoder.text.lossy(), starts)
    }
}

impl TextDecoder {
    /// The text of what follows `before`, which is no part of it.
    pub fn after(before: &[u32], tokenizer: &Tokenizer) -> Self {
        let mut window = Vec::new();
        if !tokenizer.rules.byte_level {
            // What is put before a text is none of it: the text begins behind.
            let own = before.iter().rev().filter(|&&id| !tokenizer.is_special(id));
            window = own.take(CONTEXT).copied().collect();
            window.reverse();
        }
        let told = decoded(&tokenizer.inner, &window).map_or(0, |text| text.len());
        TextDecoder {
            text: TokenText::default(),
            window,
            told,
            tentative: Vec::new(),
        }
    }

    /// Adds a token; [`Self::text`] grows by what that makes certain.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) {
        let rules = tokenizer.rules;
        if rules.byte_level {
            self.text.bytes.extend_from_slice(tokenizer.token_bytes(id));
            self.text.ends.push(self.text.bytes.len());
            return;
        }
        self.window.push(id);
        let Some(text) = decoded(&tokenizer.inner, &self.window) else {
            self.settle_by_pieces(tokenizer);
            return;
        };
        self.tentative.push(text.len().saturating_sub(self.told));
        let is_part = rules.byte_fallback
            && tokenizer
                .inner
                .id_to_token(id)
                .is_some_and(|token| rules.fallback_byte(&token).is_some());
        let held = match rules.held {
            Held::All => text.len(),
            Held::Characters(count) => last_characters(&text, count),
        };
        let certain = text.len() - held.max(broken_end(&text));
        if is_part || certain < text.len() {
            // Text in front of a run of bytes was told before the run began.
            if !is_part && certain > self.told {
                self.tell(&text, certain);
            }
            return;
        }
        self.settle(tokenizer, &text);
        if self.window.len() > WINDOW {
            let context = self.window[self.window.len() - CONTEXT..].to_vec();
            let context_text = decoded(&tokenizer.inner, &context);
            if let Some(context_text) = context_text.filter(|text| !text.is_empty()) {
                self.told = context_text.len();
                self.window = context;
            }
        }
    }

    /// No token comes any more: what is held back is certain.
    pub fn finish(&mut self, tokenizer: &Tokenizer) {
        if self.tentative.is_empty() {
            return;
        }
        match decoded(&tokenizer.inner, &self.window) {
            Some(text) => self.settle(tokenizer, &text),
            None => self.settle_by_pieces(tokenizer),
        }
    }

    /// Adds the window's text up to `until`, which no later token changes.
    fn tell(&mut self, text: &str, until: usize) {
        if let Some(more) = text.get(self.told..until) {
            self.text.bytes.extend_from_slice(more.as_bytes());
            let length = more.len();
            self.told = until;
            // Tokens that end before the last byte told are certain too.
            let ended = self.tentative.iter().take_while(|&&end| end < length);
            let ended = ended.count();
            let begins = self.text.bytes.len() - length;
            let ends = self.tentative.drain(..ended).map(|end| begins + end);
            self.text.ends.extend(ends);
            for end in &mut self.tentative {
                *end = end.saturating_sub(length);
            }
        }
    }

    /// All of the window's text is certain, and so is where its tokens end.
    fn settle(&mut self, tokenizer: &Tokenizer, text: &str) {
        let more = text.get(self.told..).unwrap_or_default();
        let begins = self.text.bytes.len();
        self.text.bytes.extend_from_slice(more.as_bytes());
        self.told = self.told.max(text.len());
        let count = self.tentative.len();
        let ids = &self.window[self.window.len().saturating_sub(count)..];
        let pieces = ids.iter().map(|&id| tokenizer.token_bytes(id));
        let exact = pieces.clone().flatten().eq(more.as_bytes());
        let mut end = 0;
        for (piece, tentative) in pieces.zip(std::mem::take(&mut self.tentative)) {
            end = match exact {
                true => end + piece.len(),
                false => more.floor_char_boundary(tentative.min(more.len())).max(end),
            };
            self.text.ends.push(begins + end);
        }
        // Whatever the last token adds is its own.
        if let Some(last) = self.text.ends.last_mut() {
            *last = self.text.bytes.len();
        }
    }

    /// The decoder has failed: each token stands for itself, and the text begins anew behind it.
    fn settle_by_pieces(&mut self, tokenizer: &Tokenizer) {
        let held = self.window.len().min(self.tentative.len() + 1);
        let ids = self.window.split_off(self.window.len() - held);
        for id in ids {
            self.text.bytes.extend_from_slice(tokenizer.token_bytes(id));
            self.text.ends.push(self.text.bytes.len());
        }
        self.tentative.clear();
        self.window.clear();
        self.told = 0;
    }
}

/// The bytes of the last `count` characters.
fn last_characters(text: &str, count: usize) -> usize {
    text.chars().rev().take(count).map(char::len_utf8).sum()
}

/// The bytes of the replacement characters at a text's end: the next token may make them a character.
fn broken_end(text: &str) -> usize {
    let kept = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
    text.len() - kept.len()
}

#[cfg(test)]
mod tests;
