//! Held-out losses of both models and of counting models trained on the same tokens, and the bridge's fidelity
//! at every site, source by source.

use candle_core::Device;
use serde::Serialize;

use super::EvaluationError;
use super::ngram::{Counts, Interpolated, Order};
use crate::bridge::fidelity;
use crate::bridge::record::SiteRecord;
use crate::features::pair::Pair;
use crate::training::data::TrainingData;

/// What held-out text of one source says; losses in nats a token.
#[derive(Debug, Clone, Serialize)]
pub struct SourceLosses {
    pub source: &'static str,
    pub tokens: usize,
    pub dense: f64,
    pub sparse: f64,
    /// KL(dense || sparse).
    pub distillation: f64,
    /// An interpolated bigram table.
    pub bigram: f64,
    /// An interpolated trigram.
    pub trigram: f64,
    pub sites: Vec<SiteRecord>,
}

/// Measures every source on `sequences` held-out sequences of `length` tokens.
pub fn measure(
    models: &Pair,
    data: &TrainingData,
    sequences: usize,
    length: usize,
) -> Result<Vec<SourceLosses>, EvaluationError> {
    let training: Vec<&[u32]> = data.tokens().map(|(_, train, _)| train).collect();
    let counts = Counts::new(&training, models.dense.config.vocab_size);
    let bigram = Interpolated::fit(&counts, Order::Bigram);
    let trigram = Interpolated::fit(&counts, Order::Trigram);
    tracing::info!("n-grams are counted and fitted");
    let mut results = Vec::new();
    for (source, batch) in data.held_out(sequences, length) {
        let (inputs, targets) = (&batch.inputs, &batch.targets);
        let fidelity = fidelity::measure(
            &models.dense,
            &models.sparse,
            &models.bridge,
            inputs,
            targets,
            length,
            &Device::Cpu,
        )?;
        results.push(SourceLosses {
            source,
            tokens: targets.len(),
            dense: fidelity.dense_loss,
            sparse: fidelity.sparse_loss,
            distillation: fidelity.distillation,
            bigram: bigram.loss(inputs, targets, length),
            trigram: trigram.loss(inputs, targets, length),
            sites: fidelity.sites,
        });
        tracing::info!(source, "losses are measured");
    }
    Ok(results)
}
