//! The files Causeway reads and writes: released checkpoints, safetensors, manifests, tokenizers. Every reader
//! is also given damaged files, which it must answer with an error.

#[path = "artifacts/damage.rs"]
mod damage;
#[path = "artifacts/manifest.rs"]
mod manifest;
#[path = "artifacts/models.rs"]
mod models;
#[path = "artifacts/storage.rs"]
mod storage;
#[path = "artifacts/tokenizer.rs"]
mod tokenizer;

use std::path::{Path, PathBuf};

/// The four released checkpoints in miniature.
const GOLDEN: [&str; 4] = [
    "plain",
    "cat_pos_emb",
    "sink_bigram",
    "layernorm_tied_dense",
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/circuit_sparsity")
        .join(name)
}

/// An empty directory that is removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("causeway-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
