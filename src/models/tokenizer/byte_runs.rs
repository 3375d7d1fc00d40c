//! What every token of a vocabulary stands for: runs of bytes by id, in two allocations however many there are.

/// Runs of bytes `[ids]`, one behind the other.
#[derive(Debug, Clone)]
pub struct ByteRuns {
    bytes: Box<[u8]>,
    /// Where each run ends, which is where the next begins.
    ends: Box<[u32]>,
}

impl ByteRuns {
    /// The runs by id, one that may be empty for each; none where they have more than 4 GiB together.
    pub fn new(runs: &[Vec<u8>]) -> Option<Self> {
        let mut ends = Vec::with_capacity(runs.len());
        let mut end = 0u32;
        for run in runs {
            end = end.checked_add(u32::try_from(run.len()).ok()?)?;
            ends.push(end);
        }
        Some(ByteRuns {
            bytes: runs.concat().into(),
            ends: ends.into(),
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// The run of an id.
    pub fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let begin = match id {
            0 => 0,
            _ => self.ends[id - 1],
        };
        self.bytes.get(begin as usize..end as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_come_out_by_their_ids() {
        let runs = [vec![1, 2], vec![], vec![3], vec![]];
        let kept = ByteRuns::new(&runs).expect("few bytes");
        assert_eq!(kept.count(), runs.len());
        for (id, run) in (0..).zip(&runs) {
            assert_eq!(kept.get(id), Some(run.as_slice()), "{id}");
        }
        assert_eq!(kept.get(4), None);
        assert_eq!(
            ByteRuns::new(&[]).and_then(|none| none.get(0).map(<[u8]>::len)),
            None
        );
    }
}
