//! The tokenizer in a model's directory, whichever files it is made of.
//!
//! | files | form |
//! |---|---|
//! | `tokenizer.json` | Hugging Face's, read as it is |
//! | `vocab.json`, `merges.txt` | its older form, byte-level; the class says how a text is split ([`classes`]) |
//! | `tokenizer.model` | SentencePiece's byte-pair encoding |
//! | `encoder.json`, `vocab.bpe` | GPT-2's, of the released sparse checkpoints |
//!
//! The first that is there decides. Beside the second and the third, `tokenizer_config.json`, `special_tokens_map.json` and
//! `added_tokens.json` say the class, the switches and the special tokens.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::tokenizer::parts::TokenizerParts;
use super::tokenizer::settings::{SettingsFiles, TokenizerSettings};
use super::tokenizer::{SPLIT_PATTERN, Tokenizer, TokenizerError, classes, formats, growth};
use crate::artifacts::{ArtifactError, atomic};

const TOKENIZER_JSON: &str = "tokenizer.json";
const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const PIECES: &str = "tokenizer.model";
const ENCODER: &str = "encoder.json";
const ENCODER_MERGES: &str = "vocab.bpe";
const SETTINGS: [&str; 3] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];
const CONFIG: &str = "config.json";

const LONGEST_TOKENIZER: u64 = 64 << 20;
const LONGEST_CONFIG: u64 = 1 << 20;

/// A tokenizer and the file that it was read from.
#[derive(Debug)]
pub struct FoundTokenizer {
    pub path: PathBuf,
    pub tokenizer: Result<Tokenizer, TokenizerError>,
    /// Its `tokenizer.json`, where there is one.
    pub json: Option<Vec<u8>>,
}

/// What is read of a model's configuration.
#[derive(Deserialize)]
struct ModelConfig {
    model_type: Option<String>,
}

/// The tokenizer in `directory`; none where there are no files of one.
pub fn read(directory: &Path) -> Result<Option<FoundTokenizer>, ArtifactError> {
    let there = |name: &str| directory.join(name).exists();
    let read = |name: &str| atomic::read_small(&directory.join(name), LONGEST_TOKENIZER);
    if there(TOKENIZER_JSON) {
        let json = read(TOKENIZER_JSON)?;
        let tokenizer = match growth::check(&json) {
            Ok(()) => Tokenizer::from_bytes(&json),
            Err(problem) => Err(TokenizerError::Invalid(problem)),
        };
        return Ok(Some(FoundTokenizer {
            path: directory.join(TOKENIZER_JSON),
            tokenizer,
            json: Some(json),
        }));
    }
    if there(VOCABULARY) && there(MERGES) {
        let (vocabulary, merges) = (read(VOCABULARY)?, text(directory, MERGES)?);
        let model_type = model_type(directory)?;
        let parts = settings(directory)?.and_then(|settings| {
            classes::from_merges(&vocabulary, &merges, &settings, model_type.as_deref())
        });
        return Ok(Some(built(directory.join(VOCABULARY), parts)));
    }
    if there(PIECES) {
        let pieces = read(PIECES)?;
        let model_type = model_type(directory)?;
        let parts = settings(directory)?
            .and_then(|settings| classes::from_pieces(&pieces, &settings, model_type.as_deref()));
        return Ok(Some(built(directory.join(PIECES), parts)));
    }
    if there(ENCODER) && there(ENCODER_MERGES) {
        let (encoder, merges) = (read(ENCODER)?, text(directory, ENCODER_MERGES)?);
        return Ok(Some(FoundTokenizer {
            path: directory.join(ENCODER),
            tokenizer: formats::from_gpt2(&encoder, &merges, SPLIT_PATTERN),
            json: None,
        }));
    }
    Ok(None)
}

/// About how many bytes the `tokenizer.json` has that a directory's files become, at most.
pub fn json_bytes(directory: &Path) -> u64 {
    // Spelled out, and pieces with the merges that lead to them.
    let longer = [VOCABULARY, MERGES, ENCODER, ENCODER_MERGES].iter();
    let longer = longer.chain(&SETTINGS).map(|name| (*name, 2));
    let files = longer.chain([(TOKENIZER_JSON, 1), (PIECES, 8)]);
    let sizes = files.map(|(name, times)| {
        let file = std::fs::metadata(directory.join(name));
        file.map_or(0, |file| file.len()).saturating_mul(times)
    });
    sizes.fold(0, u64::saturating_add)
}

fn built(path: PathBuf, parts: Result<TokenizerParts, TokenizerError>) -> FoundTokenizer {
    let json = parts.and_then(|parts| parts.to_json());
    let (tokenizer, json) = match json {
        Ok(json) => (Tokenizer::from_bytes(&json), Some(json)),
        Err(error) => (Err(error), None),
    };
    FoundTokenizer {
        path,
        tokenizer,
        json,
    }
}

fn text(directory: &Path, name: &str) -> Result<String, ArtifactError> {
    let path = directory.join(name);
    let bytes = atomic::read_small(&path, LONGEST_TOKENIZER)?;
    String::from_utf8(bytes)
        .map_err(|error| ArtifactError::damaged(&path, "the merges", error.to_string()))
}

/// The outer error is of a file that cannot be read, the inner one of what is in it.
fn settings(directory: &Path) -> Result<Result<TokenizerSettings, TokenizerError>, ArtifactError> {
    let [tokenizer_config, special_tokens_map, added_tokens] = SETTINGS.map(|name| {
        let path = directory.join(name);
        let file = path
            .exists()
            .then(|| atomic::read_small(&path, LONGEST_TOKENIZER));
        file.transpose()
    });
    Ok(TokenizerSettings::parse(&SettingsFiles {
        tokenizer_config: tokenizer_config?,
        special_tokens_map: special_tokens_map?,
        added_tokens: added_tokens?,
    }))
}

fn model_type(directory: &Path) -> Result<Option<String>, ArtifactError> {
    let path = directory.join(CONFIG);
    if !path.exists() {
        return Ok(None);
    }
    let json = atomic::read_small(&path, LONGEST_CONFIG)?;
    let config: ModelConfig = serde_json::from_slice(&json)
        .map_err(|error| ArtifactError::damaged(&path, "the configuration", error.to_string()))?;
    Ok(config.model_type)
}
