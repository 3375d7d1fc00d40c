//! How byte-level tokenizers split a text before they merge: the patterns of the families, by the names that files
//! give them.
//!
//! A GGUF file names its split in `tokenizer.ggml.pre`, a Hugging Face directory by its tokenizer's class. What the names
//! mean is in no file, so a name that is not here is refused: a wrong split makes wrong tokens silently.

use serde_json::{Map, Value, json};

use super::parts::{TokenizerParts, isolating, sequence};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";

/// How a text becomes the words that merges are made within.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSplit {
    /// Patterns whose matches become pieces, one after the other.
    patterns: &'static [&'static str],
    /// Whether GPT-2's pattern comes after them.
    gpt2: bool,
    /// Whether a text is brought to Unicode's composed form (NFC) first.
    composes: bool,
    /// Whether a whole piece that is a token is that token, whatever its merges.
    pub ignores_merges: bool,
    /// Whether a beginning-of-text token comes before a text where a file does not say.
    pub begins: bool,
}

const OWN: ByteSplit = ByteSplit {
    patterns: &[],
    gpt2: false,
    composes: false,
    ignores_merges: false,
    begins: false,
};
/// GPT-2's.
pub const GPT2: ByteSplit = ByteSplit { gpt2: true, ..OWN };
/// GPT-2's behind NFC.
pub const GPT_NEOX: ByteSplit = ByteSplit {
    composes: true,
    ..GPT2
};
const DIGITS: ByteSplit = ByteSplit {
    patterns: &[DIGIT],
    ..GPT2
};
pub const QWEN: ByteSplit = ByteSplit {
    patterns: &[QWEN2],
    composes: true,
    ..OWN
};
const LLAMA_3: ByteSplit = ByteSplit {
    patterns: &[LLAMA3],
    ignores_merges: true,
    begins: true,
    ..OWN
};

/// What each name of `tokenizer.ggml.pre` means.
const NAMES: [(&str, ByteSplit); 22] = [
    ("gpt-2", GPT2),
    ("gpt2", GPT2),
    ("phi-2", GPT2),
    ("olmo", GPT_NEOX),
    ("mpt", GPT_NEOX),
    // Every digit is a piece of its own.
    ("smollm", DIGITS),
    ("starcoder", DIGITS),
    ("refact", DIGITS),
    ("codeshell", DIGITS),
    (
        "command-r",
        ByteSplit {
            composes: true,
            ..DIGITS
        },
    ),
    ("llama-bpe", LLAMA_3),
    ("llama3", LLAMA_3),
    ("llama-v3", LLAMA_3),
    (
        "dbrx",
        ByteSplit {
            patterns: &[LLAMA3],
            ..OWN
        },
    ),
    (
        "smaug-bpe",
        ByteSplit {
            patterns: &[LLAMA3],
            ..OWN
        },
    ),
    ("qwen2", QWEN),
    (
        "tekken",
        ByteSplit {
            patterns: &[TEKKEN],
            ..LLAMA_3
        },
    ),
    (
        "gpt-4o",
        ByteSplit {
            patterns: &[GPT4O],
            ..OWN
        },
    ),
    (
        "llama4",
        ByteSplit {
            patterns: &[GPT4O],
            ..OWN
        },
    ),
    (
        "deepseek-coder",
        ByteSplit {
            patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, DIGIT],
            ..OWN
        },
    ),
    (
        "deepseek-llm",
        ByteSplit {
            patterns: &[
                r"[\r\n]",
                LETTERS_WITH_CASE,
                "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+",
                r"\s+$",
                CJK,
                DIGIT,
            ],
            ..OWN
        },
    ),
    // llama.cpp's own, for files whose converter did not know better.
    (
        "default",
        ByteSplit {
            patterns: &[
                r"[\p{P}\$\+<=>\^~\|]+",
                GPT2_PATTERN,
                r"\p{N}+",
                r"[0-9][0-9][0-9]",
            ],
            ..OWN
        },
    ),
];

const GPT2_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const CJK: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
/// The letters that have two cases, or had, in one run.
const LETTERS_WITH_CASE: &str = "\
    \\s?[A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}\
    \u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\
    \u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\
    \u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\
    \u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\
    \u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\
    \u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\
    \u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\
    \u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\
    \u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\
    \u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\
    \u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\
    \u{118a0}-\u{118df}\u{1e900}-\u{1e943}]+";

impl ByteSplit {
    /// What a name of `tokenizer.ggml.pre` means; an error lists those that are known.
    pub fn named(name: &str) -> Result<Self, String> {
        let known = NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, split)| *split).ok_or_else(|| {
            let name: String = name.chars().take(60).collect();
            format!("is {name:?}; {} are supported", Self::names())
        })
    }

    /// The names of `tokenizer.ggml.pre` that are known.
    pub fn names() -> String {
        let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        names.join(", ")
    }

    /// A byte-level BPE that splits so. `prefix_space` puts a space before a text.
    pub fn parts(
        &self,
        vocabulary: Map<String, Value>,
        merges: Vec<(String, String)>,
        prefix_space: bool,
    ) -> TokenizerParts {
        let mut splits: Vec<Value> = self.patterns.iter().copied().map(isolating).collect();
        splits.push(json!({
            "type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true, "use_regex": self.gpt2,
        }));
        TokenizerParts {
            normalizer: match self.composes {
                true => json!({"type": "NFC"}),
                false => Value::Null,
            },
            pre_tokenizer: sequence("pretokenizers", splits),
            decoder: json!({
                "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
            }),
            model: json!({
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": self.ignores_merges, "vocab": vocabulary, "merges": merges,
            }),
            ..TokenizerParts::default()
        }
    }
}
