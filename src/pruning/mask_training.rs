//! Training a mask: one parameter a node, kept where it is above zero.
//!
//! The forward pass uses the mask as it is, 0 or 1; the backward pass takes the derivative of a sigmoid of the parameter
//! in place of the step's. What is minimised is the task loss of a batch of pairs, and a penalty for each node kept.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use super::answers::Rescaling;
use super::recipe::Search;
use super::subject::PrunedModel;
use crate::discovery::question::PromptPair;
use crate::numerics::rows;
use crate::training::data::{DRAW_PAIRS, step_rng};
use crate::training::optimizer::{AdamW, StepGradients, StepRates};
use crate::training::parameters::{ParameterGroup, Parameters};
use crate::training::passes::gradients::WeightGradients;
use crate::training::recipe::{Clip, Optimizer};
use crate::training::schedule::warmup_and_decay;

/// The name of the parameters among a checkpoint's tensors.
const MASK: &str = "mask";
/// Mean and standard deviation of the first parameters.
const FIRST: (f32, f32) = (0.1, 0.01);

/// What is tried: a learning rate and the loss of keeping a node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    pub learning_rate: f64,
    pub node_penalty: f64,
}

/// A mask that is being trained.
pub struct MaskTraining {
    setting: Setting,
    recipe: Optimizer,
    steps: usize,
    seed: u64,
    batch_pairs: usize,
    parameters: Parameters,
    optimizer: AdamW,
    gradients: WeightGradients,
    /// Of candle, which has none.
    nothing: GradStore,
}

/// What a step tells.
#[derive(Debug, Clone, Copy)]
pub struct MaskStep {
    pub task_loss: f64,
    pub nodes: usize,
    pub gradient_norm: f64,
    pub learning_rate: f64,
}

impl MaskTraining {
    /// Of a mask over so many nodes, for `steps` steps.
    pub fn new(nodes: usize, setting: Setting, search: &Search, steps: usize) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(search.seed);
        let normal = Normal::new(FIRST.0, FIRST.1).map_err(candle_core::Error::wrap)?;
        let first: Vec<f32> = (0..nodes).map(|_| normal.sample(&mut rng)).collect();
        // A matrix, so that weight decay applies.
        let first = Tensor::from_vec(first, (1, nodes), &Device::Cpu)?;
        let recipe = Optimizer {
            learning_rate: setting.learning_rate,
            warmup_steps: 0,
            final_fraction: 0.0,
            beta1: 0.9,
            beta2: search.beta2,
            epsilon: 1e-8,
            weight_decay: search.weight_decay,
            clip: Clip::Norm { at: 1.0 },
        };
        let parameters = Parameters::of_model([(MASK.to_owned(), first)].into(), None)?;
        let tensors = parameters.tensors(ParameterGroup::Model);
        Ok(MaskTraining {
            setting,
            optimizer: AdamW::new(recipe.clone(), &parameters)?,
            recipe,
            steps,
            seed: search.seed,
            batch_pairs: search.batch_pairs,
            gradients: WeightGradients::new(tensors.iter()),
            nothing: Var::zeros(1, candle_core::DType::F32, &Device::Cpu)?
                .sum_all()?
                .backward()?,
            parameters,
        })
    }

    /// The parameters, one a node.
    pub fn values(&self) -> Result<Vec<f32>> {
        match self.parameters.as_slice() {
            [mask] => rows::to_vec(mask.var.as_tensor()),
            _ => candle_core::bail!("a mask is one parameter"),
        }
    }

    /// Step `step`, on pairs that it draws.
    pub fn step(
        &mut self,
        subject: &PrunedModel,
        pairs: &[PromptPair],
        step: usize,
    ) -> Result<MaskStep> {
        let mut rng = step_rng(self.seed, step, DRAW_PAIRS);
        let drawn = index::sample(&mut rng, pairs.len(), self.batch_pairs.min(pairs.len()));
        let batch: Vec<PromptPair> = drawn.iter().map(|at| pairs[at].clone()).collect();
        let batch = subject.prepare(&batch)?;
        let values = self.values()?;
        let kept: Vec<bool> = values.iter().map(|value| *value > 0.0).collect();
        let (answers, mut gradient) = subject.loss_gradient(&batch, &kept, Rescaling::NONE)?;
        for (gradient, value) in gradient.iter_mut().zip(&values) {
            let sigmoid = 1.0 / (1.0 + (-value).exp());
            *gradient += self.setting.node_penalty as f32;
            *gradient *= sigmoid * (1.0 - sigmoid);
        }
        if let Some(mut buffer) = self.gradients.get(MASK) {
            buffer.copy_from_slice(&gradient);
        }
        let gradients = StepGradients {
            by_candle: &self.nothing,
            by_passes: Some(&self.gradients),
        };
        let shape = warmup_and_decay(&self.recipe, step, self.steps);
        let learning_rate = self.setting.learning_rate * shape;
        let rates = StepRates {
            model: learning_rate,
            bridge: 0.0,
            kept_fraction: None,
        };
        let gradient_norm = self.optimizer.step(&self.parameters, &gradients, &rates)?;
        for parameter in self.parameters.iter() {
            let clamped = parameter.var.as_tensor().clamp(-1f32, 1f32)?;
            parameter.var.set(&clamped)?;
        }
        Ok(MaskStep {
            task_loss: answers.loss(Rescaling::NONE),
            nodes: kept.into_iter().filter(|kept| *kept).count(),
            gradient_norm: gradient_norm.value()?,
            learning_rate,
        })
    }

    /// Parameters and moments, for a checkpoint.
    pub fn state(&self) -> Result<(BTreeMap<String, Tensor>, BTreeMap<String, Tensor>)> {
        let weights = self.parameters.tensors(ParameterGroup::Model);
        Ok((weights, self.optimizer.state(&self.parameters)?))
    }

    /// Takes up what was so after `steps` steps.
    pub fn restore(
        &mut self,
        weights: &BTreeMap<String, Tensor>,
        moments: &BTreeMap<String, Tensor>,
        steps: usize,
    ) -> Result<()> {
        for parameter in self.parameters.iter() {
            match weights.get(&parameter.name) {
                Some(tensor) if tensor.dims() == parameter.var.dims() => {
                    parameter.var.set(tensor)?
                }
                _ => candle_core::bail!("the checkpoint has no mask over these nodes"),
            }
        }
        self.optimizer.restore(&self.parameters, moments, steps)
    }
}
