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
pub(crate) mod idioms;
pub mod literals;
mod passage;
mod statements;
#[cfg(test)]
mod tests;
mod words;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub(crate) use passage::Passage;

/// Which half of the made-up world a text belongs to.
///
/// The two have different random streams, and each has words that the other never uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// What models are trained on.
    Train,
    /// What they are measured on.
    HeldOut,
}

impl Split {
    /// A random stream of its own for each split and number.
    pub(crate) fn stream(self, number: u64) -> u64 {
        let side = match self {
            Split::Train => 0,
            Split::HeldOut => 1,
        };
        number.wrapping_mul(2) | side
    }
}

/// Writes documents, one after the other, without end.
#[derive(Debug, Clone)]
pub struct CorpusGenerator {
    seed: u64,
    split: Split,
    next: u64,
}

impl CorpusGenerator {
    /// A generator that stands before document 0.
    pub fn new(seed: u64, split: Split) -> Self {
        Self {
            seed,
            split,
            next: 0,
        }
    }

    /// A generator that stands before document `index`, to go on where another stopped.
    pub fn starting_at(seed: u64, split: Split, index: u64) -> Self {
        Self {
            seed,
            split,
            next: index,
        }
    }

    /// The next document: whole lines, 15 to 80 of them.
    pub fn document(&mut self) -> String {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.split.stream(self.next));
        self.next += 1;
        document::document(&mut rng, self.split)
    }
}

impl Iterator for CorpusGenerator {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        Some(self.document())
    }
}
