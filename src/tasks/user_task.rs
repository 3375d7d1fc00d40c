//! A task that a user brought: pairs of prompts, and which of them are held out.
//!
//! In a file each pair is a line of JSON,
//! `{"presented": {"prompt", "answer"}, "counterfactual": {"prompt", "answer"}}`, with `"anything_else": true` where the
//! counterfactual may go on in many ways. Which split a pair belongs to is decided by a hash of its texts, so that a file
//! in another order, or one with more pairs, leaves every pair where it was. A pair and its swapped copy are in the same
//! split.

use std::collections::HashMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::pair_lines::{LONGEST_LINE, PairFault, check, pair_of_line};
use super::pairs::{Side, TextPair};
use super::task::Task;
use crate::corpus::Split;

/// The most pairs of a task.
pub const MOST_PAIRS: usize = 10_000;
/// The most bytes of a task's file, and of its texts together.
pub const LONGEST_TASK: usize = 16 << 20;
/// The longest description, in characters.
pub const LONGEST_DESCRIPTION: usize = 10_000;
/// The fewest pairs that a split must have, and of which a tokenizer must be able to use so many.
pub const LEAST_IN_SPLIT: usize = 4;
/// One pair of so many, by its hash, is held out.
const HELD_OUT_EVERY: u64 = 3;
/// What some programs put before a text to say that it is UTF-8.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Pairs of prompts under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserTask {
    name: String,
    description: String,
    /// As they were given.
    pairs: Vec<TextPair>,
    /// Places in `pairs`, by the pairs' hashes.
    train: Vec<usize>,
    held_out: Vec<usize>,
}

/// Why something is no task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserTaskError {
    #[error(
        "{name:?} is no name of a task: 1 to 64 of a-z, 0-9, '.', '_' and '-', no '..', no dot at the start"
    )]
    Name { name: String },
    #[error("{0} is one of the twenty tasks; choose another name")]
    Taken(Task),
    #[error("the description has {characters} characters; it may have {LONGEST_DESCRIPTION}")]
    Description { characters: usize },
    /// `index` counts pairs from 0; `place` is what the pair's giver calls it, such as `line 3`.
    #[error("{place}: {fault}")]
    Pair {
        index: usize,
        place: String,
        fault: PairFault,
    },
    #[error("there are more than {MOST_PAIRS} pairs, the most that a task may have")]
    TooMany,
    #[error("there are {bytes} bytes; a task may have {LONGEST_TASK}")]
    TooLong { bytes: usize },
    #[error(
        "{train} pairs are for training and {held_out} are held out; there must be at least {LEAST_IN_SPLIT} of both. \
         A hash of its texts holds one pair of three out: give more pairs"
    )]
    TooFew { train: usize, held_out: usize },
}

impl UserTask {
    /// A task of these pairs; errors call them `pairs[0]` and so on.
    pub fn new(
        name: impl Into<String>,
        description: impl Into<String>,
        pairs: Vec<TextPair>,
    ) -> Result<Self, UserTaskError> {
        let mut gathered = Gathered::default();
        for pair in pairs {
            let place = format!("pairs[{}]", gathered.pairs.len());
            gathered.take(Ok(pair), place)?;
        }
        gathered.called(name.into(), description.into())
    }

    /// A task of a file with a pair in each line that is not blank. Errors name the first line at fault, counted from 1.
    pub fn parse(
        name: impl Into<String>,
        description: impl Into<String>,
        file: &[u8],
    ) -> Result<Self, UserTaskError> {
        if file.len() > LONGEST_TASK {
            return Err(UserTaskError::TooLong { bytes: file.len() });
        }
        let mut gathered = Gathered::default();
        for (index, line) in file.split(|byte| *byte == b'\n').enumerate() {
            let place = format!("line {}", index + 1);
            match text_of_line(line, index == 0) {
                Ok("") => {}
                Ok(text) => gathered.take(pair_of_line(text), place)?,
                Err(fault) => gathered.take(Err(fault), place)?,
            }
        }
        gathered.called(name.into(), description.into())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn description(&self) -> &str {
        &self.description
    }

    /// All pairs, as they were given.
    pub fn pairs(&self) -> &[TextPair] {
        &self.pairs
    }

    /// How many pairs a split has.
    pub fn pairs_of(&self, split: Split) -> usize {
        self.places(split).len()
    }

    /// The pairs of a split, shuffled by the seed; the file's order makes no difference.
    pub fn shuffled(&self, seed: u64, split: Split) -> impl Iterator<Item = &TextPair> {
        let mut places = self.places(split).to_vec();
        places.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        places.into_iter().map(|place| &self.pairs[place])
    }

    /// The file that [`UserTask::parse`] reads the same pairs from.
    pub fn to_lines(&self) -> Result<String, serde_json::Error> {
        let mut lines = String::new();
        for pair in &self.pairs {
            lines += &serde_json::to_string(pair)?;
            lines.push('\n');
        }
        Ok(lines)
    }

    fn places(&self, split: Split) -> &[usize] {
        match split {
            Split::Train => &self.train,
            Split::HeldOut => &self.held_out,
        }
    }
}

/// Pairs that are in order, each with what it is called in errors.
#[derive(Debug, Default)]
struct Gathered {
    pairs: Vec<TextPair>,
    places: Vec<String>,
    /// Of all texts.
    bytes: usize,
    /// Which pair has these hashes.
    seen: HashMap<[u8; 32], usize>,
    train: Vec<(PairHashes, usize)>,
    held_out: Vec<(PairHashes, usize)>,
}

impl Gathered {
    fn take(
        &mut self,
        read: Result<TextPair, PairFault>,
        place: String,
    ) -> Result<(), UserTaskError> {
        let index = self.pairs.len();
        if index == MOST_PAIRS {
            return Err(UserTaskError::TooMany);
        }
        let checked = read.and_then(|pair| check(&pair).map(|()| pair));
        let checked = checked.and_then(|pair| {
            let hashes = PairHashes::of(&pair);
            match self.seen.get(&hashes.directed) {
                None => Ok((pair, hashes)),
                Some(&first) => {
                    let problem = format!("asks the same as {}", self.places[first]);
                    Err(PairFault::new("", problem))
                }
            }
        });
        let (pair, hashes) = match checked {
            Ok(checked) => checked,
            Err(fault) => {
                return Err(UserTaskError::Pair {
                    index,
                    place,
                    fault,
                });
            }
        };
        for side in [&pair.presented, &pair.counterfactual] {
            self.bytes += side.prompt.len() + side.answer.len();
        }
        if self.bytes > LONGEST_TASK {
            return Err(UserTaskError::TooLong { bytes: self.bytes });
        }
        self.seen.insert(hashes.directed, index);
        match hashes.split() {
            Split::Train => self.train.push((hashes, index)),
            Split::HeldOut => self.held_out.push((hashes, index)),
        }
        self.pairs.push(pair);
        self.places.push(place);
        Ok(())
    }

    fn called(self, name: String, description: String) -> Result<UserTask, UserTaskError> {
        check_name(&name)?;
        let characters = description.chars().count();
        if characters > LONGEST_DESCRIPTION {
            return Err(UserTaskError::Description { characters });
        }
        let (train, held_out) = (self.train.len(), self.held_out.len());
        if train.min(held_out) < LEAST_IN_SPLIT {
            return Err(UserTaskError::TooFew { train, held_out });
        }
        let in_order = |mut split: Vec<(PairHashes, usize)>| {
            split.sort_unstable();
            split.into_iter().map(|(_, index)| index).collect()
        };
        Ok(UserTask {
            name,
            description,
            train: in_order(self.train),
            held_out: in_order(self.held_out),
            pairs: self.pairs,
        })
    }
}

/// A line's text without blanks around it.
fn text_of_line(line: &[u8], is_first: bool) -> Result<&str, PairFault> {
    if line.len() > LONGEST_LINE {
        let problem = format!("has {} bytes; a line may have {LONGEST_LINE}", line.len());
        return Err(PairFault::new("", problem));
    }
    let text = std::str::from_utf8(line).map_err(|_| PairFault::new("", "is not UTF-8"))?;
    let text = match is_first {
        true => text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text),
        false => text,
    };
    Ok(text.trim())
}

/// Refuses a name that could not be an artifact's, as circuits are called by their tasks, and those of the twenty.
fn check_name(name: &str) -> Result<(), UserTaskError> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    let is_name = (1..=64).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('.')
        && !name.contains("..");
    if !is_name {
        let name = name.chars().take(80).collect();
        return Err(UserTaskError::Name { name });
    }
    match name.parse() {
        Ok(task) => Err(UserTaskError::Taken(task)),
        Err(_) => Ok(()),
    }
}

/// Hashes of a pair's texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct PairHashes {
    /// The same for the swapped pair.
    undirected: [u8; 32],
    directed: [u8; 32],
}

impl PairHashes {
    fn of(pair: &TextPair) -> Self {
        let sides = [&pair.presented, &pair.counterfactual].map(side_hash);
        let mut sorted = sides;
        sorted.sort_unstable();
        PairHashes {
            undirected: Sha256::digest(sorted.concat()).into(),
            directed: Sha256::digest(sides.concat()).into(),
        }
    }

    fn split(&self) -> Split {
        let first = self.undirected.first_chunk().copied().unwrap_or_default();
        match u64::from_le_bytes(first) % HELD_OUT_EVERY {
            0 => Split::HeldOut,
            _ => Split::Train,
        }
    }
}

fn side_hash(side: &Side) -> [u8; 32] {
    // With the prompt's length, so that nothing can move from the one text to the other unnoticed.
    let length = (side.prompt.len() as u64).to_le_bytes();
    let texts = [&length[..], side.prompt.as_bytes(), side.answer.as_bytes()];
    Sha256::digest(texts.concat()).into()
}
