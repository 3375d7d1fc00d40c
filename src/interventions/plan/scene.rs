//! What a request is held against: the model that answers, its bridge, and the prompts.

use crate::bridge::site_map::SiteMap;
use crate::circuits::circuit::NamedCircuits;
use crate::features::direction::NamedDirections;
use crate::features::measured::KnownGroups;
use crate::features::pair::Pair;
use crate::models::tokenizer::Tokenizer;
use crate::models::transformer::Transformer;

/// Why a request cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The request is at fault.
    #[error("{message}")]
    Refused {
        message: String,
        /// The field at fault, such as `steer.edits[0].feature`.
        param: String,
    },
    #[error(transparent)]
    Failed(#[from] candle_core::Error),
}

/// A refusal of the field `param`.
pub fn refused(message: impl Into<String>, param: &str) -> PlanError {
    PlanError::Refused {
        message: message.into(),
        param: param.to_owned(),
    }
}

/// What a request is held against.
pub struct Scene<'a> {
    /// The model that answers, and its id.
    pub model: &'a Transformer,
    pub model_id: &'a str,
    /// Of its configuration and weights.
    pub fingerprint: &'a str,
    /// The answering model is a sparse one: edits are made in it directly.
    pub native: bool,
    /// The pair of its bridge: the one the request named, or its first.
    pub pair: Option<&'a Pair>,
    /// The answering model's own named directions.
    pub directions: &'a NamedDirections,
    /// Circuits of whatever models: which are the request's is told by the weights that they were found in.
    pub circuits: &'a NamedCircuits,
    pub tokenizer: &'a Tokenizer,
    pub prompts: &'a [Vec<u32>],
    /// Groups that were measured for this request.
    pub measured: &'a KnownGroups,
}

impl<'a> Scene<'a> {
    pub fn pair(&self, param: &str) -> Result<&'a Pair, PlanError> {
        self.pair.ok_or_else(|| {
            let message = format!(
                "{:?} has no bridge; only vectors and named directions of its own can steer it",
                self.model_id
            );
            refused(message, param)
        })
    }

    pub fn sparse(&self, param: &str) -> Result<&'a Transformer, PlanError> {
        match self.native {
            true => Ok(self.model),
            false => Ok(&self.pair(param)?.sparse),
        }
    }

    /// Where the places of the sparse model are joined to the one that answers; a sparse model that answers itself is
    /// joined to itself.
    pub fn site_map(&self) -> SiteMap {
        match (self.pair, self.native) {
            (Some(pair), false) => pair.bridge.site_map.clone(),
            _ => SiteMap::identity(self.n_layers()),
        }
    }

    /// Layers of the model that answers.
    pub fn n_layers(&self) -> usize {
        self.model.config.n_layers
    }

    /// The longest sequence that every model of the request can hold.
    pub fn context_length(&self) -> usize {
        let own = self.model.config.context_length;
        match (self.pair, self.native) {
            (Some(pair), false) => own.min(pair.sparse.config.context_length),
            _ => own,
        }
    }
}
