//! What a repository of a hub holds at one commit, and which of its files a model needs.
//!
//! The listing comes from a stranger. Names that would lead out of a folder are the end of it; others that no file here
//! may have belong to no model, and are passed over.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::name::CommitHash;
use crate::artifacts::manifest::FileName;
use crate::artifacts::partial_file::{Announced, ContentHash};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What stands beside a model's configuration and weights.
const BESIDE: [&str; 8] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
];
/// Ends of names of files that may run code when they are read.
const PICKLES: [&str; 4] = [".bin", ".pt", ".pth", ".ckpt"];
const GGUF: &str = ".gguf";
/// No model is in more files.
const MOST_SHARDS: usize = 1024;
/// GGUF files that are named to somebody who is to choose one.
const MOST_NAMED: usize = 20;

/// A repository at one commit.
#[derive(Debug)]
pub struct Listing {
    pub commit: CommitHash,
    /// What is told of each file; a hub may not say a file's size or hash here.
    pub files: BTreeMap<FileName, Option<Announced>>,
}

/// The files that a model needs.
#[derive(Debug, PartialEq, Eq)]
pub struct NeededFiles {
    /// Known by their names.
    pub files: Vec<FileName>,
    /// The one of them that names further ones, where the weights are in several files.
    pub index: Option<FileName>,
}

/// What a hub answers.
#[derive(Debug, Deserialize)]
struct RepositoryAnswer {
    sha: String,
    siblings: Vec<SiblingAnswer>,
}

#[derive(Debug, Deserialize)]
struct SiblingAnswer {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<LargeFileAnswer>,
}

#[derive(Debug, Deserialize)]
struct LargeFileAnswer {
    sha256: Option<String>,
    size: Option<u64>,
}

/// An index of weights in several files.
#[derive(Debug, Deserialize)]
struct IndexOfShards {
    weight_map: BTreeMap<String, String>,
}

impl Listing {
    /// Reads what a hub says of a repository.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let answer: RepositoryAnswer =
            serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let commit = answer.sha.parse().map_err(|error| format!("{error}"))?;
        let mut files = BTreeMap::new();
        for sibling in answer.siblings {
            let name = &sibling.rfilename;
            if leads_away(name) {
                let name: String = name.chars().take(80).collect();
                return Err(format!(
                    "it lists a file {name:?}, which leads out of the repository"
                ));
            }
            if let Ok(name) = name.parse::<FileName>() {
                files.insert(name, sibling.announced());
            }
        }
        Ok(Listing { commit, files })
    }

    /// The files of the model in a repository, or why there is none that could be served.
    pub fn needed(&self) -> Result<NeededFiles, String> {
        needed(&self.files.keys().cloned().collect())
    }
}

impl SiblingAnswer {
    fn announced(&self) -> Option<Announced> {
        let large = self.lfs.as_ref();
        let hash = match large {
            Some(large) => large.sha256.as_ref(),
            None => self.blob_id.as_ref(),
        };
        Some(Announced {
            size: large.and_then(|large| large.size).or(self.size)?,
            hash: ContentHash::of_text(hash?)?,
        })
    }
}

/// Whether a file is GGUF by its name.
pub fn is_gguf(file: &FileName) -> bool {
    file.as_str().to_ascii_lowercase().ends_with(GGUF)
}

/// Whether a name is meant to be of a file outside of the folder that it is in.
fn leads_away(name: &str) -> bool {
    name.starts_with('/') || name.contains(['\\', '\0']) || name.split('/').any(|part| part == "..")
}

/// Those of these files that the model among them needs, or why there is none that could be served.
pub fn needed(names: &BTreeSet<FileName>) -> Result<NeededFiles, String> {
    let named = |name: &str| names.iter().find(|file| file.as_str() == name).cloned();
    let ending = |ends: &[&str]| -> Vec<&str> {
        let names = names.iter().map(FileName::as_str);
        names
            .filter(|name| {
                ends.iter()
                    .any(|end| name.to_ascii_lowercase().ends_with(end))
            })
            .collect()
    };
    let (weights, index) = (named(WEIGHTS), named(INDEX));
    let (Some(config), true) = (named(CONFIG), weights.is_some() || index.is_some()) else {
        let ggufs = ending(&[GGUF]);
        let pickles = ending(&PICKLES);
        return Err(match (ggufs.is_empty(), pickles.first()) {
            (false, _) => format!(
                "its weights are in GGUF files; say which of them is meant as `file`: {}",
                ggufs[..ggufs.len().min(MOST_NAMED)].join(", ")
            ),
            (true, Some(pickle)) => format!(
                "its weights are pickled ({pickle}), which may run code when they are read, and there is no {WEIGHTS}"
            ),
            (true, None) => format!(
                "it has no {CONFIG} with a {WEIGHTS} or {INDEX} beside it, and no GGUF file"
            ),
        });
    };
    let index = match weights {
        Some(_) => None,
        None => index,
    };
    let beside = BESIDE.iter().filter_map(|name| named(name));
    let files = beside.chain([config]).chain(weights).chain(index.clone());
    Ok(NeededFiles {
        files: files.collect(),
        index,
    })
}

/// The files that an index of weights names, all of which `names` must have.
pub fn shards(index: &[u8], names: &BTreeSet<FileName>) -> Result<BTreeSet<FileName>, String> {
    let index: IndexOfShards = serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let mut shards = BTreeSet::new();
    for shard in index.weight_map.values() {
        let shard: FileName = shard.parse().map_err(|error| format!("{error}"))?;
        if !names.contains(&shard) {
            return Err(format!("it names {shard}, which is not there"));
        }
        shards.insert(shard);
        if shards.len() > MOST_SHARDS {
            return Err(format!("it names more than {MOST_SHARDS} files"));
        }
    }
    Ok(shards)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(names: &[&str]) -> BTreeSet<FileName> {
        names
            .iter()
            .map(|name| name.parse().expect("a name"))
            .collect()
    }

    fn wanted(of: &[&str]) -> Result<Vec<String>, String> {
        let needed = needed(&names(of))?;
        Ok(needed.files.iter().map(FileName::to_string).collect())
    }

    #[test]
    fn a_model_s_files_are_taken_and_no_others() {
        let files = [
            "config.json",
            "README.md",
            "model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
            "onnx/model.onnx",
            "model.Q4_0.gguf",
        ];
        assert_eq!(
            wanted(&files),
            Ok(vec![
                "tokenizer.json".to_owned(),
                "config.json".to_owned(),
                "model.safetensors".to_owned()
            ])
        );
        let sharded = names(&["config.json", INDEX, "a.safetensors", "b.safetensors"]);
        let found = needed(&sharded).expect("a model");
        assert_eq!(found.index.as_ref().map(FileName::as_str), Some(INDEX));
        let index = json!({"weight_map": {"x": "a.safetensors", "y": "a.safetensors"}}).to_string();
        let found = shards(index.as_bytes(), &sharded).expect("shards");
        assert_eq!(found, names(&["a.safetensors"]));
        for bad in ["../a", "/etc/passwd", "c.safetensors"] {
            let index = json!({"weight_map": {"x": bad}}).to_string();
            assert!(shards(index.as_bytes(), &sharded).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_model_is_told_in_words() {
        let refused = |of: &[&str]| wanted(of).expect_err("no model");
        assert!(
            refused(&["config.json", "pytorch_model.bin"]).contains("pickled (pytorch_model.bin)")
        );
        let ggufs = refused(&["b.Q8_0.gguf", "a.Q4_0.gguf", "README.md"]);
        assert!(
            ggufs.ends_with("`file`: a.Q4_0.gguf, b.Q8_0.gguf"),
            "{ggufs}"
        );
        assert!(refused(&["README.md"]).contains("no config.json"));
    }

    #[test]
    fn a_listing_is_believed_only_where_it_stays_inside() {
        let commit = "0a".repeat(20);
        let listing = |files: serde_json::Value| {
            Listing::parse(
                json!({"sha": commit, "siblings": files})
                    .to_string()
                    .as_bytes(),
            )
        };
        let sha256 = "ab".repeat(32);
        let listed = listing(json!([
            {"rfilename": "config.json", "size": 7, "blobId": commit},
            {"rfilename": "model.safetensors", "size": 9, "blobId": commit, "lfs": {"sha256": sha256, "size": 9}},
            {"rfilename": "merges.txt"},
            {"rfilename": ".gitattributes", "size": 7, "blobId": commit},
            {"rfilename": "a file.txt", "size": 7, "blobId": commit}
        ]))
        .expect("a listing");
        let hashes: Vec<_> = listed.files.values().cloned().collect();
        assert_eq!(
            hashes,
            [
                Some(Announced {
                    size: 7,
                    hash: ContentHash::GitBlob(commit.clone())
                }),
                None,
                Some(Announced {
                    size: 9,
                    hash: ContentHash::Sha256(sha256)
                }),
            ]
        );
        for bad in ["../x", "a/../../x", "/etc/passwd", "a\\b", ".."] {
            let refused = listing(json!([{"rfilename": bad}])).expect_err(bad);
            assert!(refused.contains("leads out"), "{refused}");
        }
        assert!(Listing::parse(b"<html>").is_err());
        assert!(Listing::parse(b"{\"sha\": \"main\", \"siblings\": []}").is_err());
    }
}
