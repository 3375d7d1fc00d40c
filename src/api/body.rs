//! JSON bodies and queries, with errors that name the field at fault.
//!
//! Unknown fields are refused: official clients send documented fields only, and a misspelt
//! `temprature` must not silently be the default.

use std::future::Future;
use std::pin::Pin;

use actix_web::http::header::CONTENT_TYPE;
use actix_web::{FromRequest, HttpRequest, ResponseError, dev, web};
use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment};

use super::ApiError;
use super::inventory::shortened;
use super::parse_message::in_words;
use super::state::State;
use crate::interventions::nearest::suggestion;

/// A request's body, parsed.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned + 'static> FromRequest for JsonBody<T> {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, ApiError>>>>;

    fn from_request(request: &HttpRequest, payload: &mut dev::Payload) -> Self::Future {
        let json = is_json(request);
        let limit = request
            .app_data::<web::Data<State>>()
            .map_or(0, |state| state.limits.max_body_bytes);
        let bytes = web::Bytes::from_request(request, payload);
        Box::pin(async move {
            // A browser asks for leave before it sends JSON to another site, and sends anything else unasked.
            if !json {
                return Err(ApiError::NotJson);
            }
            let bytes = bytes.await.map_err(|error| body_error(&error, limit))?;
            parse(&bytes).map(JsonBody)
        })
    }
}

fn is_json(request: &HttpRequest) -> bool {
    let content_type = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let media_type = content_type
        .unwrap_or("")
        .split(';')
        .next()
        .unwrap_or("")
        .trim();
    media_type.eq_ignore_ascii_case("application/json")
}

fn body_error(error: &actix_web::Error, limit: usize) -> ApiError {
    let response: &dyn ResponseError = error.as_response_error();
    match response.status_code().as_u16() {
        413 => ApiError::TooLarge { limit },
        _ => ApiError::Invalid {
            message: format!("the body could not be read: {error}"),
            param: None,
            code: Some("unreadable_body"),
        },
    }
}

/// Parses JSON of one value.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let cut_off = error.inner().is_eof();
        // A body that ends early is wrong as a whole, wherever it ends.
        let path = if cut_off {
            String::new()
        } else {
            field(error.path())
        };
        parse_error(&path, &error.into_inner().to_string())
    })?;
    reader
        .end()
        .map_err(|error| parse_error("", &error.to_string()))?;
    Ok(value)
}

/// The path of a field as callers write it, as far as it is known.
fn field(path: &Path) -> String {
    let mut field = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => field += &format!("[{index}]"),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                if !field.is_empty() {
                    field.push('.');
                }
                field += &shortened(key);
            }
            Segment::Unknown => break,
        }
    }
    field
}

/// A parser's message, made to name the field and, for a name that does not exist, the nearest ones that do.
fn parse_error(parent: &str, message: &str) -> ApiError {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown field") && !quoted.is_empty() {
        let param = join(parent, &shortened(quoted[0]));
        let near = suggestion(&shortened(quoted[0]), quoted[1..].iter().copied());
        let message = format!("there is no field {param:?}{near}");
        return ApiError::Invalid {
            message,
            param: Some(param),
            code: Some("unknown_field"),
        };
    }
    if message.starts_with("missing field") && !quoted.is_empty() {
        let param = join(parent, quoted[0]);
        let message = format!("{param} is missing");
        return ApiError::Invalid {
            message,
            param: Some(param),
            code: Some("missing_field"),
        };
    }
    let message = in_words(message);
    ApiError::Invalid {
        message: match parent {
            "" => format!("the body is not as it should be: {message}"),
            field => format!("{field}: {message}"),
        },
        param: (!parent.is_empty()).then(|| parent.to_owned()),
        code: None,
    }
}

fn join(parent: &str, field: &str) -> String {
    match parent {
        "" => field.to_owned(),
        // The path ends in the field itself where the parser stopped at its name.
        _ if parent == field || parent.ends_with(&format!(".{field}")) => parent.to_owned(),
        _ => format!("{parent}.{field}"),
    }
}

/// How queries are parsed: unknown parameters and wrong values are errors of the usual shape.
pub fn query_config() -> web::QueryConfig {
    web::QueryConfig::default().error_handler(|error, _| {
        let message = match &error {
            actix_web::error::QueryPayloadError::Deserialize(error) => error.to_string(),
            other => other.to_string(),
        };
        parse_error("", &message).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        inner: Option<Vec<Inner>>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        strength: f64,
    }

    fn param(json: &str) -> Option<String> {
        let error = parse::<Outer>(json.as_bytes()).expect_err("an invalid body");
        error.body().error.param
    }

    #[test]
    fn a_valid_body_is_read() {
        let outer: Outer = parse(br#"{"inner": [{"strength": 1.5}]}"#).expect("a valid body");
        assert_eq!(outer.inner.expect("a list")[0].strength, 1.5);
    }

    #[test]
    fn errors_name_the_field() {
        assert_eq!(
            param(r#"{"inner": [{"strength": 1}, {"strength": "x"}]}"#).as_deref(),
            Some("inner[1].strength")
        );
        assert_eq!(
            param(r#"{"inner": [{"strenght": 1}]}"#).as_deref(),
            Some("inner[0].strenght")
        );
        assert_eq!(
            param(r#"{"inner": [{}]}"#).as_deref(),
            Some("inner[0].strength")
        );
        assert_eq!(param(r#"{"iner": 1}"#).as_deref(), Some("iner"));
        assert_eq!(param("{").as_deref(), None);
        assert_eq!(param("{} x").as_deref(), None);
    }
}
