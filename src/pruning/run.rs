//! A pruning from its recipe to its circuit: a list of trainings of masks, one after another, that can be stopped after
//! any step and goes on as if it had not been.
//!
//! First the search: every learning rate with every penalty, each for a few steps; the better half again, from the
//! beginning, for twice as many; until one setting is left. Then the controls, trained by that setting. A checkpoint holds
//! the mask that is being trained and those that are done. What follows from the masks (sizes, edges, effects) is worked
//! out at the end, and is the same however often the trainings were stopped.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use candle_core::{Device, Tensor};

use super::mask_training::{MaskTraining, Setting};
use super::recipe::PruneRecipe;
use super::size::{NodeChoice, bisected};
use super::subject::{PreparedPairs, PrunedModel};
use crate::artifacts::atomic;
use crate::discovery::question::PromptPair;
use crate::numerics::rows;
use crate::training::TrainingError;
use crate::training::checkpoint::{Checkpoint, recipe_hash};
use crate::training::progress::Progress;
use crate::training::run::{ASKED_TO_END, Cost, Mode};

/// Pairs that settings are compared on.
const PAIRS_OF_A_ROUND: usize = 64;
/// Steps of a measurement; the first is not counted.
const MEASURED: usize = 4;

/// What a mask is trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variation {
    /// The task itself, in one of the search's rounds.
    Task { round: usize },
    /// With the answers of half of the pairs exchanged.
    ShuffledLabels,
    /// In a model of random weights.
    RandomModel,
    /// With norms frozen where the task's own are not, and the other way round.
    OtherNorms,
}

/// A subject, the pairs that a mask of it is trained on, and those that its nodes and edges are chosen on.
pub struct Material {
    pub subject: PrunedModel,
    pub pairs: Vec<PromptPair>,
    pub trimming: Vec<PromptPair>,
}

/// What the trainings of a recipe are of.
pub struct Materials<'a> {
    pub task: &'a Material,
    pub shuffled_labels: Option<&'a Material>,
    pub random_model: Option<&'a Material>,
    pub other_norms: Option<&'a Material>,
}

impl Materials<'_> {
    fn of(&self, variation: Variation) -> Option<&Material> {
        match variation {
            Variation::Task { .. } => Some(self.task),
            Variation::ShuffledLabels => self.shuffled_labels,
            Variation::RandomModel => self.random_model,
            Variation::OtherNorms => self.other_norms,
        }
    }
}

/// A training that is done: the mask's parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedMask {
    pub variation: Variation,
    pub setting: Setting,
    pub parameters: Vec<f32>,
}

/// How the trainings ended.
pub enum TrainingsEnd {
    /// The last of the task's own, and those of the controls.
    Trained {
        task: TrainedMask,
        controls: Vec<TrainedMask>,
    },
    /// Asked to end, after a checkpoint.
    Early,
    Measured(Cost),
}

/// One training of the list.
#[derive(Debug, Clone, Copy)]
struct Planned {
    variation: Variation,
    /// Which of the settings that are left in its round.
    place: usize,
    steps: usize,
}

fn planned(recipe: &PruneRecipe) -> Vec<Planned> {
    let search = &recipe.search;
    let mut left = search.learning_rates.len() * search.node_penalties.len();
    let mut planned = Vec::new();
    for round in 0..recipe.rounds() {
        planned.extend((0..left).map(|place| Planned {
            variation: Variation::Task { round },
            place,
            steps: recipe.steps_of_round(round),
        }));
        left = left.div_ceil(2);
    }
    let controls = recipe.controls;
    let asked = [
        (controls.shuffled_labels, Variation::ShuffledLabels),
        (controls.random_model, Variation::RandomModel),
        (controls.frozen_norms, Variation::OtherNorms),
    ];
    planned.extend(
        asked
            .into_iter()
            .filter(|(asked, _)| *asked)
            .map(|(_, variation)| Planned {
                variation,
                place: 0,
                steps: search.steps,
            }),
    );
    planned
}

/// The trainings of a recipe, with what they have come to.
struct Trainings<'a> {
    recipe: &'a PruneRecipe,
    materials: &'a Materials<'a>,
    planned: Vec<Planned>,
    done: Vec<TrainedMask>,
    /// Of each round's settings, those that are left, the best first.
    settings: Vec<Vec<Setting>>,
    compared_on: PreparedPairs,
}

/// Trains every mask of a recipe.
pub fn train_masks(
    recipe: &PruneRecipe,
    materials: &Materials,
    mode: Mode,
    begun: Instant,
) -> Result<TrainingsEnd, TrainingError> {
    let task = materials.task;
    let some = &task.pairs[..PAIRS_OF_A_ROUND.min(task.pairs.len())];
    let rates = recipe.search.learning_rates.iter();
    let settings = rates.flat_map(|&learning_rate| {
        let penalties = recipe.search.node_penalties.iter();
        penalties.map(move |&node_penalty| Setting {
            learning_rate,
            node_penalty,
        })
    });
    let trainings = Trainings {
        recipe,
        materials,
        planned: planned(recipe),
        done: Vec::new(),
        settings: vec![settings.collect()],
        compared_on: task.subject.prepare(some)?,
    };
    match mode {
        Mode::Measure => trainings.measure(begun).map(TrainingsEnd::Measured),
        _ => trainings.run(mode),
    }
}

impl Trainings<'_> {
    fn run(mut self, mode: Mode) -> Result<TrainingsEnd, TrainingError> {
        let output = &self.recipe.output;
        let checkpoints = output.directory.join("checkpoints");
        atomic::create_directory(&checkpoints)?;
        let hash = recipe_hash(self.recipe)?;
        let (first, mut current) = self.first_step(&checkpoints, &hash, mode)?;
        let steps = self.recipe.steps();
        let mut progress = Progress::new(&output.directory, first, steps)?;
        if first > 0 {
            progress.checkpoint(first - 1)?;
        }
        for step in first..steps {
            let (index, local) = self.at(step);
            let planned = self.planned[index];
            let mut training = match current.take() {
                Some(training) => training,
                None => self.begin(index)?,
            };
            let material = self.material(planned.variation)?;
            let told = training.step(&material.subject, &material.pairs, local)?;
            let terms = [
                ("task_loss".to_owned(), told.task_loss as f32),
                ("nodes".to_owned(), told.nodes as f32),
                ("training".to_owned(), index as f32),
                ("gradient_norm".to_owned(), told.gradient_norm as f32),
                ("learning_rate".to_owned(), told.learning_rate as f32),
            ];
            progress.step(step, self.recipe.tokens_of(&material.pairs), &terms)?;
            if let Some((term, value)) = terms.iter().find(|(_, value)| !value.is_finite()) {
                return Err(TrainingError::Diverged {
                    step,
                    term: term.clone(),
                    value: *value,
                });
            }
            match local + 1 == planned.steps {
                true => self.end(index, &training)?,
                false => current = Some(training),
            }
            let done = step + 1;
            let early = done < steps && ASKED_TO_END.load(Ordering::Relaxed);
            if done % output.checkpoint_every == 0 || early || done == steps {
                progress.sync()?;
                self.save(&checkpoints, &hash, done, current.as_ref())?;
                progress.checkpoint(step)?;
            }
            if early {
                return Ok(TrainingsEnd::Early);
            }
        }
        progress.finish();
        let of_task = |trained: &TrainedMask| matches!(trained.variation, Variation::Task { .. });
        let (task, controls): (Vec<TrainedMask>, Vec<TrainedMask>) =
            self.done.into_iter().partition(of_task);
        match task.into_iter().last() {
            Some(task) => Ok(TrainingsEnd::Trained { task, controls }),
            None => Err(TrainingError::Recipe(
                "there is nothing to train".to_owned(),
            )),
        }
    }

    /// The training of a step, and the step's number in it.
    fn at(&self, step: usize) -> (usize, usize) {
        let mut first = 0;
        for (index, planned) in self.planned.iter().enumerate() {
            if step < first + planned.steps {
                return (index, step - first);
            }
            first += planned.steps;
        }
        (self.planned.len(), 0)
    }

    fn material(&self, variation: Variation) -> Result<&Material, TrainingError> {
        self.materials.of(variation).ok_or_else(|| {
            TrainingError::Recipe(format!("there is nothing to train {variation:?} on"))
        })
    }

    /// The setting of a training: of the search those left in its round, of a control the one left at the end.
    fn setting(&self, planned: &Planned) -> Option<Setting> {
        match planned.variation {
            Variation::Task { round } => self.settings.get(round)?.get(planned.place).copied(),
            _ => self.settings.last()?.first().copied(),
        }
    }

    fn begin(&self, index: usize) -> Result<MaskTraining, TrainingError> {
        let planned = &self.planned[index];
        let Some(setting) = self.setting(planned) else {
            return Err(TrainingError::Recipe(
                "no setting is left for a round".to_owned(),
            ));
        };
        let nodes = self.material(planned.variation)?.subject.nodes();
        let (search, steps) = (&self.recipe.search, planned.steps);
        Ok(MaskTraining::new(nodes, setting, search, steps)?)
    }

    /// Keeps a training that is done, and after the last one of a round which settings go on.
    fn end(&mut self, index: usize, training: &MaskTraining) -> Result<(), TrainingError> {
        self.keep(index, training.values()?)
    }

    fn keep(&mut self, index: usize, parameters: Vec<f32>) -> Result<(), TrainingError> {
        let planned = self.planned[index];
        let Some(setting) = self.setting(&planned) else {
            return Err(TrainingError::Recipe(
                "no setting is left for a round".to_owned(),
            ));
        };
        self.done.push(TrainedMask {
            variation: planned.variation,
            setting,
            parameters,
        });
        let Variation::Task { round } = planned.variation else {
            return Ok(());
        };
        let is_last = self
            .planned
            .get(index + 1)
            .is_none_or(|next| next.variation != planned.variation);
        if is_last && round + 1 < self.recipe.rounds() {
            self.settings.push(self.better_half(planned.variation)?);
        }
        Ok(())
    }

    /// The settings of a round that go on, the best first: those that reach the target with the fewest nodes.
    fn better_half(&self, variation: Variation) -> Result<Vec<Setting>, TrainingError> {
        let subject = &self.materials.task.subject;
        let of_round = self.done.iter();
        let of_round = of_round.filter(|trained| trained.variation == variation);
        let mut scores: Vec<(NodeChoice, Setting)> = of_round
            .map(|trained| {
                let target = self.recipe.search.target_loss;
                let choice = bisected(subject, &self.compared_on, &trained.parameters, target)?;
                Ok((choice, trained.setting))
            })
            .collect::<candle_core::Result<_>>()?;
        scores.sort_by(|(one, _), (other, _)| {
            let order = |choice: &NodeChoice| (!choice.reaches_target, choice.nodes);
            let loss = one.task_loss.total_cmp(&other.task_loss);
            order(one).cmp(&order(other)).then(loss)
        });
        for (choice, setting) in &scores {
            tracing::info!(
                learning_rate = setting.learning_rate,
                node_penalty = setting.node_penalty,
                nodes = choice.nodes,
                task_loss = choice.task_loss,
                "a setting was tried"
            );
        }
        let left = scores.len().div_ceil(2);
        Ok(scores
            .into_iter()
            .take(left)
            .map(|(_, setting)| setting)
            .collect())
    }

    fn save(
        &self,
        checkpoints: &Path,
        hash: &str,
        step: usize,
        current: Option<&MaskTraining>,
    ) -> Result<(), TrainingError> {
        let (mut weights, moments) = match current {
            Some(training) => training.state()?,
            None => (BTreeMap::new(), BTreeMap::new()),
        };
        for (index, trained) in self.done.iter().enumerate() {
            let parameters = Tensor::new(trained.parameters.as_slice(), &Device::Cpu)?;
            weights.insert(done_name(index), parameters);
        }
        let checkpoint = Checkpoint {
            step,
            weights,
            moments,
        };
        checkpoint.write(checkpoints, hash)
    }

    /// Steps done already, and the training that they stopped in.
    fn first_step(
        &mut self,
        checkpoints: &Path,
        hash: &str,
        mode: Mode,
    ) -> Result<(usize, Option<MaskTraining>), TrainingError> {
        let problem = |problem: String| TrainingError::Checkpoint {
            path: checkpoints.display().to_string(),
            problem,
        };
        let Some(checkpoint) = Checkpoint::newest(checkpoints, hash)? else {
            return match mode {
                Mode::Export => Err(problem("there is no checkpoint to export".to_owned())),
                _ => Ok((0, None)),
            };
        };
        if mode == Mode::Start {
            return Err(problem(format!(
                "a pruning stopped here after step {}; use --resume to go on, or another directory",
                checkpoint.step
            )));
        }
        if mode == Mode::Export && checkpoint.step < self.recipe.steps() {
            return Err(problem(format!(
                "the pruning stopped after step {} of {}; a circuit follows from all of them, so use --resume",
                checkpoint.step,
                self.recipe.steps()
            )));
        }
        let (index, local) = self.at(checkpoint.step);
        for done in 0..index {
            let Some(parameters) = checkpoint.weights.get(&done_name(done)) else {
                return Err(problem(format!(
                    "step {} has no mask {done}",
                    checkpoint.step
                )));
            };
            self.keep(done, rows::to_vec(parameters)?)?;
        }
        if local == 0 {
            return Ok((checkpoint.step, None));
        }
        let mut training = self.begin(index)?;
        training.restore(&checkpoint.weights, &checkpoint.moments, local)?;
        Ok((checkpoint.step, Some(training)))
    }

    /// What everything would cost, by a few steps of it.
    fn measure(&self, begun: Instant) -> Result<Cost, TrainingError> {
        let setup_seconds = begun.elapsed().as_secs_f64();
        let material = self.materials.task;
        let mut training = self.begin(0)?;
        let mut seconds = 0.0;
        for step in 0..MEASURED {
            let begun = Instant::now();
            training.step(&material.subject, &material.pairs, step)?;
            if step > 0 {
                seconds += begun.elapsed().as_secs_f64();
            }
        }
        let step_seconds = seconds / (MEASURED - 1) as f64;
        let begun = Instant::now();
        let parameters = training.values()?;
        let target = self.recipe.search.target_loss;
        bisected(&material.subject, &self.compared_on, &parameters, target)?;
        let evaluation_seconds = begun.elapsed().as_secs_f64();
        let steps = self.recipe.steps();
        let nodes = material.subject.nodes();
        Ok(Cost {
            parameters: nodes,
            bridge_parameters: 0,
            steps,
            tokens: steps * self.recipe.tokens_of(&material.pairs),
            setup_seconds,
            step_seconds,
            parts: BTreeMap::new(),
            evaluation_seconds,
            seconds: setup_seconds
                + steps as f64 * step_seconds
                + self.planned.len() as f64 * evaluation_seconds,
            checkpoint_bytes: 4 * nodes * (3 + self.planned.len()),
            memory_mib: crate::memory::peak_mib(),
        })
    }
}

/// The name of a mask that is done among a checkpoint's tensors.
fn done_name(index: usize) -> String {
    format!("done.{index}")
}

impl PruneRecipe {
    /// Tokens of a step, padding left out, on the mean.
    fn tokens_of(&self, pairs: &[PromptPair]) -> usize {
        let tokens: usize = pairs.iter().map(|pair| 2 * pair.presented.len()).sum();
        self.search.batch_pairs.min(pairs.len()) * tokens / pairs.len().max(1)
    }
}
