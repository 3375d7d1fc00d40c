//! JSON bodies, bodies that are files, and queries, with errors that name the field at fault.
//!
//! Unknown fields are refused: official clients send documented fields only, and a misspelt
//! `temprature` must not silently be the default.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use actix_web::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use actix_web::{FromRequest, HttpRequest, dev, web};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment, Track};

use super::ApiError;
use super::objects::Objects;
use super::parse_message::in_words;
use super::state::State;
use super::unparsed::BodyRoom;
use crate::interventions::nearest::suggestion;
use crate::memory;
use crate::serving::snapshot::shortened;

/// A body so short takes no time to parse.
const PARSED_AT_ONCE: usize = 1 << 14;
/// What a longer one took to parse, many times its length where a field may be of several kinds, is given back at once.
const GIVEN_BACK: usize = 1 << 18;

/// A request's body where it is a file: held whole, so no longer than any other body, with its room.
#[derive(Debug)]
pub struct FileBody(pub Vec<u8>, pub BodyRoom);

/// A request's body where it is lines of JSON, held whole as a file is.
#[derive(Debug)]
pub struct LinesBody(pub Vec<u8>, pub BodyRoom);

impl FromRequest for FileBody {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, ApiError>>>>;

    fn from_request(request: &HttpRequest, payload: &mut dev::Payload) -> Self::Future {
        let is_file = is_of_type(request, "application/octet-stream");
        let held = held_whole(
            request,
            payload,
            is_file.then_some(()).ok_or(ApiError::NotFile),
        );
        Box::pin(async move { held.await.map(|(bytes, room)| FileBody(bytes, room)) })
    }
}

impl FromRequest for LinesBody {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, ApiError>>>>;

    fn from_request(request: &HttpRequest, payload: &mut dev::Payload) -> Self::Future {
        let are_lines =
            is_of_type(request, "application/x-ndjson") || is_of_type(request, "application/jsonl");
        let held = held_whole(
            request,
            payload,
            are_lines.then_some(()).ok_or(ApiError::NotLines),
        );
        Box::pin(async move { held.await.map(|(bytes, room)| LinesBody(bytes, room)) })
    }
}

/// The whole of a body whose type is accepted, with its room.
fn held_whole(
    request: &HttpRequest,
    payload: &mut dev::Payload,
    accepted: Result<(), ApiError>,
) -> impl Future<Output = Result<(Vec<u8>, BodyRoom), ApiError>> + 'static {
    let state = request.app_data::<web::Data<State>>().cloned();
    let length = declared_length(request);
    let payload = payload.take();
    async move {
        // As with JSON, a browser asks for leave before it sends this to another site.
        accepted?;
        let state = state.ok_or_else(|| ApiError::internal("the application has no state"))?;
        let limit = state.limits.max_body_bytes;
        if length.is_some_and(|length| length > limit) {
            return Err(ApiError::TooLarge { limit });
        }
        let reading = async {
            let room = state.unparsed.take(length.unwrap_or(limit)).await?;
            Ok((collect(payload, length, limit).await?, room))
        };
        in_time(&state, reading).await?
    }
}

/// A request's body, parsed, and the room that it takes until its values are checked.
#[derive(Debug)]
pub struct JsonBody<T>(pub T, pub BodyRoom);

impl<T: DeserializeOwned + Send + 'static> FromRequest for JsonBody<T> {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, ApiError>>>>;

    fn from_request(request: &HttpRequest, payload: &mut dev::Payload) -> Self::Future {
        let json = is_of_type(request, "application/json");
        let state = request.app_data::<web::Data<State>>().cloned();
        let length = declared_length(request);
        let payload = payload.take();
        Box::pin(async move {
            // A browser asks for leave before it sends JSON to another site, and sends anything else unasked.
            if !json {
                return Err(ApiError::NotJson);
            }
            let state = state.ok_or_else(|| ApiError::internal("the application has no state"))?;
            let limit = state.limits.max_body_bytes;
            if length.is_some_and(|length| length > limit) {
                return Err(ApiError::TooLarge { limit });
            }
            // Nobody knows the length of a body that declares none.
            let most = length.unwrap_or(limit);
            let reading = async {
                let room = match most > PARSED_AT_ONCE {
                    true => state.unparsed.take(most).await?,
                    false => BodyRoom::default(),
                };
                Ok::<_, ApiError>((collect(payload, length, limit).await?, room))
            };
            let (bytes, room) = in_time(&state, reading).await??;
            if bytes.len() <= PARSED_AT_ONCE {
                return Ok(JsonBody(parse(&bytes)?, room));
            }
            // A thread that serves many connections would keep all of them waiting.
            let _turn = state.parsing.acquire().await.map_err(ApiError::internal)?;
            let parsed = web::block(move || {
                let parsed = parse(&bytes);
                let is_long = bytes.len() > GIVEN_BACK;
                drop(bytes);
                // On this thread: the next body may be parsed on another, which has memory of its own.
                if is_long {
                    memory::give_back();
                }
                parsed
            });
            let parsed = parsed.await;
            Ok(JsonBody(parsed.map_err(ApiError::internal)??, room))
        })
    }
}

/// Waits for what a client sends, no longer than it may take and not once the server stops.
pub async fn in_time<T>(state: &State, sent: impl Future<Output = T>) -> Result<T, ApiError> {
    let seconds = state.limits.body_seconds;
    let mut stopping = state.jobs.stopping();
    tokio::select! {
        sent = tokio::time::timeout(Duration::from_secs(seconds), sent) => {
            sent.map_err(|_| ApiError::SlowBody { seconds })
        }
        // An error says that the server is gone already.
        _ = stopping.wait_for(|stopping| *stopping) => Err(ApiError::Stopping),
    }
}

/// Whether a request says that its body is of this media type.
fn is_of_type(request: &HttpRequest, expected: &str) -> bool {
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
    media_type.eq_ignore_ascii_case(expected)
}

/// The length that a request says its body has.
fn declared_length(request: &HttpRequest) -> Option<usize> {
    let length = request.headers().get(CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// The whole of a body, in memory of just its length where that is known.
async fn collect(
    mut payload: dev::Payload,
    length: Option<usize>,
    limit: usize,
) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let reserved = bytes.try_reserve_exact(length.unwrap_or(0));
    reserved.map_err(|_| ApiError::Busy)?;
    while let Some(piece) = payload.next().await {
        let piece = piece.map_err(|error| ApiError::Invalid {
            message: format!("the body could not be read: {error}"),
            param: None,
            code: Some("unreadable_body"),
        })?;
        if bytes.len() + piece.len() > limit {
            return Err(ApiError::TooLarge { limit });
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Parses JSON of one value.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let mut track = Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut reader, &mut track);
    let value = match T::deserialize(Objects(tracked)) {
        Ok(value) => value,
        // A body that ends early is wrong as a whole, wherever it ends.
        Err(error) if error.is_eof() => return Err(parse_error("", &error.to_string())),
        Err(error) => return Err(parse_error(&field(&track.path()), &error.to_string())),
    };
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
        assert_eq!(
            param(r#"{"inner": [[2.5]]}"#).as_deref(),
            Some("inner[0]"),
            "a list is no object"
        );
        assert_eq!(param("[null]").as_deref(), None);
        assert_eq!(param("{").as_deref(), None);
        assert_eq!(param("{} x").as_deref(), None);
    }
}
