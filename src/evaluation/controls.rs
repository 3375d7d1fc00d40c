//! What a steered change is compared with: changes of the same norm at every token, in other directions.

use candle_core::Result;
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::features::FeatureError;
use crate::features::patching::{Patching, PlacePatch};
use crate::numerics::rows;

/// One Gaussian direction a pair, the same for all its tokens, scaled at each to the norm of `change`.
pub fn random(patching: &Patching, patch: &PlacePatch, change: &[f32], seed: u64) -> Vec<f32> {
    let width = patch.columns.width;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let directions: Vec<Vec<f32>> = (0..patching.pairs.len())
        .map(|_| {
            (0..width)
                .map(|_| StandardNormal.sample(&mut rng))
                .collect()
        })
        .collect();
    along(patching, &directions, change, width)
}

/// The column of another live channel, drawn for each pair, scaled at each token to the norm of `change`. A
/// channel is live that is not zero on all of the presented prompts.
pub fn random_feature(
    patching: &Patching,
    patch: &PlacePatch,
    group: &[usize],
    change: &[f32],
    seed: u64,
) -> std::result::Result<Vec<f32>, FeatureError> {
    let live = live_channels(patching, patch, group)?;
    if live.is_empty() {
        let problem = format!(
            "no other channel of {} is live on these prompts",
            patch.place
        );
        return Err(FeatureError::Invalid(problem));
    }
    let width = patch.columns.width;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let directions: Vec<Vec<f32>> = (0..patching.pairs.len())
        .map(|_| {
            let mut column = vec![0f32; width];
            patch
                .columns
                .add(live[rng.random_range(0..live.len())], 1.0, &mut column);
            column
        })
        .collect();
    Ok(along(patching, &directions, change, width))
}

fn live_channels(patching: &Patching, patch: &PlacePatch, group: &[usize]) -> Result<Vec<usize>> {
    let presented = match patching.sparse_values(patch.place) {
        Ok([presented, _]) => rows::to_vec(presented)?,
        Err(error) => return Err(candle_core::Error::wrap(error)),
    };
    let alive = |channel: usize| {
        presented
            .iter()
            .skip(channel)
            .step_by(patch.channels)
            .any(|&value| value != 0.0)
    };
    Ok((0..patch.channels)
        .filter(|channel| !group.contains(channel) && patch.columns.refusal(*channel).is_none())
        .filter(|&channel| alive(channel))
        .collect())
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
pub fn before_last(patching: &Patching, patch: &PlacePatch, mut change: Vec<f32>) -> Vec<f32> {
    let width = patch.columns.width;
    for &row in patching.last_rows() {
        change[row as usize * width..][..width].fill(0.0);
    }
    change
}
