//! Tasks as they are sent and answered.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::documented::documented;
use crate::tasks::{PairCount, Side, TextPair, Unusable};

/// A question whose answer turns on one fact of the prompt.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskObject {
    #[schema(example = "single_double_quote")]
    pub id: String,
    #[schema(example = "task")]
    pub object: &'static str,
    pub origin: TaskOrigin,
    /// What is to be predicted; of the built-in ones, the presented prompt's answer first.
    pub description: String,
    /// What the feature is called that decides the task, in pairs that have one; null of a caller's own task.
    #[schema(required = true, example = "quote_type")]
    pub feature: Option<&'static str>,
    /// The bridges that are served with that feature.
    pub bridges: Vec<String>,
    /// When it came, in seconds since 1970; null of a built-in one.
    #[schema(required = true)]
    pub created: Option<u64>,
    /// How many pairs it has; null of a built-in one, whose pairs are drawn without end.
    #[schema(required = true)]
    pub pairs: Option<TaskSizes>,
    /// What a model can use of them; null where no `model` was named.
    #[schema(required = true)]
    pub usable: Option<UsablePairs>,
    /// A held-out pair of prompts.
    pub example: TaskPair,
}

documented! {
    /// Where a task is from.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum TaskOrigin {
        /// One of the twenty.
        BuiltIn,
        /// A caller brought it to this server.
        Own,
    }
}

/// How many pairs a task has.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskSizes {
    pub train: usize,
    pub held_out: usize,
}

/// What a model can use of a task's pairs.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsablePairs {
    /// The model.
    pub model: String,
    pub train: PairCounts,
    pub held_out: PairCounts,
}

/// How many pairs of a split a model can use.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PairCounts {
    /// How many were looked at.
    pub drawn: usize,
    /// How many of them it can use.
    pub usable: usize,
    /// How many of the others cannot be used for each reason.
    pub reasons: UnusableCounts,
}

/// Pairs that cannot be used, by reason.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UnusableCounts {
    /// A token goes over the end of a prompt into its answer.
    pub no_token_at_cut: usize,
    /// The two prompts differ in their number of tokens.
    pub lengths_differ: usize,
    /// The two answers begin with the same token.
    pub same_candidate: usize,
    /// The prompts are longer than the model's context.
    pub too_long: usize,
}

/// Two prompts that differ in one fact.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskPair {
    pub presented: TaskSide,
    pub counterfactual: TaskSide,
    /// Whether the counterfactual's answer is only one of many, so that what counts is that the presented candidate does
    /// not follow there.
    #[serde(default)]
    #[schema(default = false)]
    pub anything_else: bool,
}

/// A prompt and how it goes on.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskSide {
    #[schema(min_length = 1)]
    pub prompt: String,
    /// The text that follows. The token of the whole text that begins where the prompt ends is the candidate; what comes
    /// after it only decides how the text is cut into tokens.
    #[schema(min_length = 1)]
    pub answer: String,
}

/// All tasks: the twenty, and then callers' own by their names.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskList {
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<TaskObject>,
}

/// One task with some of its pairs.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskDetail {
    #[serde(flatten)]
    pub task: TaskObject,
    /// Pairs of the split that was asked for, usable or not.
    pub examples: Vec<ExamplePair>,
}

/// A pair as text, and as a model's tokens where one was named.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExamplePair {
    pub presented: ExampleSide,
    pub counterfactual: ExampleSide,
    pub anything_else: bool,
    /// Why the model cannot use it; null where it can, or where no `model` was named.
    #[schema(required = true)]
    pub unusable: Option<UnusableReason>,
}

/// A prompt and its answer as text and as tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExampleSide {
    pub prompt: String,
    pub answer: String,
    /// Null where no `model` was named, and where no token begins at the end of the prompt.
    #[schema(required = true)]
    pub tokens: Option<SideTokens>,
}

/// A prompt's tokens and the one that follows.
#[derive(Debug, Serialize, ToSchema)]
pub struct SideTokens {
    /// The prompt's ids.
    pub prompt: Vec<u32>,
    /// Their texts.
    pub prompt_strs: Vec<String>,
    /// The id of the right next token.
    pub candidate: u32,
    pub candidate_str: String,
}

documented! {
    /// Why a model cannot use a pair.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum UnusableReason {
        /// A token goes over the end of a prompt into its answer.
        NoTokenAtCut,
        /// The two prompts differ in their number of tokens.
        LengthsDiffer,
        /// The two answers begin with the same token.
        SameCandidate,
        /// The prompts are longer than the model's context.
        TooLong,
    }
}

/// Which pairs to count.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TaskQuery {
    /// Tell how many pairs this dense or sparse model can use.
    #[param(example = "tinypython")]
    pub model: Option<String>,
    /// Pairs of each split to look at for that; of a caller's own task at most those that there are.
    #[param(minimum = 1, maximum = 256, default = 64, example = 8)]
    pub pairs: Option<usize>,
}

/// What to tell of a task.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TaskDetailQuery {
    /// Tell how many pairs this dense or sparse model can use, and its tokens of the examples.
    #[param(example = "tinypython")]
    pub model: Option<String>,
    /// Pairs of each split to look at for that; of a caller's own task at most those that there are.
    #[param(minimum = 1, maximum = 4096, default = 256, example = 64)]
    pub pairs: Option<usize>,
    /// Pairs to show.
    #[param(minimum = 0, maximum = 100, default = 4, example = 2)]
    pub examples: Option<usize>,
    /// The split that they are of; `held_out` unless said.
    #[param(value_type = Option<TaskSplit>, example = "train")]
    pub split: Option<String>,
    /// Decides which pairs of a split are looked at and shown; 0 unless said.
    #[param(default = 0)]
    pub seed: Option<i64>,
}

documented! {
    /// A half of a task's pairs.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum TaskSplit {
        /// What circuits are found on.
        Train,
        /// What they are measured on.
        HeldOut,
    }
}

/// A task to be kept.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTask {
    /// 1 to 64 of a-z, 0-9, `.`, `_` and `-`, no dot first or beside another, not yet used, and none of the twenty's.
    #[schema(pattern = r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?$", max_length = 64)]
    pub id: String,
    /// For people: what is to be predicted.
    #[schema(max_length = 10_000)]
    pub description: Option<String>,
    /// One pair of three, by a hash of its texts, is held out; there must be at least 4 of both splits. No two may be the
    /// same.
    #[schema(min_items = 8, max_items = 10_000)]
    pub pairs: Vec<TaskPair>,
    /// Refuse the task unless this dense or sparse model can use at least 4 pairs of each split.
    pub model: Option<String>,
}

/// What to make of a file of pairs.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TaskFileQuery {
    /// For people: what is to be predicted.
    #[param(max_length = 10_000)]
    pub description: Option<String>,
    /// Refuse the task unless this dense or sparse model can use at least 4 pairs of each split.
    pub model: Option<String>,
}

/// A task that is no more.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedTask {
    pub id: String,
    #[schema(example = "task")]
    pub object: &'static str,
    pub deleted: bool,
}

impl From<TextPair> for TaskPair {
    fn from(pair: TextPair) -> Self {
        let side = |side: Side| TaskSide {
            prompt: side.prompt,
            answer: side.answer,
        };
        TaskPair {
            presented: side(pair.presented),
            counterfactual: side(pair.counterfactual),
            anything_else: pair.anything_else,
        }
    }
}

impl From<TaskPair> for TextPair {
    fn from(pair: TaskPair) -> Self {
        let side = |side: TaskSide| Side {
            prompt: side.prompt,
            answer: side.answer,
        };
        TextPair {
            presented: side(pair.presented),
            counterfactual: side(pair.counterfactual),
            anything_else: pair.anything_else,
        }
    }
}

impl From<PairCount> for PairCounts {
    fn from(count: PairCount) -> Self {
        let of = |reason| count.reasons.get(&reason).copied().unwrap_or_default();
        PairCounts {
            drawn: count.drawn,
            usable: count.usable,
            reasons: UnusableCounts {
                no_token_at_cut: of(Unusable::NoTokenAtCut),
                lengths_differ: of(Unusable::LengthsDiffer),
                same_candidate: of(Unusable::SameCandidate),
                too_long: of(Unusable::TooLong),
            },
        }
    }
}

impl From<Unusable> for UnusableReason {
    fn from(reason: Unusable) -> Self {
        match reason {
            Unusable::NoTokenAtCut => UnusableReason::NoTokenAtCut,
            Unusable::LengthsDiffer => UnusableReason::LengthsDiffer,
            Unusable::SameCandidate => UnusableReason::SameCandidate,
            Unusable::TooLong => UnusableReason::TooLong,
        }
    }
}
