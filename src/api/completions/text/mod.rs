//! `POST /v1/completions`: OpenAI's text completions.

pub mod parameters;
pub mod request;
pub mod response;

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse, web};

use self::parameters::CheckedText;
use self::request::CreateCompletion;
use self::response::{TextChoice, TextEvent, TextStyle};
use super::answer::answer;
use super::prompt::EchoedText;
use super::response::Completion;
use crate::api::ApiError;
use crate::api::body::JsonBody;
use crate::api::error::ErrorBody;
use crate::api::state::State;

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
            (Completion<TextChoice> = "application/json"),
            (TextEvent = "text/event-stream")
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
    JsonBody(body, room): JsonBody<CreateCompletion>,
) -> Result<HttpResponse, ApiError> {
    let snapshot = state.snapshot();
    let named = &snapshot.named_model(&body.model)?;
    let CheckedText {
        prompts,
        checked,
        best_of,
        per_prompt,
        logprobs,
    } = parameters::check(body, named, &state.limits)?;
    let style = |echoed: Vec<EchoedText>| TextStyle {
        echoed,
        logprobs,
        best_of,
        per_prompt,
        progress: BTreeMap::new(),
    };
    answer(&http, state.clone(), named, prompts, room, checked, style).await
}
