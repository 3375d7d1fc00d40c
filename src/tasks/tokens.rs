//! Minimal pairs as tokens.
//!
//! A candidate is the token of the full text that starts where the prompt ends. Encoding it alone
//! would give another token wherever the tokenizer joins it to what follows (`:` and a line break
//! are one token). A pair that a tokenizer does not cut there, or whose sides differ in length, is
//! left out, with a reason.

use std::collections::BTreeMap;
use std::ops::Range;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::pairs::{Side, TextPair};
use super::task::Task;
use crate::corpus::Split;

/// Text pairs drawn for each pair asked for, at most.
const ATTEMPTS_PER_PAIR: usize = 60;
/// Text pairs drawn in addition, so that asking for one pair is not a matter of luck.
const MORE_ATTEMPTS: usize = 600;
/// Keeps the streams of tasks apart from those of documents, which count up from zero.
const TASK_STREAMS: u64 = 1 << 40;

/// A prompt as token ids, and the token that follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSide {
    /// The tokens before the candidate.
    pub prompt: Vec<u32>,
    /// The right next token.
    pub candidate: u32,
}

/// Two prompts of equal length that differ in one fact, and two candidates that differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPair {
    /// The prompt that the model is given.
    pub presented: TokenSide,
    /// The same with the other fact.
    pub counterfactual: TokenSide,
    /// See [`TextPair::anything_else`].
    pub anything_else: bool,
}

impl TokenPair {
    /// The pair in the other direction: see [`TextPair::swapped`].
    pub fn swapped(self) -> Self {
        Self {
            presented: self.counterfactual,
            counterfactual: self.presented,
            anything_else: self.anything_else,
        }
    }
}

/// Why a tokenizer makes no use of a text pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Unusable {
    /// A token spans the end of a prompt.
    #[error("no token starts where the prompt ends")]
    NoTokenAtCut,
    /// The prompts cannot be compared token by token.
    #[error("the two prompts differ in their number of tokens")]
    LengthsDiffer,
    /// The first token does not tell the answers apart.
    #[error("both sides have the same candidate")]
    SameCandidate,
    /// The prompts have more tokens than the model can be given.
    #[error("the prompts are longer than the model's context")]
    TooLong,
}

/// Why there are no pairs.
#[derive(Debug, thiserror::Error)]
pub enum PairsError<E> {
    /// The tokenizer failed.
    #[error("the tokenizer failed on a text of task {task}")]
    Encode {
        /// The name of the task whose text it was.
        task: String,
        /// The tokenizer's own error.
        #[source]
        source: E,
    },
    /// This tokenizer cuts too few of the task's texts as they must be cut.
    #[error(
        "task {task}: only {found} of {wanted} pairs after {attempts} attempts ({})",
        tally(.reasons)
    )]
    TooFew {
        /// The task's name.
        task: String,
        /// How many pairs were asked for, or must be there.
        wanted: usize,
        /// How many were found.
        found: usize,
        /// How many text pairs were drawn.
        attempts: usize,
        /// How many of them were left out, by reason.
        reasons: BTreeMap<Unusable, usize>,
    },
}

pub(super) fn tally(reasons: &BTreeMap<Unusable, usize>) -> String {
    let parts: Vec<String> = reasons
        .iter()
        .map(|(reason, times)| format!("{times} times {reason}"))
        .collect();
    parts.join(", ")
}

/// Cuts a pair with a tokenizer.
///
/// `encode` gives the ids of a text with the bytes that each covers. The byte ranges must hold the
/// spaces that belong to a token: a tokenizer that trims them makes every pair unusable that begins
/// with one.
///
/// The outer error is the tokenizer's; the inner one says why this pair cannot be used.
pub fn token_pair<E>(
    pair: &TextPair,
    encode: impl Fn(&str) -> Result<Vec<(u32, Range<usize>)>, E>,
) -> Result<Result<TokenPair, Unusable>, E> {
    let presented = encode(&pair.presented.text())?;
    let counterfactual = encode(&pair.counterfactual.text())?;
    Ok(cut(&pair.presented, &presented).and_then(|presented| {
        let counterfactual = cut(&pair.counterfactual, &counterfactual)?;
        if presented.prompt.len() != counterfactual.prompt.len() {
            return Err(Unusable::LengthsDiffer);
        }
        if presented.candidate == counterfactual.candidate {
            return Err(Unusable::SameCandidate);
        }
        Ok(TokenPair {
            presented,
            counterfactual,
            anything_else: pair.anything_else,
        })
    }))
}

/// The same for a model of a context of so many tokens.
pub fn token_pair_within<E>(
    pair: &TextPair,
    context: usize,
    encode: impl Fn(&str) -> Result<Vec<(u32, Range<usize>)>, E>,
) -> Result<Result<TokenPair, Unusable>, E> {
    let pair = token_pair(pair, encode)?;
    Ok(
        pair.and_then(|pair| match pair.presented.prompt.len() > context {
            true => Err(Unusable::TooLong),
            false => Ok(pair),
        }),
    )
}

/// Cuts one side of a pair with a tokenizer; none where no token starts at the end of its prompt.
pub fn token_side<E>(
    side: &Side,
    encode: impl Fn(&str) -> Result<Vec<(u32, Range<usize>)>, E>,
) -> Result<Option<TokenSide>, E> {
    Ok(cut(side, &encode(&side.text())?).ok())
}

fn cut(side: &Side, tokens: &[(u32, Range<usize>)]) -> Result<TokenSide, Unusable> {
    let at = tokens
        .iter()
        .position(|(_, bytes)| bytes.start == side.prompt.len())
        .ok_or(Unusable::NoTokenAtCut)?;
    Ok(TokenSide {
        prompt: tokens[..at].iter().map(|(id, _)| *id).collect(),
        candidate: tokens[at].0,
    })
}

/// Draws pairs of a task until `how_many` of them suit the tokenizer.
///
/// The pairs depend on the task, the seed, the split and the tokenizer alone. Fails rather than
/// draw for ever if the tokenizer suits almost none.
pub fn token_pairs<E>(
    task: Task,
    how_many: usize,
    seed: u64,
    split: Split,
    encode: impl Fn(&str) -> Result<Vec<(u32, Range<usize>)>, E>,
) -> Result<Vec<TokenPair>, PairsError<E>> {
    let wanted = Wanted::exactly(how_many, usize::MAX);
    usable_pairs(
        task.name(),
        wanted,
        generated_texts(task, seed, split),
        encode,
    )
}

/// The pairs of one of the twenty tasks, without end.
pub(super) fn generated_texts(
    task: Task,
    seed: u64,
    split: Split,
) -> impl Iterator<Item = TextPair> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(split.stream(TASK_STREAMS + task as u64));
    std::iter::repeat_with(move || task.text_pair(&mut rng, split))
}

/// How many pairs are wanted, and how long they are looked for.
pub(super) struct Wanted {
    pub(super) most: usize,
    pub(super) least: usize,
    /// Text pairs that are looked at, at most.
    pub(super) attempts: usize,
    /// Tokens of a prompt, at most.
    pub(super) context: usize,
}

impl Wanted {
    /// Of pairs without end.
    pub(super) fn exactly(how_many: usize, context: usize) -> Self {
        Wanted {
            most: how_many,
            least: how_many,
            attempts: how_many * ATTEMPTS_PER_PAIR + MORE_ATTEMPTS,
            context,
        }
    }
}

/// The first of these pairs that suit the tokenizer.
pub(super) fn usable_pairs<E>(
    task: &str,
    wanted: Wanted,
    texts: impl Iterator<Item = TextPair>,
    encode: impl Fn(&str) -> Result<Vec<(u32, Range<usize>)>, E>,
) -> Result<Vec<TokenPair>, PairsError<E>> {
    let mut pairs = Vec::new();
    let mut reasons = BTreeMap::new();
    let mut attempts = 0;
    for text in texts.take(wanted.attempts) {
        if pairs.len() == wanted.most {
            break;
        }
        attempts += 1;
        match token_pair_within(&text, wanted.context, &encode) {
            Ok(Ok(pair)) => pairs.push(pair),
            Ok(Err(reason)) => *reasons.entry(reason).or_insert(0) += 1,
            Err(source) => {
                let task = task.to_owned();
                return Err(PairsError::Encode { task, source });
            }
        }
    }
    if pairs.len() >= wanted.least {
        return Ok(pairs);
    }
    Err(PairsError::TooFew {
        task: task.to_owned(),
        wanted: wanted.least,
        found: pairs.len(),
        attempts,
        reasons,
    })
}
