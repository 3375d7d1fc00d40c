//! How the learning rate and the kept fraction of the weights change over a training.

use super::recipe::{Anneal, Optimizer, Sparsity};

/// The fraction of weights kept after step `step` of `steps`: 1, then falling to the target, then constant.
pub fn kept_fraction(sparsity: &Sparsity, step: usize, steps: usize) -> f64 {
    let done = (step + 1) as f64 / steps as f64;
    let span = (sparsity.anneal_to - sparsity.anneal_from).max(f64::MIN_POSITIVE);
    let way = ((done - sparsity.anneal_from) / span).clamp(0.0, 1.0);
    match sparsity.anneal {
        Anneal::Linear => 1.0 + (sparsity.kept_fraction - 1.0) * way,
        Anneal::Exponential => sparsity.kept_fraction.powf(way),
    }
}

/// The learning rate of step `step` as a multiple of the peak: linear warm-up, then linear decay.
pub fn warmup_and_decay(optimizer: &Optimizer, step: usize, steps: usize) -> f64 {
    let warmup = ((step + 1) as f64 / optimizer.warmup_steps.max(1) as f64).min(1.0);
    let left = 1.0 - step as f64 / steps as f64;
    warmup * (optimizer.final_fraction + (1.0 - optimizer.final_fraction) * left)
}

/// The same for a model whose weights are being thinned out: fewer weights, larger steps.
pub fn sparse_rate(optimizer: &Optimizer, sparsity: &Sparsity, step: usize, steps: usize) -> f64 {
    let at = |step: usize| {
        let growth = kept_fraction(sparsity, step, steps).sqrt().recip();
        warmup_and_decay(optimizer, step, steps) * growth.min(sparsity.rate_growth_limit)
    };
    match sparsity.normalise_rate {
        true => at(step) / (0..steps).map(at).fold(f64::MIN_POSITIVE, f64::max),
        false => at(step),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparsity(anneal: Anneal) -> Sparsity {
        Sparsity {
            kept_fraction: 0.0625,
            anneal_from: 0.0,
            anneal_to: 0.5,
            anneal,
            protected: 0,
            rate_growth_limit: 100.0,
            normalise_rate: true,
        }
    }

    #[test]
    fn the_kept_fraction_reaches_its_target_half_way() {
        for anneal in [Anneal::Linear, Anneal::Exponential] {
            let sparsity = sparsity(anneal);
            let fractions: Vec<f64> = (0..100)
                .map(|step| kept_fraction(&sparsity, step, 100))
                .collect();
            assert!(fractions[0] < 1.0 && fractions[0] > 0.9);
            assert!(fractions.windows(2).all(|pair| pair[1] <= pair[0]));
            assert!((fractions[49] - 0.0625).abs() < 1e-9);
            assert_eq!(fractions[99], 0.0625);
        }
        assert!((kept_fraction(&sparsity(Anneal::Exponential), 24, 100) - 0.25).abs() < 1e-9);
    }

    #[test]
    fn a_normalised_rate_peaks_at_one() {
        let optimizer = Optimizer {
            learning_rate: 1e-3,
            warmup_steps: 5,
            final_fraction: 0.0,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip: Default::default(),
        };
        let sparsity = sparsity(Anneal::Linear);
        let rates: Vec<f64> = (0..100)
            .map(|s| sparse_rate(&optimizer, &sparsity, s, 100))
            .collect();
        let peak = rates.iter().copied().fold(0.0, f64::max);
        assert!((peak - 1.0).abs() < 1e-12);
        assert!((warmup_and_decay(&optimizer, 0, 100) - 0.2).abs() < 1e-12);
    }
}
