//! Training text and held-out text.

use serde::{Deserialize, Serialize};

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
