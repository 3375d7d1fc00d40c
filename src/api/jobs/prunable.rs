//! What a pruning needs beside a recipe: the text that means are taken over, and pairs of the task that the model's
//! tokenizer can use.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::api::ApiError;
use crate::api::state::State;
use crate::artifacts::atomic;
use crate::corpus::Split;
use crate::evaluation::any_task_pairs;
use crate::jobs::spec::{PruneHyperparameters, TASK_PAIRS};
use crate::serving::snapshot::{ModelCard, Snapshot, shortened};
use crate::tasks::{AnyTask, UserTask};

const TASK: &str = "method.prune.hyperparameters.task";
/// Pairs of each split that are looked for before a pruning is accepted.
const TRIED: usize = 32;

/// A pair whose half is pruned.
pub struct OwnPair {
    pub folder: PathBuf,
    /// `dense` or `sparse`: the half's folder in it.
    pub half: &'static str,
}

/// The pair that the files of `model`, in `folder`, belong to, if it has reference text.
pub fn pair_with_reference(
    state: &State,
    snapshot: &Snapshot,
    model: &str,
    folder: &Path,
) -> Option<OwnPair> {
    snapshot.bridges_of(model).find_map(|bridge| {
        bridge.reference.text.as_ref()?;
        let pair = bridge.record.id.as_str();
        let pair = state.service.library.pair_directory(pair)?;
        let mut halves = ["dense", "sparse"].into_iter();
        let half = halves.find(|half| pair.join(half) == folder)?;
        Some(OwnPair { folder: pair, half })
    })
}

/// The task that a pruning is asked for: one of the twenty, or one that was added.
pub fn named_task(state: &State, fields: &PruneHyperparameters) -> Result<AnyTask, ApiError> {
    let known = state.service.tasks.find(&shortened(&fields.task));
    known.map_err(|error| ApiError::invalid(TASK, format!("task: {error}")))
}

/// Both splits of the task must have pairs that the model's tokenizer can use.
pub fn has_usable_pairs(
    task: &AnyTask,
    fields: &PruneHyperparameters,
    model: &ModelCard,
) -> Result<(), ApiError> {
    let (context, search) = (model.config.context_length, &fields.search);
    for (split, wanted) in [
        (Split::Train, search.train_pairs),
        (Split::HeldOut, search.held_out_pairs),
    ] {
        let count = wanted.min(TRIED);
        let pairs = any_task_pairs(&model.tokenizer, context, task, count, search.seed, split);
        pairs.map_err(|error| ApiError::invalid(TASK, format!("task: {error}")))?;
    }
    Ok(())
}

/// A folder below `work` with the pairs of a task, which goes when it is dropped.
pub fn pairs_of(task: &UserTask, work: &Path) -> Result<TempDir, ApiError> {
    std::fs::create_dir_all(work).map_err(ApiError::storage)?;
    let folder = tempfile::Builder::new().prefix(".task-").tempdir_in(work);
    let folder = folder.map_err(ApiError::storage)?;
    let lines = task.to_lines().map_err(ApiError::internal)?;
    let written = atomic::write(&folder.path().join(TASK_PAIRS), lines.as_bytes());
    written.map_err(ApiError::storage)?;
    Ok(folder)
}
