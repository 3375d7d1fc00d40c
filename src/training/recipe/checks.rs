//! What makes a recipe wrong, field by field: ranges, and fields that do not fit each other. Nothing is opened.

use std::collections::BTreeSet;

use super::fault::Fault;
use super::{
    Batches, BridgeRecipe, Clip, ModelRecipe, Optimizer, Output, Source, Sparsity, TokenizerRecipe,
};
use crate::bridge::site_map::check_count;
use crate::models::config::TransformerConfig;

/// What a recipe's types cannot say.
pub trait Check {
    /// The first thing wrong, said so that it can be put right.
    fn check(&self) -> Result<(), Fault>;
}

fn in_range(field: &str, value: f64, low: f64, high: f64) -> Result<(), Fault> {
    match value >= low && value <= high {
        true => Ok(()),
        false => Err(Fault::new(
            field,
            format!("is {value}; it must be between {low} and {high}"),
        )),
    }
}

/// TOML, in which recipes are kept, has no larger ones.
fn check_seed(field: &str, seed: u64) -> Result<(), Fault> {
    match i64::try_from(seed) {
        Ok(_) => Ok(()),
        Err(_) => Err(Fault::new(
            field,
            format!("is {seed}; it must be between 0 and {}", i64::MAX),
        )),
    }
}

fn check_sources(sources: &[Source]) -> Result<(), Fault> {
    if sources.is_empty() {
        return Err(Fault::new("sources", "is empty; name at least one"));
    }
    for source in sources {
        in_range("sources.weight", source.weight(), 1e-6, 1e6)?;
        match source {
            Source::Generated {
                documents, seed, ..
            } => {
                check_seed("sources.seed", *seed)?;
                in_range("sources.documents", *documents as f64, 1.0, 1e7)?;
            }
            Source::Directory { held_out_every, .. } | Source::File { held_out_every, .. } => {
                in_range("sources.held_out_every", *held_out_every as f64, 2.0, 1e6)?;
            }
        }
    }
    Ok(())
}

impl Check for TokenizerRecipe {
    fn check(&self) -> Result<(), Fault> {
        in_range("vocab_size", self.vocab_size as f64, 257.0, 1e6)?;
        in_range("documents", self.documents as f64, 1.0, 1e7)?;
        check_sources(&self.sources)
    }
}

impl Batches {
    fn check(&self, model: &TransformerConfig) -> Result<(), Fault> {
        in_range("batches.steps", self.steps as f64, 1.0, 1e9)?;
        check_seed("batches.seed", self.seed)?;
        in_range("batches.sequences", self.sequences as f64, 1.0, 1e5)?;
        in_range(
            "batches.length",
            self.length as f64,
            2.0,
            model.context_length as f64,
        )
    }
}

impl Optimizer {
    fn check(&self) -> Result<(), Fault> {
        in_range("optimizer.learning_rate", self.learning_rate, 1e-9, 1.0)?;
        in_range("optimizer.warmup_steps", self.warmup_steps as f64, 0.0, 1e9)?;
        in_range("optimizer.final_fraction", self.final_fraction, 0.0, 1.0)?;
        in_range("optimizer.beta1", self.beta1, 0.0, 0.9999)?;
        in_range("optimizer.beta2", self.beta2, 0.0, 0.999_999)?;
        in_range("optimizer.epsilon", self.epsilon, 1e-20, 1.0)?;
        in_range("optimizer.weight_decay", self.weight_decay, 0.0, 10.0)?;
        let (Clip::Norm { at } | Clip::Rms { at } | Clip::NormaliseRms { to: at }) = self.clip;
        in_range("optimizer.clip", at, 1e-9, 1e9)
    }
}

impl Output {
    fn check(&self) -> Result<(), Fault> {
        in_range(
            "output.checkpoint_every",
            self.checkpoint_every as f64,
            1.0,
            1e9,
        )?;
        in_range(
            "output.checkpoint_minutes",
            self.checkpoint_minutes,
            0.01,
            1e6,
        )?;
        in_range("output.task_pairs", self.task_pairs as f64, 8.0, 4096.0)?;
        let tasks: BTreeSet<&str> = self.tasks.iter().map(|task| task.name()).collect();
        if tasks.len() < self.tasks.len() {
            return Err(Fault::new("output.tasks", "names a task twice"));
        }
        in_range(
            "output.evaluate_every",
            self.evaluate_every as f64,
            1.0,
            1e9,
        )?;
        in_range(
            "output.evaluation_sequences",
            self.evaluation_sequences as f64,
            1.0,
            1e5,
        )
    }
}

impl Sparsity {
    fn check(&self, model: &TransformerConfig) -> Result<(), Fault> {
        in_range("sparsity.kept_fraction", self.kept_fraction, 1e-6, 1.0)?;
        in_range("sparsity.anneal_from", self.anneal_from, 0.0, 1.0)?;
        in_range("sparsity.anneal_to", self.anneal_to, self.anneal_from, 1.0)?;
        in_range(
            "sparsity.rate_growth_limit",
            self.rate_growth_limit,
            1.0,
            1e3,
        )?;
        // A neuron's or channel's weights are a row or a column of this length. One that had more places protected
        // than its share would take them from the others.
        let places = (self.kept_fraction * model.d_model as f64).floor();
        in_range("sparsity.protected", self.protected as f64, 0.0, places)
    }
}

impl Check for ModelRecipe {
    fn check(&self) -> Result<(), Fault> {
        check_sources(&self.sources)?;
        self.model
            .validate()
            .map_err(|error| Fault::new(format!("model.{}", error.field), error.problem))?;
        self.batches.check(&self.model)?;
        self.optimizer.check()?;
        self.output.check()?;
        self.sparsity
            .as_ref()
            .map_or(Ok(()), |sparsity| sparsity.check(&self.model))
    }
}

impl Check for BridgeRecipe {
    fn check(&self) -> Result<(), Fault> {
        check_sources(&self.sources)?;
        self.sparse
            .validate()
            .map_err(|error| Fault::new(format!("sparse.{}", error.field), error.problem))?;
        self.batches.check(&self.sparse)?;
        self.optimizer.check()?;
        in_range("bridge_learning_rate", self.bridge_learning_rate, 1e-9, 1.0)?;
        in_range("encoder_fraction", self.encoder_fraction, 1e-6, 1.0)?;
        if let Some(names) = &self.site_map {
            check_count(names, self.sparse.n_layers)
                .map_err(|error| Fault::new("site_map", error.to_string()))?;
        }
        self.output.check()?;
        self.sparsity.check(&self.sparse)?;
        let terms = &self.terms;
        let weights = [
            ("cross_entropy", terms.cross_entropy),
            ("distillation", terms.distillation),
            ("encoder", terms.encoder),
            ("decoder", terms.decoder),
            ("dense_to_sparse", terms.dense_to_sparse),
            ("sparse_to_dense", terms.sparse_to_dense),
        ];
        for (name, weight) in weights {
            in_range(&format!("terms.{name}"), f64::from(weight), 0.0, 1e6)?;
        }
        if terms.twin.is_none() && weights.iter().all(|(_, weight)| *weight == 0.0) {
            return Err(Fault::new(
                "terms",
                "has no weight above 0: there is nothing to train for",
            ));
        }
        if let Some(count) = terms.hybrid_sequences {
            in_range("terms.hybrid_sequences", count as f64, 1.0, 1e5)?;
        }
        if let Some(twin) = &self.terms.twin {
            in_range(
                "terms.twin.channels",
                twin.channels as f64,
                1.0,
                self.sparse.d_model as f64,
            )?;
            in_range(
                "terms.twin.sites",
                twin.sites as f64,
                1.0,
                self.sparse.n_sites() as f64,
            )?;
            in_range("terms.twin.task_pairs", twin.task_pairs as f64, 0.0, 1e4)?;
            in_range("terms.twin.quote_share", twin.quote_share, 0.0, 1.0)?;
            for (name, weight) in [
                ("weight", twin.weight),
                ("native_weight", twin.native_weight),
                ("counterfactual_weight", twin.counterfactual_weight),
                ("decisive_weight", twin.decisive_weight),
            ] {
                in_range(&format!("terms.twin.{name}"), f64::from(weight), 0.0, 1e6)?;
            }
            let real = |source: &Source| source.name() != Source::GENERATED;
            if twin.quote_share > 0.0 && !self.sources.iter().any(real) {
                return Err(Fault::new(
                    "terms.twin.quote_share",
                    "needs text that is not generated to cut code from",
                ));
            }
            twin.sites(self.sparse.n_layers)?;
            in_range(
                "terms.twin.text_pairs",
                twin.text_pairs as f64,
                0.0,
                self.batches.sequences as f64 / 2.0,
            )?;
        }
        Ok(())
    }
}
