//! From logits to the next token.
//!
//! In this order: repetition penalty (over prompt and answer), presence and frequency penalties (over the answer),
//! bias; then, unless the temperature is zero, temperature, `top_k`, `top_p`, `min_p` and a draw. Reported
//! log-probabilities are the model's own, before any of this. A choice's draws depend on its seed alone.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::sampling::Sampling;
use crate::numerics::kernels::operations::TokenDraw;
use crate::numerics::loss::log_sum_exp;
use crate::numerics::softmax;

/// Draws the tokens of one choice.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    generator: ChaCha8Rng,
    /// How often each token has been generated.
    counts: BTreeMap<u32, u32>,
    seen: BTreeSet<u32>,
}

impl Sampler {
    pub fn new(sampling: &Sampling, seed: u64, prompt: &[u32]) -> Self {
        Sampler {
            sampling: sampling.clone(),
            generator: ChaCha8Rng::seed_from_u64(seed),
            counts: BTreeMap::new(),
            seen: prompt.iter().copied().collect(),
        }
    }

    /// The next token; none where no logit is a number.
    pub fn draw(&mut self, logits: &[f32]) -> Option<u32> {
        let mut logits = logits.to_vec();
        self.adjust(&mut logits);
        let token = match self.sampling.temperature > 0.0 {
            true => self.sample(&logits),
            false => softmax::largest(&logits).map(|(token, _)| token as u32),
        }?;
        self.count(token);
        Some(token)
    }

    /// How the next token is drawn where that takes nothing but the logits, a temperature and a share.
    pub fn plain_draw(&self) -> Option<TokenDraw> {
        let sampling = &self.sampling;
        let adjusted = sampling.repetition_penalty as f32 != 1.0
            || sampling.presence_penalty != 0.0
            || sampling.frequency_penalty != 0.0
            || !sampling.logit_bias.is_empty();
        let greedy = sampling.temperature <= 0.0;
        (!adjusted && (greedy || !sampling.is_limited())).then(|| match greedy {
            true => TokenDraw {
                inverse_temperature: 0.0,
                share: 0.0,
            },
            // A step may be run again: the generator moves when the token is taken.
            false => TokenDraw {
                inverse_temperature: inverse(sampling.temperature),
                share: self.generator.clone().random(),
            },
        })
    }

    /// Takes a token that was drawn by [`Self::plain_draw`].
    pub fn take(&mut self, token: u32) {
        if self.sampling.temperature > 0.0 {
            let _: f64 = self.generator.random();
        }
        self.count(token);
    }

    fn count(&mut self, token: u32) {
        *self.counts.entry(token).or_default() += 1;
        self.seen.insert(token);
    }

    fn adjust(&self, logits: &mut [f32]) {
        let sampling = &self.sampling;
        let repetition = sampling.repetition_penalty as f32;
        if repetition != 1.0 {
            for &token in &self.seen {
                if let Some(logit) = logits.get_mut(token as usize) {
                    let penalised = if *logit > 0.0 {
                        *logit / repetition
                    } else {
                        *logit * repetition
                    };
                    // Two infinite logits could not be told apart.
                    *logit = penalised.clamp(f32::MIN, f32::MAX);
                }
            }
        }
        for (&token, &count) in &self.counts {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= (sampling.presence_penalty
                    + sampling.frequency_penalty * f64::from(count))
                    as f32;
            }
        }
        for (&token, &bias) in &sampling.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
    }

    fn sample(&mut self, logits: &[f32]) -> Option<u32> {
        let (_, top) = softmax::largest(logits)?;
        let sampling = &self.sampling;
        let weights = softmax::weights(logits, top, inverse(sampling.temperature));
        let share = self.generator.random::<f64>();
        if !sampling.is_limited() {
            return softmax::at_share(&weights, share).map(|token| token as u32);
        }
        let (tokens, weights) = self.limited(&weights);
        softmax::at_share(&weights, share).map(|place| tokens[place])
    }

    /// The tokens that may be drawn, with their weights; at least one.
    fn limited(&self, weights: &[f32]) -> (Vec<u32>, Vec<f32>) {
        let sampling = &self.sampling;
        let drawable = (0u32..).zip(weights.iter().copied());
        let mut kept: Vec<(u32, f32)> = drawable.filter(|(_, weight)| *weight > 0.0).collect();
        if (1..kept.len()).contains(&sampling.top_k) {
            kept.select_nth_unstable_by(sampling.top_k - 1, more_probable);
            kept.truncate(sampling.top_k);
        }
        if sampling.top_p < 1.0 {
            keep_nucleus(&mut kept, sampling.top_p);
        }
        let (_, largest) = softmax::largest(weights).unwrap_or_default();
        kept.retain(|(_, weight)| f64::from(*weight) >= sampling.min_p * f64::from(largest));
        kept.into_iter().unzip()
    }
}

/// Finite, so that the largest logit keeps its weight however low the temperature; and not zero, which would be greedy.
fn inverse(temperature: f64) -> f32 {
    (1.0 / temperature).clamp(f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)) as f32
}

fn more_probable(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the most probable tokens whose weights first reach `top_p` of the total.
fn keep_nucleus(kept: &mut Vec<(u32, f32)>, top_p: f64) {
    let total: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
    // Few tokens mostly do, and sorting a whole vocabulary takes longer than all the rest.
    for most in [64, 512, kept.len()] {
        if most < kept.len() {
            kept.select_nth_unstable_by(most, more_probable);
        }
        let most = most.min(kept.len());
        kept[..most].sort_unstable_by(more_probable);
        let mut sum = 0.0;
        let reached = kept[..most].iter().position(|(_, weight)| {
            sum += f64::from(*weight);
            sum >= top_p * total
        });
        if let Some(last) = reached {
            kept.truncate(last + 1);
            return;
        }
    }
}

/// Log-probabilities of one row of raw logits: the token's own, and the `top` most probable tokens.
pub fn log_probabilities(logits: &[f32], token: u32, top: usize) -> (f32, Vec<(u32, f32)>) {
    let total = log_sum_exp(logits);
    let own = logits
        .get(token as usize)
        .map_or(f32::NEG_INFINITY, |logit| logit - total);
    if top == 0 {
        return (own, Vec::new());
    }
    let mut order: Vec<(u32, f32)> = (0u32..).zip(logits.iter().copied()).collect();
    let top = top.min(order.len());
    if top < order.len() {
        order.select_nth_unstable_by(top - 1, more_probable);
    }
    order[..top].sort_by(more_probable);
    // Copied, for these are kept with every token: the vocabulary's memory must not be.
    let shifted = order[..top].iter().map(|&(id, logit)| (id, logit - total));
    (own, shifted.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            logit_bias: BTreeMap::new(),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
        }
    }

    fn drawn(sampling: &Sampling, logits: &[f32], count: u64) -> BTreeMap<u32, usize> {
        let mut counts = BTreeMap::new();
        for seed in 0..count {
            let token = Sampler::new(sampling, seed, &[])
                .draw(logits)
                .expect("finite logits");
            *counts.entry(token).or_default() += 1;
        }
        counts
    }

    /// Probabilities 0.1, 0.2, 0.3, 0.4.
    fn logits() -> Vec<f32> {
        [0.1f32, 0.2, 0.3, 0.4].map(f32::ln).to_vec()
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let counts = drawn(&sampling(), &logits(), 4000);
        for (token, expected) in [(0, 400.0), (1, 800.0), (2, 1200.0), (3, 1600.0)] {
            let found = counts[&token] as f64;
            assert!(
                (found - expected).abs() < 120.0,
                "token {token}: {found} of {expected}"
            );
        }
    }

    /// candle's own sampler, which knows temperature, top-k and top-p.
    #[test]
    fn draws_are_distributed_as_candle_s() {
        use candle_core::{Device, Tensor};
        use candle_transformers::generation::{LogitsProcessor, Sampling as Oracle};

        const DRAWS: u64 = 4000;
        // No two equal, so that every cut is unambiguous.
        let logits: Vec<f32> = (0..40u32)
            .map(|token| ((token * 37 % 41) as f32 * 0.11).sin() * 2.5 + token as f32 * 1e-4)
            .collect();
        let tensor = Tensor::new(logits.as_slice(), &Device::Cpu).expect("a tensor");
        let with = |temperature: f64, top_k: usize, top_p: f64| Sampling {
            temperature,
            top_k,
            top_p,
            ..sampling()
        };
        for (ours, oracle) in [
            (with(0.0, 0, 1.0), Oracle::ArgMax),
            (with(0.7, 0, 1.0), Oracle::All { temperature: 0.7 }),
            (
                with(1.3, 9, 1.0),
                Oracle::TopK {
                    k: 9,
                    temperature: 1.3,
                },
            ),
            (
                with(0.9, 0, 0.8),
                Oracle::TopP {
                    p: 0.8,
                    temperature: 0.9,
                },
            ),
        ] {
            let found = drawn(&ours, &logits, DRAWS);
            let mut processor = LogitsProcessor::from_sampling(7, oracle);
            let mut expected: BTreeMap<u32, usize> = BTreeMap::new();
            for _ in 0..DRAWS {
                let token = processor.sample(&tensor).expect("a token");
                *expected.entry(token).or_default() += 1;
            }
            for token in 0..logits.len() as u32 {
                let count = |counts: &BTreeMap<u32, usize>| {
                    counts.get(&token).copied().unwrap_or_default() as f64
                };
                let (found, expected) = (count(&found), count(&expected));
                // Five standard deviations of a difference of two counts.
                let tolerance = 5.0 * (found + expected).sqrt().max(1.0);
                assert!(
                    (found - expected).abs() <= tolerance,
                    "{ours:?}: token {token} {found} times, candle {expected}"
                );
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_so_do_one_candidate_and_no_temperature() {
        let logits = [0.0, 2.0, 2.0, 1.0];
        for sampling in [
            Sampling {
                temperature: 0.0,
                ..sampling()
            },
            Sampling {
                top_k: 1,
                ..sampling()
            },
            Sampling {
                top_p: 1e-9,
                ..sampling()
            },
            Sampling {
                top_p: 0.0,
                ..sampling()
            },
            Sampling {
                temperature: 1e-300,
                top_k: 1,
                ..sampling()
            },
        ] {
            assert_eq!(drawn(&sampling, &logits, 50), BTreeMap::from([(1, 50)]));
        }
    }

    #[test]
    fn limits_cut_the_improbable() {
        let tokens = |sampling| {
            drawn(&sampling, &logits(), 500)
                .into_keys()
                .collect::<Vec<u32>>()
        };
        assert_eq!(
            tokens(Sampling {
                top_k: 2,
                ..sampling()
            }),
            [2, 3]
        );
        assert_eq!(
            tokens(Sampling {
                top_p: 0.65,
                ..sampling()
            }),
            [2, 3]
        );
        assert_eq!(
            tokens(Sampling {
                top_p: 0.75,
                ..sampling()
            }),
            [1, 2, 3]
        );
        assert_eq!(
            tokens(Sampling {
                min_p: 0.6,
                ..sampling()
            }),
            [2, 3]
        );
        assert_eq!(
            tokens(Sampling {
                min_p: 1.0,
                ..sampling()
            }),
            [3]
        );
    }

    #[test]
    fn the_smallest_penalty_leaves_something_to_draw() {
        let sampling = Sampling {
            repetition_penalty: f64::MIN_POSITIVE,
            ..sampling()
        };
        let mut sampler = Sampler::new(&sampling, 1, &[1, 2]);
        let token = sampler.draw(&[0.5, 1.0, 2.0, -1.0]).expect("a token");
        assert!([1, 2].contains(&token), "{token} was not seen before");
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let greedy = Sampling {
            temperature: 0.0,
            ..sampling()
        };
        let bias = Sampling {
            logit_bias: BTreeMap::from([(0, 100.0)]),
            ..greedy.clone()
        };
        assert_eq!(Sampler::new(&bias, 0, &[]).draw(&logits()), Some(0));
        let presence = Sampling {
            presence_penalty: 2.0,
            ..greedy.clone()
        };
        let mut sampler = Sampler::new(&presence, 0, &[3]);
        let order: Vec<_> = (0..4).filter_map(|_| sampler.draw(&logits())).collect();
        assert_eq!(order, [3, 2, 1, 0]);
        let frequency = Sampling {
            frequency_penalty: 0.1,
            ..greedy.clone()
        };
        let mut sampler = Sampler::new(&frequency, 0, &[]);
        let order: Vec<_> = (0..5).filter_map(|_| sampler.draw(&logits())).collect();
        assert_eq!(order, [3, 3, 3, 2, 3]);
        let repetition = Sampling {
            repetition_penalty: 2.0,
            ..greedy
        };
        assert_eq!(Sampler::new(&repetition, 0, &[3]).draw(&logits()), Some(2));
    }

    #[test]
    fn no_number_no_token() {
        assert_eq!(Sampler::new(&sampling(), 0, &[]).draw(&[f32::NAN; 3]), None);
        assert_eq!(
            Sampler::new(&sampling(), 0, &[]).draw(&[f32::NAN, 1.0]),
            Some(1)
        );
    }

    #[test]
    fn log_probabilities_keep_what_is_asked_for_and_not_the_vocabulary() {
        let logits: Vec<f32> = (0..5000u32)
            .map(|id| (id * 37 % 4999) as f32 * 1e-3)
            .collect();
        for top in [0, 1, 5, 20] {
            let (_, kept) = log_probabilities(&logits, 3, top);
            assert_eq!(kept.len(), top);
            assert!(kept.capacity() <= top, "room for {}", kept.capacity());
        }
    }

    #[test]
    fn log_probabilities_are_of_the_raw_logits() {
        let (own, top) = log_probabilities(&logits(), 1, 2);
        assert!((own - 0.2f32.ln()).abs() < 1e-6);
        assert_eq!(
            top.iter().map(|(token, _)| *token).collect::<Vec<_>>(),
            [3, 2]
        );
        assert!((top[0].1 - 0.4f32.ln()).abs() < 1e-6);
        assert_eq!(log_probabilities(&logits(), 1, 99).1.len(), 4);
    }
}
