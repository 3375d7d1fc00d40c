//! The body that asks for a training.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::artifacts::ArtifactId;
use crate::jobs::spec::Method;

/// A training to be done. Fields that are not listed here are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateJob {
    /// The id of a dense model that is served: the one a bridge is to, or whose tokenizer and, if asked, weights a model
    /// begins with. Of a pruning the id of the model, dense or sparse, that is pruned.
    pub model: String,
    /// The id of an uploaded file; none, or an empty text, where text is generated, or where a model is pruned that
    /// belongs to a pair with reference text.
    pub training_file: Option<String>,
    pub method: Method,
    /// The id that the result is to be served under; a bridge's sparse model is served under it with `-sparse`. One
    /// that begins with `ft-` is made up unless said.
    pub suffix: Option<ArtifactId>,
    /// Takes the place of `batches.seed`, or of a pruning's `search.seed`, as OpenAI's clients send it. The seed of generated text is its own
    /// (`generated.seed`).
    pub seed: Option<u64>,
    /// Up to 16 short texts by name, to find the job by.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Not supported, only null: every `evaluate_every` steps a part of the training text is held out for it.
    #[schema(value_type = Option<String>)]
    pub validation_file: Option<Value>,
    /// Not supported: only null or an empty list.
    #[schema(value_type = Option<Vec<Object>>)]
    pub integrations: Option<Value>,
    /// OpenAI's former place of what `method` says; only null.
    #[schema(value_type = Option<Object>)]
    pub hyperparameters: Option<Value>,
}
