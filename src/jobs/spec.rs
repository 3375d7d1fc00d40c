//! What is to be trained or pruned: the fields of a recipe as a caller gives them, and the recipe they become.
//!
//! A caller names models and files by their ids. A recipe has paths: those below the directory that the training runs in,
//! where its worker puts what the job holds ([`Places`]), so that a job is the same on every machine. Nothing else differs,
//! so that what the command line can train the API can, with the same checks.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use super::method::{
    BridgeHyperparameters, GeneratedText, Hyper, Method, MethodKind, ModelHyperparameters,
    PruneHyperparameters, Watch,
};
use crate::artifacts::ArtifactId;
use crate::features::reference::REFERENCE_FILE;
use crate::models::config::TransformerConfig;
use crate::pruning::recipe::{PruneOutput, PruneRecipe};
use crate::tasks::Task;
use crate::training::recipe::{
    Batches, BridgeRecipe, Check, Fault, ModelRecipe, Output, Source, written,
};

/// One job's work, as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The id of the dense model that the training begins with, or of the model that is pruned.
    pub model: String,
    /// The id of the uploaded text, if any.
    pub training_file: Option<String>,
    /// The id that the result is served under.
    pub output: ArtifactId,
    /// As the caller gave it.
    pub method: Method,
    pub recipe: Recipe,
}

impl JobSpec {
    /// What the result is to be called.
    pub fn names(&self) -> Vec<String> {
        self.recipe.names(&self.output)
    }

    /// Steps in all.
    pub fn steps(&self) -> usize {
        self.recipe.steps()
    }
}

/// A recipe of one of the kinds. Where its output goes is each attempt's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    Dense(ModelRecipe),
    Sparse(ModelRecipe),
    Bridge(Box<BridgeRecipe>),
    Prune(Box<PruneRecipe>),
}

/// What comes of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultKind {
    /// A model, or a pair: something that answers.
    Model,
    /// A part of a model.
    Circuit,
}

/// Where what a caller names lies.
#[derive(Debug, Clone)]
pub struct Places {
    /// The directory of the job's `model`.
    pub model: PathBuf,
    /// The directory of the pair in `start_from`, where there is one.
    pub start_from: Option<PathBuf>,
    /// The uploaded text.
    pub training_file: Option<PathBuf>,
    /// What the job's `model` is made of.
    pub model_config: Option<TransformerConfig>,
    /// What the sparse model of the pair in `start_from` is made of.
    pub start_config: Option<TransformerConfig>,
    /// What the job's `model` is served under.
    pub model_id: Option<ArtifactId>,
    /// The reference text of the pair that the job's `model` belongs to, where that is to be used.
    pub reference: Option<PathBuf>,
    /// The pairs of a task that is none of the twenty.
    pub task_file: Option<PathBuf>,
}

/// The part of a job's `model` among what it holds; other parts are called as here, or `step-N` for a checkpoint.
pub const MODEL: &str = "model";
pub const START_FROM: &str = "start_from";
pub const TRAINING_FILE: &str = "training_file";
pub const TASK: &str = "task";
/// The only file in the part of a task: a pair a line.
pub const TASK_PAIRS: &str = "pairs.jsonl";
/// Below the directory that a training runs in: what its job holds, by part.
pub const INPUTS: &str = "inputs";

impl Places {
    /// Those of a job; `training_file` is the name of the only file in that part.
    pub fn of_job(start_from: bool, training_file: Option<&str>) -> Self {
        let inputs = Path::new(INPUTS);
        Places {
            model: inputs.join(MODEL),
            start_from: start_from.then(|| inputs.join(START_FROM)),
            training_file: training_file.map(|name| inputs.join(TRAINING_FILE).join(name)),
            model_config: None,
            start_config: None,
            model_id: None,
            reference: None,
            task_file: None,
        }
    }

    /// The same where the part of the model is the whole pair that it is a half of, `dense` or `sparse`: with it comes the
    /// pair's reference text.
    pub fn within_pair(self, half: &str) -> Self {
        let pair = Path::new(INPUTS).join(MODEL);
        Places {
            model: pair.join(half),
            reference: Some(pair.join(REFERENCE_FILE)),
            ..self
        }
    }

    /// The same with the pairs of a task that is none of the twenty.
    pub fn with_task(self) -> Self {
        let file = Path::new(INPUTS).join(TASK).join(TASK_PAIRS);
        Places {
            task_file: Some(file),
            ..self
        }
    }
}

impl Recipe {
    /// The recipe of `method`, checked; a fault's field is a path in the request.
    pub fn of(method: &Method, output: &ArtifactId, places: &Places) -> Result<Self, Fault> {
        let kind = method.kind.as_str();
        let given = [
            ("dense", method.dense.is_some()),
            ("sparse", method.sparse.is_some()),
            ("bridge", method.bridge.is_some()),
            ("prune", method.prune.is_some()),
        ];
        if let Some((other, _)) = given.iter().find(|(name, given)| *given && *name != kind) {
            let problem = format!("is given, but the type is {kind}; leave it out");
            return Err(Fault::new(format!("method.{other}"), problem));
        }
        let missing = || Fault::new(format!("method.{kind}"), "is missing; the type asks for it");
        let recipe = match method.kind {
            MethodKind::Dense | MethodKind::Sparse => {
                let fields = method.dense.as_ref().or(method.sparse.as_ref());
                let fields = &fields.ok_or_else(missing)?.hyperparameters;
                if !fields.watch.tasks.is_empty() {
                    let fault = Fault::new("watch.tasks", "is for the type bridge; leave it out");
                    return Err(in_method(kind, fault));
                }
                let recipe =
                    model_recipe(fields, places).map_err(|fault| in_request(kind, fault))?;
                match (method.kind, &recipe.sparsity) {
                    (MethodKind::Dense, None) => Recipe::Dense(recipe),
                    (MethodKind::Sparse, Some(_)) => Recipe::Sparse(recipe),
                    (MethodKind::Dense, Some(_)) => {
                        return Err(in_method(
                            kind,
                            Fault::new("sparsity", "is for the type sparse; leave it out"),
                        ));
                    }
                    _ => {
                        return Err(in_method(
                            kind,
                            Fault::new("sparsity", "is missing; the type sparse needs it"),
                        ));
                    }
                }
            }
            MethodKind::Bridge => {
                let fields = &method.bridge.as_ref().ok_or_else(missing)?.hyperparameters;
                let recipe = bridge_recipe(fields, output, places);
                Recipe::Bridge(Box::new(recipe.map_err(|fault| in_request(kind, fault))?))
            }
            MethodKind::Prune => {
                let fields = &method.prune.as_ref().ok_or_else(missing)?.hyperparameters;
                let recipe = prune_recipe(fields, output, places);
                Recipe::Prune(Box::new(recipe.map_err(|fault| in_request(kind, fault))?))
            }
        };
        recipe.check().map_err(|fault| in_method(kind, fault))?;
        // What the training's process could not read would fail only then.
        let problem = recipe.to_toml().err();
        match problem {
            None => Ok(recipe),
            Some(problem) => Err(Fault::new(
                format!("method.{kind}.hyperparameters"),
                format!("cannot be carried out: {problem}"),
            )),
        }
    }

    /// What a result with the id `output` is called: a bridge's sparse model is served too.
    pub fn names(&self, output: &ArtifactId) -> Vec<String> {
        match self {
            Recipe::Bridge(_) => vec![output.to_string(), format!("{output}-sparse")],
            Recipe::Dense(_) | Recipe::Sparse(_) | Recipe::Prune(_) => vec![output.to_string()],
        }
    }

    fn check(&self) -> Result<(), Fault> {
        match self {
            Recipe::Dense(recipe) | Recipe::Sparse(recipe) => recipe.check(),
            Recipe::Bridge(recipe) => recipe.check(),
            Recipe::Prune(recipe) => recipe.check(),
        }
    }

    /// How a training cuts its batches; a pruning takes pairs of prompts.
    fn batches(&self) -> Option<&Batches> {
        match self {
            Recipe::Dense(recipe) | Recipe::Sparse(recipe) => Some(&recipe.batches),
            Recipe::Bridge(recipe) => Some(&recipe.batches),
            Recipe::Prune(_) => None,
        }
    }

    /// Steps in all.
    pub fn steps(&self) -> usize {
        match self {
            Recipe::Dense(recipe) | Recipe::Sparse(recipe) => recipe.batches.steps,
            Recipe::Bridge(recipe) => recipe.batches.steps,
            Recipe::Prune(recipe) => recipe.steps(),
        }
    }

    /// Of everything that is drawn.
    pub fn seed(&self) -> u64 {
        match self {
            Recipe::Dense(recipe) | Recipe::Sparse(recipe) => recipe.batches.seed,
            Recipe::Bridge(recipe) => recipe.batches.seed,
            Recipe::Prune(recipe) => recipe.search.seed,
        }
    }

    /// Tokens that a step trains on; none where no model is trained.
    pub fn trained_tokens_a_step(&self) -> usize {
        self.batches()
            .map_or(0, |batches| batches.sequences * batches.length)
    }

    /// The same, with its output in `directory`.
    pub fn into_directory(mut self, directory: &Path) -> Self {
        let place = match &mut self {
            Recipe::Dense(recipe) | Recipe::Sparse(recipe) => &mut recipe.output.directory,
            Recipe::Bridge(recipe) => &mut recipe.output.directory,
            Recipe::Prune(recipe) => &mut recipe.output.directory,
        };
        *place = directory.to_owned();
        self
    }

    /// As [`Recipe::command`] reads it.
    pub fn to_toml(&self) -> Result<String, String> {
        match self {
            Recipe::Dense(recipe) | Recipe::Sparse(recipe) => written(recipe),
            Recipe::Bridge(recipe) => written(recipe.as_ref()),
            Recipe::Prune(recipe) => written(recipe.as_ref()),
        }
    }

    /// The command of this program that carries the recipe out.
    pub fn command(&self) -> &'static [&'static str] {
        match self {
            Recipe::Dense(_) => &["train", "dense"],
            Recipe::Sparse(_) => &["train", "sparse"],
            Recipe::Bridge(_) => &["train", "bridge"],
            Recipe::Prune(_) => &["prune"],
        }
    }

    /// Whether it can compute on a device other than the CPU.
    pub fn takes_device(&self) -> bool {
        !matches!(self, Recipe::Prune(_))
    }

    /// The folder of the result, below the output's directory.
    pub fn result(&self) -> &'static str {
        match self {
            Recipe::Dense(_) | Recipe::Sparse(_) => "model",
            Recipe::Bridge(_) => "pair",
            Recipe::Prune(_) => "circuit",
        }
    }

    /// What the result is.
    pub fn result_kind(&self) -> ResultKind {
        match self {
            Recipe::Dense(_) | Recipe::Sparse(_) | Recipe::Bridge(_) => ResultKind::Model,
            Recipe::Prune(_) => ResultKind::Circuit,
        }
    }
}

/// A fault of a field of the request, or of its method's.
fn in_request(kind: &str, fault: Fault) -> Fault {
    match fault.field.as_str() {
        "training_file" => fault,
        _ => in_method(kind, fault),
    }
}

/// A fault of a recipe's field as the caller knows it.
fn in_method(kind: &str, fault: Fault) -> Fault {
    let field = match fault.field.as_str() {
        // The caller does not list sources.
        "sources" => "generated".to_owned(),
        field if field.starts_with("sources.") => field.replace("sources.", "generated."),
        field if kind == "prune" => field.trim_start_matches("output.").to_owned(),
        field if field.starts_with("output.") => field.replace("output.", "watch."),
        field => field.to_owned(),
    };
    Fault::new(
        format!("method.{kind}.hyperparameters.{field}"),
        fault.problem,
    )
}

fn model_recipe(fields: &ModelHyperparameters, places: &Places) -> Result<ModelRecipe, Fault> {
    let start = places
        .model_config
        .as_ref()
        .filter(|_| fields.start_from_model);
    Ok(ModelRecipe {
        tokenizer: places.model.join("tokenizer.json"),
        model: configuration("model", fields.model.as_ref(), start)?,
        start_from: fields.start_from_model.then(|| places.model.clone()),
        sources: sources(fields.generated.as_ref(), places)?,
        batches: fields.batches.clone(),
        optimizer: fields.optimizer.clone(),
        sparsity: fields.sparsity.clone(),
        output: output(&fields.watch),
    })
}

fn bridge_recipe(
    fields: &BridgeHyperparameters,
    id: &ArtifactId,
    places: &Places,
) -> Result<BridgeRecipe, Fault> {
    Ok(BridgeRecipe {
        id: Some(id.clone()),
        dense: places.model.clone(),
        sparse: configuration(
            "sparse",
            fields.sparse.as_ref(),
            places.start_config.as_ref(),
        )?,
        start_from: places.start_from.clone(),
        site_map: fields.site_map.clone(),
        encoder_fraction: fields.encoder_fraction,
        sources: sources(fields.generated.as_ref(), places)?,
        batches: fields.batches.clone(),
        optimizer: fields.optimizer.clone(),
        bridge_learning_rate: fields.bridge_learning_rate,
        sparsity: fields.sparsity.clone(),
        terms: fields.terms.clone(),
        output: output(&fields.watch),
    })
}

fn prune_recipe(
    fields: &PruneHyperparameters,
    id: &ArtifactId,
    places: &Places,
) -> Result<PruneRecipe, Fault> {
    if places.task_file.is_none() {
        let known = fields.task.parse::<Task>();
        known.map_err(|error| Fault::new("task", format!("is wrong: {error}")))?;
    }
    let (length, config) = (fields.search.reference_length, places.model_config.as_ref());
    if let Some(config) = config.filter(|config| length > config.context_length) {
        let context = config.context_length;
        let problem = format!("is {length}; the model takes {context} tokens at once");
        return Err(Fault::new("search.reference_length", problem));
    }
    Ok(PruneRecipe {
        model: places.model.clone(),
        model_id: places.model_id.clone(),
        id: Some(id.clone()),
        task: fields.task.clone(),
        task_file: places.task_file.clone(),
        reference: places.reference.clone(),
        sources: match places.reference {
            Some(_) => Vec::new(),
            None => sources(fields.generated.as_ref(), places)?,
        },
        search: fields.search.clone(),
        controls: fields.controls,
        output: PruneOutput {
            directory: PathBuf::new(),
            checkpoint_every: fields.checkpoint_every,
        },
    })
}

/// The configuration that is given, or that of the weights to start from. Where there are both they are the same.
fn configuration(
    field: &str,
    given: Option<&TransformerConfig>,
    start: Option<&TransformerConfig>,
) -> Result<TransformerConfig, Fault> {
    match (given, start) {
        (Some(given), Some(start)) if given != start => Err(Fault::new(
            field,
            "is another configuration than that of the weights to start from; leave it out",
        )),
        (given, start) => given.or(start).cloned().ok_or_else(|| {
            Fault::new(
                field,
                "is missing; it is needed where nothing is started from",
            )
        }),
    }
}

fn sources(generated: Option<&GeneratedText>, places: &Places) -> Result<Vec<Source>, Fault> {
    let file = places.training_file.iter().map(|path| Source::File {
        path: path.clone(),
        weight: 1.0,
        held_out_every: 50,
    });
    let generated = generated.map(|text| Source::Generated {
        documents: text.documents,
        seed: text.seed,
        weight: text.weight,
    });
    let sources: Vec<Source> = file.chain(generated).collect();
    match sources.is_empty() {
        true => Err(Fault::new(
            "training_file",
            "is missing; give the id of an uploaded file, or `generated` among the hyperparameters",
        )),
        false => Ok(sources),
    }
}

fn output(watch: &Watch) -> Output {
    Output {
        directory: PathBuf::new(),
        checkpoint_every: watch.checkpoint_every,
        checkpoint_minutes: watch.checkpoint_minutes,
        evaluate_every: watch.evaluate_every,
        evaluation_sequences: watch.evaluation_sequences,
        tasks: watch.tasks.clone(),
        task_pairs: watch.task_pairs,
    }
}

#[cfg(test)]
mod tests;
