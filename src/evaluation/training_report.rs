//! What a training's result is worth, measured once at its end: `evaluation.json` and the card `README.md` beside the
//! weights.
//!
//! Losses on held-out text, source by source; of a pair also the bridge's NMSE and the hybrids' KL at every site, and how
//! well a few channels steer the tasks that the recipe names; of a sparse model its nonzeros and the channels that no
//! held-out token wakes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use candle_core::Device;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::EvaluationError;
use super::site_table::{SiteFigures, site_table};
use super::task_table::{TableOptions, TaskRow, task_row};
use crate::artifacts::atomic;
use crate::bridge::fidelity;
use crate::discovery::DiscoveryError;
use crate::discovery::route::Route;
use crate::features::group::Write;
use crate::features::pair::Pair;
use crate::features::statistics::visit_locations;
use crate::models::layers::Purpose;
use crate::models::layout::ModelFiles;
use crate::models::location::{Location, Node, NodeKind, Site};
use crate::models::tap::NoTap;
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::numerics::loss::{cross_entropy, mean};
use crate::numerics::rows;
use crate::tasks::Task;
use crate::training::data::{Batch, TrainingData};
use crate::training::recipe::{Batches, Output};

const FILE: &str = "evaluation.json";
/// Channels that steer in a score.
const CHANNELS: usize = 16;
const CARD: &str = "README.md";
const LARGEST_FILE: u64 = 16 << 20;

/// What a training's result is worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Closing {
    /// By the source of the held-out text.
    pub sources: BTreeMap<String, SourceFigures>,
    /// Weights of the model that was trained, and those of them that are not zero.
    pub parameters: usize,
    pub nonzeros: usize,
    /// Of a sparse model: by node, the channels that are zero at every held-out token, of how many.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dead_channels: BTreeMap<String, DeadChannels>,
    /// Of a pair: the tasks that the recipe names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<SteeringScore>,
    /// The tasks among them that could not be measured, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub not_measured: BTreeMap<String, String>,
}

/// What held-out text of one source says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SourceFigures {
    pub tokens: usize,
    /// Cross-entropy in nats a token of the model that was trained.
    pub loss: f64,
    /// Of a pair: the dense model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense_loss: Option<f64>,
    /// Of a pair: KL(dense || sparse) in nats a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distillation: Option<f64>,
    /// Of a pair: the bridge at every site.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteFigures>,
}

/// Channels of one node that never wake.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeadChannels {
    pub dead: usize,
    pub of: usize,
}

/// How well a few channels of one place steer the dense model on one task's held-out pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SteeringScore {
    pub task: Task,
    pub pairs: usize,
    /// The share of prompts that each model answers rightly.
    pub dense_accuracy: f64,
    pub sparse_accuracy: f64,
    /// Where the channels are; null where nothing could be edited or the dense model is never right.
    #[schema(required = true)]
    pub place: Option<String>,
    /// The channels there, the most decisive first; a feature of them, each with weight 1, steers as was measured.
    pub channels: Vec<usize>,
    /// How their change is written into the dense model: the `write` of an edit.
    #[schema(required = true)]
    pub write: Option<Write>,
    /// The fewest channels that flip half of the pairs; null where none do.
    #[schema(required = true)]
    pub channels_to_flip: Option<usize>,
    /// The share that flips with these channels of the pairs whose presented prompt the dense model answers rightly.
    pub flips: f64,
    /// The same at the same norm: along a random direction, and along another live channel's column.
    pub random_flips: f64,
    pub random_feature_flips: f64,
}

impl From<&TaskRow> for SteeringScore {
    fn from(row: &TaskRow) -> Self {
        let best = row.best_bridge();
        SteeringScore {
            task: row.task,
            pairs: row.held_out_pairs,
            dense_accuracy: row.dense_accuracy,
            sparse_accuracy: row.sparse_accuracy,
            place: best.map(|figures| figures.place.as_str().to_owned()),
            channels: best.map_or(Vec::new(), |figures| {
                let chosen = figures.channels.iter().take(CHANNELS);
                chosen.map(|chosen| chosen.channel).collect()
            }),
            write: best.and_then(|figures| match figures.route {
                Route::Bridge(write) => Some(write),
                Route::Native => None,
            }),
            channels_to_flip: best.and_then(|figures| figures.channels_to_flip),
            flips: best.map_or(0.0, |figures| figures.flips_16),
            random_flips: best.map_or(0.0, |figures| figures.random),
            random_feature_flips: best.map_or(0.0, |figures| figures.random_feature),
        }
    }
}

/// Measures the pair in `folder`, and writes what was found beside it.
pub fn of_pair(
    folder: &Path,
    data: &TrainingData,
    batches: &Batches,
    output: &Output,
) -> Result<Closing, EvaluationError> {
    let models = Pair::read(folder).map_err(DiscoveryError::from)?;
    let mut sources = BTreeMap::new();
    let held_out = data.held_out(output.evaluation_sequences, batches.length);
    for (source, batch) in &held_out {
        let fidelity = fidelity::measure(
            &models.dense,
            &models.sparse,
            &models.bridge,
            batch.text(),
            models.dense.device(),
            Site::all(models.n_layers()),
        )?;
        let figures = SourceFigures {
            tokens: batch.inputs.len(),
            loss: fidelity.sparse_loss,
            dense_loss: Some(fidelity.dense_loss),
            distillation: Some(fidelity.distillation),
            sites: fidelity.sites.iter().map(SiteFigures::from).collect(),
        };
        sources.insert((*source).to_owned(), figures);
    }
    let options = TableOptions {
        train_pairs: output.task_pairs,
        held_out_pairs: output.task_pairs,
        ..TableOptions::default()
    };
    let (mut tasks, mut not_measured) = (Vec::new(), BTreeMap::new());
    for &task in &output.tasks {
        match task_row(&models, task, &options) {
            Ok(row) => tasks.push(SteeringScore::from(&row)),
            // Such as prompts that are longer than the model's context: that is no fault of the training.
            Err(error) => {
                not_measured.insert(task.name().to_owned(), error.to_string());
            }
        }
        tracing::info!(task = task.name(), "steering is measured");
    }
    let closing = Closing {
        sources,
        parameters: models.sparse.parameters,
        nonzeros: models.sparse.nonzeros,
        dead_channels: dead_channels(&models.sparse, &held_out)?,
        tasks,
        not_measured,
    };
    closing.write(folder)?;
    Ok(closing)
}

/// Measures the model in `folder`, and writes what was found beside it.
pub fn of_model(
    folder: &Path,
    data: &TrainingData,
    batches: &Batches,
    output: &Output,
    sparse: bool,
) -> Result<Closing, EvaluationError> {
    let files = ModelFiles::read(folder).map_err(crate::training::TrainingError::from)?;
    let model = Transformer::new(files.config.clone(), &files.tensors, Purpose::Inference)?;
    let held_out = data.held_out(output.evaluation_sequences, batches.length);
    let mut sources = BTreeMap::new();
    for (source, batch) in &held_out {
        let mut rows = TokenRows::sequences(&batch.inputs, batch.length, &Device::Cpu)?;
        let logits = model.forward(&mut rows, &mut NoTap)?;
        let loss = mean(&cross_entropy(&logits, &batch.targets(&Device::Cpu)?)?)?;
        let figures = SourceFigures {
            tokens: batch.inputs.len(),
            loss: f64::from(loss.to_scalar::<f32>()?),
            dense_loss: None,
            distillation: None,
            sites: Vec::new(),
        };
        sources.insert((*source).to_owned(), figures);
    }
    let dead_channels = match sparse {
        true => dead_channels(&model, &held_out)?,
        false => BTreeMap::new(),
    };
    let (parameters, nonzeros) = counted(&files.tensors)?;
    let closing = Closing {
        sources,
        parameters,
        nonzeros,
        dead_channels,
        tasks: Vec::new(),
        not_measured: BTreeMap::new(),
    };
    closing.write(folder)?;
    Ok(closing)
}

/// What the training that made `folder` has found; none where it wrote nothing.
pub fn read(folder: &Path) -> std::io::Result<Option<Value>> {
    let path = folder.join(FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let json = atomic::read_small(&path, LARGEST_FILE).map_err(std::io::Error::other)?;
    Ok(Some(serde_json::from_slice(&json)?))
}

/// All numbers of a model, and those that are not zero.
fn counted(tensors: &BTreeMap<String, candle_core::Tensor>) -> candle_core::Result<(usize, usize)> {
    let (mut all, mut nonzeros) = (0, 0);
    for tensor in tensors.values() {
        all += tensor.elem_count();
        nonzeros += rows::with_values(tensor, |values| {
            values.iter().filter(|value| **value != 0.0).count()
        })?;
    }
    Ok((all, nonzeros))
}

/// The inputs of the sublayers and the MLP's neurons: what is read, and can be steered.
fn read_places(n_layers: usize) -> Vec<Location> {
    let kinds = [NodeKind::AttnIn, NodeKind::MlpIn, NodeKind::PostAct];
    (0..n_layers)
        .flat_map(|layer| kinds.map(|kind| Location::Node(Node { layer, kind })))
        .collect()
}

fn dead_channels(
    model: &Transformer,
    held_out: &[(&'static str, Batch)],
) -> Result<BTreeMap<String, DeadChannels>, EvaluationError> {
    let mut alive: BTreeMap<Location, Vec<bool>> = BTreeMap::new();
    let places = read_places(model.config.n_layers);
    for (_, batch) in held_out {
        visit_locations(
            model,
            &batch.inputs,
            batch.length,
            &places,
            |_, place, values, width| {
                let alive = alive.entry(place).or_insert_with(|| vec![false; width]);
                for row in values.chunks(width) {
                    for (alive, value) in alive.iter_mut().zip(row) {
                        *alive |= *value != 0.0;
                    }
                }
            },
        )?;
    }
    let dead = alive.into_iter().map(|(place, alive)| {
        let dead = alive.iter().filter(|alive| !**alive).count();
        let of = alive.len();
        (place.to_string(), DeadChannels { dead, of })
    });
    Ok(dead.collect())
}

impl Closing {
    fn write(&self, folder: &Path) -> Result<(), EvaluationError> {
        let json = serde_json::to_vec_pretty(self)
            .map_err(|error| EvaluationError::Invalid(error.to_string()))?;
        let write = |name: &str, content: &[u8]| {
            let written = atomic::write(&folder.join(name), content);
            written.map_err(|error| EvaluationError::Training(error.into()))
        };
        write(FILE, &json)?;
        write(CARD, self.card().as_bytes())
    }

    /// The figures as the text of a card.
    fn card(&self) -> String {
        let mut card = String::from("# Evaluation at the end of the training\n\n");
        let share = self.nonzeros as f64 / self.parameters.max(1) as f64;
        // Writing to a string does not fail, here and below.
        let _ = writeln!(
            card,
            "{} weights, {} of them not zero ({:.1}%). Losses and divergences are in nats a token, on held-out text.\n",
            self.parameters,
            self.nonzeros,
            100.0 * share
        );
        card.push_str("| source | tokens | loss | dense model's loss | KL(dense to sparse) |\n|---|---|---|---|---|\n");
        let optional =
            |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.3}"));
        for (source, figures) in &self.sources {
            let _ = writeln!(
                card,
                "| {source} | {} | {:.3} | {} | {} |",
                figures.tokens,
                figures.loss,
                optional(figures.dense_loss),
                optional(figures.distillation)
            );
        }
        for (source, figures) in &self.sources {
            if !figures.sites.is_empty() {
                card.push_str(&site_table(source, figures.sites.iter().cloned()));
            }
        }
        if !self.dead_channels.is_empty() {
            card.push_str(
                "\n| node | channels that no held-out token wakes | of |\n|---|---|---|\n",
            );
            for (node, channels) in &self.dead_channels {
                let _ = writeln!(card, "| {node} | {} | {} |", channels.dead, channels.of);
            }
        }
        if !self.tasks.is_empty() {
            card.push_str(
                "\n| task | pairs | dense | sparse | place | channels to flip half | flips with 16 | random, feature |\n\
                 |---|---|---|---|---|---|---|---|\n",
            );
            for score in &self.tasks {
                let channels = score.channels_to_flip;
                let _ = writeln!(
                    card,
                    "| {} | {} | {:.2} | {:.2} | {} | {} | {:.2} | {:.2}, {:.2} |",
                    score.task,
                    score.pairs,
                    score.dense_accuracy,
                    score.sparse_accuracy,
                    score.place.as_deref().unwrap_or("–"),
                    channels.map_or("–".to_owned(), |channels| channels.to_string()),
                    score.flips,
                    score.random_flips,
                    score.random_feature_flips
                );
            }
        }
        for (task, reason) in &self.not_measured {
            let _ = writeln!(card, "\n{task} could not be measured: {reason}.");
        }
        card
    }
}
