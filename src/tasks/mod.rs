//! Tasks: pairs of prompts that differ in one fact, and the tokens that the fact decides between.
//!
//! A [`Task`] is one of the twenty that are built in; it names what the model must predict. A [`UserTask`] is one that a
//! user brought, and [`AnyTask`] is either. [`TextPair`] is a pair as text, of the twenty made by the same code that writes
//! training documents; [`TokenPair`] is the pair as a tokenizer cuts it, with each candidate taken from the tokens of the
//! full text, never encoded alone. A [`PairCount`] says how many pairs a tokenizer can use.

mod any_task;
mod documents;
mod pair_lines;
mod pairs;
mod task;
#[cfg(test)]
mod test_user_tasks;
#[cfg(test)]
mod tests;
mod tokens;
mod usability;
mod user_task;

pub use any_task::AnyTask;
pub use documents::pair_documents;
pub use pair_lines::{LONGEST_LINE, PairFault};
pub use pairs::{Side, TextPair};
pub use task::{Task, UnknownTask};
pub use tokens::{
    PairsError, TokenPair, TokenSide, Unusable, token_pair, token_pair_within, token_pairs,
    token_side,
};
pub use usability::{PairCount, count_usable};
pub use user_task::{
    LEAST_IN_SPLIT, LONGEST_DESCRIPTION, LONGEST_TASK, MOST_PAIRS, UserTask, UserTaskError,
};
