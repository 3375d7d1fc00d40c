//! A task of either kind: one of the twenty, whose pairs are made as they are asked for, or one that a user brought.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::pairs::TextPair;
use super::task::Task;
use super::tokens::{PairsError, TokenPair, Wanted, generated_texts, usable_pairs};
use super::usability::{PairCount, count_usable};
use super::user_task::{LEAST_IN_SPLIT, UserTask};
use crate::corpus::Split;

/// What a model is asked to predict, wherever its pairs come from.
#[derive(Debug, Clone)]
pub enum AnyTask {
    /// Its pairs are drawn without end.
    Generated(Task),
    /// Its pairs are those that there are.
    User(Arc<UserTask>),
}

impl AnyTask {
    pub fn name(&self) -> &str {
        match self {
            AnyTask::Generated(task) => task.name(),
            AnyTask::User(task) => task.name(),
        }
    }

    pub fn description(&self) -> &str {
        match self {
            AnyTask::Generated(task) => task.description(),
            AnyTask::User(task) => task.description(),
        }
    }

    /// How many pairs a split has; none where they are drawn without end.
    pub fn pairs_of(&self, split: Split) -> Option<usize> {
        match self {
            AnyTask::Generated(_) => None,
            AnyTask::User(task) => Some(task.pairs_of(split)),
        }
    }

    /// The first `how_many` pairs, usable or not, that [`AnyTask::token_pairs`] with the same seed and split would look at:
    /// of a user's task as many as there are.
    pub fn text_pairs(&self, how_many: usize, seed: u64, split: Split) -> Vec<TextPair> {
        match self {
            AnyTask::Generated(task) => {
                generated_texts(*task, seed, split).take(how_many).collect()
            }
            AnyTask::User(task) => {
                let texts = task.shuffled(seed, split).take(how_many);
                texts.cloned().collect()
            }
        }
    }

    /// Pairs that suit a tokenizer.
    ///
    /// Of one of the twenty exactly `how_many`, as [`token_pairs`](super::token_pairs) draws them. Of a user's task at most
    /// `how_many`, each at most once, in an order that the seed decides: where the split has fewer usable pairs, all of
    /// those. Fails where those are fewer than [`LEAST_IN_SPLIT`] and than `how_many`.
    pub fn token_pairs<E>(
        &self,
        how_many: usize,
        seed: u64,
        split: Split,
        encode: impl Fn(&str) -> Result<Vec<(u32, Range<usize>)>, E>,
    ) -> Result<Vec<TokenPair>, PairsError<E>> {
        self.token_pairs_within(usize::MAX, how_many, seed, split, encode)
    }

    /// The same, of prompts that have no more tokens than a model's context.
    pub fn token_pairs_within<E>(
        &self,
        context: usize,
        how_many: usize,
        seed: u64,
        split: Split,
        encode: impl Fn(&str) -> Result<Vec<(u32, Range<usize>)>, E>,
    ) -> Result<Vec<TokenPair>, PairsError<E>> {
        match self {
            AnyTask::Generated(task) => {
                let texts = generated_texts(*task, seed, split);
                usable_pairs(
                    task.name(),
                    Wanted::exactly(how_many, context),
                    texts,
                    encode,
                )
            }
            AnyTask::User(task) => {
                let texts = task.shuffled(seed, split).cloned();
                let wanted = Wanted {
                    most: how_many,
                    least: how_many.min(LEAST_IN_SPLIT),
                    attempts: task.pairs_of(split),
                    context,
                };
                usable_pairs(task.name(), wanted, texts, encode)
            }
        }
    }

    /// Of the pairs that [`AnyTask::text_pairs`] gives, how many a tokenizer can use, and why not the others.
    pub fn count<E>(
        &self,
        context: usize,
        how_many: usize,
        seed: u64,
        split: Split,
        encode: impl Fn(&str) -> Result<Vec<(u32, Range<usize>)>, E>,
    ) -> Result<PairCount, E> {
        count_usable(&self.text_pairs(how_many, seed, split), context, encode)
    }
}

impl From<Task> for AnyTask {
    fn from(task: Task) -> Self {
        AnyTask::Generated(task)
    }
}

impl From<UserTask> for AnyTask {
    fn from(task: UserTask) -> Self {
        AnyTask::User(Arc::new(task))
    }
}

impl fmt::Display for AnyTask {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
