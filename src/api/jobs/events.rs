//! What happened to a job: pages of it, or as it happens.

use std::time::Duration;

use actix_web::web::Bytes;
use actix_web::{HttpResponse, rt, web};
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::handlers::serve_result;
use super::paging::page;
use super::response::{EVENT, JobEvent, JobEventList};
use crate::api::ApiError;
use crate::api::error::ErrorBody;
use crate::api::event_stream;
use crate::api::state::State;
use crate::jobs::store::StoreError;
use crate::jobs::store::events::Order;

/// How often a follower is told what is new, or that there is nothing.
const LOOK: Duration = Duration::from_millis(500);
const MOST: usize = 1000;
/// Events that a follower's connection may be behind.
const BUFFERED: usize = 64;

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// The id of the event before the first.
    pub after: Option<String>,
    /// 20 unless said.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// As they happen, oldest first, as server-sent events until the job has ended.
    pub stream: Option<bool>,
}

/// A job's events: newest first, or as they happen.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{id}/events", tag = "fine_tuning", operation_id = "listJobEvents",
    params(("id" = String, Path, description = "The job's id"), EventQuery),
    responses(
        (status = 200, description = "The events; with `stream`, server-sent events, each the JSON of one, ended by \
            `[DONE]`", content(
            (JobEventList = "application/json"),
            (String = "text/event-stream")
        )),
        (status = 400, description = "A parameter is unknown or out of range", body = ErrorBody),
        (status = 404, description = "There is no such job: code `job_not_found`", body = ErrorBody)
    ))]
pub async fn list(
    state: web::Data<State>,
    id: web::Path<String>,
    query: web::Query<EventQuery>,
) -> Result<HttpResponse, ApiError> {
    let (id, query) = (id.into_inner(), query.into_inner());
    let store = &state.jobs.store;
    store.job(&id).await?.ok_or(StoreError::NoSuchJob)?;
    let after = query.after.as_deref().map(number).transpose()?;
    if query.stream == Some(true) {
        return Ok(follow(state, id, after));
    }
    let limit = page(query.limit, MOST)?;
    let mut events = store
        .events(&id, Order::NewestFirst, after, limit + 1)
        .await?;
    let has_more = events.len() > limit;
    events.truncate(limit);
    Ok(HttpResponse::Ok().json(JobEventList {
        object: "list",
        data: events.into_iter().map(JobEvent::of).collect(),
        has_more,
    }))
}

fn number(id: &str) -> Result<i64, ApiError> {
    let number = id
        .strip_prefix(EVENT)
        .and_then(|number| number.parse().ok());
    number.ok_or_else(|| {
        ApiError::invalid(
            "after",
            format!("after is no event's id; they begin with {EVENT}"),
        )
    })
}

fn follow(state: web::Data<State>, job: String, after: Option<i64>) -> HttpResponse {
    let (sender, receiver) = mpsc::channel::<Bytes>(BUFFERED);
    let mut stopping = state.jobs.stopping();
    rt::spawn(async move {
        // Ends with the job, when nobody takes what is sent, or when the server stops: followers then ask again.
        let told = tokio::select! {
            told = tell(&state, &job, after, &sender) => told,
            _ = stopping.wait_for(|stopping| *stopping) => Ok(()),
        };
        if let Err(error) = told {
            tracing::error!(job, %error, "a job cannot be followed");
        }
    });
    event_stream::respond(receiver)
}

async fn tell(
    state: &web::Data<State>,
    job: &str,
    mut after: Option<i64>,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), StoreError> {
    let store = &state.jobs.store;
    loop {
        // Before its events: what happened up to the end is then among them.
        let found = store.job(job).await?;
        if let Some(found) = &found {
            serve_result(state, found).await;
        }
        let ended = found.is_none_or(|job| job.status.is_final());
        let events = store.events(job, Order::OldestFirst, after, MOST).await?;
        let (count, last) = (events.len(), events.last().map(|event| event.number));
        for event in events.into_iter().map(JobEvent::of) {
            let json = serde_json::to_string(&event)
                .map_err(|error| StoreError::Unreadable(error.to_string()))?;
            if sender
                .send(Bytes::from(format!("data: {json}\n\n")))
                .await
                .is_err()
            {
                return Ok(());
            }
        }
        after = last.or(after);
        if ended && count < MOST {
            let _ = sender.send(Bytes::from_static(b"data: [DONE]\n\n")).await;
            return Ok(());
        }
        if sender
            .send(Bytes::from_static(b": still here\n\n"))
            .await
            .is_err()
        {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}
