//! Asking for a training, or for what it would cost: the request is checked as a whole before anything is kept.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use uuid::Uuid;

use super::files::name_of_text;
use super::handlers::answer;
use super::prunable::{has_usable_pairs, named_task, pair_with_reference, pairs_of};
use super::request::CreateJob;
use super::response::{FineTuningJob, JobEstimate};
use crate::api::ApiError;
use crate::api::body::JsonBody;
use crate::api::error::ErrorBody;
use crate::api::state::State;
use crate::artifacts::{ArtifactId, hexadecimal};
use crate::bridge::site_map::SiteMap;
use crate::jobs::artifact_store::ArtifactStoreError;
use crate::jobs::estimate::{EstimateError, measure};
use crate::jobs::spec::{
    JobSpec, MODEL, Method, MethodKind, Places, Recipe, START_FROM, TASK, TRAINING_FILE,
};
use crate::jobs::store::jobs::NewJob;
use crate::models::config::TransformerConfig;
use crate::models::memory_need::MemoryNeed;
use crate::serving::snapshot::{ModelCard, Snapshot, shortened};
use crate::serving::trial::Tried;
use crate::serving::trial_process::TrialFailure;
use crate::settings::Limits;
use crate::tasks::AnyTask;
use crate::training::recipe::Fault;
use crate::training::task_pairs::check_tasks;

const MOST_METADATA: usize = 16;
const LONGEST_KEY: usize = 64;
const LONGEST_VALUE: usize = 512;
const LONGEST_IDEMPOTENCY_KEY: usize = 255;

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        let message = fault.to_string();
        ApiError::invalid(fault.field, message)
    }
}

/// How long an estimate waits for the one before it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for a training. It is carried out when a worker is free; its result is served as soon as it is there.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs", tag = "fine_tuning", operation_id = "createJob",
    params(("idempotency-key" = Option<String>, Header, description = "The same key and body give the same job, \
        however often they are sent")),
    request_body(content = CreateJob, example = json!({
        "model": "tinypython",
        "method": {"type": "bridge", "bridge": {"hyperparameters": {
            "sparse": {
                "n_layers": 4, "d_model": 128, "n_heads": 8, "d_head": 16, "d_mlp": 512, "vocab_size": 2048,
                "context_length": 256, "norm": "rms", "bias": true, "activation": "gelu", "positions": "added",
                "attention_sinks": true, "active_fraction": 0.25, "active_locations": ["mlp_neuron"]
            },
            "generated": {"documents": 2000, "seed": 1},
            "batches": {"steps": 400, "sequences": 4, "length": 128, "seed": 1},
            "optimizer": {"learning_rate": 2e-3, "warmup_steps": 20},
            "bridge_learning_rate": 2e-3,
            "sparsity": {"kept_fraction": 0.1},
            "terms": {
                "cross_entropy": 1, "distillation": 2, "encoder": 2, "decoder": 4, "dense_to_sparse": 1,
                "sparse_to_dense": 1
            }
        }}}
    })),
    responses(
        (status = 200, description = "The job", body = FineTuningJob),
        (status = 400, description = "A field is unknown, wrong or out of range, does not fit the model or its text, \
            or the result's id is taken (code `already_exists`): `param` names the field; or there are as many jobs as \
            are kept: code `quota_exceeded`", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 507, description = "There is no room on the server's disk: code `disk_full`", body = ErrorBody)
    ))]
pub async fn create(
    http: HttpRequest,
    state: web::Data<State>,
    body: JsonBody<CreateJob>,
) -> Result<HttpResponse, ApiError> {
    let mut request = body.0;
    only_nothing(&request)?;
    let id = format!("ftjob-{}", Uuid::new_v4().simple());
    let (idempotency_key, request_sha256) = (idempotency_key(&http)?, fingerprint(&request)?);
    let store = &state.jobs.store;
    // Before anything is checked: what it names may be gone by now.
    if let Some(job) = store
        .created_before(&idempotency_key, &request_sha256)
        .await?
    {
        return Ok(answer(job));
    }
    let (jobs, most) = (store.job_count().await?, state.jobs.settings.jobs.max_jobs);
    if jobs >= most {
        return Err(ApiError::Invalid {
            message: format!(
                "there are {jobs} jobs, and {most} are kept (jobs.max_jobs); delete some that have ended first"
            ),
            param: None,
            code: Some("quota_exceeded"),
        });
    }
    let metadata = metadata(request.metadata.take().unwrap_or_default())?;
    let output = match request.suffix.take() {
        Some(output) => output,
        None => format!("ft-{}", &id["ftjob-".len()..][..12])
            .parse()
            .map_err(ApiError::internal)?,
    };
    let new = NewJob {
        idempotency_key,
        id,
        metadata,
        request_sha256,
        ..planned(&state, request, output).await?
    };
    Ok(answer(store.create(&new).await?))
}

/// What a training would cost: a few of its steps are done, and their outcome is forgotten. The same body as for a job, with the same
/// checks; it takes seconds, more on a machine that is busy.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/estimate", tag = "fine_tuning", operation_id = "estimateJob",
    request_body(content = CreateJob),
    responses(
        (status = 200, description = "The cost", body = JobEstimate),
        (status = 400, description = "As for a job; also where the training would fail at once: code `cannot_train`",
            body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 503, description = "Another is being estimated, or the steps take too long", body = ErrorBody)
    ))]
pub async fn estimate(
    state: web::Data<State>,
    body: JsonBody<CreateJob>,
) -> Result<HttpResponse, ApiError> {
    let mut request = body.0;
    only_nothing(&request)?;
    let output = match request.suffix.take() {
        Some(output) => output,
        None => "estimate".parse().map_err(ApiError::internal)?,
    };
    let turn = tokio::time::timeout(PATIENCE, state.jobs.estimates.acquire());
    let turn = turn.await.map_err(|_| ApiError::Busy)?;
    let _turn = turn.map_err(ApiError::internal)?;
    let planned = planned(&state, request, output).await?;
    let jobs = &state.jobs;
    let (settings, work) = (&jobs.settings.jobs, jobs.settings.data_dir.join("jobs"));
    let work = std::path::absolute(work).map_err(ApiError::internal)?;
    let measured = measure(
        &planned.spec,
        &planned.inputs,
        &jobs.artifacts,
        settings,
        &work,
    );
    match measured.await {
        Ok(cost) => Ok(HttpResponse::Ok().json(JobEstimate {
            object: "fine_tuning.estimate",
            threads: settings.threads,
            cost,
        })),
        Err(EstimateError::Refused(problem)) => Err(ApiError::Invalid {
            message: problem,
            param: Some("method".to_owned()),
            code: Some("cannot_train"),
        }),
        Err(EstimateError::Slow) => Err(ApiError::NotReady(EstimateError::Slow.to_string())),
        Err(error) => Err(ApiError::storage(error)),
    }
}

fn only_nothing(request: &CreateJob) -> Result<(), ApiError> {
    for (field, value) in [
        ("validation_file", &request.validation_file),
        ("integrations", &request.integrations),
        ("hyperparameters", &request.hyperparameters),
    ] {
        // A list of nothing says as little as null, where a list is what the field takes.
        let empty = |value: &serde_json::Value| {
            field == "integrations" && value.as_array().is_some_and(Vec::is_empty)
        };
        if value
            .as_ref()
            .is_some_and(|value| !value.is_null() && !empty(value))
        {
            let message = format!("{field} is not supported; leave it out");
            return Err(ApiError::invalid_with_code(field, "unsupported", message));
        }
    }
    Ok(())
}

/// The same for equal requests.
fn fingerprint(request: &CreateJob) -> Result<String, ApiError> {
    let said = (
        &request.model,
        &request.training_file,
        &request.method,
        &request.suffix,
        request.seed,
        &request.metadata,
    );
    let json = serde_json::to_vec(&said).map_err(ApiError::internal)?;
    Ok(hexadecimal(&Sha256::digest(&json)))
}

fn idempotency_key(http: &HttpRequest) -> Result<String, ApiError> {
    let Some(value) = http.headers().get("idempotency-key") else {
        return Ok(String::new());
    };
    let key = value
        .to_str()
        .ok()
        .filter(|key| key.len() <= LONGEST_IDEMPOTENCY_KEY);
    key.map(str::to_owned).ok_or_else(|| {
        ApiError::invalid(
            "idempotency-key",
            format!(
                "the header idempotency-key is at most {LONGEST_IDEMPOTENCY_KEY} visible characters"
            ),
        )
    })
}

fn metadata(metadata: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ApiError> {
    let short = |(key, value): (&String, &String)| {
        key.chars().count() <= LONGEST_KEY && value.chars().count() <= LONGEST_VALUE
    };
    match metadata.len() <= MOST_METADATA && metadata.iter().all(short) {
        true => Ok(metadata),
        false => Err(ApiError::invalid(
            "metadata",
            format!(
                "metadata is at most {MOST_METADATA} texts of {LONGEST_VALUE} characters with names of {LONGEST_KEY}"
            ),
        )),
    }
}

fn set_seed(method: &mut Method, seed: u64) {
    for model in [&mut method.dense, &mut method.sparse]
        .into_iter()
        .flatten()
    {
        model.hyperparameters.batches.seed = seed;
    }
    if let Some(bridge) = &mut method.bridge {
        bridge.hyperparameters.batches.seed = seed;
    }
    if let Some(prune) = &mut method.prune {
        prune.hyperparameters.search.seed = seed;
    }
}

/// A job that can be kept, but for its id: everything that it names has been checked, and is in the artifact store.
async fn planned(
    state: &web::Data<State>,
    mut request: CreateJob,
    output: ArtifactId,
) -> Result<NewJob, ApiError> {
    if let Some(seed) = request.seed {
        set_seed(&mut request.method, seed);
    }
    let file = training_file(state, request.training_file.as_deref()).await?;
    let Checked {
        spec,
        folders,
        pairs: _pairs,
    } = {
        let (state, file) = (state.clone(), file.clone());
        // Reads the models' files.
        let spec = web::block(move || spec(&state, request, output, file.as_ref()));
        spec.await.map_err(ApiError::internal)??
    };
    let mut inputs = BTreeMap::new();
    for (part, folder) in folders {
        // A task of its own: a client that does not wait for it finds it done when it comes again.
        let artifacts = state.jobs.artifacts.clone();
        let put = actix_web::rt::spawn(async move { artifacts.put(&folder).await });
        let put = put.await.map_err(ApiError::internal)?;
        inputs.insert(part, put.map_err(|error| cannot_be_kept(part, error))?);
    }
    if let Some(file) = file {
        inputs.insert(TRAINING_FILE, file.artifact);
    }
    Ok(NewJob {
        id: String::new(),
        spec,
        metadata: BTreeMap::new(),
        idempotency_key: String::new(),
        request_sha256: String::new(),
        inputs,
    })
}

/// The text to train on.
#[derive(Clone)]
struct TrainingFile {
    id: String,
    /// What it is called among what the job begins with.
    name: &'static str,
    artifact: String,
}

async fn training_file(state: &State, id: Option<&str>) -> Result<Option<TrainingFile>, ApiError> {
    let Some(id) = id.filter(|id| !id.is_empty()) else {
        return Ok(None);
    };
    let store = &state.jobs.store;
    let (file, artifact) = (store.file(id).await?, store.held_by_file(id).await?);
    let (Some(file), Some(artifact)) = (file, artifact) else {
        let message = format!("there is no file {:?}", shortened(id));
        return Err(ApiError::invalid_with_code(
            "training_file",
            "file_not_found",
            message,
        ));
    };
    match state.jobs.artifacts.verify(&artifact).await {
        Ok(()) => Ok(Some(TrainingFile {
            name: name_of_text(&file.name),
            id: file.id,
            artifact,
        })),
        Err(error @ ArtifactStoreError::Damaged { .. }) => {
            tracing::error!(file = file.id, %error, "an uploaded file is damaged");
            let message = format!("file {:?} is damaged; upload it again", file.id);
            Err(ApiError::invalid_with_code(
                "training_file",
                "damaged_file",
                message,
            ))
        }
        Err(error) => Err(error.into()),
    }
}

/// What is to be done, checked against the models that are served.
struct Checked {
    spec: JobSpec,
    /// Of what it begins with, by part.
    folders: BTreeMap<&'static str, PathBuf>,
    /// One of them, which is there as long as this.
    pairs: Option<TempDir>,
}

fn spec(
    state: &State,
    request: CreateJob,
    output: ArtifactId,
    file: Option<&TrainingFile>,
) -> Result<Checked, ApiError> {
    let snapshot = state.snapshot();
    let base = snapshot.model(&request.model)?;
    if base.sparse && request.method.kind != MethodKind::Prune {
        return Err(ApiError::invalid(
            "model",
            "model is a sparse model; name a dense one",
        ));
    }
    let folder = state
        .service
        .model_directory(&base.id)
        .ok_or_else(|| damaged("model", "its files are not where they were"))?;
    let bridge = request.method.bridge.as_ref();
    let start_from = bridge.and_then(|bridge| bridge.hyperparameters.start_from.as_ref());
    let start_from = start_from.map(|id| start_from_pair(state, &snapshot, &base.id, id));
    let start_from = start_from.transpose()?;
    let mut places = Places {
        model_config: Some(base.config.clone()),
        start_config: start_from.as_ref().map(|pair| pair.sparse.clone()),
        model_id: base.id.parse().ok(),
        ..Places::of_job(start_from.is_some(), file.map(|file| file.name))
    };
    let prune = request.method.prune.as_ref();
    let prune = prune.filter(|_| request.method.kind == MethodKind::Prune);
    let prune = prune.map(|prune| &prune.hyperparameters);
    let task = prune.map(|fields| named_task(state, fields)).transpose()?;
    if let Some(AnyTask::User(_)) = task {
        places = places.with_task();
    }
    // Text that is given is what means are taken over; otherwise it is that of the model's pair.
    let without_text = prune.filter(|fields| file.is_none() && fields.generated.is_none());
    let pair = without_text.and_then(|_| pair_with_reference(state, &snapshot, &base.id, &folder));
    if let Some(pair) = &pair {
        places = places.within_pair(pair.half);
    }
    let (start_from, start_map) = match start_from {
        Some(pair) => (Some(pair.folder), Some(pair.site_map)),
        None => (None, None),
    };
    let recipe = Recipe::of(&request.method, &output, &places)?;
    fits(
        &recipe,
        &base.config,
        request.method.kind.as_str(),
        start_map,
    )?;
    can_be_served(&recipe, request.method.kind.as_str(), &state.limits)?;
    has_task_pairs(&recipe, &base)?;
    if let (Some(task), Some(fields)) = (&task, prune) {
        has_usable_pairs(task, fields, &base)?;
    }
    let served =
        |id: &String| snapshot.models.contains_key(id) || snapshot.bridges.contains_key(id);
    if let Some(taken) = recipe.names(&output).iter().find(|id| served(id)) {
        let message = format!("{taken:?} is served already; choose another suffix");
        return Err(ApiError::invalid_with_code(
            "suffix",
            "already_exists",
            message,
        ));
    }
    is_as_served(state, &base, &folder)?;
    let pairs = match &task {
        Some(AnyTask::User(task)) => Some(pairs_of(task, &state.jobs.settings.data_dir)?),
        _ => None,
    };
    let spec = JobSpec {
        model: base.id.clone(),
        training_file: file.map(|file| file.id.clone()),
        output,
        method: request.method,
        recipe,
    };
    let model = pair.map_or(folder, |pair| pair.folder);
    let others = [
        (START_FROM, start_from),
        (TASK, pairs.as_ref().map(|pairs| pairs.path().to_owned())),
    ];
    let others = others.into_iter();
    let others = others.filter_map(|(part, folder)| Some((part, folder?)));
    Ok(Checked {
        spec,
        folders: others.chain([(MODEL, model)]).collect(),
        pairs,
    })
}

/// Whether a model's files still are what was loaded from them. They are read in a process of their own: what is in
/// them may have changed, and a pickle may be among them that the server has read when it started.
fn is_as_served(state: &State, model: &ModelCard, folder: &Path) -> Result<(), ApiError> {
    match tried(state, "model", folder, true)?.fingerprints.as_slice() {
        [fingerprint] if *fingerprint == model.fingerprint => Ok(()),
        _ => Err(damaged(
            "model",
            "its files are not those that it is served from; load it anew",
        )),
    }
}

/// What answers in a folder, when tried in a process of its own; `field` named it. For threads that may wait.
fn tried(state: &State, field: &str, folder: &Path, pickles: bool) -> Result<Tried, ApiError> {
    let trial = state.service.trial.run(folder, pickles);
    let tried = tokio::runtime::Handle::current().block_on(trial);
    tried.map_err(|failure| match failure {
        TrialFailure::System(error) => ApiError::internal(error),
        failure => damaged(field, failure),
    })
}

fn cannot_be_kept(part: &str, error: ArtifactStoreError) -> ApiError {
    match error {
        ArtifactStoreError::File(_) | ArtifactStoreError::Changed(_) => damaged(part, error),
        error => error.into(),
    }
}

fn damaged(field: &str, problem: impl std::fmt::Display) -> ApiError {
    ApiError::invalid_with_code(field, "damaged_model", format!("{field}: {problem}"))
}

/// The pair that a bridge's training begins with.
struct StartFrom {
    folder: PathBuf,
    sparse: TransformerConfig,
    site_map: SiteMap,
}

fn start_from_pair(
    state: &State,
    snapshot: &Snapshot,
    dense: &str,
    id: &ArtifactId,
) -> Result<StartFrom, ApiError> {
    const FIELD: &str = "method.bridge.hyperparameters.start_from";
    let found = snapshot
        .bridges_of(dense)
        .find(|bridge| bridge.record.id == *id);
    let folder = found
        .as_ref()
        .and_then(|_| state.service.library.pair_directory(id.as_str()));
    let folder = folder.ok_or_else(|| {
        let id = id.as_str();
        ApiError::invalid(
            FIELD,
            format!("start_from is {id:?}, which is no bridge of {dense:?}"),
        )
    })?;
    tried(state, FIELD, &folder, true)?;
    let models = found.and_then(|bridge| {
        let sparse = snapshot.models.get(bridge.record.sparse.as_str())?;
        let dense = snapshot.models.get(bridge.record.dense.as_str())?;
        Some((&bridge.record, dense, sparse))
    });
    let Some((record, dense, sparse)) = models else {
        return Err(damaged(FIELD, "its models are not served"));
    };
    let site_map = record.joined(&dense.config, &sparse.config);
    Ok(StartFrom {
        folder,
        sparse: sparse.config.clone(),
        site_map: site_map.map_err(|problem| damaged(FIELD, problem))?,
    })
}

/// What a recipe's checks cannot see: the model it begins with.
/// `start_map` is how the bridge to go on from joins its models.
fn fits(
    recipe: &Recipe,
    base: &TransformerConfig,
    kind: &str,
    start_map: Option<SiteMap>,
) -> Result<(), ApiError> {
    let (config, name) = match recipe {
        Recipe::Dense(recipe) | Recipe::Sparse(recipe) => (&recipe.model, "model"),
        Recipe::Bridge(recipe) => (&recipe.sparse, "sparse"),
        Recipe::Prune(_) => return Ok(()),
    };
    let (own, wanted) = (config.vocab_size, base.vocab_size);
    if own != wanted {
        let field = format!("method.{kind}.hyperparameters.{name}.vocab_size");
        let message = format!("{field} is {own}; the model has {wanted}, and they must be equal");
        return Err(ApiError::invalid(field, message));
    }
    if let Recipe::Bridge(recipe) = recipe {
        let (asked, sparse) = (recipe.site_map.as_deref(), config.n_layers);
        let chosen = SiteMap::chosen(asked, start_map, base.n_layers, sparse);
        chosen.map_err(|error| {
            let field = format!("method.{kind}.hyperparameters.{}", error.field());
            let message = format!("{field} {error}");
            ApiError::invalid(field, message)
        })?;
    }
    Ok(())
}

/// The twin term's pairs of prompts must be alike to the model's tokenizer.
fn has_task_pairs(recipe: &Recipe, base: &ModelCard) -> Result<(), ApiError> {
    let Recipe::Bridge(recipe) = recipe else {
        return Ok(());
    };
    let twin = recipe.terms.twin.as_ref();
    if twin.is_none_or(|twin| twin.task_pairs == 0) {
        return Ok(());
    }
    check_tasks(&base.tokenizer).map_err(|error| {
        let field = "method.bridge.hyperparameters.terms.twin.task_pairs";
        ApiError::invalid(field, format!("task_pairs: {error}"))
    })
}

/// A result that could not be served is not trained.
fn can_be_served(recipe: &Recipe, kind: &str, limits: &Limits) -> Result<(), ApiError> {
    let (config, name) = match recipe {
        Recipe::Dense(recipe) | Recipe::Sparse(recipe) => (&recipe.model, "model"),
        Recipe::Bridge(recipe) => (&recipe.sparse, "sparse"),
        // A part of what is served.
        Recipe::Prune(_) => return Ok(()),
    };
    let fits = MemoryNeed::of(config).within(limits.max_model_bytes());
    fits.map_err(|error| {
        ApiError::invalid(
            format!("method.{kind}.hyperparameters.{name}"),
            format!("{name}: {error}"),
        )
    })
}
