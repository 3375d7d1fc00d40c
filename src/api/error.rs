//! Every way a request can fail, and the one table that says with which status, type and code.
//!
//! The body is `{"error": {"message", "type", "param", "code"}}`, all four keys always there. 409 and 408 are
//! never answered: clients retry them.

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::generation::request::EngineError;

/// Seconds after which a client may try again what failed for want of an engine.
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
    MethodNotAllowed { allowed: &'static str },
    #[error("the request's body is longer than the {limit} bytes that are read")]
    TooLarge { limit: usize },
    #[error("the body must be JSON, sent with `content-type: application/json`")]
    NotJson,
    #[error("the server does not answer for the host {host:?}: it listens on this machine only")]
    ForeignHost { host: String },
    #[error("the server is not ready: {0}")]
    NotReady(String),
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
    /// `invalid_request_error` or `server_error`.
    #[serde(rename = "type")]
    #[schema(example = "invalid_request_error")]
    pub kind: &'static str,
    /// The field at fault, as a path such as `steer.edits[0].feature`; null where no field is.
    #[schema(required = true, example = "temperature")]
    pub param: Option<String>,
    /// For programs: `model_not_found`, `already_exists` and the like; null where the type says it all.
    #[schema(required = true)]
    pub code: Option<&'static str>,
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

    /// For `map_err`: something that should not have failed.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        ApiError::Internal(error.to_string())
    }

    /// The table: status, type, code.
    fn row(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        const INVALID: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
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
            ApiError::NotJson => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                INVALID,
                Some("unsupported_media_type"),
            ),
            ApiError::ForeignHost { .. } => (StatusCode::FORBIDDEN, INVALID, Some("foreign_host")),
            ApiError::NotReady(_) => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("not_ready")),
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
        if let ApiError::Internal(details) = self {
            tracing::error!(details, "a request failed");
        }
        let mut response = HttpResponse::build(self.status_code());
        match self {
            ApiError::MethodNotAllowed { allowed } => response.insert_header((ALLOW, *allowed)),
            ApiError::NotReady(_) => response.insert_header((RETRY_AFTER, RETRY_SECONDS)),
            _ => &mut response,
        };
        response.json(self.body())
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Invalid { message, param } => ApiError::Invalid {
                message,
                param,
                code: None,
            },
            // A name inside the steer field is a mistake in the request, not an address that does not exist.
            EngineError::NotFound { message, param } if in_steer(param.as_deref()) => {
                ApiError::Invalid {
                    message,
                    param,
                    code: Some("not_found"),
                }
            }
            EngineError::NotFound { message, param } => ApiError::NotFound {
                message,
                param,
                code: None,
            },
            EngineError::Failed(details) => ApiError::Internal(details),
            EngineError::Stopped => ApiError::NotReady("the engine is not running".to_owned()),
        }
    }
}

fn in_steer(param: Option<&str>) -> bool {
    param.is_some_and(|param| param.starts_with("steer"))
}
