//! The twenty tasks: pairs of prompts that differ in one fact, and the tokens that the fact decides
//! between.
//!
//! A [`Task`] names what the model must predict. [`TextPair`] is a pair as text, made by the same
//! code that writes training documents; [`TokenPair`] is the pair as a tokenizer cuts it, with each
//! candidate taken from the tokens of the full text, never encoded alone.

mod documents;
mod pairs;
mod task;
#[cfg(test)]
mod tests;
mod tokens;

pub use documents::pair_documents;
pub use pairs::{Side, TextPair};
pub use task::{Task, UnknownTask};
pub use tokens::{PairsError, TokenPair, TokenSide, Unusable, token_pair, token_pairs};
