//! The size that a normalizer's table of characters claims for itself, held against what is there.
//!
//! A `Precompiled` normalizer of a `tokenizer.json` holds SentencePiece's table in base64: four bytes that say how long its
//! trie is, the trie, and the texts that it points to. The tokenizers' library makes room for what those four bytes say before
//! it reads on, up to eight gigabytes for a file of a few bytes; so they are looked at first.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::error::TokenizerError;

/// As much of a `tokenizer.json` as is looked at.
#[derive(Deserialize)]
struct Described<'j> {
    #[serde(borrow, default)]
    normalizer: Option<Normalizer<'j>>,
}

#[derive(Deserialize)]
struct Normalizer<'j> {
    #[serde(borrow, default)]
    precompiled_charsmap: Option<Cow<'j, str>>,
    /// Of a sequence.
    #[serde(borrow, default)]
    normalizers: Option<Vec<Normalizer<'j>>>,
}

/// Refuses a `tokenizer.json` that is no JSON, or one of whose tables claims to be longer than it is.
pub fn check(json: &[u8]) -> Result<(), TokenizerError> {
    let described: Described =
        serde_json::from_slice(json).map_err(|error| TokenizerError::Invalid(error.to_string()))?;
    described
        .normalizer
        .as_ref()
        .map_or(Ok(()), Normalizer::check)
}

impl Normalizer<'_> {
    fn check(&self) -> Result<(), TokenizerError> {
        if let Some(table) = &self.precompiled_charsmap {
            check_table(table).map_err(TokenizerError::Invalid)?;
        }
        let mut parts = self.normalizers.iter().flatten();
        parts.try_for_each(Normalizer::check)
    }
}

fn check_table(table: &str) -> Result<(), String> {
    let bytes = STANDARD
        .decode(table)
        .map_err(|error| format!("its precompiled_charsmap is no base64: {error}"))?;
    let Some((claimed, rest)) = bytes.split_first_chunk() else {
        // Nothing is claimed; an empty table is none.
        return Ok(());
    };
    let claimed = u32::from_le_bytes(*claimed) as usize;
    match claimed <= rest.len() {
        true => Ok(()),
        false => Err(format!(
            "its precompiled_charsmap claims a trie of {claimed} bytes and has {}",
            rest.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn checked(normalizer: Value) -> Result<(), String> {
        let file = json!({"version": "1.0", "normalizer": normalizer, "model": {"type": "BPE"}});
        let told = check(file.to_string().as_bytes());
        told.map_err(|error| error.to_string())
    }

    fn precompiled(claimed: u32, trie: &[u8]) -> Value {
        let bytes: Vec<u8> = claimed.to_le_bytes().iter().chain(trie).copied().collect();
        json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(bytes)})
    }

    #[test]
    fn a_table_is_at_least_as_long_as_it_claims() {
        assert_eq!(checked(Value::Null), Ok(()));
        assert_eq!(checked(json!({"type": "NFKC"})), Ok(()));
        assert_eq!(checked(precompiled(8, &[0; 8])), Ok(()));
        assert_eq!(checked(precompiled(4, &[0; 8])), Ok(()));
        for lying in [
            precompiled(9, &[0; 8]),
            precompiled(u32::MAX, &[]),
            json!({"type": "Sequence", "normalizers": [
                {"type": "NFC"},
                {"type": "Sequence", "normalizers": [precompiled(1 << 31, &[1; 5])]},
            ]}),
        ] {
            let refused = checked(lying).expect_err("a lie");
            assert!(refused.contains("claims a trie of"), "{refused}");
        }
        let broken = json!({"type": "Precompiled", "precompiled_charsmap": "no base64!"});
        assert!(checked(broken).expect_err("no table").contains("base64"));
        assert!(check(b"{").is_err());
    }
}
