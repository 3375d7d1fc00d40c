//! The tokens of one forward pass and how they belong together.

use candle_core::{Device, Result, Tensor, bail};

use super::kv_cache::{CacheRow, CacheSlots, KvCache};

/// One row a token.
pub struct TokenRows<'c> {
    /// `[rows]` token ids.
    pub ids: Tensor,
    /// `[rows]` positions within their sequences.
    pub positions: Tensor,
    pub arrangement: Arrangement<'c>,
}

/// Which rows see which.
pub enum Arrangement<'c> {
    /// Whole sequences of `length` rows one after another, nothing kept: training and evaluation.
    Sequences { length: usize },
    /// Each row continues the sequence in its slot of a cache: inference.
    Cached {
        at: Vec<CacheRow>,
        /// Further places for the keys and values of some rows.
        copies: Vec<(usize, CacheRow)>,
        cache: CacheSlots<'c>,
    },
}

impl TokenRows<'static> {
    /// Whole sequences of equal length.
    pub fn sequences(ids: &[u32], length: usize, device: &Device) -> Result<Self> {
        if length == 0 || ids.is_empty() || !ids.len().is_multiple_of(length) {
            bail!("{} tokens are not whole sequences of {length}", ids.len())
        }
        let positions: Vec<u32> = (0..ids.len()).map(|row| (row % length) as u32).collect();
        Ok(TokenRows {
            ids: Tensor::new(ids, device)?,
            positions: Tensor::new(positions, device)?,
            arrangement: Arrangement::Sequences { length },
        })
    }
}

impl<'c> TokenRows<'c> {
    /// Rows that continue sequences in a cache, in ascending position within each slot.
    pub fn cached(ids: &[u32], at: Vec<CacheRow>, cache: &'c mut KvCache) -> Result<Self> {
        Self::in_slots(ids, at, Vec::new(), cache.all())
    }

    /// The same in some slots of a cache. `copies` are rows with a further place of the cache that takes the row's
    /// key and value: the same token after the same tokens.
    pub fn in_slots(
        ids: &[u32],
        at: Vec<CacheRow>,
        copies: Vec<(usize, CacheRow)>,
        mut cache: CacheSlots<'c>,
    ) -> Result<Self> {
        if ids.is_empty() || ids.len() != at.len() {
            bail!("{} tokens for {} rows", ids.len(), at.len())
        }
        cache.prepare(&at, &copies)?;
        let positions = at.iter().map(|row| row.position as u32);
        // One copy to a device.
        let both: Vec<u32> = ids.iter().copied().chain(positions).collect();
        let both = Tensor::new(both, cache.device())?;
        Ok(TokenRows {
            ids: both.narrow(0, 0, ids.len())?,
            positions: both.narrow(0, ids.len(), at.len())?,
            arrangement: Arrangement::Cached { at, copies, cache },
        })
    }

    /// Other rows over the same slots.
    pub fn instead(
        self,
        ids: &[u32],
        at: Vec<CacheRow>,
        copies: Vec<(usize, CacheRow)>,
    ) -> Result<Self> {
        match self.arrangement {
            Arrangement::Cached { cache, .. } => Self::in_slots(ids, at, copies, cache),
            Arrangement::Sequences { .. } => bail!("whole sequences have no slots"),
        }
    }
}
