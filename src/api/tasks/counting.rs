//! What a model can use of a task's pairs, and what its tokenizer makes of single ones.

use std::sync::Arc;

use super::wire::{ExamplePair, ExampleSide, SideTokens};
use crate::api::ApiError;
use crate::api::completions::prompt;
use crate::api::state::State;
use crate::corpus::Split;
use crate::models::tokenizer::{Tokenizer, TokenizerError};
use crate::serving::snapshot::ModelCard;
use crate::tasks::{AnyTask, PairCount, Side, TextPair, token_pair_within, token_side};

/// Counts of both splits.
#[derive(Debug)]
pub struct BothCounts {
    pub train: PairCount,
    pub held_out: PairCount,
}

/// Counts what a model can use of the first `pairs` of each split. Other requests' texts are tokenised between the two.
pub async fn count(
    state: &State,
    task: &AnyTask,
    card: &Arc<ModelCard>,
    pairs: usize,
    seed: u64,
) -> Result<BothCounts, ApiError> {
    let of = async |split: Split| {
        let (task, card) = (task.clone(), card.clone());
        let counted = prompt::tokenise(state, move || {
            let encode = |text: &str| card.tokenizer.encode_with_offsets(text);
            task.count(card.config.context_length, pairs, seed, split, encode)
        });
        counted.await?.map_err(failed)
    };
    Ok(BothCounts {
        train: of(Split::Train).await?,
        held_out: of(Split::HeldOut).await?,
    })
}

/// Pairs as they are shown: with their tokens where there is a model.
pub async fn shown(
    state: &State,
    pairs: Vec<TextPair>,
    card: Option<&Arc<ModelCard>>,
) -> Result<Vec<ExamplePair>, ApiError> {
    let Some(card) = card.cloned() else {
        let side = |side: Side| ExampleSide {
            prompt: side.prompt,
            answer: side.answer,
            tokens: None,
        };
        let pairs = pairs.into_iter().map(|pair| ExamplePair {
            presented: side(pair.presented),
            counterfactual: side(pair.counterfactual),
            anything_else: pair.anything_else,
            unusable: None,
        });
        return Ok(pairs.collect());
    };
    let shown = prompt::tokenise(state, move || {
        let (tokenizer, context) = (&*card.tokenizer, card.config.context_length);
        let pairs = pairs.into_iter();
        pairs
            .map(|pair| example(pair, tokenizer, context))
            .collect()
    });
    let shown: Result<Vec<ExamplePair>, TokenizerError> = shown.await?;
    shown.map_err(failed)
}

fn example(
    pair: TextPair,
    tokenizer: &Tokenizer,
    context: usize,
) -> Result<ExamplePair, TokenizerError> {
    let encode = |text: &str| tokenizer.encode_with_offsets(text);
    let unusable = token_pair_within(&pair, context, encode)?.err();
    let side = |side: Side| {
        let tokens = token_side(&side, encode)?.map(|tokens| SideTokens {
            prompt_strs: tokens
                .prompt
                .iter()
                .map(|id| tokenizer.token_text(*id))
                .collect(),
            candidate_str: tokenizer.token_text(tokens.candidate),
            prompt: tokens.prompt,
            candidate: tokens.candidate,
        });
        Ok::<_, TokenizerError>(ExampleSide {
            prompt: side.prompt,
            answer: side.answer,
            tokens,
        })
    };
    Ok(ExamplePair {
        presented: side(pair.presented)?,
        counterfactual: side(pair.counterfactual)?,
        anything_else: pair.anything_else,
        unusable: unusable.map(Into::into),
    })
}

fn failed(error: TokenizerError) -> ApiError {
    ApiError::invalid("model", format!("its tokenizer failed on a pair: {error}"))
}
