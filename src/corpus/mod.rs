//! Simple Python programs, made up deterministically.
//!
//! A document reads like a small real file and is rich in the twenty idioms that the tasks ask
//! about, so that a model trained on documents can do the tasks. [`CorpusGenerator`] writes
//! documents; inside the crate, a `Passage` is one idiom in both its forms with the same code
//! around it, from the same functions.
//!
//! Text is ASCII. Document `i` depends on the seed, the split and `i` alone.

mod document;
mod draw;
mod generator;
pub(crate) mod idioms;
pub mod literals;
mod passage;
mod split;
mod statements;
#[cfg(test)]
mod tests;
mod words;

pub use generator::CorpusGenerator;
pub(crate) use passage::Passage;
pub use split::Split;
