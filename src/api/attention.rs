//! Where heads attend, as a part of a request for activations.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiError;
use crate::models::config::TransformerConfig;

/// Heads of one request.
const MOST_HEADS: usize = 256;

/// One head of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttentionHead {
    /// The layer, counted from 0.
    pub layer: usize,
    /// The head within it, counted from 0.
    pub head: usize,
}

/// Where one head attends.
#[derive(Debug, Serialize, ToSchema)]
pub struct AttentionPattern {
    pub layer: usize,
    pub head: usize,
    /// `[T][T]`: each token's row says how much of each token's values it takes. A row sums to 1, or to less where the model
    /// has attention sinks.
    pub values: Vec<Vec<f32>>,
}

/// Refuses heads that the model does not have, heads named twice, and more than may be.
pub fn check(heads: &[AttentionHead], config: &TransformerConfig) -> Result<(), ApiError> {
    if heads.len() > MOST_HEADS {
        let count = heads.len();
        let message = format!("there are {count} heads; at most {MOST_HEADS} are told at once");
        return Err(ApiError::invalid("attention", message));
    }
    for (index, asked) in heads.iter().enumerate() {
        let refused = |field: &str, message: String| {
            Err(ApiError::invalid(
                format!("attention[{index}]{field}"),
                message,
            ))
        };
        if asked.layer >= config.n_layers {
            let last = config.n_layers - 1;
            return refused(
                ".layer",
                format!("is {}; layers run from 0 to {last}", asked.layer),
            );
        }
        if asked.head >= config.n_heads {
            let last = config.n_heads - 1;
            return refused(
                ".head",
                format!("is {}; heads run from 0 to {last}", asked.head),
            );
        }
        if heads[..index].contains(asked) {
            return refused("", "this head is named twice".to_owned());
        }
    }
    Ok(())
}

/// The answer's form of patterns of `tokens` tokens, in the order of `heads`.
pub fn told(
    heads: &[AttentionHead],
    patterns: Vec<Vec<f32>>,
    tokens: usize,
) -> Vec<AttentionPattern> {
    let rows = |pattern: Vec<f32>| pattern.chunks(tokens.max(1)).map(<[f32]>::to_vec).collect();
    let pairs = heads.iter().zip(patterns);
    pairs
        .map(|(head, pattern)| AttentionPattern {
            layer: head.layer,
            head: head.head,
            values: rows(pattern),
        })
        .collect()
}
