//! Documents, one after the other.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::document::document;
use super::split::Split;

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
        document(&mut rng, self.split)
    }
}

impl Iterator for CorpusGenerator {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        Some(self.document())
    }
}
