//! The two transformers of a pair: their configuration, their forward pass, the places in it that can be
//! read and changed, and their tokenizer.

pub mod config;
pub mod gpt2;
pub mod layout;
pub mod released;
pub mod tensor_names;
pub mod tokenizer;
