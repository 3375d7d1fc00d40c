//! `POST /v1/completions`: OpenAI's text completions.

pub mod parameters;
pub mod request;
pub mod response;

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse, web};

use self::parameters::CheckedText;
use self::request::CreateCompletion;
use self::response::{TextChoice, TextPiece, TextStyle, echoed};
use super::answer::answer;
use super::response::{Chunk, Completion};
use crate::api::ApiError;
use crate::api::body::JsonBody;
use crate::api::error::ErrorBody;
use crate::api::state::State;

/// Completes one or more prompts, with edits of sparse features where `steer` asks for them.
#[utoipa::path(post, path = "/v1/completions", tag = "completions", operation_id = "createCompletion",
    request_body = CreateCompletion,
    responses(
        (status = 200, description = "The completions; with `stream`, server-sent events, each the JSON of a chunk \
            or an error, ended by `[DONE]`", content(
            (Completion<TextChoice> = "application/json"),
            (Chunk<TextPiece> = "text/event-stream")
        )),
        (status = 400, description = "A field is unknown, wrong or out of range, the request is over a budget, \
            or its steering cannot be applied; `param` names the field", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 413, description = "The body is too long", body = ErrorBody),
        (status = 415, description = "The body is not sent as JSON", body = ErrorBody),
        (status = 500, description = "The engine failed", body = ErrorBody),
        (status = 503, description = "As many requests wait as may, or the engine is not running; `retry-after` says \
            when to try again", body = ErrorBody),
        (status = 504, description = "The completion took longer than the server lets one take", body = ErrorBody)
    ))]
pub async fn create(
    http: HttpRequest,
    state: web::Data<State>,
    body: JsonBody<CreateCompletion>,
) -> Result<HttpResponse, ApiError> {
    let card = state.inventory.model(&body.0.model)?;
    let CheckedText {
        prompts,
        checked,
        best_of,
        per_prompt,
        echo,
        logprobs,
    } = parameters::check(body.0, card, &state.limits)?;
    let sent = echo.then(|| prompts.clone());
    let style = |prompts: &[Vec<u32>]| TextStyle {
        echoed: sent.map(|sent| echoed(&sent, prompts, &card.tokenizer)),
        logprobs,
        best_of,
        per_prompt,
        progress: BTreeMap::new(),
    };
    answer(&http, state.clone(), card, prompts, checked, style).await
}
