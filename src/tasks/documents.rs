//! Minimal pairs as documents.

use rand_chacha::ChaCha8Rng;

use super::task::Task;
use crate::corpus::Split;

/// The two full texts of a pair, presented first: prompt, answer, and a few plausible lines more.
///
/// Given the same random stream, the texts begin with the prompts and answers of
/// [`Task::text_pair`].
pub fn pair_documents(rng: &mut ChaCha8Rng, split: Split, task: Task) -> (String, String) {
    let [presented, counterfactual] = task.passage(rng, split).texts();
    (presented, counterfactual)
}
