//! Around every request: its `x-request-id`, its place in the metrics and the log, the host it was meant for,
//! and a net under panics.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{
    CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, TRANSFER_ENCODING,
    X_CONTENT_TYPE_OPTIONS,
};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, HttpRequest, HttpResponse, ResponseError, web};
use futures_util::FutureExt;
use tracing::{Instrument, field};
use uuid::Uuid;

use super::ApiError;
use super::addresses::Caller;
use super::disconnect;
use super::error::TurnedAway;
use super::state::State;
use crate::telemetry;

/// The header that names a request, in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What a browser says of who asks: `same-origin`, `same-site`, `cross-site`, or `none` for the person in front of it.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
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
    let foreign = check_host(&state, request.headers())
        .and_then(|()| check_origin(&method, request.headers()))
        .err();
    let response = match foreign {
        Some(error) => request
            .into_response(error.error_response())
            .map_into_right_body(),
        // A panic fails this request and no other. Nothing shared is left half changed: shared state sits
        // behind locks that are held for plain assignments only.
        None => match AssertUnwindSafe(next.call(request))
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
    let (request, response) = response.into_parts();
    let (head, body) = response.into_parts();
    let mut response = match state.unsent.deliver(body, &request) {
        Ok(body) => head.set_body(body).map_into_left_body(),
        Err(error) => error.error_response().map_into_right_body(),
    };
    let seconds = started.elapsed().as_secs_f64();
    let status = response.status().as_u16();
    let caller = request.extensions().get::<Caller>().cloned();
    let caller = caller.map(|Caller(name)| name);
    if let Some(TurnedAway(reason)) = response.extensions().get() {
        state.metrics.turned_away(reason);
    }
    state.metrics.answered(route, status, seconds);
    span.record("status", status);
    span.in_scope(|| tracing::info!(caller, status, seconds, "answered"));
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if status >= 400 && has_body(&request) {
        // Of a body that was refused the rest may still come, or never.
        disconnect::close_after(&request, state.unsent.patience());
    }
    Ok(ServiceResponse::new(request, response))
}

fn has_body(request: &HttpRequest) -> bool {
    let headers = request.headers();
    let none = HeaderValue::from_static("0");
    let length = headers.get(CONTENT_LENGTH);
    headers.contains_key(TRANSFER_ENCODING) || length.is_some_and(|length| *length != none)
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

/// Refuses what a page of another site asks a browser to change here: a browser sends such a request with whatever
/// the machine that it runs on may do. Programs that are no browsers send neither header.
fn check_origin(method: &Method, headers: &HeaderMap) -> Result<(), ApiError> {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let refused = |origin: &str| {
        Err(ApiError::ForeignOrigin {
            origin: origin.chars().take(80).collect(),
        })
    };
    if let Some(origin) = text(&ORIGIN) {
        // `scheme://authority`, or `null`. A proxy may speak another scheme than this server, but not for another host.
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        let own = text(&HOST).filter(|host| !host.is_empty());
        if authority.is_none() || authority.map(str::to_lowercase) != own.map(str::to_lowercase) {
            return refused(origin);
        }
    }
    match text(&SEC_FETCH_SITE) {
        None | Some("same-origin" | "none") => Ok(()),
        Some(site) => refused(text(&ORIGIN).unwrap_or(site)),
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
