//! How much longer a tokenizer's rules can make a text: bounded before any text is given to it.
//!
//! A `tokenizer.json` chains steps that rewrite the text, and a step that doubles it, forty-five times over, makes more
//! than any memory holds of a few characters. Each step's largest factor, in bytes, is known from its kind and
//! its parameters; their product is held against a bound that no tokenizer in use comes near.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The largest factor by which all steps together may lengthen a text, in either direction.
const MOST_GROWTH: f64 = 4096.0;
/// No chain has more steps.
const MOST_STEPS: usize = 128;
/// Bytes that one step may put before a text.
const LONGEST_PREFIX: usize = 1024;
/// Unicode's compatibility forms make at most 18 characters of one: 33 bytes of 3.
const COMPATIBILITY: f64 = 11.0;
/// Its canonical forms make at most 3 characters of 1: 6 bytes of 2.
const CANONICAL: f64 = 3.0;

/// The parts of a `tokenizer.json` that rewrite text.
#[derive(Debug, Deserialize)]
struct Steps {
    normalizer: Option<Step>,
    pre_tokenizer: Option<Step>,
    post_processor: Option<Step>,
    decoder: Option<Step>,
}

/// One step, or a chain of them, with the fields of all kinds that matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Step {
    #[serde(rename = "type")]
    kind: String,
    #[serde(
        alias = "normalizers",
        alias = "pretokenizers",
        alias = "processors",
        alias = "decoders"
    )]
    chain: Option<Bounded<Step>>,
    prepend: String,
    pattern: Pattern,
    content: String,
    single: Bounded<Piece>,
}

/// What a replacement looks for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pattern {
    #[serde(rename = "String")]
    text: Option<String>,
}

/// A part of a template: the text itself, or a special token.
#[derive(Debug, Deserialize)]
struct Piece {
    #[serde(rename = "Sequence")]
    text: Option<serde::de::IgnoredAny>,
}

/// At most [`MOST_STEPS`] of something.
#[derive(Debug)]
struct Bounded<T>(Vec<T>);

/// The growth of the steps met so far.
struct Growth {
    factor: f64,
    steps: usize,
}

/// Says which part of a `tokenizer.json` could lengthen a text beyond the bound.
pub fn check(json: &[u8]) -> Result<(), String> {
    let steps: Steps = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let mut growth = Growth {
        factor: 1.0,
        steps: 0,
    };
    growth.add("normalizer", steps.normalizer.as_ref())?;
    growth.add("pre_tokenizer", steps.pre_tokenizer.as_ref())?;
    growth.add("post_processor", steps.post_processor.as_ref())?;
    growth.factor = 1.0;
    growth.add("decoder", steps.decoder.as_ref())
}

impl Growth {
    fn add(&mut self, part: &str, step: Option<&Step>) -> Result<(), String> {
        let Some(step) = step else {
            return Ok(());
        };
        if let Some(Bounded(chain)) = &step.chain {
            let mut steps = chain.iter();
            return steps.try_for_each(|step| self.add(part, Some(step)));
        }
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return Err(format!("{part} has more than {MOST_STEPS} steps"));
        }
        let prefix = step.prepend.len();
        if prefix > LONGEST_PREFIX {
            return Err(format!(
                "{part} puts {prefix} bytes before a text; {LONGEST_PREFIX} are the most"
            ));
        }
        self.factor *= step.factor(part);
        if self.factor > MOST_GROWTH {
            return Err(format!(
                "the steps of {part} could make a text {:.0} times as long; {MOST_GROWTH} times is the most",
                self.factor
            ));
        }
        Ok(())
    }
}

impl Step {
    /// The largest factor by which this step lengthens a text.
    fn factor(&self, part: &str) -> f64 {
        match self.kind.as_str() {
            "Replace" => self.replacement(),
            // A byte of the text becomes a character of at most two; back again, one that is no UTF-8 becomes three.
            "ByteLevel" if part == "decoder" => 3.0,
            "ByteLevel" if part == "post_processor" => 1.0,
            "ByteLevel" => 2.0,
            // A space becomes a character of up to four bytes.
            "Metaspace" if part != "decoder" => 4.0,
            "NFKC" | "NFKD" | "Precompiled" => COMPATIBILITY,
            "NFC" | "NFD" | "BertNormalizer" => CANONICAL,
            "Lowercase" => 1.5,
            "BPEDecoder" | "WordPiece" => 2.0,
            "TemplateProcessing" => {
                let Bounded(pieces) = &self.single;
                let texts = pieces.iter().filter(|piece| piece.text.is_some());
                texts.count().max(1) as f64
            }
            _ => 1.0,
        }
    }

    /// Of a step that puts `content` in the place of what `pattern` finds. An expression may find something between
    /// any two bytes.
    fn replacement(&self) -> f64 {
        let content = self.content.len() as f64;
        match &self.pattern.text {
            Some(found) if !found.is_empty() => (content / found.len() as f64).max(1.0),
            _ => 1.0 + content,
        }
    }
}

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Bounded(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Bounded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = Bounded<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "a list of at most {MOST_STEPS}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Bounded<T>, A::Error> {
                let mut taken = Vec::new();
                while let Some(item) = items.next_element()? {
                    if taken.len() == MOST_STEPS {
                        return Err(A::Error::custom(format!("more than {MOST_STEPS} steps")));
                    }
                    taken.push(item);
                }
                Ok(Bounded(taken))
            }
        }

        deserializer.deserialize_seq(Items(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn checked(steps: Value) -> Result<(), String> {
        check(steps.to_string().as_bytes())
    }

    fn replace(pattern: Value, content: &str) -> Value {
        json!({"type": "Replace", "pattern": pattern, "content": content})
    }

    #[test]
    fn chains_that_double_a_text_are_refused_wherever_they_stand() {
        let doubling = replace(json!({"String": "a"}), "aa");
        let between = replace(json!({"Regex": "(?=.)"}), "b");
        let template = json!({"type": "TemplateProcessing", "single": [
            {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false});
        let compatible = json!({"type": "NFKD"});
        for (part, chain, step) in [
            ("normalizer", "normalizers", &doubling),
            ("normalizer", "normalizers", &between),
            ("normalizer", "normalizers", &compatible),
            ("pre_tokenizer", "pretokenizers", &bytes),
            ("post_processor", "processors", &template),
            ("decoder", "decoders", &doubling),
        ] {
            let chained = |count: usize| {
                let steps = vec![step.clone(); count];
                // In a chain within a chain.
                json!({part: {"type": "Sequence", chain: [{"type": "Sequence", chain: steps}]}})
            };
            assert_eq!(checked(chained(1)), Ok(()));
            let refused = checked(chained(45)).expect_err("a bomb");
            assert!(refused.contains(part), "{refused}");
        }
        // Neither part alone.
        let half = vec![doubling; 7];
        let both = json!({"normalizer": {"type": "Sequence", "normalizers": half.clone()},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": half}});
        assert!(checked(both).is_err());
        let many = vec![json!({"type": "Strip"}); 200];
        let many = checked(json!({"normalizer": {"type": "Sequence", "normalizers": many}}));
        assert!(many.expect_err("a bomb").contains("more than 128 steps"));
        let prefix = json!({"type": "Prepend", "prepend": "x".repeat(1 << 20)});
        assert!(checked(json!({ "normalizer": prefix })).is_err());
    }

    #[test]
    fn what_tokenizers_in_use_do_is_let_through() {
        let string = |text: &str| json!({"String": text});
        let regex = |text: &str| json!({"Regex": text});
        for steps in [
            // Llama's.
            json!({
                "normalizer": {"type": "Sequence", "normalizers": [
                    {"type": "Prepend", "prepend": "\u{2581}"}, replace(string(" "), "\u{2581}")]},
                "post_processor": {"type": "TemplateProcessing", "single": [
                    {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]},
                "decoder": {"type": "Sequence", "decoders": [replace(string("\u{2581}"), " "),
                    {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
            }),
            // XLNet's and ALBERT's.
            json!({
                "normalizer": {"type": "Sequence", "normalizers": [replace(string("``"), "\""),
                    replace(string("''"), "\""), {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
                    {"type": "Precompiled", "precompiled_charsmap": ""}, replace(regex(" {2,}"), " ")]},
                "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}"}
            }),
            // CLIP's.
            json!({
                "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, replace(regex(r"\s+"), " "),
                    {"type": "Lowercase"}]},
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split"}, {"type": "ByteLevel"}]}
            }),
            json!({"normalizer": {"type": "BertNormalizer"}, "decoder": {"type": "WordPiece"}}),
            json!({"normalizer": null, "decoder": null}),
        ] {
            assert_eq!(checked(steps), Ok(()));
        }
    }
}
