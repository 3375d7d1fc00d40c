//! The text of a completion as it grows: stop texts found across tokens, characters kept whole.
//!
//! The tokenizer's decoder gives text as it becomes certain, in runs of bytes that need not be whole characters. Text is
//! released once it can no longer become part of a stop text or of a character still to be completed; what is left at
//! the end with bytes that are no UTF-8 gets replacement characters.

use crate::models::tokenizer::Tokenizer;
use crate::models::tokenizer::decoding::TextDecoder;

/// A completion's text and the texts that end it.
#[derive(Debug, Clone)]
pub struct GrowingText {
    stops: Vec<Vec<u8>>,
    decoder: TextDecoder,
    /// Bytes in which no stop text begins that they hold wholly.
    searched: usize,
    /// Bytes already released.
    released: usize,
    /// Where the text ends, once a stop text is complete.
    end: Option<usize>,
}

impl GrowingText {
    /// The text that follows the tokens `prompt`, up to the first of `stops`, none of which is empty.
    pub fn new(stops: &[String], prompt: &[u32], tokenizer: &Tokenizer) -> Self {
        GrowingText {
            stops: stops.iter().map(|stop| stop.as_bytes().to_vec()).collect(),
            decoder: TextDecoder::after(prompt, tokenizer),
            searched: 0,
            released: 0,
            end: None,
        }
    }

    /// Adds one token; true once a stop text is complete.
    pub fn push(&mut self, id: u32, tokenizer: &Tokenizer) -> bool {
        if self.end.is_none() {
            self.decoder.push(tokenizer, id);
            self.search();
        }
        self.end.is_some()
    }

    /// No token comes any more; true where a stop text is complete.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> bool {
        if self.end.is_none() {
            self.decoder.finish(tokenizer);
            self.search();
        }
        self.end.is_some()
    }

    /// Looks for stop texts in what has come since the last time.
    fn search(&mut self) {
        let bytes = &self.decoder.text.bytes;
        let matches = self.stops.iter().filter_map(|stop| {
            // A match that ended before would have been found before.
            let from = (self.searched + 1).saturating_sub(stop.len());
            let found = bytes
                .get(from..)?
                .windows(stop.len())
                .position(|window| window == stop);
            found.map(|offset| from + offset)
        });
        self.end = matches.min();
        self.searched = bytes.len();
    }

    /// The text that has become certain since the last call. After the last token, `last` releases the rest.
    pub fn release(&mut self, last: bool) -> String {
        let until = match (self.end, last) {
            (Some(end), _) => end.max(self.released),
            (None, true) => self.decoder.text.bytes.len(),
            (None, false) => self.certain(),
        };
        let bytes = &self.decoder.text.bytes[self.released..until];
        let text = String::from_utf8_lossy(bytes).into_owned();
        self.released = until;
        text
    }

    /// How many of the first `tokens` tokens begin in the text, without what a stop text cut off.
    pub fn tokens_within(&self, tokens: usize) -> usize {
        let Some(end) = self.end else {
            return tokens;
        };
        (0..tokens)
            .take_while(|&token| self.decoder.text.begins_at(token) < end)
            .count()
    }

    /// How many tokens have all of their text released.
    pub fn tokens_released(&self) -> usize {
        let ends = &self.decoder.text.ends;
        ends.partition_point(|&end| end <= self.released)
    }

    /// The characters of the text before a token. Tokens are asked for in their order, once they are released.
    pub fn start_of(&mut self, token: usize) -> usize {
        self.decoder.text.start_of(token)
    }

    /// The whole text.
    pub fn text(&self) -> String {
        let bytes = &self.decoder.text.bytes;
        let length = self.end.unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// The end of what can be released while more may come.
    fn certain(&self) -> usize {
        let unread = &self.decoder.text.bytes[self.released..];
        let begun = |stop: &Vec<u8>| {
            let longest = (stop.len() - 1).min(unread.len());
            (1..=longest)
                .rev()
                .find(|&length| unread.ends_with(&stop[..length]))
                .unwrap_or(0)
        };
        let held = self.stops.iter().map(begun).max().unwrap_or(0);
        let mut until = unread.len() - held;
        // A character that the next token may complete is held back too.
        let mut checked = 0;
        while let Err(error) = std::str::from_utf8(&unread[checked..until]) {
            let valid = checked + error.valid_up_to();
            match error.error_len() {
                Some(length) => checked = valid + length,
                None => until = valid,
            }
        }
        self.released + until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::tokenizer::train_bpe;

    /// A tokenizer that is not asked for more than its bytes: one token each.
    fn bytes() -> Tokenizer {
        train_bpe(std::iter::once("ab ab ab".to_owned()), 258).expect("a tokenizer")
    }

    /// The released pieces, the whole text, and whether a stop was found.
    fn grow(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, String, bool) {
        let tokenizer = bytes();
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut text = GrowingText::new(&stops, &[], &tokenizer);
        let id_of = |byte: u8| {
            let mut ids = 0..tokenizer.vocab_size() as u32;
            ids.find(|&id| tokenizer.token_bytes(id) == [byte])
                .expect("every byte is a token")
        };
        let mut stopped = false;
        let mut released = Vec::new();
        for piece in pieces {
            for &byte in *piece {
                stopped = stopped || text.push(id_of(byte), &tokenizer);
            }
            released.push(text.release(false));
            if stopped {
                break;
            }
        }
        assert_eq!(text.finish(&tokenizer), stopped);
        released.push(text.release(true));
        assert_eq!(released.concat(), text.text());
        (released, text.text(), stopped)
    }

    #[test]
    fn a_stop_text_is_found_across_tokens_and_its_beginning_is_held_back() {
        let (released, text, stopped) = grow(&["\n\n"], &[b"a\n", b"b\n", b"\nc"]);
        assert_eq!((text.as_str(), stopped), ("a\nb", true));
        assert_eq!(released, ["a", "\nb", "", ""]);
        let (_, text, stopped) = grow(&["END"], &[b"xE", b"N", b"Dy"]);
        assert_eq!((text.as_str(), stopped), ("x", true));
    }

    #[test]
    fn the_earliest_stop_counts_and_a_beginning_alone_does_not() {
        let (_, text, _) = grow(&["cd", "bc"], &[b"ab", b"cd"]);
        assert_eq!(text, "a");
        let (released, text, stopped) = grow(&["END"], &[b"xE", b"N", b"x", b"EN"]);
        assert_eq!((text.as_str(), stopped), ("xENxEN", false));
        assert_eq!(released, ["x", "", "ENx", "", "EN"]);
    }

    #[test]
    fn characters_stay_whole_and_broken_ones_are_replaced() {
        let euro = "€".as_bytes();
        let (released, text, _) = grow(&[], &[&euro[..1], &euro[1..], b"\xff!", &euro[..2]]);
        assert_eq!(released, ["", "€", "\u{fffd}!", "", "\u{fffd}"]);
        assert_eq!(text, "€\u{fffd}!\u{fffd}");
        let (_, text, stopped) = grow(&["€"], &[b"a", &euro[..2], &euro[2..], b"b"]);
        assert_eq!((text.as_str(), stopped), ("a", true));
    }
}
