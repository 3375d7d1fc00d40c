//! A job's loss curves, as numbers and as a picture.

use actix_web::{HttpResponse, web};

use super::handlers::find;
use crate::api::ApiError;
use crate::api::error::ErrorBody;
use crate::api::state::State;
use crate::jobs::curves::{Collector, Curves, JobCurves};
use crate::jobs::job::Job;
use crate::jobs::store::Store;
use crate::jobs::store::events::Order;

/// Events that are read at once.
const PAGE: usize = 1000;

/// The loss and its terms over the steps done so far, and the held-out figures. Of long trainings each point is the mean
/// of some steps, with the least and the most of them.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{id}/plot", tag = "fine_tuning", operation_id = "plotJob",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The curves", body = JobCurves),
        (status = 404, description = "There is no such job: code `job_not_found`", body = ErrorBody)
    ))]
pub async fn numbers(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let (job, curves) = curves(&state, &id).await?;
    Ok(HttpResponse::Ok().json(curves.of_job(&job.id)))
}

/// The same as a picture: a panel a term.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{id}/plot.svg", tag = "fine_tuning", operation_id = "drawJob",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The picture", body = String, content_type = "image/svg+xml"),
        (status = 404, description = "There is no such job: code `job_not_found`", body = ErrorBody)
    ))]
pub async fn picture(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let (job, curves) = curves(&state, &id).await?;
    let title = format!(
        "{}: {} of {} steps",
        job.spec.output,
        job.step,
        job.spec.steps()
    );
    Ok(HttpResponse::Ok()
        .content_type("image/svg+xml")
        .insert_header(("x-content-type-options", "nosniff"))
        .body(curves.svg(&title)))
}

async fn curves(state: &State, id: &str) -> Result<(Job, Curves), ApiError> {
    let job = find(state, id).await?;
    let store: &Store = &state.jobs.store;
    let mut collector = Collector::new(job.spec.steps());
    let mut after = None;
    loop {
        let events = store
            .events(&job.id, Order::OldestFirst, after, PAGE)
            .await?;
        for event in &events {
            collector.add(event);
        }
        match events.last() {
            Some(last) if events.len() == PAGE => after = Some(last.number),
            _ => return Ok((job, collector.finish())),
        }
    }
}
