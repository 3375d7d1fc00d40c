//! Training a model alone: next-token cross-entropy, nothing else.
//!
//! A recipe with a `[sparsity]` adds the magnitude mask, and the model comes out sparse.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Tensor};

use super::TrainingError;
use super::data::{Batch, TrainingData};
use super::initialise;
use super::parameters::{ParameterGroup, Parameters, moved};
use super::passes::Passes;
use super::passes::gradients::WeightGradients;
use super::recipe::{Batches, ModelRecipe};
use super::run::{End, Ended, Loss, Mode, Objective, Plan, train};
use super::widen::{can_widen, widened};
use crate::models::companions;
use crate::models::config::TransformerConfig;
use crate::models::layers::Purpose;
use crate::models::layout::ModelFiles;
use crate::models::tap::NoTap;
use crate::models::tensor_names::FINAL_LOGITS_BIAS;
use crate::models::token_rows::TokenRows;
use crate::models::tokenizer::Tokenizer;
use crate::numerics::loss::{cross_entropy, mean};
use crate::numerics::student_loss::{Lessons, student_loss};

/// Trains the model of a recipe and writes it to `model/` below the recipe's directory.
pub fn train_model(
    recipe: &ModelRecipe,
    device: &Device,
    mode: Mode,
) -> Result<Ended, TrainingError> {
    let begun = Instant::now();
    let json = crate::artifacts::atomic::read_small(&recipe.tokenizer, 1 << 28)?;
    let tokenizer = Tokenizer::from_bytes(&json)?;
    check_vocabulary(&tokenizer, recipe.model.vocab_size)?;
    let data = TrainingData::load(&recipe.sources, &tokenizer, recipe.batches.length)?;
    tracing::info!(sources = ?data.sizes(), "training tokens");
    let initial = match &recipe.start_from {
        Some(directory) => {
            let files = ModelFiles::read(directory)?;
            let start = trainable(files, directory, &recipe.model, recipe.batches.seed)?;
            moved(&start, device)?
        }
        None => initialise::model(&recipe.model, recipe.batches.seed, device)?,
    };
    let protected = recipe.sparsity.as_ref().map(|sparsity| sparsity.protected);
    let parameters = Parameters::of_model(initial, protected)?;
    let tensors = parameters.tensors(ParameterGroup::Model);
    let mut objective = NextToken {
        model: Passes::new(recipe.model.clone(), &tensors, Purpose::Training)?,
        held_out: data.held_out(recipe.output.evaluation_sequences, recipe.batches.length),
        data,
        batches: recipe.batches.clone(),
        device: device.clone(),
    };
    let plan = Plan {
        batches: &recipe.batches,
        optimizer: &recipe.optimizer,
        sparsity: recipe.sparsity.as_ref(),
        bridge_learning_rate: 0.0,
        output: &recipe.output,
        recipe_sha256: Plan::hash(recipe)?,
        begun,
    };
    let end = train(&plan, &parameters, &mut objective, mode)?;
    if end != End::Trained {
        let data = objective.data;
        return Ok(Ended { end, data });
    }
    let files = ModelFiles {
        config: recipe.model.clone(),
        tensors: parameters.tensors(ParameterGroup::Model),
        quantised: Default::default(),
        tokenizer: Some(json),
    };
    let folder = recipe.output.directory.join("model");
    files.write(&folder)?;
    if let Some(directory) = recipe.tokenizer.parent() {
        companions::copy(directory, &folder)?;
    }
    let data = objective.data;
    Ok(Ended { end, data })
}

/// The weights of a model that was read from `directory`, as a training of the recipe's configuration starts from them:
/// as they are, or widened with random weights of `seed`.
pub fn trainable(
    mut files: ModelFiles,
    directory: &Path,
    config: &TransformerConfig,
    seed: u64,
) -> Result<BTreeMap<String, Tensor>, TrainingError> {
    // Added when a model is written, always zero here, and not trained.
    files.tensors.remove(FINAL_LOGITS_BIAS);
    if files.config == *config {
        return Ok(files.tensors);
    }
    if !can_widen(&files.config, config) {
        return Err(TrainingError::Recipe(format!(
            "start_from: the model in {} has another configuration than the recipe; it may have fewer channels, heads \
             or neurons under RMSNorm, and must be the same in everything else",
            directory.display()
        )));
    }
    let device = &Device::Cpu;
    Ok(widened(
        &files.tensors,
        &files.config,
        config,
        seed,
        device,
    )?)
}

/// A model's vocabulary must be its tokenizer's.
pub fn check_vocabulary(tokenizer: &Tokenizer, vocab_size: usize) -> Result<(), TrainingError> {
    match tokenizer.vocab_size() {
        size if size == vocab_size => Ok(()),
        size => Err(TrainingError::Recipe(format!(
            "model.vocab_size is {vocab_size}, the tokenizer has {size} tokens; they must be equal"
        ))),
    }
}

struct NextToken {
    model: Passes,
    data: TrainingData,
    held_out: Vec<(&'static str, Batch)>,
    batches: Batches,
    device: Device,
}

impl Objective for NextToken {
    fn loss(&mut self, step: usize) -> Result<Loss, TrainingError> {
        let batch = self.data.batch(&self.batches, step)?;
        let mut rows = TokenRows::sequences(&batch.inputs, batch.length, &self.device)?;
        self.model.begin_step()?;
        let (logits, _) = self.model.forward(&mut rows)?;
        let lessons = Lessons {
            targets: Some((batch.targets.as_slice(), 1.0)),
            teacher: None,
        };
        Ok(Loss {
            total: student_loss(&logits, &lessons)?.total,
            terms: Vec::new(),
            tokens: batch.inputs.len(),
        })
    }

    fn gradients(&self) -> Option<&WeightGradients> {
        self.model.gradients()
    }

    fn evaluate(&mut self) -> Result<Vec<(String, f32)>, TrainingError> {
        let mut results = Vec::new();
        for (name, batch) in &self.held_out {
            let mut rows = TokenRows::sequences(&batch.inputs, batch.length, &self.device)?;
            let logits = self
                .model
                .transformer
                .forward(&mut rows, &mut NoTap)?
                .detach();
            let loss = mean(&cross_entropy(&logits, &batch.targets(&self.device)?)?)?;
            results.push((format!("held_out_{name}"), loss.to_scalar()?));
        }
        Ok(results)
    }
}
