//! A `tokenizer.json` put together from its parts, for the files that describe a tokenizer in another way.

use serde_json::{Map, Value, json};

use super::error::TokenizerError;

/// What stands for a space in the pieces of SentencePiece.
pub const SPACE: &str = "\u{2581}";

/// The parts of a `tokenizer.json`; those that are null do nothing.
#[derive(Debug, Default)]
pub struct TokenizerParts {
    /// What [`added`] makes, in the order of ids.
    pub added_tokens: Vec<Value>,
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub post_processor: Value,
    pub decoder: Value,
    pub model: Value,
}

/// A token with its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedToken {
    pub id: u32,
    pub content: String,
}

impl TokenizerParts {
    /// The `tokenizer.json`, without truncation or padding.
    pub fn to_json(&self) -> Result<Vec<u8>, TokenizerError> {
        let whole = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added_tokens, "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer, "post_processor": self.post_processor,
            "decoder": self.decoder, "model": self.model,
        });
        serde_json::to_vec(&whole).map_err(|error| TokenizerError::Invalid(error.to_string()))
    }
}

/// A token that is found in a text as it stands, before anything else is done to the text.
pub fn added(id: u32, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special,
    })
}

/// Steps one after the other; null where there are none.
pub fn sequence(field: &str, steps: Vec<Value>) -> Value {
    match steps.len() {
        0 => Value::Null,
        1 => steps.into_iter().next().unwrap_or_default(),
        _ => json!({"type": "Sequence", field: steps}),
    }
}

/// Splits a text so that each match of `pattern` is a piece of its own.
pub fn isolating(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

/// What puts these tokens before and behind a text; null where there are none.
pub fn template(beginning: Option<&NamedToken>, end: Option<&NamedToken>) -> Value {
    let special = |token: &NamedToken, part: u32| json!({"SpecialToken": {"id": token.content, "type_id": part}});
    let around = |name: &str, part: u32| -> Vec<Value> {
        let text = json!({"Sequence": {"id": name, "type_id": part}});
        let before = beginning.map(|token| special(token, part));
        let behind = end.map(|token| special(token, part));
        before.into_iter().chain([text]).chain(behind).collect()
    };
    let tokens: Map<String, Value> = beginning
        .into_iter()
        .chain(end)
        .map(|token| {
            let content = &token.content;
            let described = json!({"id": content, "ids": [token.id], "tokens": [content]});
            (content.clone(), described)
        })
        .collect();
    if tokens.is_empty() {
        return Value::Null;
    }
    let (single, second) = (around("A", 0), around("B", 1));
    let pair = [single.clone(), second].concat();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}
