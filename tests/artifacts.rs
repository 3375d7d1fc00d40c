//! The files Causeway reads and writes: released checkpoints, safetensors, manifests, tokenizers. Every reader
//! is also given damaged files, which it must answer with an error.

#[path = "artifacts/tokenizer.rs"]
mod tokenizer;
