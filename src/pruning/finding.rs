//! From a recipe to a circuit.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::edge_pruning::pruned_edges;
use super::held::deviations;
use super::materials::{
    Pairs, Text, float32_tensors, held, pairs, random_material, text, with_shuffled_labels,
};
use super::measures::measured::{CircuitProvenance, SearchedControls, Unmeasured, measured};
use super::recipe::PruneRecipe;
use super::run::{Material, Materials, TrainedMask, TrainingsEnd, Variation, train_masks};
use super::size::{NodeChoice, bisected, trimmed};
use super::subject::{PrunedModel, as_nodes};
use super::trimming::TrimmingPairs;
use crate::artifacts::{Manifest, NameError};
use crate::circuits::circuit::{Circuit, ControlCircuit, PruningMethod};
use crate::circuits::directory;
use crate::circuits::edges::{WeightedEdge, edges};
use crate::circuits::nodes::node_locations;
use crate::discovery::question::PromptPair;
use crate::models::layout::ModelFiles;
use crate::models::location::Node;
use crate::models::model::LoadedModel;
use crate::models::transformer::Transformer;
use crate::numerics::device::Placement;
use crate::training::TrainingError;
use crate::training::passes::masked::PaddedPrompts;
use crate::training::progress::tell_trained;
use crate::training::run::{ASKED_TO_END, End, Mode, NOTHING_TO_KEEP};

/// The folder of the result, below the output's directory.
pub const RESULT: &str = "circuit";
/// The shares of the target that nodes, and after them edges, are taken away up to: what is left are the few hundredths of a
/// nat by which a circuit does worse on pairs that it was not chosen on.
const OF_NODES: f64 = 0.8;
const OF_EDGES: f64 = 0.9;
/// Pairs whose prompts say how much edges carry.
const PAIRS_OF_CARRIED: usize = 32;

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
    NOTHING_TO_KEEP.store(false, Ordering::SeqCst);
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
    // Every mask is in a checkpoint; what follows from them is worked out anew.
    NOTHING_TO_KEEP.store(true, Ordering::SeqCst);
    if ASKED_TO_END.load(Ordering::SeqCst) {
        return Ok(End::Early);
    }
    let circuit = find(recipe, &prepared, task, controls)?;
    let directory = recipe.output.directory.join(RESULT);
    directory::write(&directory, &circuit)
        .map_err(|error| TrainingError::Data(error.to_string()))?;
    let description = format!(
        "A circuit of {} for the task {}.",
        circuit.model, circuit.task
    );
    let provenance = [("recipe".to_owned(), serde_json::json!(recipe))].into();
    Manifest::of_directory(&directory, circuit.id.clone(), description, provenance)?
        .write(&directory)?;
    tell_trained(&recipe.output.directory, recipe.steps())?;
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
    let model = LoadedModel::from_files(&files, &id, None, &recipe.model, Placement::CPU)
        .map_err(|error| TrainingError::Data(error.to_string()))?;
    let tensors = float32_tensors(&files)?;
    let config = files.config;
    let text = text(recipe, &config, &model.tokenizer)?;
    let pairs = pairs(recipe, &config, &model.tokenizer)?;
    let held = held(search.ablation, &model, &text)?;
    let subject = |frozen_norms: bool| {
        PrunedModel::new(config.clone(), tensors.clone(), held.clone(), frozen_norms)
    };
    let material = |frozen_norms: bool| -> candle_core::Result<Material> {
        Ok(Material {
            subject: subject(frozen_norms)?,
            pairs: pairs.train.clone(),
            trimming: pairs.trimming.clone(),
        })
    };
    let with_shuffled_labels = |mut material: Material| {
        for pairs in [&mut material.pairs, &mut material.trimming] {
            *pairs = with_shuffled_labels(pairs, search.seed);
        }
        material
    };
    let frozen = search.frozen_norms;
    let controls = recipe.controls;
    Ok(Prepared {
        task: material(frozen)?,
        shuffled_labels: controls
            .shuffled_labels
            .then(|| material(frozen).map(with_shuffled_labels))
            .transpose()?,
        random_model: controls
            .random_model
            .then(|| random_material(&config, &tensors, recipe, &text, &pairs))
            .transpose()?,
        other_norms: controls
            .frozen_norms
            .then(|| material(!frozen))
            .transpose()?,
        model,
        text,
        pairs,
    })
}

/// From trained masks to a circuit with everything that is known of it.
pub fn find(
    recipe: &PruneRecipe,
    prepared: &Prepared,
    task: TrainedMask,
    controls: Vec<TrainedMask>,
) -> Result<Circuit, TrainingError> {
    let search = &recipe.search;
    let target = search.target_loss;
    let subject = &prepared.task.subject;
    let model = &prepared.model.transformer;
    let train = TrimmingPairs::new(subject, &prepared.task.trimming)?;
    let choice = chosen(subject, &train, &task.parameters, target)?;
    let all = edges(model, &as_nodes(subject.config(), &choice.kept))?;
    let some = &prepared.task.trimming;
    let some = &some[..PAIRS_OF_CARRIED.min(some.len())];
    let carried = carried(subject, model, some, &choice.kept, &all)?;
    let of_edges = choice.task_loss.max(OF_EDGES * target);
    let kept = pruned_edges(subject, &train, &choice, &all, &carried, of_edges)?;
    tracing::info!(
        before = all.len(),
        edges = kept.edges.len(),
        task_loss = kept.task_loss,
        "edges were pruned"
    );
    let mut searched = SearchedControls::default();
    for trained in controls {
        let (material, control) = match trained.variation {
            Variation::ShuffledLabels => (&prepared.shuffled_labels, &mut searched.shuffled_labels),
            Variation::RandomModel => (&prepared.random_model, &mut searched.random_model),
            Variation::OtherNorms => (&prepared.other_norms, &mut searched.frozen_norms),
            Variation::Task { .. } => continue,
        };
        if let Some(material) = material {
            *control = Some(control_circuit(material, &trained.parameters, target)?);
        }
    }
    let method = PruningMethod {
        ablation: search.ablation,
        frozen_norms: search.frozen_norms,
        target_loss: target,
        learning_rate: task.setting.learning_rate,
        node_penalty: task.setting.node_penalty,
        steps: search.steps,
        batch_pairs: search.batch_pairs,
        train_pairs: prepared.task.pairs.len(),
        trimming_pairs: prepared.task.trimming.len(),
        held_out_pairs: prepared.pairs.held_out.len(),
        seed: search.seed,
        reference_tokens: prepared.text.ids.len(),
        scale: kept.rescaling.scale,
        shift: kept.rescaling.shift,
    };
    let id = match &recipe.id {
        Some(id) => id.clone(),
        None => recipe
            .task
            .parse()
            .map_err(|error: NameError| TrainingError::Recipe(format!("task: {error}")))?,
    };
    let provenance = CircuitProvenance {
        id,
        model: prepared.model.id.clone(),
        model_fingerprint: prepared.model.fingerprint.clone(),
        task: recipe.task.clone(),
        method,
    };
    let tokenizer = &prepared.model.tokenizer;
    let unmeasured = Unmeasured {
        model,
        subject,
        choice: &choice,
        edges: &kept,
        held_out: &prepared.pairs.held_out,
        reference: (&prepared.text.ids, prepared.text.length),
        token_text: &|token| tokenizer.token_text(token),
        seed: search.seed,
    };
    Ok(measured(&unmeasured, provenance, searched)?)
}

/// The nodes of a mask that are enough.
fn chosen(
    subject: &PrunedModel,
    pairs: &TrimmingPairs,
    parameters: &[f32],
    target: f64,
) -> Result<NodeChoice, TrainingError> {
    let choice = bisected(subject, &pairs.deciding, parameters, target)?;
    let (nodes, task_loss) = (choice.nodes, choice.task_loss);
    tracing::info!(nodes, task_loss, "a size was chosen");
    let of_nodes = choice.task_loss.max(OF_NODES * target);
    let choice = trimmed(subject, pairs, parameters, choice, of_nodes)?;
    let (nodes, task_loss) = (choice.nodes, choice.task_loss);
    tracing::info!(nodes, task_loss, "nodes were trimmed");
    Ok(choice)
}

/// What the same choice of a size makes of a control's mask.
fn control_circuit(
    material: &Material,
    parameters: &[f32],
    target: f64,
) -> Result<ControlCircuit, TrainingError> {
    let subject = &material.subject;
    let pairs = TrimmingPairs::new(subject, &material.trimming)?;
    let choice = chosen(subject, &pairs, parameters, target)?;
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
    subject: &PrunedModel,
    model: &Transformer,
    pairs: &[PromptPair],
    kept: &[bool],
    edges: &[WeightedEdge],
) -> Result<Vec<f64>, TrainingError> {
    let prompts: Vec<&[u32]> = pairs
        .iter()
        .flat_map(|pair| [pair.presented.as_slice(), pair.counterfactual.as_slice()])
        .collect();
    let deviations = deviations(model, &PaddedPrompts::padded(&prompts), kept, &subject.held)?;
    let mut first = BTreeMap::<Node, usize>::new();
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
