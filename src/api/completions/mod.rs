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
use self::stream::{Chunks, CompletionEvent};
use super::ApiError;
use super::body::JsonBody;
use super::disconnect;
use super::error::ErrorBody;
use super::inventory::{system_fingerprint, unix_seconds};
use super::state::State;
use crate::generation::request::{EngineError, GenerationRequest};

/// Completes one or more prompts, with edits of sparse features where `steer` asks for them.
#[utoipa::path(post, path = "/v1/completions", tag = "completions", operation_id = "createCompletion",
    request_body(content = CreateCompletion, examples(
        ("plain" = (summary = "A completion", value = json!({
            "model": "tinypython", "prompt": "for i in", "max_tokens": 8, "temperature": 0
        }))),
        ("steered" = (summary = "The string's closing quote follows an edit, beside the unedited answer and a control",
            value = json!({
                "model": "tinypython", "prompt": "print(\"hello world", "max_tokens": 4, "stop": ["\n"],
                "temperature": 0, "seed": 2,
                "steer": {
                    "edits": [{"feature": "quote_type", "op": "patch", "to": {"prompt": "print('hello world"}}],
                    "variants": ["steered", "baseline", "random"], "return": ["receipt"]
                }
            }))),
        ("sweep" = (summary = "One channel at several strengths, where and when it matters", value = json!({
            "model": "tinypython", "prompt": "print(\"hello world", "max_tokens": 4,
            "steer": {"edits": [{
                "feature": {"node": "0.mlp.act_in", "channel": 20}, "op": "add", "value": 1, "unit": "std",
                "strength": [-1, 0, 1], "at": {"prompt": [-1, [0, 2]], "generation": "none"},
                "when": {"any": [{"feature": "quote_type", "gt": -100}, {"feature": "quote_type", "lt": 100}]}
            }]}
        }))),
        ("streamed" = (summary = "Piece by piece, with log-probabilities and the tokens used", value = json!({
            "model": "tinypython-sparse", "prompt": ["def f(", "class A"], "max_tokens": 8, "logprobs": 2,
            "stream": true, "stream_options": {"include_usage": true}
        })))
    )),
    responses(
        (status = 200, description = "The completions; with `stream`, server-sent events, each the JSON of a chunk \
            or an error, ended by `[DONE]`", content(
            (Completion = "application/json"),
            (CompletionEvent = "text/event-stream")
        )),
        (status = 400, description = "A field is unknown, wrong or out of range, the request is over a budget, \
            or its steering cannot be applied; `param` names the field", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 503, description = "As many requests wait as may, or this one waited too long for its first token: \
            code `overloaded`; or the engine is not running: code `not_ready`", body = ErrorBody),
        (status = 504, description = "The completion took longer than the server lets one take: code \
            `deadline_exceeded`", body = ErrorBody)
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
