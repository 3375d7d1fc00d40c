//! The text of a completion as it grows: stop texts found across tokens, characters kept whole.
//!
//! Tokens are runs of bytes that need not be whole characters. Text is released once it can no longer become
//! part of a stop text or of a character still to be completed; what is left at the end with bytes that are no
//! UTF-8 gets replacement characters.

/// A completion's text and the texts that end it.
#[derive(Debug, Clone)]
pub struct GrowingText {
    stops: Vec<Vec<u8>>,
    bytes: Vec<u8>,
    /// Bytes already released.
    released: usize,
    /// Where the text ends, once it does.
    end: Option<usize>,
}

impl GrowingText {
    /// Ends at the first of `stops`, none of which is empty.
    pub fn new(stops: &[String]) -> Self {
        GrowingText {
            stops: stops.iter().map(|stop| stop.as_bytes().to_vec()).collect(),
            bytes: Vec::new(),
            released: 0,
            end: None,
        }
    }

    /// Adds one token's bytes; true once a stop text is complete.
    pub fn push(&mut self, piece: &[u8]) -> bool {
        if self.end.is_some() {
            return true;
        }
        let before = self.bytes.len();
        self.bytes.extend_from_slice(piece);
        let matches = self.stops.iter().filter_map(|stop| {
            // A match that ended before this piece would have been found before.
            let from = (before + 1).saturating_sub(stop.len());
            let found = self.bytes[from..]
                .windows(stop.len())
                .position(|window| window == stop);
            found.map(|offset| from + offset)
        });
        self.end = matches.min();
        self.end.is_some()
    }

    /// The text that has become certain since the last call. After the last token, `last` releases the rest.
    pub fn release(&mut self, last: bool) -> String {
        let until = match (self.end, last) {
            (Some(end), _) => end.max(self.released),
            (None, true) => self.bytes.len(),
            (None, false) => self.certain(),
        };
        let text = String::from_utf8_lossy(&self.bytes[self.released..until]).into_owned();
        self.released = until;
        text
    }

    /// How many bytes the text has, without what a stop text cut off.
    pub fn length(&self) -> usize {
        self.end.unwrap_or(self.bytes.len())
    }

    /// How many of its bytes have been released.
    pub fn released(&self) -> usize {
        self.released
    }

    /// The whole text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes[..self.length()]).into_owned()
    }

    /// The end of what can be released while more may come.
    fn certain(&self) -> usize {
        let unread = &self.bytes[self.released..];
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

    /// The released pieces, the whole text, and whether a stop was found.
    fn grow(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut text = GrowingText::new(&stops);
        let mut stopped = false;
        let mut released = Vec::new();
        for piece in pieces {
            stopped = text.push(piece);
            released.push(text.release(false));
            if stopped {
                break;
            }
        }
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
