//! The tokenizer of a GGUF file as a `tokenizer.json`.
//!
//! `tokenizer.ggml.model = gpt2` is a byte-level BPE with its vocabulary and merges; how it splits a text before them is no
//! part of the file but a name, `tokenizer.ggml.pre`. A table here says what the names mean; one that is not there is refused,
//! since a wrong split makes wrong tokens silently.

use serde_json::{Map, Value as Json, json};

use super::metadata::Metadata;
use crate::artifacts::gguf::HeaderValue;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The patterns that a text is split by, one after the other, for each name of `tokenizer.ggml.pre`.
const SPLITS: [(&str, &[&str]); 17] = [
    ("gpt-2", &[GPT2]),
    ("gpt2", &[GPT2]),
    ("phi-2", &[GPT2]),
    ("olmo", &[GPT2]),
    ("mpt", &[GPT2]),
    ("default", &[GPT2]),
    // Every digit is a piece of its own.
    ("smollm", &[r"\p{N}", GPT2]),
    ("starcoder", &[r"\p{N}", GPT2]),
    ("refact", &[r"\p{N}", GPT2]),
    ("command-r", &[r"\p{N}", GPT2]),
    ("codeshell", &[r"\p{N}", GPT2]),
    ("llama-bpe", &[LLAMA3]),
    ("llama3", &[LLAMA3]),
    ("dbrx", &[LLAMA3]),
    ("smaug-bpe", &[LLAMA3]),
    ("qwen2", &[QWEN2]),
    ("tekken", &[TEKKEN]),
];

/// `tokenizer.ggml.token_type` of a token that stands for no text, and of one that a model's maker added.
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;

/// The file's tokenizer.
pub fn from_metadata(metadata: &Metadata) -> Result<Vec<u8>, String> {
    let model = metadata
        .text("tokenizer.ggml.model")?
        .ok_or("tokenizer.ggml.model is absent: the file has no tokenizer")?;
    if model != "gpt2" {
        let model: String = model.chars().take(60).collect();
        return Err(format!(
            "tokenizer.ggml.model is {model:?}; gpt2 (byte-level BPE) is supported"
        ));
    }
    let pre = metadata.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let known = SPLITS.iter().find(|(name, _)| *name == pre);
    let Some((_, patterns)) = known else {
        let names: Vec<&str> = SPLITS.iter().map(|(name, _)| *name).collect();
        let pre: String = pre.chars().take(60).collect();
        return Err(format!(
            "tokenizer.ggml.pre is {pre:?}; {} are supported",
            names.join(", ")
        ));
    };
    let texts = |key: &str| -> Result<Vec<&str>, String> {
        let values = metadata
            .list(key)?
            .ok_or_else(|| format!("{key} is absent"))?;
        let mut texts = Vec::with_capacity(values.len());
        for value in values {
            match value {
                HeaderValue::String(text) => texts.push(text.as_str()),
                _ => return Err(format!("{key} holds something that is no text")),
            }
        }
        Ok(texts)
    };
    let tokens = texts("tokenizer.ggml.tokens")?;
    let merges: Vec<Json> = texts("tokenizer.ggml.merges")?
        .into_iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok(json!([left, right])),
            None => Err(format!("the merge {merge:?} is not two tokens")),
        })
        .collect::<Result<_, String>>()?;
    let types = metadata.list("tokenizer.ggml.token_type")?.unwrap_or(&[]);
    let kind = |id: usize| match types.get(id) {
        Some(HeaderValue::I32(kind)) => i128::from(*kind),
        Some(HeaderValue::U32(kind)) => i128::from(*kind),
        _ => 1,
    };
    let mut vocabulary = Map::new();
    let mut added = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocabulary.insert((*token).to_owned(), json!(id)).is_some() {
            return Err(format!("the token {token:?} is there twice"));
        }
        if [CONTROL, USER_DEFINED].contains(&kind(id)) {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind(id) == CONTROL,
            }));
        }
    }
    let mut splits: Vec<Json> = patterns
        .iter()
        .map(|pattern| {
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
        })
        .collect();
    splits.push(json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    }));
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "post_processor": beginning(metadata, &tokens)?,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            // A whole piece that is a token is that token, whatever its merges.
            "ignore_merges": matches!(pre, "llama-bpe" | "llama3" | "tekken"),
            "vocab": vocabulary, "merges": merges,
        },
    });
    serde_json::to_vec(&tokenizer).map_err(|error| error.to_string())
}

/// Puts the beginning-of-text token before a text, where the file says so.
fn beginning(metadata: &Metadata, tokens: &[&str]) -> Result<Json, String> {
    let id = metadata.size("tokenizer.ggml.bos_token_id")?;
    // Files of Llama 3 leave the switch out.
    let adds = match metadata.boolean("tokenizer.ggml.add_bos_token")? {
        Some(adds) => adds,
        None => matches!(
            metadata.text("tokenizer.ggml.pre")?,
            Some("llama-bpe" | "llama3")
        ),
    };
    let Some((id, token)) = id
        .and_then(|id| Some((id, *tokens.get(id)?)))
        .filter(|_| adds)
    else {
        return Ok(Json::Null);
    };
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": token, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }))
}
