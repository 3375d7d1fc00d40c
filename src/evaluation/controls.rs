//! What a steered change is compared with: changes of the same norm at every token, in the directions that the control
//! arms of requests have.

use std::collections::BTreeSet;

use crate::discovery::DiscoveryError;
use crate::discovery::patching::{LocationPatch, Patching};
use crate::interventions::control_directions::{self, ControlDraw};
use crate::numerics::rows;

/// One Gaussian direction a pair, the same for all its tokens, scaled at each to the norm of `change`.
pub fn random(patching: &Patching, patch: &LocationPatch, change: &[f32], seed: u64) -> Vec<f32> {
    let width = patch.columns.width;
    let directions: Vec<Vec<f32>> = draws(patching, seed)
        .map(|draw| draw.random(width))
        .collect();
    along(patching, &directions, change, width)
}

/// The column of another live channel, drawn for each pair, scaled at each token to the norm of `change`. A
/// channel is live that varies over the pair's reference text, or, in a pair that has none yet, that is not zero on all
/// of the presented prompts.
pub fn random_feature(
    patching: &Patching,
    patch: &LocationPatch,
    group: &[usize],
    change: &[f32],
    seed: u64,
) -> Result<Vec<f32>, DiscoveryError> {
    let place = patch.place;
    let edited: BTreeSet<usize> = group.iter().copied().collect();
    let mut candidates = match control_directions::candidates(patching.models, place, &edited) {
        Some(candidates) => candidates,
        None => live_on_prompts(patching, patch, &edited)?,
    };
    let width = patch.columns.width;
    let mut directions = Vec::with_capacity(patching.pairs.len());
    for draw in draws(patching, seed) {
        let direction = draw.random_feature(&mut candidates, |channel| {
            let mut column = vec![0f32; width];
            patch.columns.add(channel, 1.0, &mut column);
            Ok::<_, DiscoveryError>(Some(column))
        })?;
        directions.push(direction.ok_or_else(|| {
            let problem = format!("{place} has no other live channel that can be carried over");
            DiscoveryError::Invalid(problem)
        })?);
    }
    Ok(along(patching, &directions, change, width))
}

fn live_on_prompts(
    patching: &Patching,
    patch: &LocationPatch,
    edited: &BTreeSet<usize>,
) -> Result<Vec<usize>, DiscoveryError> {
    let [presented, _] = patching.sparse_values(patch.place)?;
    let presented = rows::to_vec(presented)?;
    let mut live = BTreeSet::new();
    for row in presented.chunks_exact(patch.channels) {
        live.extend((0..row.len()).filter(|&channel| row[channel] != 0.0));
    }
    Ok(live.difference(edited).copied().collect())
}

/// One a pair.
fn draws(patching: &Patching, seed: u64) -> impl Iterator<Item = ControlDraw> {
    (0..patching.pairs.len()).map(move |prompt| ControlDraw {
        seed,
        prompt,
        edit: 0,
    })
}

/// Each pair's direction at each of its rows, with the norm that `change` has there.
fn along(patching: &Patching, directions: &[Vec<f32>], change: &[f32], width: usize) -> Vec<f32> {
    let norms: Vec<f32> = directions.iter().map(|direction| norm(direction)).collect();
    let mut result = vec![0f32; change.len()];
    let rows = change
        .chunks_exact(width)
        .zip(result.chunks_exact_mut(width));
    for ((change, out), pair) in rows.zip(patching.pair_of_rows()) {
        if norms[pair] > 0.0 {
            let scale = norm(change) / norms[pair];
            for (out, &value) in out.iter_mut().zip(&directions[pair]) {
                *out = scale * value;
            }
        }
    }
    result
}

/// Euclidean norm.
pub fn norm(values: &[f32]) -> f32 {
    values.iter().map(|value| value * value).sum::<f32>().sqrt()
}

/// The change without its part at each prompt's last token.
pub fn before_last(patching: &Patching, patch: &LocationPatch, mut change: Vec<f32>) -> Vec<f32> {
    let width = patch.columns.width;
    for &row in patching.last_rows() {
        change[row as usize * width..][..width].fill(0.0);
    }
    change
}
