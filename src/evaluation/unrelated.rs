//! What a feature does where it should do nothing: setting it on prompts that have nothing to do with it.
//!
//! The feature is `set`, at every token, to a value that is typical of the other fact; the figure is the mean over
//! prompts of KL(baseline || steered) of the next token, in nats. `a = <u, x>` moves to the value along `u`.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde::Serialize;

use super::EvaluationError;
use crate::corpus::literals::strings_and_comments;
use crate::discovery::patching::Patching;
use crate::discovery::prompt_run::PromptRun;
use crate::discovery::route::{ChannelColumns, Route};
use crate::features::group::{WeightedChannel, Write};
use crate::features::pair::Pair;
use crate::features::statistics::group_value;
use crate::interventions::carry::row_rms;
use crate::models::location::Location;
use crate::numerics::loss::kl_divergence;
use crate::numerics::rows;

/// Prompts cut from code have at most this many bytes.
const CONTEXT: usize = 240;

/// What setting the feature did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnrelatedEffect {
    pub prompts: usize,
    /// The value it was set to.
    pub value: f64,
    /// Mean KL(baseline || steered) at the next token, in nats.
    pub mean_kl: f64,
    pub largest_kl: f64,
    /// Prompts whose most probable next token changed.
    pub changed_first_choice: usize,
}

/// The values of `<u, x>` typical of the two sides of a fact, presented and counterfactual: the mean over pairs, at
/// each pair's token where the two prompts' values are furthest apart. That is where the feature tells them apart;
/// elsewhere it may well be zero.
pub fn typical_values(
    patching: &Patching,
    place: Location,
    group: &[WeightedChannel],
) -> Result<[f64; 2], EvaluationError> {
    let sides = patching.sparse_values(place)?;
    let width = sides[0].dim(1)?;
    let sides = [rows::to_vec(sides[0])?, rows::to_vec(sides[1])?];
    // By pair.
    let mut furthest: BTreeMap<usize, [f64; 2]> = BTreeMap::new();
    for (row, pair) in patching.pair_of_rows().enumerate() {
        let at = |side: &[f32]| f64::from(group_value(&side[row * width..][..width], group));
        let values = sides.each_ref().map(|side| at(side));
        let apart = |values: [f64; 2]| (values[0] - values[1]).abs();
        let best = furthest.entry(pair).or_insert(values);
        if apart(values) > apart(*best) {
            *best = values;
        }
    }
    let mean = |side: usize| {
        let sum: f64 = furthest.values().map(|values| values[side]).sum();
        sum / furthest.len().max(1) as f64
    };
    Ok([mean(0), mean(1)])
}

/// Sets the group to `value` at every token of each prompt, through the bridge.
pub fn set_everywhere(
    models: &Pair,
    prompts: &[Vec<u32>],
    place: Location,
    group: &[WeightedChannel],
    write: Write,
    value: f64,
) -> Result<UnrelatedEffect, EvaluationError> {
    let columns = ChannelColumns::new(models, place, Route::Bridge(write))?;
    let borrowed: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let from_the_start = vec![0; prompts.len()];
    let sparse = PromptRun::new(&models.sparse, &borrowed, &from_the_start, [place])?;
    let mut dense = PromptRun::new(&models.dense, &borrowed, &from_the_start, [])?;
    let values = sparse.value(place)?;
    let width = values.dim(1)?;
    let values = rows::to_vec(values)?;
    let factors = match columns.times_sparse_rms {
        true => row_rms(sparse.value(Location::Site(place.site(models.n_layers())))?)?,
        false => vec![1.0; dense.kept_rows()],
    };
    let mut change = vec![0f32; dense.kept_rows() * columns.width];
    let outs = change.chunks_exact_mut(columns.width);
    for ((row, out), factor) in values.chunks_exact(width).zip(outs).zip(factors) {
        let step = (value as f32 - group_value(row, group)) * factor;
        for member in group {
            columns.add(member.channel, step * member.weight as f32, out);
        }
    }
    let baseline = dense.logits().clone();
    let steered = dense.with_change(columns.target, change)?;
    effect(&baseline, &steered, value)
}

fn effect(
    baseline: &Tensor,
    steered: &Tensor,
    value: f64,
) -> Result<UnrelatedEffect, EvaluationError> {
    let divergences = rows::to_vec(&kl_divergence(baseline, steered)?)?;
    let first = |logits: &Tensor| logits.argmax(1)?.to_device(&Device::Cpu)?.to_vec1::<u32>();
    let changed = first(baseline)?.into_iter().zip(first(steered)?);
    let count = divergences.len();
    Ok(UnrelatedEffect {
        prompts: count,
        value,
        mean_kl: divergences.iter().map(|&kl| f64::from(kl)).sum::<f64>() / count.max(1) as f64,
        largest_kl: divergences
            .iter()
            .map(|&kl| f64::from(kl))
            .fold(0.0, f64::max),
        changed_first_choice: changed.filter(|(before, after)| before != after).count(),
    })
}

/// Cuts prompts from code, one a document, each ending inside a line but in no string or comment, and holding at
/// most `longest` tokens.
pub fn prompts_without_strings(
    models: &Pair,
    documents: &[String],
    count: usize,
    longest: usize,
) -> Result<Vec<Vec<u32>>, EvaluationError> {
    let tokenizer = models.tokenizer();
    let mut prompts = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        if prompts.len() == count {
            break;
        }
        // A different depth into each document.
        let Some(text) = code_without_strings(document, 4 + index % 16) else {
            continue;
        };
        let tokens = tokenizer.encode(text)?;
        if !tokens.is_empty() && tokens.len() <= longest {
            prompts.push(tokens);
        }
    }
    Ok(prompts)
}

/// Some whole lines and the beginning of another, from line `first_line` on: neither the beginning nor the end is
/// inside a string or a comment.
pub fn code_without_strings(code: &str, first_line: usize) -> Option<&str> {
    let spans = strings_and_comments(code);
    let outside = |at: usize| !spans.iter().any(|span| span.start < at && at < span.end);
    let ends_outside = |at: usize| !spans.iter().any(|span| span.start < at && at <= span.end);
    let mut starts = vec![0];
    starts.extend(code.match_indices('\n').map(|(at, _)| at + 1));
    for (line, pair) in starts.windows(2).enumerate().skip(first_line) {
        let text = &code[pair[0]..pair[1]];
        let words = text.trim_end();
        let indent = words.len() - words.trim_start().len();
        // Two thirds of the line's words.
        let end = pair[0] + indent + (words.len() - indent) * 2 / 3;
        if end <= pair[0] + indent || !code.is_char_boundary(end) || !ends_outside(end) {
            continue;
        }
        let begins = |&&start: &&usize| end - start <= CONTEXT && outside(start);
        if let Some(&start) = starts[..=line].iter().find(begins) {
            return Some(&code[start..end]);
        }
    }
    None
}
