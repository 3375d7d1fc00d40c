//! Around every request: its `x-request-id`, its place in the metrics and the log, the host it was meant for,
//! and a net under panics.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{HOST, HeaderMap, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use actix_web::middleware::Next;
use actix_web::{HttpResponse, ResponseError, web};
use futures_util::FutureExt;
use tracing::{Instrument, field};
use uuid::Uuid;

use super::ApiError;
use super::error::TurnedAway;
use super::state::State;
use crate::telemetry;

/// The header that names a request, in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A longer id from a client is replaced.
const LONGEST_ID: usize = 128;
/// The label of requests that no route answers.
const NO_ROUTE: &str = "none";

/// Wraps the whole application.
pub async fn observe<B: MessageBody + 'static>(
    state: web::Data<State>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<impl MessageBody + use<B>>, actix_web::Error> {
    let started = Instant::now();
    let id = request_id(request.headers());
    let (method, path) = (request.method().clone(), request.path().to_owned());
    // Routes, not paths: names and labels are few.
    let pattern = request.match_pattern();
    let route = pattern.as_deref().unwrap_or(NO_ROUTE);
    let span = tracing::info_span!(
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        request_id = id.to_str().unwrap_or_default(),
        %method,
        path,
        status = field::Empty,
    );
    telemetry::continue_trace(&span, |name| request.headers().get(name)?.to_str().ok());
    let admitted = check_host(&state, request.headers())
        .and_then(|()| state.keys.admit(&method, &path, request.headers()));
    let caller = admitted.as_ref().ok().copied().flatten();
    let caller = caller.map(ToOwned::to_owned);
    let mut response = match admitted {
        Err(error) => request
            .into_response(error.error_response())
            .map_into_right_body(),
        // A panic fails this request and no other. Nothing shared is left half changed: shared state sits
        // behind locks that are held for plain assignments only.
        Ok(_) => match AssertUnwindSafe(next.call(request))
            .catch_unwind()
            .instrument(span.clone())
            .await
        {
            Ok(result) => result
                .map_err(|error| with_id(&error, &id))?
                .map_into_left_body(),
            Err(_) => {
                state
                    .metrics
                    .answered(NO_ROUTE, 500, started.elapsed().as_secs_f64());
                let error = ApiError::Internal(format!("{method} {path} panicked"));
                return Err(with_id(&error.into(), &id));
            }
        },
    };
    let seconds = started.elapsed().as_secs_f64();
    let status = response.status().as_u16();
    if let Some(TurnedAway(reason)) = response.response().extensions().get() {
        state.metrics.turned_away(reason);
    }
    state.metrics.answered(route, status, seconds);
    span.record("status", status);
    span.in_scope(|| tracing::info!(caller, status, seconds, "answered"));
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// The client's id for this request where it is one that can be logged and sent back, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-:".contains(byte);
    let given = headers.get(REQUEST_ID).filter(|value| {
        let bytes = value.as_bytes();
        (1..=LONGEST_ID).contains(&bytes.len()) && bytes.iter().all(allowed)
    });
    given.cloned().unwrap_or_else(|| {
        let id = format!("req_{}", Uuid::new_v4().simple());
        HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("req_unknown"))
    })
}

/// A server that only this machine can reach answers only for this machine's names: a page elsewhere whose
/// name was made to point here is another host.
fn check_host(state: &State, headers: &HeaderMap) -> Result<(), ApiError> {
    if !state.loopback_only {
        return Ok(());
    }
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or("");
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    let local = name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    match local {
        true => Ok(()),
        false => Err(ApiError::ForeignHost {
            host: host.chars().take(80).collect(),
        }),
    }
}

/// An error that reaches the client with the request's id on it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct ErrorWithId {
    message: String,
    status: StatusCode,
    id: HeaderValue,
}

fn with_id(error: &actix_web::Error, id: &HeaderValue) -> actix_web::Error {
    let status = error.as_response_error().status_code();
    ErrorWithId {
        message: error.to_string(),
        status,
        id: id.clone(),
    }
    .into()
}

impl ResponseError for ErrorWithId {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let error = match self.status.is_client_error() {
            true => ApiError::Invalid {
                message: self.message.clone(),
                param: None,
                code: None,
            },
            false => ApiError::Internal(self.message.clone()),
        };
        let mut response = HttpResponse::build(self.status).json(error.body());
        response.headers_mut().insert(REQUEST_ID, self.id.clone());
        response
    }
}
