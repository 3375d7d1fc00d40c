//! Is the process alive, does the engine answer, what has been counted.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiError;
use super::state::State;
use crate::jobs::store::jobs::Tally;

/// A good answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`, or `ready`.
    #[schema(example = "ok")]
    pub status: &'static str,
}

/// The process answers HTTP. This says nothing about the engine; `/readyz` does. `/healthz` is another name.
#[utoipa::path(get, path = "/livez", tag = "health", operation_id = "live",
    responses((status = 200, description = "The process is alive", body = Health)))]
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(Health { status: "ok" })
}

/// The engine has answered a question just now.
#[utoipa::path(get, path = "/readyz", tag = "health", operation_id = "ready",
    responses(
        (status = 200, description = "The engine answers", body = Health),
        (status = 503, description = "The engine does not answer in time: code `not_ready`",
            body = super::error::ErrorBody)
    ))]
pub async fn ready(state: web::Data<State>) -> Result<HttpResponse, ApiError> {
    if !state.engine.is_sound() {
        let reason = "the engine has failed and not yet recovered";
        return Err(ApiError::NotReady(reason.to_owned()));
    }
    match tokio::time::timeout(state.ready_timeout, state.engine.ping()).await {
        Ok(Ok(())) => Ok(HttpResponse::Ok().json(Health { status: "ready" })),
        Ok(Err(error)) => Err(ApiError::NotReady(error.to_string())),
        Err(_) => {
            let seconds = state.ready_timeout.as_secs_f64();
            Err(ApiError::NotReady(format!(
                "the engine did not answer within {seconds} s"
            )))
        }
    }
}

/// Counters for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "health", operation_id = "metrics",
    responses((status = 200, description = "Prometheus' text format", body = String, content_type = "text/plain")))]
pub async fn metrics(state: web::Data<State>) -> Result<HttpResponse, ApiError> {
    // Everything else is told even while the jobs' database is away.
    let jobs = state.jobs.store.tally().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "how the trainings stand is not known");
        Tally::default()
    });
    let text = state
        .metrics
        .text(
            state.engine.load(),
            state.engine.kept(),
            &state.snapshot(),
            &jobs,
        )
        .map_err(ApiError::internal)?;
    Ok(HttpResponse::Ok()
        .content_type(prometheus::TEXT_FORMAT)
        .body(text))
}
