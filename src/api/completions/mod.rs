//! `POST /v1/completions`: OpenAI's text completions, with the `steer` field.
//!
//! - [`request`]: what is sent. - [`parameters`]: checked against ranges and budgets.
//! - [`prompt`]: text becomes tokens, off the threads that serve. - [`response`]: what comes back.

pub mod parameters;
pub mod prompt;
pub mod request;
pub mod response;

use actix_web::{HttpResponse, web};

use self::request::CreateCompletion;
use self::response::{Completion, Frame};
use super::ApiError;
use super::body::JsonBody;
use super::error::ErrorBody;
use super::inventory::{system_fingerprint, unix_seconds};
use super::state::State;
use crate::generation::request::GenerationRequest;

/// Completes one or more prompts, with edits of sparse features where `steer` asks for them.
#[utoipa::path(post, path = "/v1/completions", tag = "completions", operation_id = "createCompletion",
    request_body = CreateCompletion,
    responses(
        (status = 200, description = "The completions", body = Completion),
        (status = 400, description = "A field is unknown, wrong or out of range, the request is over a budget, \
            or its steering cannot be applied; `param` names the field", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 413, description = "The body is too long", body = ErrorBody),
        (status = 415, description = "The body is not sent as JSON", body = ErrorBody),
        (status = 500, description = "The engine failed", body = ErrorBody),
        (status = 503, description = "The engine is not running", body = ErrorBody)
    ))]
pub async fn create(
    state: web::Data<State>,
    body: JsonBody<CreateCompletion>,
) -> Result<HttpResponse, ApiError> {
    let request = body.0;
    let card = state.inventory.model(&request.model)?;
    let checked = parameters::check(request, card, &state.limits)?;
    let texts = checked.prompts.clone();
    let prompts = prompt::encode(checked.prompts, card, &state.limits).await?;
    let bridge = checked
        .engine
        .steer
        .as_ref()
        .filter(|steer| !steer.edits.is_empty())
        .and_then(|steer| {
            state
                .inventory
                .bridge_for(&card.id, steer.bridge.as_deref())
        });
    let asked = GenerationRequest {
        prompts: prompts.clone(),
        ..checked.engine
    };
    let mut generation = state.engine.generate(asked).await?;
    state
        .metrics
        .prompt_tokens
        .inc_by(generation.prompt_tokens as u64);
    state
        .metrics
        .generation_tokens
        .inc_by(generation.completion_tokens as u64);
    if let Some(bridge) = bridge {
        state
            .metrics
            .steered_requests
            .with_label_values(&[bridge.record.id.as_str()])
            .inc();
    }
    if let Some(best_of) = checked.best_of {
        response::keep_best(&mut generation.choices, best_of.samples, best_of.kept);
    }
    let frame = Frame {
        created: unix_seconds(),
        model: card.id.clone(),
        system_fingerprint: system_fingerprint(card, bridge),
        echo: checked.echo,
        logprobs: checked.logprobs,
    };
    Ok(HttpResponse::Ok().json(response::completion(
        frame,
        generation,
        &texts,
        &prompts,
        &card.tokenizer,
    )))
}
