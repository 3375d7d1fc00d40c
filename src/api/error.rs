//! Every way a request can fail, and the one table that says with which status, type and code.
//!
//! The body is `{"error": {"message", "type", "param", "code"}}`, all four keys always there. 409 and 408 are
//! never answered: clients retry them.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::artifacts::is_full;
use crate::generation::request::EngineError;
use crate::numerics::device::DeviceLost;
use crate::serving::snapshot::NotServed;
use crate::serving::weights::WeightsError;
use crate::settings::keys::Role;

/// Seconds after which a client may try again what failed for want of an engine, or of room in it.
const RETRY_SECONDS: u64 = 5;

/// Why a request was not carried out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// The request cannot be carried out as written.
    #[error("{message}")]
    Invalid {
        message: String,
        param: Option<String>,
        code: Option<&'static str>,
    },
    /// What the request names is not there.
    #[error("{message}")]
    NotFound {
        message: String,
        param: Option<String>,
        code: Option<&'static str>,
    },
    #[error("this address answers {allowed} only")]
    MethodNotAllowed { allowed: String },
    #[error("the request's body is longer than the {limit} bytes that are read")]
    TooLarge { limit: usize },
    #[error("the body must be JSON, sent with `content-type: application/json`")]
    NotJson,
    #[error("the body must be a form, sent with `content-type: multipart/form-data`")]
    NotForm,
    #[error("the body must be the file itself, sent with `content-type: application/octet-stream`")]
    NotFile,
    #[error(
        "the body must be a line of JSON for each pair, sent with `content-type: application/x-ndjson`"
    )]
    NotLines,
    #[error("the server does not answer for the host {host:?}: it listens on this machine only")]
    ForeignHost { host: String },
    #[error(
        "the request comes from a page of another site ({origin}); only the server's own pages and programs that are \
         no browser may change anything here"
    )]
    ForeignOrigin { origin: String },
    #[error("the body was not there whole after {seconds} s (limits.body_seconds)")]
    SlowBody { seconds: u64 },
    #[error("the server is stopping; it reads no more of the body")]
    Stopping,
    #[error(
        "answers that clients have not read yet fill the {bytes} bytes kept for them (limits.max_unsent_bytes); try \
         again in a few seconds"
    )]
    Unsent { bytes: usize },
    #[error("the server is not ready: {0}")]
    NotReady(String),
    #[error(
        "the server's disk is full, or it may not write any more to it: nothing of this was kept. Try again when there \
         is room; deleting files, models and ended jobs makes some"
    )]
    DiskFull,
    #[error("the server has as many requests as it can carry; try again in a few seconds")]
    Busy,
    #[error(
        "as many examinations of features wait as may (limits.max_examinations = {most}); try again in a few seconds"
    )]
    Examinations { most: usize },
    #[error(
        "as many models wait to be brought as may (hub.max_waiting = {most}); try again when some have come"
    )]
    Downloads { most: usize },
    #[error(
        "the examination took longer than the {seconds} s that one may (limits.examination_seconds)"
    )]
    ExaminationDeadline { seconds: u64 },
    #[error("{0}")]
    Unauthorized(&'static str),
    #[error("the API key is for {role}; this needs one for {needed}")]
    Forbidden { role: Role, needed: Role },
    #[error("the API key's rate of requests is used up; try again in {} s", whole_seconds(*wait))]
    RateLimited { wait: Duration },
    #[error("the completion took longer than the server lets one take")]
    Deadline,
    /// For the log and the metrics; nobody is there to read it.
    #[error("the client closed the connection before it was answered")]
    ClientGone,
    /// The details are for the log; the client gets the request's id.
    #[error(
        "the request failed inside the server; its log says more under this request's x-request-id"
    )]
    Internal(String),
}

/// The body of every answer that is an error.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorObject,
}

/// What went wrong.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorObject {
    /// For people: what is wrong and what would be right.
    pub message: String,
    #[serde(rename = "type")]
    pub kind: ErrorKind,
    /// The field at fault, as a path such as `steer.edits[0].feature`; null where no field is.
    #[schema(required = true, example = "temperature")]
    pub param: Option<String>,
    /// For programs: `model_not_found`, `already_exists` and the like; null where the type says it all.
    #[schema(required = true)]
    pub code: Option<&'static str>,
}

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// What was sent, or who sent it, is at fault.
    InvalidRequestError,
    ServerError,
}

impl ApiError {
    /// A field that is wrong.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError::Invalid {
            message: message.into(),
            param: Some(param.into()),
            code: None,
        }
    }

    /// A field that is wrong in a way that programs may want to tell apart.
    pub fn invalid_with_code(param: &str, code: &'static str, message: impl Into<String>) -> Self {
        ApiError::Invalid {
            message: message.into(),
            param: Some(param.to_owned()),
            code: Some(code),
        }
    }

    /// An address that nothing answers.
    pub fn no_such_address() -> Self {
        ApiError::NotFound {
            message: "there is nothing at this address; /openapi.json lists what there is"
                .to_owned(),
            param: None,
            code: Some("no_such_address"),
        }
    }

    /// For `map_err`: something that should not have failed.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        ApiError::Internal(error.to_string())
    }

    /// For `map_err`: something could not be kept, for want of room or for another reason.
    pub fn storage(error: impl std::error::Error + 'static) -> Self {
        match is_full(&error) {
            true => {
                tracing::error!(%error, "there is no room");
                ApiError::DiskFull
            }
            false => ApiError::internal(error),
        }
    }

    /// Tells the log what the client is not told.
    pub fn log(&self) {
        if let ApiError::Internal(details) = self {
            tracing::error!(details, "a request failed");
        }
    }

    /// The table: status, type, code.
    fn row(&self) -> (StatusCode, ErrorKind, Option<&'static str>) {
        const INVALID: ErrorKind = ErrorKind::InvalidRequestError;
        const SERVER: ErrorKind = ErrorKind::ServerError;
        match self {
            ApiError::Invalid { code, .. } => (StatusCode::BAD_REQUEST, INVALID, *code),
            ApiError::NotFound { code, .. } => {
                (StatusCode::NOT_FOUND, INVALID, code.or(Some("not_found")))
            }
            ApiError::MethodNotAllowed { .. } => (
                StatusCode::METHOD_NOT_ALLOWED,
                INVALID,
                Some("method_not_allowed"),
            ),
            ApiError::TooLarge { .. } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                INVALID,
                Some("body_too_large"),
            ),
            ApiError::NotJson | ApiError::NotForm | ApiError::NotFile | ApiError::NotLines => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                INVALID,
                Some("unsupported_media_type"),
            ),
            ApiError::ForeignHost { .. } => (StatusCode::FORBIDDEN, INVALID, Some("foreign_host")),
            ApiError::ForeignOrigin { .. } => {
                (StatusCode::FORBIDDEN, INVALID, Some("foreign_origin"))
            }
            // Not 408, which clients send again by themselves.
            ApiError::SlowBody { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("slow_body")),
            ApiError::Stopping => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("stopping")),
            ApiError::Unsent { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("overloaded"))
            }
            ApiError::NotReady(_) => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("not_ready")),
            ApiError::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, SERVER, Some("disk_full")),
            ApiError::Unauthorized(_) => {
                (StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key"))
            }
            ApiError::Forbidden { .. } => {
                (StatusCode::FORBIDDEN, INVALID, Some("insufficient_role"))
            }
            ApiError::RateLimited { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                INVALID,
                Some("rate_limit_exceeded"),
            ),
            ApiError::Deadline | ApiError::ExaminationDeadline { .. } => (
                StatusCode::GATEWAY_TIMEOUT,
                SERVER,
                Some("deadline_exceeded"),
            ),
            ApiError::ClientGone => (client_closed_request(), INVALID, Some("client_gone")),
            ApiError::Busy | ApiError::Examinations { .. } | ApiError::Downloads { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("overloaded"))
            }
            ApiError::Internal(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                SERVER,
                Some("internal_error"),
            ),
        }
    }

    /// The body that says so.
    pub fn body(&self) -> ErrorBody {
        let (_, kind, code) = self.row();
        let param = match self {
            ApiError::Invalid { param, .. } | ApiError::NotFound { param, .. } => param.clone(),
            _ => None,
        };
        ErrorBody {
            error: ErrorObject {
                message: self.to_string(),
                kind,
                param,
                code,
            },
        }
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.row().0
    }

    fn error_response(&self) -> HttpResponse {
        self.log();
        let mut response = HttpResponse::build(self.status_code());
        match self {
            ApiError::MethodNotAllowed { allowed } => {
                response.insert_header((ALLOW, allowed.as_str()))
            }
            ApiError::Unauthorized(_) => response.insert_header((WWW_AUTHENTICATE, "Bearer")),
            ApiError::RateLimited { wait } => {
                response.insert_header((RETRY_AFTER, whole_seconds(*wait)))
            }
            ApiError::NotReady(_)
            | ApiError::Busy
            | ApiError::Examinations { .. }
            | ApiError::Downloads { .. }
            | ApiError::Stopping
            | ApiError::Unsent { .. } => response.insert_header((RETRY_AFTER, RETRY_SECONDS)),
            _ => &mut response,
        };
        let mut response = response.json(self.body());
        if let ApiError::Busy
        | ApiError::Examinations { .. }
        | ApiError::Downloads { .. }
        | ApiError::ExaminationDeadline { .. }
        | ApiError::RateLimited { .. }
        | ApiError::Deadline
        | ApiError::Unsent { .. } = self
            && let (_, _, Some(reason)) = self.row()
        {
            response.extensions_mut().insert(TurnedAway(reason));
        }
        response
    }
}

/// On an answer that turns away what another time could be answered: the error's code, for the metrics.
#[derive(Debug, Clone, Copy)]
pub struct TurnedAway(pub &'static str);

/// 499, which is not in the standard but in many servers' logs.
fn client_closed_request() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Invalid { message, param } => ApiError::Invalid {
                message,
                param,
                code: None,
            },
            EngineError::Failed(details) => ApiError::Internal(details),
            EngineError::NoMemory(problem) => ApiError::NotReady(problem),
            EngineError::DeviceLost(details) => {
                tracing::error!(details, "the device is lost");
                ApiError::NotReady(DeviceLost.to_string())
            }
            EngineError::Busy => ApiError::Busy,
            EngineError::Deadline => ApiError::Deadline,
            EngineError::Stopped => ApiError::NotReady("the engine is not running".to_owned()),
        }
    }
}

impl From<NotServed> for ApiError {
    fn from(error: NotServed) -> Self {
        match error {
            NotServed::Model { message } => ApiError::NotFound {
                message,
                param: Some("model".to_owned()),
                code: Some("model_not_found"),
            },
            // A name inside a body is a mistake in the request, not an address that does not exist.
            NotServed::Bridge {
                message,
                param: Some(param),
            } => ApiError::invalid_with_code(&param, "bridge_not_found", message),
            NotServed::Bridge {
                message,
                param: None,
            } => ApiError::NotFound {
                message,
                param: None,
                code: Some("bridge_not_found"),
            },
            NotServed::Circuit { message } => ApiError::NotFound {
                message,
                param: None,
                code: Some("circuit_not_found"),
            },
            NotServed::NotJoined { message, param } => ApiError::invalid(param, message),
        }
    }
}

impl From<WeightsError> for ApiError {
    fn from(error: WeightsError) -> Self {
        match error {
            WeightsError::NoRoom { .. }
            | WeightsError::Changed { .. }
            | WeightsError::TooLarge { .. }
            | WeightsError::Slow { .. } => ApiError::NotReady(error.to_string()),
            WeightsError::Pair(_) | WeightsError::Model(_) | WeightsError::Ended { .. } => {
                ApiError::internal(error)
            }
        }
    }
}

/// Whole seconds until something may be tried again, never none.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs_f64().ceil().max(1.0) as u64
}
