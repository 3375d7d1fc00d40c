//! From a recipe to a circuit.

use std::time::Instant;

use super::answers::{LogitDiffs, Rescaling};
use super::edge_pruning::{EdgeChoice, pruned_edges, without_edges};
use super::held::deviations;
use super::materials::{
    Pairs, Text, float32_tensors, held, pairs, random_material, text, with_shuffled_labels,
};
use super::recipe::PruneRecipe;
use super::run::{Material, Materials, Trained, TrainingsEnd, Variation, train_masks};
use super::size::{Choice, bisected, trimmed};
use super::subject::{Subject, as_nodes};
use crate::circuits::circuit::ControlCircuit;
use crate::circuits::edges::{WeightedEdge, edges};
use crate::circuits::nodes::node_locations;
use crate::discovery::question::PromptPair;
use crate::models::layout::ModelFiles;
use crate::models::location::Node;
use crate::models::model::LoadedModel;
use crate::training::TrainingError;
use crate::training::passes::masked::Prompts;
use crate::training::progress::tell_trained;
use crate::training::run::{End, Mode};

/// Pairs whose prompts say how much edges carry.
const PAIRS_OF_CARRIED: usize = 32;

/// A circuit as it was found, before anyone has looked at what its parts do.
pub struct Found {
    pub trained: Trained,
    pub choice: Choice,
    pub edges_before_pruning: usize,
    pub edges: EdgeChoice,
    /// Of the circuit with its pruned edges, and of the whole model, on held-out pairs.
    pub held_out: LogitDiffs,
    pub held_out_whole: LogitDiffs,
    pub shuffled_labels: Option<ControlCircuit>,
    pub random_model: Option<ControlCircuit>,
    pub other_norms: Option<ControlCircuit>,
}

/// Everything that a recipe names, made.
pub struct Prepared {
    pub model: LoadedModel,
    pub text: Text,
    pub pairs: Pairs,
    pub task: Material,
    shuffled_labels: Option<Material>,
    random_model: Option<Material>,
    other_norms: Option<Material>,
}

/// Finds the circuit of a recipe and writes it into `circuit` below its output's directory.
pub fn prune(recipe: &PruneRecipe, mode: Mode) -> Result<End, TrainingError> {
    let begun = Instant::now();
    let prepared = prepare(recipe)?;
    let materials = Materials {
        task: &prepared.task,
        shuffled_labels: prepared.shuffled_labels.as_ref(),
        random_model: prepared.random_model.as_ref(),
        other_norms: prepared.other_norms.as_ref(),
    };
    let (task, controls) = match train_masks(recipe, &materials, mode, begun)? {
        TrainingsEnd::Trained { task, controls } => (task, controls),
        TrainingsEnd::Early => return Ok(End::Early),
        TrainingsEnd::Measured(cost) => return Ok(End::Measured(cost)),
    };
    tell_trained(&recipe.output.directory, recipe.steps())?;
    let found = find(recipe, &prepared, task, controls)?;
    println!(
        "nodes {} edges {} -> {} loss {:.4} held-out {:.4} whole {:.4} shuffled {:?} random {:?} frozen {:?}",
        found.choice.nodes,
        found.edges_before_pruning,
        found.edges.edges.len(),
        found.edges.task_loss,
        found.held_out.loss(found.edges.rescaling),
        found.held_out_whole.loss(Rescaling::NONE),
        found.shuffled_labels,
        found.random_model,
        found.other_norms
    );
    Ok(End::Trained)
}

/// Reads the model and makes everything that its masks are trained on.
pub fn prepare(recipe: &PruneRecipe) -> Result<Prepared, TrainingError> {
    let search = &recipe.search;
    let files = ModelFiles::read(&recipe.model)?;
    let id = match &recipe.model_id {
        Some(id) => id.as_str().to_owned(),
        None => recipe
            .model
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
    };
    let model = LoadedModel::from_files(&files, &id, None, &recipe.model)
        .map_err(|error| TrainingError::Data(error.to_string()))?;
    let tensors = float32_tensors(&files)?;
    let config = files.config;
    let text = text(recipe, &config, &model.tokenizer)?;
    let pairs = pairs(recipe, &config, &model.tokenizer)?;
    let held = held(search.ablation, &model, &text)?;
    let subject = |frozen_norms: bool| {
        Subject::new(config.clone(), tensors.clone(), held.clone(), frozen_norms)
    };
    let material = |frozen_norms: bool, pairs: Vec<PromptPair>| -> candle_core::Result<Material> {
        Ok(Material {
            subject: subject(frozen_norms)?,
            pairs,
        })
    };
    let frozen = search.frozen_norms;
    let controls = recipe.controls;
    Ok(Prepared {
        task: material(frozen, pairs.train.clone())?,
        shuffled_labels: controls
            .shuffled_labels
            .then(|| material(frozen, with_shuffled_labels(&pairs.train, search.seed)))
            .transpose()?,
        random_model: controls
            .random_model
            .then(|| random_material(&config, &tensors, recipe, &text, &pairs.train))
            .transpose()?,
        other_norms: controls
            .frozen_norms
            .then(|| material(!frozen, pairs.train.clone()))
            .transpose()?,
        model,
        text,
        pairs,
    })
}

/// From trained masks to a circuit and its controls' sizes.
pub fn find(
    recipe: &PruneRecipe,
    prepared: &Prepared,
    task: Trained,
    controls: Vec<Trained>,
) -> Result<Found, TrainingError> {
    let target = recipe.search.target_loss;
    let subject = &prepared.task.subject;
    let model = &prepared.model.transformer;
    let train = subject.prepare(&prepared.task.pairs)?;
    let choice = bisected(subject, &train, &task.parameters, target)?;
    let choice = trimmed(subject, &train, &task.parameters, choice, target)?;
    let all = edges(model, &as_nodes(subject.config(), &choice.kept))?;
    let some = &prepared.task.pairs[..PAIRS_OF_CARRIED.min(prepared.task.pairs.len())];
    let carried = carried(subject, model, some, &choice.kept, &all)?;
    let chosen = pruned_edges(subject, &train, &choice, &all, &carried, target)?;
    let held_out = subject.prepare(&prepared.pairs.held_out)?;
    let removed: Vec<&WeightedEdge> = all
        .iter()
        .filter(|edge| !chosen.edges.contains(edge))
        .collect();
    let passes = without_edges(subject, &removed)?;
    let everything = vec![true; subject.nodes()];
    let mut found = Found {
        held_out: subject.answers_of(&passes, &held_out, &choice.kept)?,
        held_out_whole: subject.answers(&held_out, &everything)?,
        trained: task,
        choice,
        edges_before_pruning: all.len(),
        edges: chosen,
        shuffled_labels: None,
        random_model: None,
        other_norms: None,
    };
    for trained in controls {
        let (material, control) = match trained.variation {
            Variation::ShuffledLabels => (&prepared.shuffled_labels, &mut found.shuffled_labels),
            Variation::RandomModel => (&prepared.random_model, &mut found.random_model),
            Variation::OtherNorms => (&prepared.other_norms, &mut found.other_norms),
            Variation::Task { .. } => continue,
        };
        if let Some(material) = material {
            *control = Some(control_circuit(material, &trained.parameters, target)?);
        }
    }
    Ok(found)
}

/// What the same choice of a size makes of a control's mask.
fn control_circuit(
    material: &Material,
    parameters: &[f32],
    target: f64,
) -> Result<ControlCircuit, TrainingError> {
    let subject = &material.subject;
    let pairs = subject.prepare(&material.pairs)?;
    let choice = bisected(subject, &pairs, parameters, target)?;
    let choice = trimmed(subject, &pairs, parameters, choice, target)?;
    let nodes = as_nodes(subject.config(), &choice.kept);
    Ok(ControlCircuit {
        nodes: choice.nodes,
        edges: edges(&subject.passes.transformer, &nodes)?.len(),
        task_loss_train: choice.task_loss,
        reaches_target: choice.reaches_target,
    })
}

/// How much each edge carries inside a circuit.
fn carried(
    subject: &Subject,
    model: &crate::models::transformer::Transformer,
    pairs: &[PromptPair],
    kept: &[bool],
    edges: &[WeightedEdge],
) -> Result<Vec<f64>, TrainingError> {
    let prompts: Vec<&[u32]> = pairs
        .iter()
        .flat_map(|pair| [pair.presented.as_slice(), pair.counterfactual.as_slice()])
        .collect();
    let deviations = deviations(model, &Prompts::padded(&prompts), kept, &subject.held)?;
    let mut first = std::collections::BTreeMap::<Node, usize>::new();
    let mut next = 0;
    for (node, width) in node_locations(subject.config()) {
        first.insert(node, next);
        next += width;
    }
    let of = |edge: &WeightedEdge| {
        let (place, channel) = edge.from;
        let node = first.get(&place).copied().unwrap_or_default() + channel;
        f64::from(edge.weight.abs()) * deviations[node]
    };
    Ok(edges.iter().map(of).collect())
}
