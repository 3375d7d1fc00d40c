//! How many pairs a tokenizer can use, and why not the others.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use super::pairs::TextPair;
use super::tokens::{Unusable, tally, token_pair_within};

/// What a tokenizer makes of some pairs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PairCount {
    /// How many pairs were looked at.
    pub drawn: usize,
    /// How many of them can be used.
    pub usable: usize,
    /// Why the others cannot, and how many for each reason.
    pub reasons: BTreeMap<Unusable, usize>,
}

impl fmt::Display for PairCount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of {}", self.usable, self.drawn)?;
        match self.reasons.is_empty() {
            true => Ok(()),
            false => write!(formatter, " ({})", tally(&self.reasons)),
        }
    }
}

/// Counts the pairs that can be used by a model of such a context, in tokens.
pub fn count_usable<E>(
    pairs: &[TextPair],
    context: usize,
    encode: impl Fn(&str) -> Result<Vec<(u32, Range<usize>)>, E>,
) -> Result<PairCount, E> {
    let mut count = PairCount {
        drawn: pairs.len(),
        ..PairCount::default()
    };
    for pair in pairs {
        match token_pair_within(pair, context, &encode)? {
            Ok(_) => count.usable += 1,
            Err(reason) => *count.reasons.entry(reason).or_insert(0) += 1,
        }
    }
    Ok(count)
}
