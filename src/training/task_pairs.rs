//! Sequences that differ from each other in one fact again and again: the tasks' minimal pairs, end to end.
//!
//! The two sequences of a pair have the same number of tokens everywhere, so that a value of one can be put in
//! the place of the other's. All documents of one pair of sequences belong to one task, and which side a
//! sequence shows is drawn anew for each document.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TrainingError;
use super::data::Batch;
use crate::corpus::Split;
use crate::models::tokenizer::Tokenizer;
use crate::tasks::{Task, TokenSide, pair_documents, token_pair};

/// Documents drawn for one place before giving up on tokenizing them alike.
const ATTEMPTS: usize = 1000;

/// Fails where the tokenizer has no pair of equal lengths for some task: at the start of a training rather than at
/// the step that first draws the task.
pub fn check_tasks(tokenizer: &Tokenizer) -> Result<(), TrainingError> {
    Task::ALL.into_iter().try_for_each(|task| {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        aligned_documents(task, tokenizer, &mut rng).map(|_| ())
    })
}

/// Adds `pairs` pairs of sequences; the two of a pair follow one another.
pub fn push_task_pairs(
    batch: &mut Batch,
    pairs: usize,
    tokenizer: &Tokenizer,
    rng: &mut ChaCha8Rng,
) -> Result<(), TrainingError> {
    for _ in 0..pairs {
        let task = Task::ALL[rng.random_range(0..Task::ALL.len())];
        let (mut one, mut other) = (Vec::new(), Vec::new());
        while one.len() <= batch.length {
            let (mut presented, mut counterfactual) = aligned_documents(task, tokenizer, rng)?;
            if rng.random() {
                std::mem::swap(&mut presented, &mut counterfactual);
            }
            for (sequence, document) in [(&mut one, presented), (&mut other, counterfactual)] {
                sequence.extend(document);
                sequence.extend(tokenizer.end_of_text());
            }
        }
        batch.push(&one[..=batch.length]);
        batch.push(&other[..=batch.length]);
    }
    Ok(())
}

/// The two documents of a minimal pair, of equal length in tokens: with what follows the decisive token where
/// that is equally long, else up to the decisive token.
fn aligned_documents(
    task: Task,
    tokenizer: &Tokenizer,
    rng: &mut ChaCha8Rng,
) -> Result<(Vec<u32>, Vec<u32>), TrainingError> {
    for _ in 0..ATTEMPTS {
        // The texts of a pair begin its documents if both are drawn with the same numbers.
        let text_pair = task.text_pair(&mut rng.clone(), Split::Train);
        let (presented, counterfactual) = pair_documents(rng, Split::Train, task);
        let (presented, counterfactual) = (
            tokenizer.encode(&presented)?,
            tokenizer.encode(&counterfactual)?,
        );
        if presented.len() == counterfactual.len() {
            return Ok((presented, counterfactual));
        }
        if let Ok(pair) = token_pair(&text_pair, |text| tokenizer.encode_with_offsets(text))? {
            let whole = |side: TokenSide| [side.prompt, vec![side.candidate]].concat();
            return Ok((whole(pair.presented), whole(pair.counterfactual)));
        }
    }
    Err(TrainingError::Data(format!(
        "the tokenizer gives the two sides of task {task} different lengths in {ATTEMPTS} of {ATTEMPTS} attempts"
    )))
}
