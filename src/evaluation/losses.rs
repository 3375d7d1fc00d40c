//! Held-out losses of both models and of counting models trained on the same tokens, and the bridge's fidelity
//! at every site, source by source.

use serde::Serialize;

use super::EvaluationError;
use super::ngram::{Counts, Interpolated, Order};
use super::unseen::UnseenPackage;
use crate::bridge::fidelity;
use crate::bridge::record::SiteRecord;
use crate::features::pair::Pair;
use crate::models::location::Site;
use crate::training::data::{Batch, TrainingData, spread_sequences, tokenise};

/// What held-out text of one source says; losses in nats a token.
#[derive(Debug, Clone, Serialize)]
pub struct SourceLosses {
    pub source: String,
    pub tokens: usize,
    pub dense: f64,
    pub sparse: f64,
    /// KL(dense || sparse).
    pub distillation: f64,
    /// An interpolated bigram table.
    pub bigram: f64,
    /// An interpolated trigram.
    pub trigram: f64,
    /// Empty where only the models were measured.
    pub sites: Vec<SiteRecord>,
}

/// Measures every source of `data`, and the packages together and each alone, on `sequences` held-out sequences of
/// `length` tokens each; of a package alone the models' losses only.
pub fn measure(
    models: &Pair,
    data: &TrainingData,
    unseen: &[UnseenPackage],
    sequences: usize,
    length: usize,
) -> Result<Vec<SourceLosses>, EvaluationError> {
    let training: Vec<&[u32]> = data.tokens().map(|(_, train, _)| train).collect();
    let counts = Counts::new(&training, models.dense.config.vocab_size);
    let counting = Counting {
        bigram: Interpolated::fit(&counts, Order::Bigram),
        trigram: Interpolated::fit(&counts, Order::Trigram),
    };
    tracing::info!("n-grams are counted and fitted");
    let mut results = Vec::new();
    for (source, batch) in data.held_out(sequences, length) {
        results.push(counting.losses(models, source.to_owned(), &batch, true)?);
    }
    let tokenised = unseen.iter().map(|package| {
        let tokens = tokenise(&package.documents, models.tokenizer())?;
        match tokens.len() > length + 1 {
            true => Ok((&package.name, tokens)),
            false => Err(EvaluationError::Invalid(format!(
                "the package {} has {} tokens, too few for a sequence of {length}",
                package.name,
                tokens.len()
            ))),
        }
    });
    let tokenised = tokenised.collect::<Result<Vec<_>, EvaluationError>>()?;
    if !tokenised.is_empty() {
        // As much of each, however large it is.
        let mut together = Batch::new(length);
        let each = sequences.div_ceil(tokenised.len());
        for (_, tokens) in &tokenised {
            together.append(spread_sequences(tokens, each, length));
        }
        results.push(counting.losses(models, UNSEEN.to_owned(), &together, true)?);
    }
    for (name, tokens) in &tokenised {
        let batch = spread_sequences(tokens, sequences, length);
        results.push(counting.losses(models, format!("{UNSEEN}: {name}"), &batch, false)?);
    }
    Ok(results)
}

/// The name of what was measured on unseen packages.
const UNSEEN: &str = "unseen packages";

/// The counting models that losses are told beside.
struct Counting<'a> {
    bigram: Interpolated<'a>,
    trigram: Interpolated<'a>,
}

impl Counting<'_> {
    fn losses(
        &self,
        models: &Pair,
        source: String,
        batch: &Batch,
        at_sites: bool,
    ) -> Result<SourceLosses, EvaluationError> {
        let (inputs, targets, length) = (&batch.inputs, &batch.targets, batch.length);
        let sites = Site::all(models.n_layers()).filter(|_| at_sites);
        let fidelity = fidelity::measure(
            &models.dense,
            &models.sparse,
            &models.bridge,
            batch.text(),
            models.dense.device(),
            sites,
        )?;
        tracing::info!(source, "losses are measured");
        Ok(SourceLosses {
            source,
            tokens: targets.len(),
            dense: fidelity.dense_loss,
            sparse: fidelity.sparse_loss,
            distillation: fidelity.distillation,
            bigram: self.bigram.loss(inputs, targets, length),
            trigram: self.trigram.loss(inputs, targets, length),
            sites: fidelity.sites,
        })
    }
}
