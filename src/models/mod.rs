//! The two transformers of a pair: their configuration, their forward pass, the places in it that can be
//! read and changed, and their tokenizer.

pub mod attention;
mod cache_layout;
pub mod chat_template;
pub mod companions;
pub mod config;
pub mod config_error;
mod device_cache;
pub mod families;
pub mod fields;
pub mod gguf;
pub mod gpt2;
pub mod kv_cache;
pub mod layers;
pub mod layout;
pub mod location;
pub mod memory_need;
pub mod mlp;
pub mod model;
pub mod released;
pub mod rotary;
pub mod tap;
pub mod tensor_names;
pub mod text_bounds;
pub mod token_rows;
pub mod tokenizer;
pub mod tokenizer_files;
pub mod transformer;
pub mod variant;
