//! What a tokenizer's own decoder looks at: which tokens are text by themselves, and how far later ones change it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;

/// How far later tokens change what a decoder makes of earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderRules {
    /// A token is a run of bytes, whatever stands beside it.
    pub byte_level: bool,
    /// A run of tokens such as `<0xE6>` is text only as a whole.
    pub byte_fallback: bool,
    /// A replacement across tokens can change so many of the last characters.
    pub held: Held,
}

/// What of a text later tokens can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// So many of the last characters.
    Characters(usize),
    All,
}

impl DecoderRules {
    /// Those of a tokenizer's decoder. Fails where that cannot be written as JSON.
    pub fn of(decoder: Option<&DecoderWrapper>) -> Result<Self, serde_json::Error> {
        let mut rules = DecoderRules {
            byte_level: matches!(decoder, Some(DecoderWrapper::ByteLevel(_))),
            byte_fallback: false,
            held: Held::Characters(0),
        };
        if let Some(decoder) = decoder.filter(|_| !rules.byte_level) {
            rules.add(&serde_json::to_value(decoder)?, &mut false);
        }
        Ok(rules)
    }

    /// Takes in one step, or a chain of them; `joined` says whether an earlier step has made one text of all tokens.
    fn add(&mut self, step: &Value, joined: &mut bool) {
        match step["type"].as_str() {
            Some("Sequence") => {
                for step in step["decoders"].as_array().into_iter().flatten() {
                    self.add(step, joined);
                }
            }
            Some("ByteFallback") => self.byte_fallback = true,
            Some("Fuse" | "ByteLevel") => *joined = true,
            Some("Replace") if *joined => {
                let found = step["pattern"]["String"].as_str();
                self.held = match (self.held, found) {
                    (Held::Characters(held), Some(found)) => {
                        Held::Characters(held + found.chars().count().saturating_sub(1))
                    }
                    _ => Held::All,
                };
            }
            _ => {}
        }
    }

    /// Whether a token is a run of bytes, whatever stands beside it.
    pub fn is_byte_level(self) -> bool {
        self.byte_level
    }

    /// The byte that a token such as `<0xE6>` stands for.
    pub fn fallback_byte(self, token: &str) -> Option<u8> {
        let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
        let is_byte = self.byte_fallback && digits.len() == 2;
        u8::from_str_radix(digits, 16).ok().filter(|_| is_byte)
    }
}

/// What the decoder makes of a sequence; none where it fails. Some decoders panic on sequences that no text gives.
pub fn decoded(tokenizer: &tokenizers::Tokenizer, ids: &[u32]) -> Option<String> {
    // The library counts back from the last token, of which there is none.
    if ids.is_empty() {
        return Some(String::new());
    }
    catch_unwind(AssertUnwindSafe(|| tokenizer.decode(ids, false)))
        .ok()?
        .ok()
}
