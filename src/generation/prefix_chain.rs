//! The names of blocks of tokens: each block's hash is of its own tokens, of what edits do to them, and of the block
//! before it, so that two blocks of one name have the same keys and values in the same model.
//!
//! A chain begins with the caller's salt: callers with different salts have no names in common. The hash is Sha256:
//! nobody finds other tokens for a name that someone else's prompt has.

use sha2::{Digest as _, Sha256};

use crate::interventions::effect::Digest;

/// Tokens of a block.
pub const BLOCK: usize = 16;

/// The name of a block, of one model.
pub type BlockKey = [u8; 32];

/// What edits do to a block's tokens.
pub enum Edited<'e> {
    /// No edit touches them.
    Nowhere,
    /// These do, by token; the hash is of what decides what they do, and there is none where it cannot be compared.
    Here(Option<&'e Digest>, Vec<Vec<usize>>),
}

/// The names of a growing text's whole blocks, from its first token on.
#[derive(Debug, Clone)]
pub struct Chain {
    root: BlockKey,
    keys: Vec<BlockKey>,
    ended: bool,
}

impl Chain {
    /// No block yet.
    pub fn new(salt: Option<&str>) -> Self {
        Chain {
            root: salt.map_or([0; 32], |salt| Sha256::digest(salt).into()),
            keys: Vec::new(),
            ended: false,
        }
    }

    pub fn keys(&self) -> &[BlockKey] {
        &self.keys
    }

    /// No block has a name any more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Names the next block, of [`BLOCK`] tokens. From a block on whose edits cannot be compared, none has a name.
    pub fn push(&mut self, tokens: &[u32], edited: &Edited) {
        if self.ended {
            return;
        }
        let mut hash = Sha256::new_with_prefix(self.keys.last().unwrap_or(&self.root));
        for id in tokens {
            hash.update(id.to_le_bytes());
        }
        match edited {
            Edited::Nowhere => {}
            Edited::Here(None, _) => {
                self.ended = true;
                return;
            }
            Edited::Here(Some(digest), touching) => {
                hash.update(digest);
                for edits in touching {
                    hash.update((edits.len() as u64).to_le_bytes());
                    for &edit in edits {
                        hash.update((edit as u64).to_le_bytes());
                    }
                }
            }
        }
        self.keys.push(hash.finalize().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(first: u32) -> Vec<u32> {
        (first..first + BLOCK as u32).collect()
    }

    fn plain(salt: Option<&str>, blocks: &[u32]) -> Vec<BlockKey> {
        let mut chain = Chain::new(salt);
        for &first in blocks {
            chain.push(&tokens(first), &Edited::Nowhere);
        }
        chain.keys().to_vec()
    }

    fn edited(digest: &Digest, touching: Vec<Vec<usize>>) -> BlockKey {
        let mut chain = Chain::new(None);
        chain.push(&tokens(0), &Edited::Here(Some(digest), touching));
        chain.keys()[0]
    }

    #[test]
    fn a_block_s_name_is_that_of_all_tokens_before_it() {
        let one = plain(None, &[0, 100, 200]);
        assert_eq!(one, plain(None, &[0, 100, 200]));
        let other = plain(None, &[0, 101, 200]);
        assert_eq!(one[0], other[0]);
        assert!(one[1] != other[1] && one[2] != other[2]);
        // The same tokens at another place.
        let late = plain(None, &[100, 0]);
        assert!(!one.contains(&late[0]) && !one.contains(&late[1]));
    }

    #[test]
    fn salts_have_no_name_in_common() {
        let names: Vec<BlockKey> = [None, Some("a"), Some("b")]
            .into_iter()
            .flat_map(|salt| plain(salt, &[0, 100]))
            .collect();
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name));
        }
    }

    #[test]
    fn a_name_tells_edits_and_where_they_touch() {
        let at = |token: usize, edits: &[usize]| {
            let mut touching = vec![Vec::new(); BLOCK];
            touching[token] = edits.to_vec();
            touching
        };
        let names = [
            plain(None, &[0])[0],
            edited(&[1; 32], at(3, &[0])),
            edited(&[2; 32], at(3, &[0])),
            edited(&[1; 32], at(4, &[0])),
            edited(&[1; 32], at(3, &[1])),
            edited(&[1; 32], at(3, &[0, 1])),
        ];
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name), "{index}");
        }
        assert_eq!(names[1], edited(&[1; 32], at(3, &[0])));
    }

    #[test]
    fn what_cannot_be_compared_has_no_name_and_nothing_behind_it() {
        let mut chain = Chain::new(None);
        chain.push(&tokens(0), &Edited::Nowhere);
        chain.push(&tokens(100), &Edited::Here(None, Vec::new()));
        chain.push(&tokens(200), &Edited::Nowhere);
        assert_eq!(chain.keys(), plain(None, &[0]));
        assert!(chain.has_ended());
    }
}
