//! The tokens that a feature speaks for.
//!
//! What is written to the last site meets nothing but the norm and the unembedding: there its direction, held against
//! the unembedding, says which logits it raises. Anything written earlier passes layers that make something else of
//! it; there the effect is measured: the feature is raised at every token of reference text, and the log-probabilities
//! of the next token are compared with those of the unedited dense model.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::DiscoveryError;
use super::prompt_run::AddAt;
use super::route::{ChannelColumns, Route};
use crate::features::group::{WeightedChannel, Write};
use crate::features::logit_effects::{
    LogitEffectMethod, LogitEffectQuery, LogitEffects, TokenScore,
};
use crate::features::pair::Pair;
use crate::features::reference::ReferenceText;
use crate::features::statistics::{group_value, statistics_of};
use crate::features::wiring::wiring;
use crate::interventions::carry::{is_sublayer_input, row_rms};
use crate::models::location::{Location, Node, NodeKind, Site};
use crate::models::tap::Recorder;
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::numerics::loss::log_sum_exp;
use crate::numerics::rows;

/// Effects are measured over no more tokens of the reference text.
const MOST_TOKENS: usize = 2048;
/// Tokens run at once, in whole sequences.
const CHUNK: usize = 512;
/// Logits held at once.
const LOGITS: usize = 1 << 22;

/// The tokens at either end of the vocabulary. None where a channel has no direction in the dense stream, or where the
/// effect would have to be measured and the pair came without reference text.
pub fn logit_effects(
    models: &Pair,
    asked: &LogitEffectQuery,
) -> Result<Arc<Option<LogitEffects>>, DiscoveryError> {
    if let Some(known) = models.logit_effects.get(asked) {
        return Ok(known);
    }
    let found = Arc::new(find(models, asked)?);
    models.logit_effects.keep(asked.clone(), found.clone());
    Ok(found)
}

fn find(models: &Pair, asked: &LogitEffectQuery) -> Result<Option<LogitEffects>, DiscoveryError> {
    let Some((place, group)) = in_the_stream(models, asked.place, &asked.group)? else {
        return Ok(None);
    };
    // Only a sublayer's input can be written for that sublayer alone.
    let write = match is_sublayer_input(place) {
        true => asked.write,
        false => Write::Residual,
    };
    let columns = ChannelColumns::new(models, place, Route::Bridge(write))?;
    let is_refused = |member: &WeightedChannel| columns.refusal(member.channel).is_some();
    if group.iter().any(is_refused) {
        return Ok(None);
    }
    let mut direction = vec![0f32; columns.width];
    for member in &group {
        columns.add(member.channel, member.weight as f32, &mut direction);
    }
    let is_last = |place: Location| matches!(place, Location::Site(site) if site.is_last());
    let (scores, method) = match (is_last(columns.target), &models.reference.text) {
        (true, _) => {
            let direction = Tensor::from_vec(direction, (1, columns.width), models.dense.device())?;
            let scores = rows::to_vec(&models.dense.direct_effect(&direction)?)?;
            // What all logits share changes no probability.
            let mean = scores.iter().sum::<f32>() / scores.len() as f32;
            let scores = scores.iter().map(|score| score - mean).collect();
            (scores, LogitEffectMethod::Unembedding)
        }
        (false, Some(text)) => measured(models, asked, &columns, &direction, text)?,
        (false, None) => return Ok(None),
    };
    let scores = (0u32..).zip(scores);
    let mut ranked: Vec<TokenScore> = scores
        .map(|(token, score)| TokenScore { token, score })
        .collect();
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
    Ok(Some(LogitEffects {
        method,
        promoted: ranked.iter().take(asked.count).copied().collect(),
        suppressed: ranked.iter().rev().take(asked.count).copied().collect(),
    }))
}

/// The mean change of every token's log-probability when the feature is raised by its standard deviation, or by one
/// where it never varies. `direction` is what a unit of the feature is at the columns' target.
fn measured(
    models: &Pair,
    asked: &LogitEffectQuery,
    columns: &ChannelColumns,
    direction: &[f32],
    text: &ReferenceText,
) -> Result<(Vec<f32>, LogitEffectMethod), DiscoveryError> {
    let length = text.length;
    let most = (MOST_TOKENS / length).max(1) * length;
    let tokens = &text.tokens[..text.tokens.len().min(most)];
    let chunks = || tokens.chunks((CHUNK / length).max(1) * length);
    let varies = |std: f64| std.is_finite() && std > 0.0;
    // The sparse model says how large a change is.
    let site = Location::Site(asked.place.site(models.n_layers()));
    let (mut values, mut factors) = (Vec::new(), Vec::new());
    if asked.std.is_none() || columns.times_sparse_rms {
        for ids in chunks() {
            let mut recorder = Recorder::of([asked.place, site]);
            let mut token_rows = TokenRows::sequences(ids, length, models.sparse.device())?;
            run(&models.sparse, &mut token_rows, &mut recorder)?;
            for (place, value) in recorder.into_values() {
                if place == asked.place {
                    let width = value.dim(1)?;
                    rows::with_values(&value, |all| {
                        let rows = all.chunks_exact(width);
                        values.extend(rows.map(|row| group_value(row, &asked.group)));
                    })?;
                }
                if place == site && columns.times_sparse_rms {
                    factors.extend(row_rms(&value)?);
                }
            }
        }
    }
    let std = asked.std.unwrap_or_else(|| statistics_of(&values).std);
    let added = if varies(std) { std } else { 1.0 };
    let vocabulary = models.dense.config.vocab_size;
    let mut sums = vec![0f64; vocabulary];
    let mut first_row = 0;
    for ids in chunks() {
        let mut change = vec![0f32; ids.len() * columns.width];
        for (row, out) in change.chunks_exact_mut(columns.width).enumerate() {
            let factor = match columns.times_sparse_rms {
                true => factors[first_row + row],
                false => 1.0,
            };
            for (out, direction) in out.iter_mut().zip(direction) {
                *out = added as f32 * factor * direction;
            }
        }
        first_row += ids.len();
        add_effects(
            &models.dense,
            ids,
            length,
            columns.target,
            change,
            &mut sums,
        )?;
    }
    let count = tokens.len().max(1) as f64;
    let scores = sums.iter().map(|sum| (sum / count) as f32).collect();
    let method = LogitEffectMethod::Measured {
        added,
        tokens: tokens.len(),
    };
    Ok((scores, method))
}

/// Adds to each token's sum what `change`, added at `target`, does to its log-probability after each of `ids`.
fn add_effects(
    dense: &Transformer,
    ids: &[u32],
    length: usize,
    target: Location,
    change: Vec<f32>,
    sums: &mut [f64],
) -> Result<(), DiscoveryError> {
    let start = target.pass_start(&dense.config);
    let mut recorder = Recorder::of([Location::Site(start)]);
    let mut token_rows = TokenRows::sequences(ids, length, dense.device())?;
    let unedited = run(dense, &mut token_rows, &mut recorder)?;
    let mut edited = unedited.clone();
    for (_, stream) in recorder.into_values() {
        let change = Tensor::from_slice(
            &change,
            (ids.len(), change.len() / ids.len()),
            dense.device(),
        )?;
        let mut tap = AddAt {
            target,
            change: &change,
        };
        let mut token_rows = TokenRows::sequences(ids, length, dense.device())?;
        edited = dense.run(start, stream, &mut token_rows, &mut tap)?;
    }
    let ids = Tensor::new(ids, dense.device())?;
    let at_once = (LOGITS / sums.len().max(1)).max(1);
    let count = ids.dim(0)?;
    for first in (0..count).step_by(at_once) {
        let rows_of = |stream: &Tensor| -> candle_core::Result<Vec<f32>> {
            let size = at_once.min(count - first);
            let logits = dense.unembed(
                &stream.narrow(0, first, size)?,
                &ids.narrow(0, first, size)?,
            )?;
            rows::to_vec(&logits)
        };
        let (before, after) = (rows_of(&unedited)?, rows_of(&edited)?);
        let pairs = before
            .chunks_exact(sums.len())
            .zip(after.chunks_exact(sums.len()));
        for (before, after) in pairs {
            let shift = log_sum_exp(before) - log_sum_exp(after);
            let logits = before.iter().zip(after);
            for (sum, (before, after)) in sums.iter_mut().zip(logits) {
                *sum += f64::from(after - before + shift);
            }
        }
    }
    Ok(())
}

/// A pass from the embedding to the last site.
fn run(
    model: &Transformer,
    token_rows: &mut TokenRows,
    recorder: &mut Recorder,
) -> candle_core::Result<Tensor> {
    let first = Site::before_attention(0, model.config.n_layers);
    let stream = model.embed(token_rows)?;
    model.run(first, stream, token_rows, recorder)
}

/// The group as residual channels: itself where its place is one of the stream, what its weights write for neurons
/// and heads' outputs; none for queries, keys and values, which write nothing themselves.
fn in_the_stream(
    models: &Pair,
    place: Location,
    group: &[WeightedChannel],
) -> Result<Option<(Location, Vec<WeightedChannel>)>, DiscoveryError> {
    let (layer, output) = match place {
        Location::Node(Node { layer, kind }) => match kind {
            NodeKind::Q | NodeKind::K | NodeKind::V => return Ok(None),
            NodeKind::AttnY => (layer, NodeKind::AttnOut),
            NodeKind::PostAct => (layer, NodeKind::MlpOut),
            _ => return Ok(Some((place, group.to_vec()))),
        },
        Location::Site(_) => return Ok(Some((place, group.to_vec()))),
    };
    let mut written: BTreeMap<usize, f64> = BTreeMap::new();
    for member in group {
        for edge in wiring(&models.sparse, place, member.channel)?.outgoing {
            *written.entry(edge.channel).or_default() += member.weight * f64::from(edge.weight);
        }
    }
    let written = written.into_iter();
    let written = written.map(|(channel, weight)| WeightedChannel { channel, weight });
    let output = Location::Node(Node {
        layer,
        kind: output,
    });
    Ok(Some((output, written.collect())))
}
