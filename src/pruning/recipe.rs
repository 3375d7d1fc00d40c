//! Recipes of prunings: everything that decides a circuit, read from TOML.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::artifacts::ArtifactId;
use crate::circuits::circuit::Ablation;
use crate::training::recipe::{Check, Fault, Source};

/// What is pruned, for which task, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneRecipe {
    /// The model's directory.
    pub model: PathBuf,
    /// The id that the model is served under; left out, the name of its directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<ArtifactId>,
    /// The circuit's id; left out, the task's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ArtifactId>,
    /// One of the twenty tasks, or the name of the task in `task_file`.
    pub task: String,
    /// Pairs of prompts as JSONL; left out, the task is one of the twenty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_file: Option<PathBuf>,
    /// A pair's `reference.safetensors`, whose text means are taken over; left out, they are taken over `sources`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<PathBuf>,
    /// Text that means are taken over where there is no `reference`.
    #[serde(default)]
    pub sources: Vec<Source>,
    #[serde(default)]
    pub search: Search,
    #[serde(default)]
    pub controls: Controls,
    pub output: PruneOutput,
}

/// How the mask is trained and the circuit chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = PruneSearch)]
pub struct Search {
    /// What nodes outside of the circuit are held at.
    pub ablation: Ablation,
    /// Whether norms divide by what they divide by in the whole model. Without it a mask can cheat by making the stream
    /// small.
    pub frozen_norms: bool,
    /// The task loss, in nats, that the circuit must reach on the pairs that it is chosen on: above 0, at most 1.
    pub target_loss: f64,
    /// Pairs that the mask is trained on. As many, half of them of the held-out split, say then which nodes and edges the task
    /// needs.
    #[schema(minimum = 8, maximum = 4096)]
    pub train_pairs: usize,
    /// Pairs that the circuit's figures are measured on: of the held-out split, used for nothing else.
    #[schema(minimum = 8, maximum = 4096)]
    pub held_out_pairs: usize,
    /// Pairs of a step.
    #[schema(minimum = 1, maximum = 1024)]
    pub batch_pairs: usize,
    /// Steps of the last round, in which one setting is left.
    #[schema(minimum = 1, maximum = 100000)]
    pub steps: usize,
    /// Every learning rate is tried with every penalty. After each round, of half the steps of the next, the better half
    /// of the settings goes on.
    #[schema(min_items = 1, max_items = 8)]
    pub learning_rates: Vec<f64>,
    /// The loss of keeping one node.
    #[schema(min_items = 1, max_items = 8)]
    pub node_penalties: Vec<f64>,
    /// How slowly the optimizer forgets squares of gradients: 0 or more, below 1.
    pub beta2: f64,
    pub weight_decay: f64,
    /// Sequences of reference text that means are taken over, and tokens of each.
    #[schema(minimum = 1, maximum = 4096)]
    pub reference_sequences: usize,
    #[schema(minimum = 2)]
    pub reference_length: usize,
    /// Of the pairs, the first mask parameters, the batches and the controls.
    pub seed: u64,
}

impl Default for Search {
    fn default() -> Self {
        Search {
            ablation: Ablation::Mean,
            frozen_norms: false,
            target_loss: 0.15,
            train_pairs: 512,
            held_out_pairs: 128,
            batch_pairs: 8,
            steps: 80,
            learning_rates: vec![1e-2],
            node_penalties: vec![2e-3],
            beta2: 0.95,
            weight_decay: 1e-3,
            reference_sequences: 64,
            reference_length: 128,
            seed: 0,
        }
    }
}

/// Which controls are searched for beside the circuit; each costs one more training of a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = PruneControls)]
pub struct Controls {
    /// The same task with the answers of half of the pairs exchanged.
    pub shuffled_labels: bool,
    /// The same task in a model of random weights.
    pub random_model: bool,
    /// The same task with norms frozen, or, where `search.frozen_norms` is set, not frozen.
    pub frozen_norms: bool,
}

impl Default for Controls {
    fn default() -> Self {
        Controls {
            shuffled_labels: true,
            random_model: true,
            frozen_norms: true,
        }
    }
}

/// Where metrics, checkpoints and the result go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneOutput {
    /// Made where it does not exist; the result is in `circuit` below it.
    pub directory: PathBuf,
    /// Steps from one checkpoint to the next: what a stop can cost.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: usize,
}

fn default_checkpoint_every() -> usize {
    50
}

impl PruneRecipe {
    /// Rounds of the search: settings are halved until one is left.
    pub fn rounds(&self) -> usize {
        let settings = self.search.learning_rates.len() * self.search.node_penalties.len();
        settings.next_power_of_two().trailing_zeros() as usize + 1
    }

    /// Steps of everything together, controls included.
    pub fn steps(&self) -> usize {
        let search = &self.search;
        let mut settings = search.learning_rates.len() * search.node_penalties.len();
        let rounds = self.rounds();
        let mut steps = 0;
        for round in 0..rounds {
            steps += settings * self.steps_of_round(round);
            settings = settings.div_ceil(2);
        }
        let controls = self.controls;
        let controls = [
            controls.shuffled_labels,
            controls.random_model,
            controls.frozen_norms,
        ];
        steps + controls.into_iter().filter(|asked| *asked).count() * search.steps
    }

    /// Steps of each setting in a round, counted from 0.
    pub fn steps_of_round(&self, round: usize) -> usize {
        let halvings = self.rounds() - 1 - round;
        (self.search.steps >> halvings).max(1)
    }
}

impl Check for PruneRecipe {
    fn check(&self) -> Result<(), Fault> {
        let search = &self.search;
        let counts = [
            ("train_pairs", search.train_pairs, 8, 4096),
            ("held_out_pairs", search.held_out_pairs, 8, 4096),
            ("batch_pairs", search.batch_pairs, 1, 1024),
            ("steps", search.steps, 1, 100_000),
            ("learning_rates", search.learning_rates.len(), 1, 8),
            ("node_penalties", search.node_penalties.len(), 1, 8),
            ("reference_sequences", search.reference_sequences, 1, 4096),
            ("reference_length", search.reference_length, 2, 1 << 16),
        ];
        for (field, value, least, most) in counts {
            if !(least..=most).contains(&value) {
                let problem = format!("is {value}; it must be {least} to {most}");
                return Err(Fault::new(format!("search.{field}"), problem));
            }
        }
        if search.batch_pairs > search.train_pairs {
            let problem = format!(
                "is {}; there are {} training pairs",
                search.batch_pairs, search.train_pairs
            );
            return Err(Fault::new("search.batch_pairs", problem));
        }
        let within =
            |field: &str, value: f64, above: f64, most: f64| match value > above && value <= most {
                true => Ok(()),
                false => Err(Fault::new(
                    format!("search.{field}"),
                    format!("has {value}; it must be above {above} and at most {most}"),
                )),
            };
        within("target_loss", search.target_loss, 0.0, 1.0)?;
        for &rate in &search.learning_rates {
            within("learning_rates", rate, 0.0, 1.0)?;
        }
        for &penalty in &search.node_penalties {
            within("node_penalties", penalty, 0.0, 1.0)?;
        }
        if !(0.0..1.0).contains(&search.beta2) {
            let problem = format!("is {}; it must be 0 or more and below 1", search.beta2);
            return Err(Fault::new("search.beta2", problem));
        }
        if !(0.0..=1.0).contains(&search.weight_decay) {
            let problem = format!("is {}; it must be 0 to 1", search.weight_decay);
            return Err(Fault::new("search.weight_decay", problem));
        }
        if self.reference.is_none() && self.sources.is_empty() {
            let problem =
                "is empty, and there is no reference: name text that means are taken over";
            return Err(Fault::new("sources", problem));
        }
        if self.output.checkpoint_every == 0 {
            return Err(Fault::new("output.checkpoint_every", "is 0; use 1 or more"));
        }
        Ok(())
    }
}
