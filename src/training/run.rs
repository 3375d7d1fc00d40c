//! The loop every training shares: batch, loss, gradients, step, mask; metrics, evaluations, checkpoints.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::Tensor;

use super::TrainingError;
use super::checkpoint::{Checkpoint, recipe_hash};
use super::data::TrainingData;
use super::optimizer::{AdamW, StepGradients, StepRates};
use super::parameters::{ParameterGroup, Parameters};
use super::passes::gradients::WeightGradients;
use super::progress::Progress;
use super::recipe::{Batches, Optimizer, Output, Sparsity};
use super::schedule::{kept_fraction, sparse_rate, warmup_and_decay};
use crate::artifacts::atomic;
use crate::numerics::device::{self, DeviceUse};
use crate::numerics::parts::{self, Part};

/// Set when this process has been asked to end: its training then writes a checkpoint after its step and stops.
pub static ASKED_TO_END: AtomicBool = AtomicBool::new(false);

/// Set where what is done begins anew when it is taken up again: who is asked to end then ends at once.
pub static NOTHING_TO_KEEP: AtomicBool = AtomicBool::new(false);
/// What says so on the standard input of a training that is attended.
pub const STOP: &str = "stop\n";
/// Steps of a measurement; the first is not counted.
const MEASURED: usize = 4;

/// What a training minimises.
pub trait Objective {
    /// The loss of step `step` and its terms by name. The loss's gradients reach [`Parameters`], or are added up by
    /// the passes.
    fn loss(&mut self, step: usize) -> Result<Loss, TrainingError>;

    /// The gradients that the passes of this step add up themselves.
    fn gradients(&self) -> Option<&WeightGradients>;

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
    pub bridge_learning_rate: f64,
    pub output: &'a Output,
    pub recipe_sha256: String,
    /// When the training began to read what it needs.
    pub begun: Instant,
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
    /// A few steps that leave nothing behind, to see what all of them would cost.
    Measure,
}

/// How a training ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// The parameters are the result.
    Trained,
    /// Asked to, after a checkpoint.
    Early,
    Measured(Cost),
}

/// A training that has ended, and the text it was on.
pub struct Ended {
    pub end: End,
    pub data: TrainingData,
}

/// What a training would cost, by a few steps of it on this machine.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Cost {
    /// Of the model that is trained, without the bias of zeros that is added to its logits when it is written.
    pub parameters: usize,
    /// Of its bridge; 0 where there is none.
    pub bridge_parameters: usize,
    pub steps: usize,
    /// In all steps together.
    pub tokens: usize,
    /// Seconds until the first step: reading, and fitting a new bridge.
    pub setup_seconds: f64,
    /// Seconds of a step, the mean of three.
    pub step_seconds: f64,
    /// The shares of a step that its parts take of all threads' time, by the part's name; the rest is candle's own
    /// operations, and waiting. Where the passes are candle's own, so is most of a step.
    pub parts: BTreeMap<String, f64>,
    /// Seconds of an evaluation on held-out text.
    pub evaluation_seconds: f64,
    /// Seconds of everything, without evaluations on tasks at the end.
    pub seconds: f64,
    /// A checkpoint's, in bytes.
    pub checkpoint_bytes: usize,
    /// The most that the process took while this was measured, in MiB; null where the system does not tell.
    #[schema(required = true)]
    pub memory_mib: Option<u64>,
}

/// Trains to the last step, unless asked to end before.
pub fn train(
    plan: &Plan,
    parameters: &Parameters,
    objective: &mut dyn Objective,
    mode: Mode,
) -> Result<End, TrainingError> {
    if mode == Mode::Measure {
        return measure(plan, parameters, objective).map(End::Measured);
    }
    let directory = &plan.output.directory;
    let checkpoints = directory.join("checkpoints");
    atomic::create_directory(&checkpoints)?;
    let mut optimizer = AdamW::new(plan.optimizer.clone(), parameters)?;
    let first = first_step(plan, parameters, &mut optimizer, &checkpoints, mode)?;
    if mode == Mode::Export {
        return Ok(End::Trained);
    }
    let steps = plan.batches.steps;
    let mut progress = Progress::new(directory, first, steps)?;
    if first > 0 {
        progress.checkpoint(first - 1)?;
    }
    let mut saved = Instant::now();
    for step in first..steps {
        let (terms, tokens) = one_step(plan, parameters, objective, &mut optimizer, step)?;
        progress.step(step, tokens, &terms)?;
        if let Some((term, value)) = terms.iter().find(|(_, value)| !value.is_finite()) {
            return Err(TrainingError::Diverged {
                step,
                term: term.clone(),
                value: *value,
            });
        }
        let done = step + 1;
        if done % plan.output.evaluate_every == 0 || done == steps {
            tell_device(parameters);
            progress.evaluation(step, &objective.evaluate()?)?;
        }
        let early = done < steps && ASKED_TO_END.load(Ordering::Relaxed);
        let due = done % plan.output.checkpoint_every == 0
            || saved.elapsed() >= minutes(plan.output.checkpoint_minutes);
        if due || early || done == steps {
            progress.sync()?;
            let hash = &plan.recipe_sha256;
            save(&checkpoints, parameters, &optimizer, done, hash)?;
            progress.checkpoint(step)?;
            saved = Instant::now();
        }
        if early {
            return Ok(End::Early);
        }
    }
    progress.finish();
    Ok(End::Trained)
}

/// Logs what a device that is trained on holds and how busy it is.
fn tell_device(parameters: &Parameters) {
    let Some(first) = parameters.as_slice().first() else {
        return;
    };
    let on = first.var.device();
    if let Some(DeviceUse { used, memory }) = device::usage(on) {
        let (used_mib, memory_mib) = (used >> 20, memory >> 20);
        let busy_percent = device::busy(on);
        let device = device::name(on);
        tracing::info!(device, used_mib, memory_mib, ?busy_percent, "the device");
    }
}

fn minutes(count: f64) -> Duration {
    Duration::try_from_secs_f64(60.0 * count).unwrap_or(Duration::MAX)
}

/// Steps done already, with the parameters and the optimizer as they were then.
fn first_step(
    plan: &Plan,
    parameters: &Parameters,
    optimizer: &mut AdamW,
    checkpoints: &Path,
    mode: Mode,
) -> Result<usize, TrainingError> {
    let problem = |problem: String| TrainingError::Checkpoint {
        path: checkpoints.display().to_string(),
        problem,
    };
    match Checkpoint::newest(checkpoints, &plan.recipe_sha256)? {
        Some(checkpoint) if mode != Mode::Start => restore(parameters, optimizer, &checkpoint),
        Some(checkpoint) => Err(problem(format!(
            "a training stopped here after step {}; use --resume to go on, or another directory",
            checkpoint.step
        ))),
        None if mode == Mode::Export => Err(problem("there is no checkpoint to export".into())),
        None => Ok(0),
    }
}

/// Times a few steps and an evaluation.
fn measure(
    plan: &Plan,
    parameters: &Parameters,
    objective: &mut dyn Objective,
) -> Result<Cost, TrainingError> {
    let setup_seconds = plan.begun.elapsed().as_secs_f64();
    let mut optimizer = AdamW::new(plan.optimizer.clone(), parameters)?;
    let mut times = Vec::new();
    for step in 0..MEASURED {
        if step == 1 {
            parts::measure();
        }
        let begun = Instant::now();
        one_step(plan, parameters, objective, &mut optimizer, step)?;
        times.push(begun.elapsed().as_secs_f64());
    }
    let step_seconds = times[1..].iter().sum::<f64>() / (MEASURED - 1) as f64;
    let all: f64 = times[1..].iter().sum::<f64>() * rayon::current_num_threads() as f64;
    let parts: BTreeMap<String, f64> = parts::measured()
        .map(|(part, seconds)| (part.to_owned(), seconds / all))
        .collect();
    let begun = Instant::now();
    objective.evaluate()?;
    let evaluation_seconds = begun.elapsed().as_secs_f64();
    let count = |group: ParameterGroup| {
        let tensors = parameters.tensors(group);
        tensors.values().map(Tensor::elem_count).sum::<usize>()
    };
    let (model, bridge) = (count(ParameterGroup::Model), count(ParameterGroup::Bridge));
    let steps = plan.batches.steps;
    let evaluations = steps.div_ceil(plan.output.evaluate_every.max(1));
    Ok(Cost {
        parameters: model,
        bridge_parameters: bridge,
        steps,
        tokens: steps * plan.batches.sequences * plan.batches.length,
        setup_seconds,
        step_seconds,
        parts,
        evaluation_seconds,
        seconds: setup_seconds
            + steps as f64 * step_seconds
            + evaluations as f64 * evaluation_seconds,
        // The weights and the optimizer's two moments, in single precision.
        checkpoint_bytes: 3 * 4 * (model + bridge),
        memory_mib: crate::memory::peak_mib(),
    })
}

/// The terms of a step, and its tokens.
fn one_step(
    plan: &Plan,
    parameters: &Parameters,
    objective: &mut dyn Objective,
    optimizer: &mut AdamW,
    step: usize,
) -> Result<(Vec<(String, f32)>, usize), TrainingError> {
    let loss = objective.loss(step)?;
    let gradients = loss.total.backward()?;
    let rates = rates(plan, step);
    let gradients = StepGradients {
        by_candle: &gradients,
        by_passes: objective.gradients(),
    };
    let timed = Part::Optimizer.begin();
    let norm = optimizer.step(parameters, &gradients, &rates)?;
    drop(timed);
    let mut terms = vec![("loss".to_string(), loss.total.to_scalar::<f32>()?)];
    for (name, value) in loss.terms {
        terms.push((name, value.to_scalar::<f32>()?));
    }
    terms.push(("gradient_norm".into(), norm.value()? as f32));
    terms.push(("learning_rate".into(), rates.model as f32));
    if let Some(kept) = rates.kept_fraction {
        terms.push(("kept_fraction".into(), kept as f32));
    }
    Ok((terms, loss.tokens))
}

fn rates(plan: &Plan, step: usize) -> StepRates {
    let steps = plan.batches.steps;
    let shape = warmup_and_decay(plan.optimizer, step, steps);
    StepRates {
        model: plan.optimizer.learning_rate
            * match plan.sparsity {
                Some(sparsity) => sparse_rate(plan.optimizer, sparsity, step, steps),
                None => shape,
            },
        bridge: plan.bridge_learning_rate * shape,
        kept_fraction: plan
            .sparsity
            .map(|sparsity| kept_fraction(sparsity, step, steps)),
    }
}

/// Whether a training into this place has anything to go on from.
pub fn has_checkpoint(output: &Output) -> bool {
    Checkpoint::is_in(&output.directory.join("checkpoints"))
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
