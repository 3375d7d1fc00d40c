//! Sequences that differ from each other in one fact again and again: the tasks' minimal pairs, end to end, or
//! real code in which some strings have the other quote.
//!
//! The two sequences of a pair have the same number of tokens everywhere, so that a value of one can be put in
//! the place of the other's. All made-up documents of one pair of sequences belong to one task, and which side a
//! sequence shows is drawn anew for each document.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TrainingError;
use super::data::{Batch, TrainingData};
use super::recipe::Twin;
use crate::corpus::Split;
use crate::corpus::literals::literals;
use crate::models::tokenizer::Tokenizer;
use crate::tasks::{Task, TokenSide, pair_documents, token_pair};

/// Documents drawn for one place before giving up on tokenizing them alike.
const ATTEMPTS: usize = 1000;
/// The share of a window's plain strings that get the other quote.
const SWAPPED_STRINGS: f64 = 0.4;

/// Fails where the tokenizer has no pair of equal lengths for some task: at the start of a training rather than at
/// the step that first draws the task.
pub fn check_tasks(tokenizer: &Tokenizer) -> Result<(), TrainingError> {
    Task::ALL.into_iter().try_for_each(|task| {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        aligned_documents(task, tokenizer, &mut rng).map(|_| ())
    })
}

/// Token ids of two sequences that stand beside each other.
type PairOfSequences = (Vec<u32>, Vec<u32>);

/// Adds the twin term's pairs of sequences; the two of a pair follow one another.
pub fn push_pairs(
    batch: &mut Batch,
    twin: &Twin,
    data: &TrainingData,
    tokenizer: &Tokenizer,
    rng: &mut ChaCha8Rng,
) -> Result<(), TrainingError> {
    for _ in 0..twin.task_pairs {
        let real = match rng.random_bool(twin.quote_share) {
            true => quote_pair(data, tokenizer, batch.length, rng)?,
            false => None,
        };
        let (one, other) = match real {
            Some(pair) => pair,
            None => task_pair(tokenizer, batch.length, rng)?,
        };
        batch.push(&one[..=batch.length]);
        batch.push(&other[..=batch.length]);
    }
    Ok(())
}

/// More than `length` tokens of one task's documents, and of their counterparts.
fn task_pair(
    tokenizer: &Tokenizer,
    length: usize,
    rng: &mut ChaCha8Rng,
) -> Result<PairOfSequences, TrainingError> {
    let task = Task::ALL[rng.random_range(0..Task::ALL.len())];
    let (mut one, mut other) = (Vec::new(), Vec::new());
    while one.len() <= length {
        let (mut presented, mut counterfactual) = aligned_documents(task, tokenizer, rng)?;
        if rng.random() {
            std::mem::swap(&mut presented, &mut counterfactual);
        }
        for (sequence, document) in [(&mut one, presented), (&mut other, counterfactual)] {
            sequence.extend(document);
            sequence.extend(tokenizer.end_of_text());
        }
    }
    Ok((one, other))
}

/// More than `length` tokens of real code, and the same with the other quote around some of its strings; none
/// where no such code was found.
fn quote_pair(
    data: &TrainingData,
    tokenizer: &Tokenizer,
    length: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Option<PairOfSequences>, TrainingError> {
    for _ in 0..ATTEMPTS {
        // A window encoded anew may have fewer tokens.
        let Some(window) = data.real_window(length + length / 4 + 1, rng) else {
            return Ok(None);
        };
        let text = tokenizer.decode(window);
        // Where a window may begin within a docstring, quotes cannot be told apart.
        if text.contains("\"\"\"") || text.contains("'''") {
            continue;
        }
        let mut swapped = text.clone();
        for literal in literals(&text) {
            if rng.random_bool(SWAPPED_STRINGS) {
                let quote = literal.other_quote().to_string();
                for at in [literal.open, literal.close] {
                    swapped.replace_range(at..=at, &quote);
                }
            }
        }
        let (one, other) = (tokenizer.encode(&text)?, tokenizer.encode(&swapped)?);
        let differ = one.iter().zip(&other).any(|(one, other)| one != other);
        if differ
            && one.len() == other.len()
            && one.len() > length
            && aligned(&one, &other, tokenizer)
        {
            return Ok(Some((one, other)));
        }
    }
    Ok(None)
}

/// Whether every token stands for as many bytes as its counterpart.
fn aligned(one: &[u32], other: &[u32], tokenizer: &Tokenizer) -> bool {
    let bytes = |id: &u32| tokenizer.token_bytes(*id).len();
    one.iter().zip(other).all(|(a, b)| bytes(a) == bytes(b))
}

/// The two documents of a minimal pair, of equal length in tokens: with what follows the decisive token where
/// that is equally long, else up to the decisive token.
fn aligned_documents(
    task: Task,
    tokenizer: &Tokenizer,
    rng: &mut ChaCha8Rng,
) -> Result<PairOfSequences, TrainingError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::tokenizer::train_bpe;
    use crate::training::recipe::Source;

    #[test]
    fn real_code_changes_places_with_itself_but_for_quotes() {
        let directory = std::env::temp_dir().join(format!("quotes-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&directory).expect("a directory");
        for file in 0..40 {
            let lines = (0..30).map(|line| match line % 3 {
                0 => format!("first_{line} = call({file}, 'some words')\n"),
                1 => format!("second = {{\"key_{line}\": other[{file}]}}\n"),
                _ => format!("def name_{file}(value): return value + {line}\n"),
            });
            let code: String = lines.collect();
            std::fs::write(directory.join(format!("f{file}.py")), code).expect("a file");
        }
        let text = std::fs::read_to_string(directory.join("f1.py")).expect("code");
        // Both quotes must be tokens alike, or nothing aligns.
        let both = [text.clone(), text.replace('\'', "\"")].into_iter();
        let tokenizer = train_bpe(both, 290).expect("a tokenizer");
        let source = Source::Directory {
            path: directory.clone(),
            weight: 1.0,
            held_out_every: 4,
        };
        let length = 48;
        let data = TrainingData::load(&[source], &tokenizer, length);
        std::fs::remove_dir_all(&directory).expect("removed");
        let data = data.expect("data");
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..10 {
            let pair = quote_pair(&data, &tokenizer, length, &mut rng).expect("tokens");
            let (one, other) = pair.expect("a pair");
            assert!(one.len() > length && one.len() == other.len() && one != other);
            let (one, other) = (tokenizer.decode(&one), tokenizer.decode(&other));
            assert_eq!(one.replace('"', "'"), other.replace('"', "'"));
        }
    }
}
