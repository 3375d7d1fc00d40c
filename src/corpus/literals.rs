//! Where the string literals of Python code are: real code has no labels, so its strings are found by a scan.
//!
//! Indices are bytes. The scan knows comments, both quotes, triple quotes and escapes, which is enough to find
//! strings that certainly are strings; it does not parse.

use std::ops::Range;

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

impl Literal {
    /// The quote it could as well have.
    pub fn other_quote(self) -> char {
        if self.quote == '"' { '\'' } else { '"' }
    }
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

/// The bytes up to the end of the line (at least one).
pub fn line_end(bytes: &[u8]) -> usize {
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
