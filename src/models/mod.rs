//! The two transformers of a pair: their configuration, their forward pass, the places in it that can be
//! read and changed, and their tokenizer.

pub mod config;
pub mod tokenizer;
