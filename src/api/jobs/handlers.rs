//! `/v1/fine_tuning/jobs`: what can be asked of trainings.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use actix_web::{HttpRequest, HttpResponse, web};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::events::page;
use super::request::CreateJob;
use super::response::{FineTuningJob, JobCheckpoint, JobCheckpointList, JobList};
use crate::api::ApiError;
use crate::api::body::JsonBody;
use crate::api::error::ErrorBody;
use crate::api::inventory::{Inventory, shortened, unix_seconds};
use crate::api::state::State;
use crate::artifacts::{ArtifactId, hexadecimal};
use crate::jobs::job::{Job, Wish};
use crate::jobs::spec::{JobSpec, Method, Places, Recipe};
use crate::jobs::store::StoreError;
use crate::jobs::store::jobs::{NewJob, Query};
use crate::models::config::TransformerConfig;
use crate::training::recipe::Fault;

const MOST_METADATA: usize = 16;
const LONGEST_KEY: usize = 64;
const LONGEST_VALUE: usize = 512;
const LONGEST_IDEMPOTENCY_KEY: usize = 255;
const MOST_JOBS: usize = 100;

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        let message = fault.to_string();
        ApiError::invalid(fault.field, message)
    }
}

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
            "optimizer": {"rate": 2e-3, "warmup_steps": 20},
            "bridge_rate": 2e-3,
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
            or the result's id is taken (code `already_exists`); `param` names the field", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody)
    ))]
pub async fn create(
    http: HttpRequest,
    state: web::Data<State>,
    body: JsonBody<CreateJob>,
) -> Result<HttpResponse, ApiError> {
    let mut request = body.0;
    only_nothing(&request)?;
    let id = format!("ftjob-{}", Uuid::new_v4().simple());
    let request_sha256 = fingerprint(&request)?;
    let metadata = metadata(request.metadata.take().unwrap_or_default())?;
    let output = match request.suffix.take() {
        Some(output) => output,
        None => format!("ft-{}", &id["ftjob-".len()..][..12])
            .parse()
            .map_err(ApiError::internal)?,
    };
    if let Some(seed) = request.seed {
        set_seed(&mut request.method, seed);
    }
    let spec = {
        let state = state.clone();
        let file = training_file(&state, request.training_file.as_deref()).await?;
        // Reads the models' configurations.
        let spec = web::block(move || spec(&state, request, output, file));
        spec.await.map_err(ApiError::internal)??
    };
    let new = NewJob {
        id,
        spec,
        metadata,
        idempotency_key: idempotency_key(&http)?,
        request_sha256,
    };
    Ok(answer(state.jobs.store.create(&new).await?))
}

/// The jobs, newest first; `metadata[name]=value` in the query leaves those with that metadata.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs", tag = "fine_tuning", operation_id = "listJobs",
    params(
        ("after" = Option<String>, Query, description = "The id of the job before the first"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 100, description = "20 unless said")
    ),
    responses(
        (status = 200, description = "The jobs", body = JobList),
        (status = 400, description = "A parameter is unknown or out of range", body = ErrorBody),
        (status = 404, description = "There is no job `after`: code `job_not_found`", body = ErrorBody)
    ))]
pub async fn list(
    state: web::Data<State>,
    query: web::Query<HashMap<String, String>>,
) -> Result<HttpResponse, ApiError> {
    let mut wanted = Query {
        limit: page(None, MOST_JOBS)?,
        ..Query::default()
    };
    for (name, value) in query.into_inner() {
        let key = name
            .strip_prefix("metadata[")
            .and_then(|key| key.strip_suffix(']'));
        match (name.as_str(), key) {
            ("after", _) => wanted.after = Some(value),
            ("limit", _) => {
                let limit = value.parse().map_err(|_| {
                    ApiError::invalid(
                        "limit",
                        format!("limit is {:?}; it is a whole number", shortened(&value)),
                    )
                })?;
                wanted.limit = page(Some(limit), MOST_JOBS)?;
            }
            (_, Some(key)) => {
                wanted.metadata.insert(key.to_owned(), value);
            }
            _ => {
                let name = shortened(&name);
                let message = format!(
                    "there is no parameter {name:?}; there are after, limit and metadata[name]"
                );
                return Err(ApiError::invalid_with_code(&name, "unknown_field", message));
            }
        }
    }
    let (jobs, has_more) = state.jobs.store.jobs(&wanted).await?;
    let now = unix_seconds() as i64;
    Ok(HttpResponse::Ok().json(JobList {
        object: "list",
        data: jobs
            .into_iter()
            .map(|job| FineTuningJob::of(job, now))
            .collect(),
        has_more,
    }))
}

/// One job.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{id}", tag = "fine_tuning", operation_id = "retrieveJob",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job", body = FineTuningJob),
        (status = 404, description = "There is no such job: code `job_not_found`", body = ErrorBody)
    ))]
pub async fn retrieve(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    Ok(answer(find(&state, &id).await?))
}

/// Ends a job for good. One that runs ends within a second or two.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{id}/cancel", tag = "fine_tuning", operation_id = "cancelJob",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job", body = FineTuningJob),
        (status = 400, description = "It has ended: code `wrong_status`", body = ErrorBody),
        (status = 404, description = "There is no such job: code `job_not_found`", body = ErrorBody)
    ))]
pub async fn cancel(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    Ok(answer(state.jobs.store.wish(&id, Wish::Cancel).await?))
}

/// Lets a job rest. It keeps its last checkpoint, and goes on from there when it is resumed.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{id}/pause", tag = "fine_tuning", operation_id = "pauseJob",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job", body = FineTuningJob),
        (status = 400, description = "It has ended: code `wrong_status`", body = ErrorBody),
        (status = 404, description = "There is no such job: code `job_not_found`", body = ErrorBody)
    ))]
pub async fn pause(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    Ok(answer(state.jobs.store.wish(&id, Wish::Pause).await?))
}

/// Lets a paused job go on.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{id}/resume", tag = "fine_tuning", operation_id = "resumeJob",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job", body = FineTuningJob),
        (status = 400, description = "It has ended: code `wrong_status`", body = ErrorBody),
        (status = 404, description = "There is no such job: code `job_not_found`", body = ErrorBody)
    ))]
pub async fn resume(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    Ok(answer(state.jobs.store.wish(&id, Wish::Resume).await?))
}

/// The checkpoints that a job has written, newest first.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{id}/checkpoints", tag = "fine_tuning",
    operation_id = "listJobCheckpoints",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("after" = Option<String>, Query, description = "The id of the checkpoint before the first"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 1000, description = "20 unless said")
    ),
    responses(
        (status = 200, description = "The checkpoints", body = JobCheckpointList),
        (status = 400, description = "A parameter is unknown or out of range", body = ErrorBody),
        (status = 404, description = "There is no such job: code `job_not_found`", body = ErrorBody)
    ))]
pub async fn checkpoints(
    state: web::Data<State>,
    id: web::Path<String>,
    query: web::Query<CheckpointQuery>,
) -> Result<HttpResponse, ApiError> {
    let job = find(&state, &id).await?;
    let limit = page(query.limit, 1000)?;
    let records = state
        .jobs
        .store
        .checkpoints(&job.id)
        .await?
        .into_iter()
        .rev();
    let checkpoints = records.map(|record| JobCheckpoint::of(&job, record));
    let mut data: Vec<JobCheckpoint> = match &query.after {
        None => checkpoints.collect(),
        Some(after) => checkpoints
            .skip_while(|found| found.id != *after)
            .skip(1)
            .collect(),
    };
    let has_more = data.len() > limit;
    data.truncate(limit);
    Ok(HttpResponse::Ok().json(JobCheckpointList {
        object: "list",
        data,
        has_more,
    }))
}

/// Which checkpoints.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointQuery {
    pub after: Option<String>,
    pub limit: Option<usize>,
}

async fn find(state: &State, id: &str) -> Result<Job, ApiError> {
    let job = state.jobs.store.job(id).await?;
    Ok(job.ok_or(StoreError::NoSuchJob)?)
}

fn answer(job: Job) -> HttpResponse {
    HttpResponse::Ok().json(FineTuningJob::of(job, unix_seconds() as i64))
}

fn only_nothing(request: &CreateJob) -> Result<(), ApiError> {
    for (field, value) in [
        ("validation_file", &request.validation_file),
        ("integrations", &request.integrations),
        ("hyperparameters", &request.hyperparameters),
    ] {
        let empty = |value: &serde_json::Value| value.as_array().is_some_and(Vec::is_empty);
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
}

/// The id and the path of the text to train on.
async fn training_file(
    state: &State,
    id: Option<&str>,
) -> Result<Option<(String, PathBuf)>, ApiError> {
    let Some(id) = id.filter(|id| !id.is_empty()) else {
        return Ok(None);
    };
    let file = state.jobs.store.file(id).await?;
    let file = file.ok_or_else(|| {
        let message = format!("there is no file {:?}", shortened(id));
        ApiError::invalid_with_code("training_file", "file_not_found", message)
    })?;
    let path = super::files::path_of(&state.jobs.files, &file);
    Ok(Some((file.id, path)))
}

/// What is to be done, checked against the models that are served.
fn spec(
    state: &State,
    request: CreateJob,
    output: ArtifactId,
    file: Option<(String, PathBuf)>,
) -> Result<JobSpec, ApiError> {
    let inventory = state.inventory();
    let base = inventory.model(&request.model)?;
    if base.sparse {
        return Err(ApiError::invalid(
            "model",
            "model is a sparse model; name a dense one",
        ));
    }
    let directory = |id: &str| {
        let found = state.library.model_directory(&inventory, id);
        let found = found.and_then(|path| std::path::absolute(path).ok());
        found
            .ok_or_else(|| ApiError::internal(format!("the files of {id} are not where they were")))
    };
    let start_from = match &request.method.bridge {
        Some(bridge) => start_from(
            state,
            &inventory,
            &base.id,
            bridge.hyperparameters.start_from.as_ref(),
        )?,
        None => None,
    };
    let places = Places {
        model: directory(&base.id)?,
        start_from,
        training_file: file.as_ref().map(|(_, path)| path.clone()),
    };
    let recipe = Recipe::of(&request.method, &output, &places)?;
    fits(&recipe, &base.config, request.method.kind.as_str())?;
    let taken = [output.to_string(), format!("{output}-sparse")];
    if taken
        .iter()
        .any(|id| inventory.models.contains_key(id) || inventory.bridges.contains_key(id))
    {
        let message = format!(
            "{output:?} is served already; choose another suffix",
            output = output.as_str()
        );
        return Err(ApiError::invalid_with_code(
            "suffix",
            "already_exists",
            message,
        ));
    }
    Ok(JobSpec {
        model: base.id.clone(),
        training_file: file.map(|(id, _)| id),
        output,
        method: request.method,
        recipe,
    })
}

fn start_from(
    state: &State,
    inventory: &Inventory,
    dense: &str,
    id: Option<&ArtifactId>,
) -> Result<Option<PathBuf>, ApiError> {
    const FIELD: &str = "method.bridge.hyperparameters.start_from";
    let Some(id) = id else {
        return Ok(None);
    };
    let found = inventory
        .bridges_of(dense)
        .find(|bridge| bridge.record.id == *id);
    let directory = found.and_then(|_| state.library.pair_directory(id.as_str()));
    match directory.and_then(|path| std::path::absolute(path).ok()) {
        Some(directory) => Ok(Some(directory)),
        None => Err(ApiError::invalid(
            FIELD,
            format!(
                "start_from is {:?}, which is no bridge of {dense:?}",
                id.as_str()
            ),
        )),
    }
}

/// What a recipe's checks cannot see: the model it begins with.
fn fits(recipe: &Recipe, base: &TransformerConfig, kind: &str) -> Result<(), ApiError> {
    let (config, name, same): (_, _, &[_]) = match recipe {
        Recipe::Dense(recipe) | Recipe::Sparse(recipe) => {
            if recipe.start_from.is_some() && recipe.model != *base {
                return Err(ApiError::invalid(
                    format!("method.{kind}.hyperparameters.model"),
                    "model has another configuration than the model whose weights are to be its first",
                ));
            }
            (&recipe.model, "model", &["vocab_size"])
        }
        Recipe::Bridge(recipe) => (&recipe.sparse, "sparse", &["vocab_size", "n_layers"]),
    };
    for field in same {
        let (own, wanted) = match *field {
            "n_layers" => (config.n_layers, base.n_layers),
            _ => (config.vocab_size, base.vocab_size),
        };
        if own != wanted {
            let field = format!("method.{kind}.hyperparameters.{name}.{field}");
            let message =
                format!("{field} is {own}; the model has {wanted}, and they must be equal");
            return Err(ApiError::invalid(field, message));
        }
    }
    Ok(())
}
