//! Keys and values of blocks of tokens that outlive the request they were computed for, of one model.
//!
//! Blocks form a tree: each has the one before it as its parent, and only leaves go, the one whose last use is longest
//! ago first, so that no block is kept that cannot be reached. How many bytes all models' blocks may take is the
//! caller's business, and so is the clock.

use std::collections::{BTreeMap, HashMap};

use super::prefix_chain::BlockKey;

/// The blocks of one model.
#[derive(Debug, Default)]
pub struct PrefixCache {
    blocks: HashMap<BlockKey, Block>,
    /// By their last use, which no two share.
    leaves: BTreeMap<u64, BlockKey>,
    bytes: usize,
}

#[derive(Debug)]
struct Block {
    parent: Option<BlockKey>,
    children: usize,
    used: u64,
    values: Box<[f32]>,
}

impl Block {
    fn bytes(&self) -> usize {
        size_of_val(&*self.values)
    }
}

impl PrefixCache {
    /// Of all keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many of these blocks, each the parent of the next, are here.
    pub fn known(&self, keys: &[BlockKey]) -> usize {
        let known = |key: &&BlockKey| self.blocks.contains_key(*key);
        keys.iter().take_while(known).count()
    }

    /// A block's keys and values. It was used at `now`, which no other use shares.
    pub fn get(&mut self, key: &BlockKey, now: u64) -> Option<&[f32]> {
        let block = self.blocks.get_mut(key)?;
        let before = std::mem::replace(&mut block.used, now);
        if self.leaves.remove(&before).is_some() {
            self.leaves.insert(now, *key);
        }
        Some(&block.values)
    }

    /// Keeps a block that was not here; its parent, if it has one, is.
    pub fn insert(
        &mut self,
        parent: Option<BlockKey>,
        key: BlockKey,
        values: Box<[f32]>,
        now: u64,
    ) {
        if let Some(parent) = parent.and_then(|parent| self.blocks.get_mut(&parent)) {
            parent.children += 1;
            self.leaves.remove(&parent.used);
        }
        let block = Block {
            parent,
            children: 0,
            used: now,
            values,
        };
        self.bytes += block.bytes();
        self.leaves.insert(now, key);
        self.blocks.insert(key, block);
    }

    /// When the leaf was used whose last use is longest ago.
    pub fn oldest(&self) -> Option<u64> {
        self.leaves.keys().next().copied()
    }

    /// Lets that leaf go.
    pub fn drop_oldest(&mut self) {
        let gone = self.leaves.pop_first();
        let Some(block) = gone.and_then(|(_, key)| self.blocks.remove(&key)) else {
            return;
        };
        self.bytes -= block.bytes();
        if let Some(key) = block.parent
            && let Some(parent) = self.blocks.get_mut(&key)
        {
            parent.children -= 1;
            if parent.children == 0 {
                self.leaves.insert(parent.used, key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn key(name: u8) -> BlockKey {
        [name; 32]
    }

    fn values(count: usize) -> Box<[f32]> {
        vec![0.0; count].into()
    }

    /// The names of the blocks in the order in which they go.
    fn order(mut cache: PrefixCache) -> Vec<u8> {
        let mut names = Vec::new();
        while let Some(used) = cache.oldest() {
            names.push(cache.leaves[&used][0]);
            cache.drop_oldest();
        }
        assert_eq!((cache.bytes(), cache.blocks.len()), (0, 0));
        names
    }

    /// 1 - 2 - 3, and 4 behind 1.
    fn tree() -> PrefixCache {
        let mut cache = PrefixCache::default();
        cache.insert(None, key(1), values(2), 1);
        cache.insert(Some(key(1)), key(2), values(3), 2);
        cache.insert(Some(key(2)), key(3), values(4), 3);
        cache.insert(Some(key(1)), key(4), values(5), 4);
        cache
    }

    #[test]
    fn leaves_go_in_the_order_of_their_last_use_and_parents_after_them() {
        assert_eq!(tree().bytes(), 4 * (2 + 3 + 4 + 5));
        assert_eq!(order(tree()), [3, 2, 4, 1]);
        let mut used = tree();
        for (now, name) in (10..).zip([1, 2, 3]) {
            let expected = [2, 3, 4][usize::from(name - 1)];
            assert_eq!(used.get(&key(name), now).map(<[f32]>::len), Some(expected));
        }
        assert_eq!(order(used), [4, 3, 2, 1]);
    }

    #[test]
    fn what_is_known_ends_with_the_first_that_is_not() {
        let mut cache = tree();
        assert_eq!(cache.known(&[key(1), key(2), key(3), key(9)]), 3);
        assert_eq!(cache.known(&[key(9), key(2)]), 0);
        cache.drop_oldest();
        assert_eq!(cache.known(&[key(1), key(2), key(3)]), 2);
        assert!(cache.get(&key(3), 20).is_none());
    }

    /// Whatever happens, the leaves are the blocks without children, each block's parent is there, and the bytes are
    /// counted to the last.
    #[test]
    fn the_tree_stays_whole() {
        let mut generator = ChaCha8Rng::seed_from_u64(11);
        let mut cache = PrefixCache::default();
        for now in 1..3000 {
            let name = generator.random_range(0..200u8);
            let known: Vec<BlockKey> = cache.blocks.keys().copied().collect();
            match generator.random_range(0..4) {
                0 => cache.drop_oldest(),
                1 => drop(cache.get(&key(name), now)),
                _ if cache.known(&[key(name)]) == 0 => {
                    let parent = match known.len() {
                        0 => None,
                        count => generator
                            .random_bool(0.8)
                            .then(|| known[generator.random_range(0..count)]),
                    };
                    cache.insert(parent, key(name), values(name.into()), now);
                }
                _ => {}
            }
            let mut children: HashMap<BlockKey, usize> = HashMap::new();
            let mut bytes = 0;
            for block in cache.blocks.values() {
                bytes += 4 * block.values.len();
                if let Some(parent) = block.parent {
                    assert!(cache.blocks.contains_key(&parent));
                    *children.entry(parent).or_default() += 1;
                }
            }
            assert_eq!(bytes, cache.bytes());
            for (key, block) in &cache.blocks {
                let count = children.get(key).copied().unwrap_or(0);
                assert_eq!(block.children, count);
                let leaf = cache.leaves.get(&block.used);
                assert_eq!(leaf == Some(key), count == 0);
            }
            assert!(cache.leaves.len() <= cache.blocks.len());
        }
    }
}
