//! The loop every training shares: batch, loss, gradients, step, mask; metrics, evaluations, checkpoints.

use std::path::Path;

use candle_core::Tensor;

use super::TrainingError;
use super::checkpoint::{Checkpoint, recipe_hash};
use super::optimizer::{AdamW, StepRates};
use super::parameters::Parameters;
use super::progress::Progress;
use super::recipe::{Batches, Optimizer, Output, Sparsity};
use super::schedule::{kept_fraction, sparse_rate, warmup_and_decay};

/// What a training minimises.
pub trait Objective {
    /// The loss of step `step` and its terms by name. The loss's gradients reach [`Parameters`].
    fn loss(&mut self, step: usize) -> Result<Loss, TrainingError>;

    /// Held-out figures by name.
    fn evaluate(&mut self) -> Result<Vec<(String, f32)>, TrainingError>;
}

/// One step's loss.
pub struct Loss {
    pub total: Tensor,
    pub terms: Vec<(String, Tensor)>,
    pub tokens: usize,
}

/// What the loop needs to know of a recipe.
pub struct Plan<'a> {
    pub batches: &'a Batches,
    pub optimizer: &'a Optimizer,
    pub sparsity: Option<&'a Sparsity>,
    /// The bridge's peak rate, where there is a bridge.
    pub bridge_rate: f64,
    pub output: &'a Output,
    pub recipe_sha256: String,
}

impl<'a> Plan<'a> {
    pub fn hash(recipe: &impl serde::Serialize) -> Result<String, TrainingError> {
        recipe_hash(recipe)
    }
}

/// How a training begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// From the first step; refused where a training has stopped before.
    Start,
    /// From the newest checkpoint, or the first step where there is none.
    Resume,
    /// Not at all: the newest checkpoint's weights are the result.
    Export,
}

/// Trains to the last step.
pub fn train(
    plan: &Plan,
    parameters: &Parameters,
    objective: &mut dyn Objective,
    mode: Mode,
) -> Result<(), TrainingError> {
    let directory = &plan.output.directory;
    let checkpoints = directory.join("checkpoints");
    std::fs::create_dir_all(&checkpoints).map_err(|error| TrainingError::Checkpoint {
        path: checkpoints.display().to_string(),
        problem: error.to_string(),
    })?;
    let mut optimizer = AdamW::new(plan.optimizer.clone(), parameters);
    let first = match Checkpoint::newest(&checkpoints, &plan.recipe_sha256)? {
        Some(checkpoint) if mode != Mode::Start => {
            restore(parameters, &mut optimizer, &checkpoint)?
        }
        Some(checkpoint) => {
            return Err(TrainingError::Checkpoint {
                path: checkpoints.display().to_string(),
                problem: format!(
                    "a training stopped here after step {}; use --resume to go on, or another directory",
                    checkpoint.step
                ),
            });
        }
        None if mode == Mode::Export => {
            return Err(TrainingError::Checkpoint {
                path: checkpoints.display().to_string(),
                problem: "there is no checkpoint to export".into(),
            });
        }
        None => 0,
    };
    if mode == Mode::Export {
        return Ok(());
    }
    let steps = plan.batches.steps;
    let mut progress = Progress::new(directory, first, steps)?;
    if first > 0 {
        progress.checkpoint(first - 1)?;
    }
    for step in first..steps {
        let terms = one_step(
            plan,
            parameters,
            objective,
            &mut optimizer,
            &mut progress,
            step,
        )?;
        if let Some((term, value)) = terms.iter().find(|(_, value)| !value.is_finite()) {
            return Err(TrainingError::Diverged {
                step,
                term: term.clone(),
                value: *value,
            });
        }
        let done = step + 1;
        if done % plan.output.evaluate_every == 0 || done == steps {
            progress.evaluation(step, &objective.evaluate()?)?;
        }
        if done % plan.output.checkpoint_every == 0 || done == steps {
            progress.sync()?;
            save(
                &checkpoints,
                parameters,
                &optimizer,
                done,
                &plan.recipe_sha256,
            )?;
            progress.checkpoint(step)?;
        }
    }
    progress.finish();
    Ok(())
}

fn one_step(
    plan: &Plan,
    parameters: &Parameters,
    objective: &mut dyn Objective,
    optimizer: &mut AdamW,
    progress: &mut Progress,
    step: usize,
) -> Result<Vec<(String, f32)>, TrainingError> {
    let loss = objective.loss(step)?;
    let gradients = loss.total.backward()?;
    let rates = rates(plan, step);
    let norm = optimizer.step(parameters, &gradients, &rates)?;
    let mut terms = vec![("loss".to_string(), loss.total.to_scalar::<f32>()?)];
    for (name, value) in loss.terms {
        terms.push((name, value.to_scalar::<f32>()?));
    }
    terms.push(("gradient_norm".into(), norm as f32));
    terms.push(("rate".into(), rates.model as f32));
    if let Some(kept) = rates.kept_fraction {
        terms.push(("kept".into(), kept as f32));
    }
    progress.step(step, loss.tokens, &terms)?;
    Ok(terms)
}

fn rates(plan: &Plan, step: usize) -> StepRates {
    let steps = plan.batches.steps;
    let shape = warmup_and_decay(plan.optimizer, step, steps);
    StepRates {
        model: plan.optimizer.rate
            * match plan.sparsity {
                Some(sparsity) => sparse_rate(plan.optimizer, sparsity, step, steps),
                None => shape,
            },
        bridge: plan.bridge_rate * shape,
        kept_fraction: plan
            .sparsity
            .map(|sparsity| kept_fraction(sparsity, step, steps)),
    }
}

fn save(
    checkpoints: &Path,
    parameters: &Parameters,
    optimizer: &AdamW,
    step: usize,
    recipe_sha256: &str,
) -> Result<(), TrainingError> {
    let weights = parameters
        .iter()
        .map(|parameter| (parameter.name.clone(), parameter.var.as_tensor().clone()))
        .collect();
    let moments = optimizer.state(parameters)?;
    Checkpoint {
        step,
        weights,
        moments,
    }
    .write(checkpoints, recipe_sha256)
}

fn restore(
    parameters: &Parameters,
    optimizer: &mut AdamW,
    checkpoint: &Checkpoint,
) -> Result<usize, TrainingError> {
    for parameter in parameters.iter() {
        let Some(tensor) = checkpoint.weights.get(&parameter.name) else {
            return Err(TrainingError::Checkpoint {
                path: format!("step-{}", checkpoint.step),
                problem: format!("has no {}", parameter.name),
            });
        };
        parameter
            .var
            .set(&tensor.to_device(parameter.var.device())?)?;
    }
    optimizer.restore(parameters, &checkpoint.moments, checkpoint.step)?;
    Ok(checkpoint.step)
}
