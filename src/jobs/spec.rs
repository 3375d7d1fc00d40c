//! What is to be trained: the fields of a recipe as a caller gives them, and the recipe they become.
//!
//! A caller names models and files by their ids. A recipe has paths: those below the directory that the training runs in,
//! where its worker puts what the job holds ([`Places`]), so that a job is the same on every machine. Nothing else differs,
//! so that what the command line can train the API can, with the same checks.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::artifacts::ArtifactId;
use crate::models::config::TransformerConfig;
use crate::tasks::Task;
use crate::training::recipe::{
    Batches, BridgeRecipe, Check, Fault, ModelRecipe, Optimizer, Output, Source, Sparsity, Terms,
    written,
};

/// One job's work, as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The id of the dense model that the training begins with.
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
        self.recipe.batches().steps
    }
}

/// What is trained and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Method {
    #[serde(rename = "type")]
    pub kind: MethodKind,
    /// For the type `dense`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense: Option<Hyper<ModelHyperparameters>>,
    /// For the type `sparse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse: Option<Hyper<ModelHyperparameters>>,
    /// For the type `bridge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Hyper<BridgeHyperparameters>>,
}

/// The kinds of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MethodKind {
    /// A dense model.
    Dense,
    /// A weight-sparse model.
    Sparse,
    /// A weight-sparse model together with its bridge to a dense one.
    Bridge,
}

impl MethodKind {
    pub fn as_str(self) -> &'static str {
        match self {
            MethodKind::Dense => "dense",
            MethodKind::Sparse => "sparse",
            MethodKind::Bridge => "bridge",
        }
    }
}

/// A method's fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Hyper<H> {
    pub hyperparameters: H,
}

/// Training one model alone: next-token cross-entropy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelHyperparameters {
    /// What the model is made of; its vocabulary is that of the job's `model`, whose tokenizer it gets. With
    /// `start_from_model` it is that model's configuration, and need not be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<TransformerConfig>,
    /// Go on from the weights of the job's `model` instead of random ones.
    #[serde(default)]
    pub start_from_model: bool,
    /// How weights are made sparse; only, and always, for the type `sparse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<Sparsity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<GeneratedText>,
    pub batches: Batches,
    pub optimizer: Optimizer,
    #[serde(default)]
    pub watch: Watch,
}

/// Training a sparse model and its bridge to the job's `model`, which stays as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BridgeHyperparameters {
    /// What the sparse model is made of; as large a vocabulary as the dense one's, and no more layers. With `start_from` it
    /// is the configuration of that bridge's sparse model, and need not be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse: Option<TransformerConfig>,
    /// The id of a bridge of the dense model, to go on from it and its sparse model instead of random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_from: Option<ArtifactId>,
    /// For each residual site of the sparse model, in order, the dense model's that it is joined to: ascending, each once.
    /// Left out, they are those of `start_from`, which are never others, or evenly spaced: the same where both models have
    /// as many layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_map: Option<Vec<String>>,
    /// The share of channels that an encoder's AbsTopK keeps.
    #[serde(default = "default_encoder_fraction")]
    pub encoder_fraction: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<GeneratedText>,
    pub batches: Batches,
    pub optimizer: Optimizer,
    /// The bridge's peak rate; the sparse model's is the optimizer's.
    #[serde(alias = "bridge_rate")]
    pub bridge_learning_rate: f64,
    pub sparsity: Sparsity,
    pub terms: Terms,
    #[serde(default)]
    pub watch: Watch,
}

fn default_encoder_fraction() -> f64 {
    0.25
}

/// Generated Python programs beside the uploaded text, or instead of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GeneratedText {
    pub documents: usize,
    /// Of the programs: the same seed gives the same ones.
    pub seed: u64,
    /// Its share of a batch, beside the 1 of the uploaded text.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

/// How often a training is looked at and kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Watch {
    /// Steps from one checkpoint to the next: what a stop can cost.
    pub checkpoint_every: usize,
    /// Minutes after which a checkpoint is written all the same.
    pub checkpoint_minutes: f64,
    /// Steps from one evaluation on held-out text to the next.
    pub evaluate_every: usize,
    /// Held-out sequences of each source in an evaluation.
    pub evaluation_sequences: usize,
    /// Tasks on which a pair is steered at the end of its training (`GET /v1/tasks` lists them); for the type `bridge`.
    pub tasks: Vec<Task>,
    /// Pairs of prompts of each of these tasks: as many to choose channels on, and as many held-out ones.
    pub task_pairs: usize,
}

impl Default for Watch {
    fn default() -> Self {
        Watch {
            checkpoint_every: 200,
            checkpoint_minutes: 10.0,
            evaluate_every: 200,
            evaluation_sequences: 16,
            tasks: Vec::new(),
            task_pairs: 64,
        }
    }
}

/// A recipe of one of the kinds. Where its output goes is each attempt's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    Dense(ModelRecipe),
    Sparse(ModelRecipe),
    Bridge(Box<BridgeRecipe>),
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
}

/// The part of a job's `model` among what it holds; other parts are called as here, or `step-N` for a checkpoint.
pub const MODEL: &str = "model";
pub const START_FROM: &str = "start_from";
pub const TRAINING_FILE: &str = "training_file";
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
            Recipe::Dense(_) | Recipe::Sparse(_) => vec![output.to_string()],
        }
    }

    fn check(&self) -> Result<(), Fault> {
        match self {
            Recipe::Dense(recipe) | Recipe::Sparse(recipe) => recipe.check(),
            Recipe::Bridge(recipe) => recipe.check(),
        }
    }

    pub fn batches(&self) -> &Batches {
        match self {
            Recipe::Dense(recipe) | Recipe::Sparse(recipe) => &recipe.batches,
            Recipe::Bridge(recipe) => &recipe.batches,
        }
    }

    /// The same, with its output in `directory`.
    pub fn into_directory(mut self, directory: &Path) -> Self {
        let output = match &mut self {
            Recipe::Dense(recipe) | Recipe::Sparse(recipe) => &mut recipe.output,
            Recipe::Bridge(recipe) => &mut recipe.output,
        };
        output.directory = directory.to_owned();
        self
    }

    /// As `causeway train` reads it.
    pub fn to_toml(&self) -> Result<String, String> {
        match self {
            Recipe::Dense(recipe) | Recipe::Sparse(recipe) => written(recipe),
            Recipe::Bridge(recipe) => written(recipe.as_ref()),
        }
    }

    /// What `causeway train` calls this kind.
    pub fn command(&self) -> &'static str {
        match self {
            Recipe::Dense(_) => "dense",
            Recipe::Sparse(_) => "sparse",
            Recipe::Bridge(_) => "bridge",
        }
    }

    /// The folder of the result, below the output's directory.
    pub fn result(&self) -> &'static str {
        match self {
            Recipe::Dense(_) | Recipe::Sparse(_) => "model",
            Recipe::Bridge(_) => "pair",
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
