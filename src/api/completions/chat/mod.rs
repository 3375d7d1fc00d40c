//! `POST /v1/chat/completions`: OpenAI's chat completions, for models whose directory has a chat template.
//!
//! The template writes the messages out as one text, which is completed like any other prompt. [`messages`] is
//! what can be said, [`request`] the body, [`parameters`] its checks, [`response`] the form of the answers.

pub mod messages;
pub mod parameters;
pub mod request;
pub mod response;

use actix_web::{HttpRequest, HttpResponse, web};

use self::parameters::CheckedChat;
use self::request::CreateChatCompletion;
use self::response::{ChatChoice, ChatEvent, ChatStyle};
use super::answer::answer;
use super::prompt::EchoedText;
use super::response::Completion;
use crate::api::ApiError;
use crate::api::body::JsonBody;
use crate::api::error::ErrorBody;
use crate::api::state::State;

/// Answers a conversation, with edits of sparse features where `steer` asks for them.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "completions", operation_id = "createChatCompletion",
    request_body(content = CreateChatCompletion, example = json!({
        "model": "my-chat-model", "max_completion_tokens": 8,
        "messages": [{"role": "user", "content": "Write a function that adds two numbers."}]
    })),
    responses(
        (status = 200, description = "The answers; with `stream`, server-sent events, each the JSON of a chunk or an \
            error, ended by `[DONE]`", content(
            (Completion<ChatChoice> = "application/json"),
            (ChatEvent = "text/event-stream")
        )),
        (status = 400, description = "A field is unknown, wrong, out of range or not supported, the model has no chat \
            template (code `no_chat_template`) or it does not take the messages, the request is over a budget, or its \
            steering cannot be applied; `param` names the field", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 503, description = "As many requests wait as may, or this one waited too long for its first token: \
            code `overloaded`; or the engine is not running: code `not_ready`", body = ErrorBody),
        (status = 504, description = "The answer took longer than the server lets one take: code \
            `deadline_exceeded`", body = ErrorBody)
    ))]
pub async fn create(
    http: HttpRequest,
    state: web::Data<State>,
    JsonBody(body, room): JsonBody<CreateChatCompletion>,
) -> Result<HttpResponse, ApiError> {
    let snapshot = state.snapshot();
    let named = &snapshot.named_model(&body.model)?;
    let CheckedChat {
        prompt,
        checked,
        logprobs,
    } = parameters::check(body, named, &state.limits)?;
    let style = |_: Vec<EchoedText>| ChatStyle::new(logprobs);
    answer(
        &http,
        state.clone(),
        named,
        vec![prompt],
        room,
        checked,
        style,
    )
    .await
}
