//! The binarisation test: is a feature a switch? Does the sparse model still do the task when the feature may take two
//! values only?
//!
//! A feature's value is `<u, x>`, `u` being its unit weights and `x` its channels. Over the rows of both prompts of a task's
//! pairs its values are parted in two by the threshold of least squares; every value above it becomes the mean of those
//! above, every other one the mean of the others, and the model's answers are read again.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::DiscoveryError;
use super::patching::Patching;
use super::patience::Patience;
use super::question::PromptPair;
use super::route::Route;
use crate::features::group::WeightedChannel;
use crate::features::pair::Pair;
use crate::models::location::Location;
use crate::numerics::rows;

/// What a feature's two-valued version does to the sparse model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Binarisation {
    /// Prompts, two a pair.
    pub prompts: usize,
    /// The two values, and what is between them.
    pub low: f64,
    pub high: f64,
    pub threshold: f64,
    /// The share of the variance of its values that the two values have; null where it never varies.
    #[schema(required = true)]
    pub explained: Option<f64>,
    /// The share of prompts that the sparse model answers rightly as it is, and with the two-valued feature.
    pub accuracy: f64,
    pub accuracy_binarised: f64,
    /// The share of those that it answers rightly as it is which it still answers rightly; null where there are none.
    #[schema(required = true)]
    pub kept: Option<f64>,
}

/// The test of a group of channels on some pairs, of which there is at least one.
pub fn binarised(
    models: &Pair,
    pairs: &[PromptPair],
    place: Location,
    channels: &[WeightedChannel],
    patience: Patience,
) -> Result<Binarisation, DiscoveryError> {
    let both = PromptPair::both_ways(pairs);
    let mut patching = Patching::patient(models, both, &[place], patience)?;
    let patch = patching.location_patch(place, Route::Native)?;
    let [presented, _] = patching.sparse_values(place)?;
    let values = rows::to_vec(presented)?;
    let width = presented.dim(1)?;
    let length = channels
        .iter()
        .map(|member| member.weight.powi(2))
        .sum::<f64>();
    let of_row = |row: &[f32]| -> f64 {
        let parts = channels
            .iter()
            .map(|member| member.weight * f64::from(row[member.channel]));
        parts.sum::<f64>() / length.sqrt()
    };
    let own: Vec<f64> = values.chunks_exact(width).map(of_row).collect();
    let split = Split::of(&own);
    let mut change = vec![0f32; values.len()];
    for (row, value) in change.chunks_exact_mut(width).zip(&own) {
        let away = split.nearest(*value) - value;
        for member in channels {
            row[member.channel] += (away * member.weight / length.sqrt()) as f32;
        }
    }
    let before = patching.right(Route::Native);
    let after = patching.answers_with(&patch, change)?.presented();
    let share = |count: usize, of: usize| count as f64 / of.max(1) as f64;
    let count = |right: &[bool]| right.iter().filter(|right| **right).count();
    let right = count(&before);
    let still = before.iter().zip(&after);
    let still = still.filter(|(before, after)| **before && **after).count();
    Ok(Binarisation {
        prompts: before.len(),
        low: split.low,
        high: split.high,
        threshold: split.threshold,
        explained: split.explained,
        accuracy: share(right, before.len()),
        accuracy_binarised: share(count(&after), after.len()),
        kept: (right > 0).then(|| share(still, right)),
    })
}

/// Two values for many.
struct Split {
    threshold: f64,
    low: f64,
    high: f64,
    explained: Option<f64>,
}

impl Split {
    /// The one of least squares; of values that are all the same, that value twice.
    fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let total: f64 = sorted.iter().sum();
        let count = sorted.len() as f64;
        let mean = total / count.max(1.0);
        let variance = sorted
            .iter()
            .map(|value| (value - mean).powi(2))
            .sum::<f64>();
        let mut best = Split {
            threshold: mean,
            low: mean,
            high: mean,
            explained: None,
        };
        let (mut most, mut below) = (0.0, 0.0);
        for at in 1..sorted.len() {
            below += sorted[at - 1];
            if sorted[at] == sorted[at - 1] {
                continue;
            }
            let (low, high) = (below / at as f64, (total - below) / (count - at as f64));
            // What lies between the two means of the variance.
            let between =
                at as f64 * (low - mean).powi(2) + (count - at as f64) * (high - mean).powi(2);
            if between > most {
                most = between;
                best = Split {
                    threshold: (sorted[at - 1] + sorted[at]) / 2.0,
                    low,
                    high,
                    explained: Some(between / variance),
                };
            }
        }
        best
    }

    fn nearest(&self, value: f64) -> f64 {
        match value > self.threshold {
            true => self.high,
            false => self.low,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_clouds_become_their_means() {
        let split = Split::of(&[0.1, -0.1, 0.0, 5.1, 4.9]);
        assert!(split.low.abs() < 1e-12 && (split.high - 5.0).abs() < 1e-12);
        assert!((split.nearest(2.4), split.nearest(2.6)) == (split.low, split.high));
        assert!(split.explained.expect("they vary") > 0.99);
        let same = Split::of(&[2.0; 4]);
        assert_eq!((same.low, same.high, same.explained), (2.0, 2.0, None));
        assert_eq!(same.nearest(2.0), 2.0);
    }
}
