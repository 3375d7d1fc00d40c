//! Means with 95% intervals, by bootstrap over the pairs.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Resamples of a bootstrap.
const RESAMPLES: usize = 1000;

/// A mean and the 2.5th and 97.5th percentile of the means of resamples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

impl Interval {
    /// Of values whose order does not matter; all zero for none. The same values give the same interval.
    pub fn bootstrap(values: &[f64]) -> Self {
        if values.is_empty() {
            return Interval {
                mean: 0.0,
                low: 0.0,
                high: 0.0,
            };
        }
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut means: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let sum: f64 = (0..count).map(|_| values[rng.random_range(0..count)]).sum();
                sum / count as f64
            })
            .collect();
        means.sort_by(f64::total_cmp);
        let percentile = |share: f64| means[((RESAMPLES - 1) as f64 * share).round() as usize];
        Interval {
            mean,
            low: percentile(0.025),
            high: percentile(0.975),
        }
    }
}
