//! What a caller asks for: the fields of each kind of training, and of a pruning.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::artifacts::ArtifactId;
use crate::models::config::TransformerConfig;
use crate::pruning::recipe::{Controls, Search};
use crate::tasks::Task;
use crate::training::recipe::{Batches, Optimizer, Sparsity, Terms};

/// What is trained and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Method {
    #[serde(rename = "type")]
    pub kind: MethodKind,
    /// For the type `dense`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense: Option<Hyper<ModelHyperparameters>>,
    /// For the type `sparse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse: Option<Hyper<ModelHyperparameters>>,
    /// For the type `bridge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Hyper<BridgeHyperparameters>>,
    /// For the type `prune`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune: Option<Hyper<PruneHyperparameters>>,
}

/// The kinds of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MethodKind {
    /// A dense model.
    Dense,
    /// A weight-sparse model.
    Sparse,
    /// A weight-sparse model together with its bridge to a dense one.
    Bridge,
    /// No model but a circuit: the smallest part of one, dense or sparse, that does a task.
    Prune,
}

impl MethodKind {
    pub fn as_str(self) -> &'static str {
        match self {
            MethodKind::Dense => "dense",
            MethodKind::Sparse => "sparse",
            MethodKind::Bridge => "bridge",
            MethodKind::Prune => "prune",
        }
    }
}

/// A method's fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Hyper<H> {
    pub hyperparameters: H,
}

/// Training one model alone: next-token cross-entropy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelHyperparameters {
    /// What the model is made of; its vocabulary is that of the job's `model`, whose tokenizer it gets. With
    /// `start_from_model` it is that model's configuration, and need not be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<TransformerConfig>,
    /// Go on from the weights of the job's `model` instead of random ones.
    #[serde(default)]
    pub start_from_model: bool,
    /// How weights are made sparse; only, and always, for the type `sparse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<Sparsity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<GeneratedText>,
    pub batches: Batches,
    pub optimizer: Optimizer,
    #[serde(default)]
    pub watch: Watch,
}

/// Training a sparse model and its bridge to the job's `model`, which stays as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BridgeHyperparameters {
    /// What the sparse model is made of; as large a vocabulary as the dense one's, and no more layers. With `start_from` it
    /// is the configuration of that bridge's sparse model, and need not be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse: Option<TransformerConfig>,
    /// The id of a bridge of the dense model, to go on from it and its sparse model instead of random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_from: Option<ArtifactId>,
    /// For each residual site of the sparse model, in order, the dense model's that it is joined to: ascending, each once.
    /// Left out, they are those of `start_from`, which are never others, or evenly spaced: the same where both models have
    /// as many layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_map: Option<Vec<String>>,
    /// The share of channels that an encoder's AbsTopK keeps.
    #[serde(default = "default_encoder_fraction")]
    pub encoder_fraction: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<GeneratedText>,
    pub batches: Batches,
    pub optimizer: Optimizer,
    /// The bridge's peak rate; the sparse model's is the optimizer's.
    #[serde(alias = "bridge_rate")]
    pub bridge_learning_rate: f64,
    pub sparsity: Sparsity,
    pub terms: Terms,
    #[serde(default)]
    pub watch: Watch,
}

fn default_encoder_fraction() -> f64 {
    0.25
}

/// Finding the smallest circuit of the job's `model` for a task. What is not in it is held at its mean over reference
/// text: that of the pair that the model belongs to, unless `training_file` or `generated` gives another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneHyperparameters {
    /// The name of the task: one of the twenty, or one that was added (`GET /v1/tasks` lists both). Of one that was added
    /// the job keeps the pairs as they are now.
    pub task: String,
    #[serde(default)]
    pub search: Search,
    #[serde(default)]
    pub controls: Controls,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<GeneratedText>,
    /// Steps from one checkpoint to the next: what a stop can cost.
    #[serde(default = "default_prune_checkpoint_every")]
    pub checkpoint_every: usize,
}

fn default_prune_checkpoint_every() -> usize {
    50
}

/// Generated Python programs beside the uploaded text, or instead of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GeneratedText {
    pub documents: usize,
    /// Of the programs: the same seed gives the same ones.
    pub seed: u64,
    /// Its share of a batch, beside the 1 of the uploaded text.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

/// How often a training is looked at and kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Watch {
    /// Steps from one checkpoint to the next: what a stop can cost.
    pub checkpoint_every: usize,
    /// Minutes after which a checkpoint is written all the same.
    pub checkpoint_minutes: f64,
    /// Steps from one evaluation on held-out text to the next.
    pub evaluate_every: usize,
    /// Held-out sequences of each source in an evaluation.
    pub evaluation_sequences: usize,
    /// Tasks on which a pair is steered at the end of its training (`GET /v1/tasks` lists them); for the type `bridge`.
    pub tasks: Vec<Task>,
    /// Pairs of prompts of each of these tasks: as many to choose channels on, and as many held-out ones.
    pub task_pairs: usize,
}

impl Default for Watch {
    fn default() -> Self {
        Watch {
            checkpoint_every: 200,
            checkpoint_minutes: 10.0,
            evaluate_every: 200,
            evaluation_sequences: 16,
            tasks: Vec::new(),
            task_pairs: 64,
        }
    }
}
