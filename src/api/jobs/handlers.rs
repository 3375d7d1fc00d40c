//! `/v1/fine_tuning/jobs`: what can be asked of trainings that there are. [`super::creation`] asks for new ones.

use std::collections::HashMap;

use actix_web::{HttpResponse, web};

use super::paging::page;
use super::response::{FineTuningJob, JobCheckpoint, JobCheckpointList, JobDeleted, JobList};
use crate::api::ApiError;
use crate::api::error::ErrorBody;
use crate::api::state::State;
use crate::jobs::job::{Job, Status, Wish};
use crate::jobs::store::StoreError;
use crate::jobs::store::jobs::Query;
use crate::serving::snapshot::{shortened, unix_seconds};

const MOST_JOBS: usize = 100;

/// The jobs, newest first; `metadata[name]=value` in the query leaves those with that metadata. In a list the `method` of
/// a job is its type alone and `evaluation` is null: ask for a job to see all of it.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs", tag = "fine_tuning", operation_id = "listJobs",
    params(
        ("after" = Option<String>, Query, description = "The id of the job before the first"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 100, description = "20 unless said"),
        ("metadata" = Option<BTreeMap<String, String>>, Query, style = DeepObject, explode,
            description = "Only jobs with this metadata: `metadata[name]=value`")
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
    for job in &jobs {
        serve_result(&state, job).await;
    }
    let now = unix_seconds() as i64;
    Ok(HttpResponse::Ok().json(JobList {
        object: "list",
        data: jobs
            .into_iter()
            .map(|job| FineTuningJob::of(job, now).in_list())
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
    let job = find(&state, &id).await?;
    serve_result(&state, &job).await;
    Ok(answer(job))
}

/// Ends a job for good. One that runs ends within a second or two; one that failed lets go of its checkpoints.
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

/// Lets a job rest: it writes a checkpoint after the step it is at, and goes on from there when it is resumed.
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

/// Lets a paused job go on. A job that failed goes on from its last checkpoint, for as many hours after as the server's
/// `artifacts.keep_hours`.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{id}/resume", tag = "fine_tuning", operation_id = "resumeJob",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job", body = FineTuningJob),
        (status = 400, description = "It has ended: code `wrong_status`; or another has its result's id by now: code \
            `already_exists`", body = ErrorBody),
        (status = 404, description = "There is no such job: code `job_not_found`", body = ErrorBody)
    ))]
pub async fn resume(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    Ok(answer(state.jobs.store.wish(&id, Wish::Resume).await?))
}

/// Forgets a job that has ended, with its events and checkpoints. A result that is still there has to be deleted first.
#[utoipa::path(delete, path = "/v1/fine_tuning/jobs/{id}", tag = "fine_tuning", operation_id = "deleteJob",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "It is deleted", body = JobDeleted),
        (status = 400, description = "It has not ended: code `wrong_status`; or its result is still there: code `in_use`",
            body = ErrorBody),
        (status = 404, description = "There is no such job: code `job_not_found`", body = ErrorBody)
    ))]
pub async fn delete(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let id = id.into_inner();
    state.jobs.store.remove_job(&id).await?;
    Ok(HttpResponse::Ok().json(JobDeleted {
        id,
        object: "fine_tuning.job",
        deleted: true,
    }))
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

/// A job by its id.
pub async fn find(state: &State, id: &str) -> Result<Job, ApiError> {
    let job = state.jobs.store.job(id).await?;
    Ok(job.ok_or(StoreError::NoSuchJob)?)
}

/// Serves what a job has made, if it has succeeded: nobody is told so by a server that does not serve the result yet. What
/// cannot be served is told in the log.
pub async fn serve_result(state: &web::Data<State>, job: &Job) {
    let is_served = || {
        state
            .snapshot()
            .models
            .contains_key(job.spec.output.as_str())
    };
    if job.status != Status::Succeeded || is_served() {
        return;
    }
    let jobs = &state.jobs;
    let updated = jobs
        .trained
        .update(&state.service, &jobs.store, &jobs.artifacts);
    if let Err(error) = updated.await {
        tracing::warn!(job = job.id, %error, "a job's result cannot be served yet");
    }
}

/// A job as an answer.
pub fn answer(job: Job) -> HttpResponse {
    HttpResponse::Ok().json(FineTuningJob::of(job, unix_seconds() as i64))
}
