//! Contrast prompts become activations: of each prompt, the mean of the residual stream over the tokens that count, at
//! each site.
//!
//! Prompts of any lengths are rows of one batch, one cache slot a prompt; a pass goes no further than the last site.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use crate::discovery::DiscoveryError;
use crate::discovery::patience::Patience;
use crate::features::direction::{ReadPositions, norm};
use crate::models::kv_cache::{CacheRow, KvCache};
use crate::models::location::{Location, Site};
use crate::models::tap::ResidualTap;
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::numerics::rows;

/// Tokens run at once, each prompt counted as long as the longest beside it.
const CHUNK: usize = 1024;

/// A prompt, and the answer that follows it where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContrastPrompt {
    /// Of the prompt and its answer, at least one before the answer.
    pub tokens: Vec<u32>,
    /// Where the answer begins; the number of tokens where there is none.
    pub answer: usize,
}

/// Prompts of both kinds.
#[derive(Debug, Clone, Default)]
pub struct ContrastSet {
    pub positive: Vec<ContrastPrompt>,
    pub negative: Vec<ContrastPrompt>,
}

impl ContrastPrompt {
    /// The tokens before the answer.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.answer]
    }

    /// Whether an answer follows.
    pub fn has_answer(&self) -> bool {
        self.answer < self.tokens.len()
    }

    /// Whether the token at a position counts.
    fn counts(&self, position: usize, positions: ReadPositions) -> bool {
        match positions {
            ReadPositions::Last => position + 1 == self.tokens.len(),
            ReadPositions::All => true,
            ReadPositions::Answer => position >= self.answer,
        }
    }
}

/// The activations of some prompts.
#[derive(Debug, Default)]
pub struct PromptActivations {
    /// `[sites][prompts][d_model]`.
    pub of_sites: Vec<Vec<Vec<f32>>>,
    /// By site: each prompt's mean norm of the stream at the tokens that count, summed over prompts.
    pub norm_sums: Vec<f64>,
}

impl PromptActivations {
    /// How many prompts these are of.
    pub fn prompts(&self) -> usize {
        self.of_sites.first().map_or(0, Vec::len)
    }
}

/// Runs of prompts that go through the model together.
pub fn batches<T: AsRef<[u32]>>(prompts: &[T]) -> Vec<&[T]> {
    let mut batches = Vec::new();
    let (mut from, mut longest) = (0, 0);
    for (index, prompt) in prompts.iter().enumerate() {
        let with = longest.max(prompt.as_ref().len());
        if index > from && with * (index + 1 - from) > CHUNK {
            batches.push(&prompts[from..index]);
            (from, longest) = (index, prompt.as_ref().len());
        } else {
            longest = with;
        }
    }
    if from < prompts.len() {
        batches.push(&prompts[from..]);
    }
    batches
}

/// The rows of a batch, and where each is.
pub fn rows_of<T: AsRef<[u32]>>(batch: &[T]) -> (Vec<u32>, Vec<CacheRow>) {
    let (mut ids, mut at) = (Vec::new(), Vec::new());
    for (slot, prompt) in batch.iter().enumerate() {
        for (position, &id) in prompt.as_ref().iter().enumerate() {
            ids.push(id);
            at.push(CacheRow { slot, position });
        }
    }
    (ids, at)
}

/// A cache with a slot for each prompt of a batch.
pub fn cache_of<T: AsRef<[u32]>>(model: &Transformer, batch: &[T]) -> Result<KvCache> {
    let longest = batch.iter().map(|prompt| prompt.as_ref().len()).max();
    KvCache::new(
        &model.config,
        batch.len(),
        longest.unwrap_or(0),
        model.device(),
    )
}

impl AsRef<[u32]> for ContrastPrompt {
    fn as_ref(&self) -> &[u32] {
        &self.tokens
    }
}

/// The activations of `prompts` at `sites`.
pub fn activations(
    model: &Transformer,
    prompts: &[ContrastPrompt],
    sites: &[Site],
    positions: ReadPositions,
    patience: &Patience,
) -> std::result::Result<PromptActivations, DiscoveryError> {
    let n_layers = model.config.n_layers;
    let last = sites.iter().map(|site| site.index()).max();
    let until = last.and_then(|last| Site::new(last + 1, n_layers));
    let mut found = PromptActivations {
        of_sites: vec![Vec::with_capacity(prompts.len()); sites.len()],
        norm_sums: vec![0.0; sites.len()],
    };
    for batch in batches(prompts) {
        patience.check()?;
        let (ids, at) = rows_of(batch);
        let mut cache = cache_of(model, batch)?;
        let mut tap = MeanTap {
            batch,
            positions,
            at: &at,
            means: sites.iter().map(|site| (*site, Vec::new())).collect(),
        };
        let mut rows = TokenRows::cached(&ids, at.clone(), &mut cache)?;
        let stream = model.embed(&rows)?;
        let first = Site::before_attention(0, n_layers);
        model.run_until(until, first, stream, &mut rows, &mut tap)?;
        let mut means = tap.means;
        for (index, site) in sites.iter().enumerate() {
            for (mean, norm) in means.remove(site).unwrap_or_default() {
                found.norm_sums[index] += norm;
                found.of_sites[index].push(mean);
            }
        }
    }
    Ok(found)
}

/// Takes the means as the stream goes by, so that no more than one site of a batch is held.
struct MeanTap<'a> {
    batch: &'a [ContrastPrompt],
    positions: ReadPositions,
    at: &'a [CacheRow],
    /// By site: each prompt's mean, and the mean norm.
    means: BTreeMap<Site, Vec<(Vec<f32>, f64)>>,
}

impl ResidualTap for MeanTap<'_> {
    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        let Location::Site(site) = place else {
            return Ok(value);
        };
        let Some(means) = self.means.get_mut(&site) else {
            return Ok(value);
        };
        let width = value.dim(1)?;
        let mut sums = vec![(vec![0f64; width], 0f64, 0usize); self.batch.len()];
        rows::with_values(&value, |values| {
            for (row, at) in values.chunks_exact(width).zip(self.at) {
                if self.batch[at.slot].counts(at.position, self.positions) {
                    let (sum, norms, count) = &mut sums[at.slot];
                    for (sum, &value) in sum.iter_mut().zip(row) {
                        *sum += f64::from(value);
                    }
                    *norms += norm(row);
                    *count += 1;
                }
            }
        })?;
        *means = sums
            .into_iter()
            .map(|(sum, norms, count)| {
                let count = count.max(1) as f64;
                let mean = sum.into_iter().map(|sum| (sum / count) as f32).collect();
                (mean, norms / count)
            })
            .collect();
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::test_pair::{LAYERS, random_pair};
    use crate::models::tap::Recorder;

    fn prompt(tokens: &[u32], answer: usize) -> ContrastPrompt {
        ContrastPrompt {
            tokens: tokens.to_vec(),
            answer,
        }
    }

    #[test]
    fn batches_hold_every_prompt_once_and_no_more_than_they_may() {
        let lengths = [1, 1000, 20, 3000, 5, 5, 500, 500, 500];
        let prompts: Vec<Vec<u32>> = lengths.iter().map(|&length| vec![0; length]).collect();
        let batches = batches(&prompts);
        let counts: Vec<usize> = batches.iter().map(|batch| batch.len()).collect();
        assert_eq!(counts, [1, 1, 1, 1, 2, 2, 1]);
    }

    #[test]
    fn prompts_of_any_lengths_are_read_as_each_by_itself() {
        let pair = random_pair(4).pair();
        let model = &pair.dense.transformer;
        let prompts = [
            prompt(&[1, 2, 3, 4], 2),
            prompt(&[5], 1),
            prompt(&[6, 7, 8], 1),
        ];
        let sites = [1, 2 * LAYERS].map(|index| Site::new(index, LAYERS).expect("a site"));
        for (positions, wanted) in [
            (ReadPositions::Last, [3..4, 0..1, 2..3]),
            (ReadPositions::All, [0..4, 0..1, 0..3]),
            (ReadPositions::Answer, [2..4, 1..1, 1..3]),
        ] {
            let patience = Patience::endless();
            let found = activations(model, &prompts, &sites, positions, &patience).expect("read");
            assert_eq!(found.prompts(), 3);
            for (index, site) in sites.iter().enumerate() {
                let mut norms = 0.0;
                for (number, (prompt, wanted)) in prompts.iter().zip(&wanted).enumerate() {
                    let mut recorder = Recorder::of([Location::Site(*site)]);
                    let length = prompt.tokens.len();
                    let device = &candle_core::Device::Cpu;
                    let mut rows =
                        TokenRows::sequences(&prompt.tokens, length, device).expect("rows");
                    model.forward(&mut rows, &mut recorder).expect("a pass");
                    let values = recorder.get(Location::Site(*site)).expect("seen");
                    let values = values.to_vec2::<f32>().expect("rows");
                    let count = wanted.len().max(1) as f32;
                    for (channel, mean) in found.of_sites[index][number].iter().enumerate() {
                        let sum: f32 = wanted.clone().map(|row| values[row][channel]).sum();
                        let off = mean - sum / count;
                        assert!(off.abs() < 1e-5, "{positions:?} {site} {number}: {off}");
                    }
                    let lengths = wanted.clone().map(|row| norm(&values[row]));
                    norms += lengths.sum::<f64>() / f64::from(count);
                }
                assert!((found.norm_sums[index] - norms).abs() < 1e-4);
            }
        }
        let lost = Patience::endless();
        lost.lose();
        assert!(activations(model, &prompts, &sites, ReadPositions::Last, &lost).is_err());
    }
}
