//! Which tokens begin and end a text, as a model's directory says.
//!
//! Hugging Face's models say it in the fields `bos_token_id` and `eos_token_id` of `generation_config.json`, or else of
//! `config.json`. A model that ends in several ways, as at a turn's end and at a document's, lists several ids.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::artifacts::{ArtifactError, atomic};

/// The first of them that has a field decides it.
const FILES: [&str; 2] = ["generation_config.json", "config.json"];
const LONGEST_FILE: u64 = 1 << 20;

/// The ids of the tokens that begin and end a text, where a directory names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextBounds {
    pub beginning: Option<u32>,
    pub ends: Vec<u32>,
}

/// What is read of either file.
#[derive(Debug, Default, Deserialize)]
struct Fields {
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a token id or a list of them")]
enum Ids {
    One(i64),
    Several(Vec<i64>),
}

impl Ids {
    /// Negative ids are a way to name none.
    fn into_tokens(self) -> Vec<u32> {
        let ids = match self {
            Ids::One(id) => vec![id],
            Ids::Several(ids) => ids,
        };
        ids.into_iter()
            .filter_map(|id| u32::try_from(id).ok())
            .collect()
    }
}

impl TextBounds {
    /// What the model's directory says. Fails where one of the files is damaged.
    pub fn read(directory: &Path) -> Result<Self, ArtifactError> {
        let mut bounds = TextBounds::default();
        for name in FILES {
            let path = directory.join(name);
            if !path.exists() {
                continue;
            }
            let json = atomic::read_small(&path, LONGEST_FILE)?;
            let fields: Fields = serde_json::from_slice(&json).map_err(|error| {
                ArtifactError::damaged(&path, "the configuration", error.to_string())
            })?;
            let tokens = |ids: Option<Ids>| ids.map(Ids::into_tokens).unwrap_or_default();
            if bounds.beginning.is_none() {
                bounds.beginning = tokens(fields.bos_token_id).first().copied();
            }
            if bounds.ends.is_empty() {
                bounds.ends = tokens(fields.eos_token_id);
            }
        }
        Ok(bounds)
    }

    /// Writes them into the directory's `generation_config.json`, whose other fields stay, where it says otherwise.
    pub fn keep(&self, directory: &Path) -> Result<(), ArtifactError> {
        if Self::read(directory)? == *self {
            return Ok(());
        }
        let path = directory.join(FILES[0]);
        let damaged = |error: serde_json::Error| {
            ArtifactError::damaged(&path, "the configuration", error.to_string())
        };
        let mut fields: Map<String, Value> = match path.exists() {
            true => serde_json::from_slice(&atomic::read_small(&path, LONGEST_FILE)?)
                .map_err(damaged)?,
            false => Map::new(),
        };
        fields.insert("bos_token_id".to_owned(), Value::from(self.beginning));
        fields.insert("eos_token_id".to_owned(), Value::from(self.ends.clone()));
        let json = serde_json::to_vec_pretty(&fields).map_err(damaged)?;
        atomic::write(&path, &json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<TextBounds, ArtifactError> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        TextBounds::read(folder.path())
    }

    #[test]
    fn the_generation_s_configuration_comes_before_the_model_s() {
        let of = |beginning, ends: &[u32]| TextBounds {
            beginning,
            ends: ends.to_vec(),
        };
        let model = (
            "config.json",
            r#"{"eos_token_id": 7, "bos_token_id": 5, "n_layer": 2}"#,
        );
        for (files, expected) in [
            (&[model][..], of(Some(5), &[7])),
            (
                &[
                    model,
                    ("generation_config.json", r#"{"eos_token_id": [3, 4]}"#),
                ],
                of(Some(5), &[3, 4]),
            ),
            (
                &[
                    model,
                    (
                        "generation_config.json",
                        r#"{"eos_token_id": null, "bos_token_id": 1}"#,
                    ),
                ],
                of(Some(1), &[7]),
            ),
            (&[("config.json", r#"{"eos_token_id": -1}"#)], of(None, &[])),
            (&[], of(None, &[])),
        ] {
            assert_eq!(read(files).expect("bounds"), expected, "{files:?}");
        }
        let damaged = read(&[("generation_config.json", r#"{"eos_token_id": "</s>"}"#)]);
        let told = damaged.expect_err("it is no id").to_string();
        assert!(told.contains("generation_config.json"), "{told}");
    }

    #[test]
    fn bounds_are_kept_beside_a_configuration_that_cannot_say_them() {
        let bounds = TextBounds {
            beginning: Some(5),
            ends: vec![7, 8],
        };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILES[0]);
        bounds.keep(folder.path()).expect("written");
        assert_eq!(TextBounds::read(folder.path()).expect("bounds"), bounds);
        std::fs::write(&path, r#"{"eos_token_id": 3, "top_k": 50}"#).expect("a file");
        bounds.keep(folder.path()).expect("written");
        assert_eq!(TextBounds::read(folder.path()).expect("bounds"), bounds);
        let kept = std::fs::read_to_string(&path).expect("a file");
        assert!(kept.contains("top_k"), "{kept}");
    }
}
