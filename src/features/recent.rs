//! What was found out last, kept so that nobody waits for it twice.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// The `MOST` findings that were asked for last, by what they are about.
#[derive(Debug)]
pub struct Recent<K, V, const MOST: usize> {
    /// The last used is the last.
    kept: Mutex<VecDeque<(K, Arc<V>)>>,
}

impl<K, V, const MOST: usize> Default for Recent<K, V, MOST> {
    fn default() -> Self {
        Recent {
            kept: Mutex::default(),
        }
    }
}

impl<K: PartialEq, V, const MOST: usize> Recent<K, V, MOST> {
    /// What is known of `key`.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| known == key)?;
        let (known, found) = kept.remove(at)?;
        kept.push_back((known, found.clone()));
        Some(found)
    }

    /// Keeps a finding in place of the one that nobody has asked for the longest.
    pub fn keep(&self, key: K, found: Arc<V>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(known, _)| *known != key);
        if kept.len() >= MOST {
            kept.pop_front();
        }
        kept.push_back((key, found));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_last_is_kept_and_no_more_than_so_much() {
        let recent = Recent::<usize, usize, 8>::default();
        let known = |key: usize| recent.get(&key).map(|found| *found);
        for key in 0..8 {
            recent.keep(key, Arc::new(10 * key));
        }
        // The oldest is asked for, so the next oldest goes.
        assert_eq!(known(0), Some(0));
        recent.keep(8, Arc::new(80));
        assert_eq!(known(1), None);
        for key in [0, 2, 8] {
            assert_eq!(known(key), Some(10 * key));
        }
        recent.keep(2, Arc::new(21));
        assert_eq!(known(2), Some(21));
        assert_eq!(recent.kept.lock().expect("what is kept").len(), 8);
    }
}
