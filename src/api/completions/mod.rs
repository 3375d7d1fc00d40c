//! `POST /v1/completions`: OpenAI's text completions, with the `steer` field.
//!
//! - [`request`]: what is sent. - [`parameters`]: checked against ranges and budgets.
//! - [`prompt`]: text becomes tokens, off the threads that serve. - [`response`]: what comes back, and
//!   [`stream`]: the same piece by piece.

pub mod parameters;
pub mod prompt;
pub mod request;
pub mod response;
pub mod stream;

use actix_web::{HttpRequest, HttpResponse, web};

use self::request::CreateCompletion;
use self::response::{Completion, Frame};
use self::stream::{Chunks, CompletionChunk};
use super::ApiError;
use super::body::JsonBody;
use super::disconnect;
use super::error::ErrorBody;
use super::inventory::{system_fingerprint, unix_seconds};
use super::state::State;
use crate::generation::request::{EngineError, GenerationRequest};

/// Completes one or more prompts, with edits of sparse features where `steer` asks for them.
#[utoipa::path(post, path = "/v1/completions", tag = "completions", operation_id = "createCompletion",
    request_body = CreateCompletion,
    responses(
        (status = 200, description = "The completions; with `stream`, server-sent events, each the JSON of a chunk \
            or an error, ended by `[DONE]`", content(
            (Completion = "application/json"),
            (CompletionChunk = "text/event-stream")
        )),
        (status = 400, description = "A field is unknown, wrong or out of range, the request is over a budget, \
            or its steering cannot be applied; `param` names the field", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 413, description = "The body is too long", body = ErrorBody),
        (status = 415, description = "The body is not sent as JSON", body = ErrorBody),
        (status = 500, description = "The engine failed", body = ErrorBody),
        (status = 503, description = "As many requests wait as may, this one waited too long for its first token, or \
            the engine is not running; `retry-after` says when to try again", body = ErrorBody),
        (status = 504, description = "The completion took longer than the server lets one take", body = ErrorBody)
    ))]
pub async fn create(
    http: HttpRequest,
    state: web::Data<State>,
    body: JsonBody<CreateCompletion>,
) -> Result<HttpResponse, ApiError> {
    let request = body.0;
    let inventory = state.inventory();
    let card = &*inventory.model(&request.model)?;
    let checked = parameters::check(request, card, &state.limits)?;
    let texts = checked.prompts.clone();
    let prompts = prompt::encode(checked.prompts, card, &state.limits).await?;
    let bridge = checked
        .engine
        .steer
        .as_ref()
        .filter(|steer| !steer.edits.is_empty())
        .and_then(|steer| inventory.bridge_for(&card.id, steer.bridge.as_deref()));
    let frame = Frame {
        created: unix_seconds(),
        model: card.id.clone(),
        system_fingerprint: system_fingerprint(card, bridge.as_deref()),
        echo: checked.echo,
        logprobs: checked.logprobs,
    };
    let bridge = bridge.map(|bridge| bridge.record.id.to_string());
    let echoed = response::echoed(&texts, &prompts, &card.tokenizer);
    let asked = GenerationRequest {
        prompts,
        ..checked.engine
    };
    if let Some(streaming) = checked.streaming {
        let stream = unless_gone(&http, state.engine.stream(asked)).await?;
        let chunks = Chunks::new(frame, streaming.include_usage, echoed, checked.choices);
        let tokenizer = card.tokenizer.clone();
        return Ok(stream::respond(
            stream,
            chunks,
            tokenizer,
            state.clone(),
            bridge,
        ));
    }
    let mut generation = unless_gone(&http, state.engine.generate(asked)).await?;
    state.metrics.generated(&generation, bridge.as_deref());
    if let Some(best_of) = checked.best_of {
        response::keep_best(&mut generation.choices, best_of.samples, best_of.kept);
    }
    let completion = response::completion(frame, generation, &echoed, &card.tokenizer);
    Ok(HttpResponse::Ok().json(completion))
}

/// What the engine answers, unless the client goes before: dropping the engine's future gives the request up.
async fn unless_gone<T>(
    http: &HttpRequest,
    answer: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, ApiError> {
    tokio::select! {
        answer = answer => Ok(answer?),
        () = disconnect::gone(http) => Err(ApiError::ClientGone),
    }
}
