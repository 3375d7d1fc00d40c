//! The fields that only a chat completion has, against their ranges.

use std::sync::Arc;

use serde_json::{Value, json};

use super::messages;
use super::request::CreateChatCompletion;
use crate::api::ApiError;
use crate::api::completions::parameters::{self, Asked, Checked, unsupported};
use crate::api::completions::prompt::Prompt;
use crate::api::completions::request::common_fields;
use crate::models::chat_template::ChatTemplate;
use crate::serving::named_model::NamedModel;
use crate::serving::snapshot::ModelCard;
use crate::settings::Limits;

pub const MOST_TOP_LOGPROBS: usize = 20;

/// A request that is within its ranges and budgets.
#[derive(Debug)]
pub struct CheckedChat {
    pub prompt: Prompt,
    pub checked: Checked,
    /// Whether log-probabilities were asked for.
    pub logprobs: bool,
}

/// Checks all that can be said without running the template.
pub fn check(
    request: CreateChatCompletion,
    named: &NamedModel,
    limits: &Limits,
) -> Result<CheckedChat, ApiError> {
    let template = template(&named.card)?;
    refuse_unsupported(&request)?;
    let (max_tokens, max_tokens_field) = max_tokens(&request)?;
    let asked = Asked {
        prompts: 1,
        samples: parameters::samples("n", request.n.unwrap_or(1))?,
        max_tokens,
        max_tokens_field,
        logprobs: logprobs(&request)?,
        echo: false,
    };
    let logprobs = asked.logprobs.is_some();
    let messages = messages::check(request.messages)?;
    let mut checked = parameters::check(common_fields!(request), asked, named, limits)?;
    // The token that ends a turn need not be the one that ends a document, which the engine stops at.
    let end_of_turn = template.eos_token().filter(|token| !token.is_empty());
    checked.stop.extend(end_of_turn.map(str::to_owned));
    Ok(CheckedChat {
        prompt: Prompt::Conversation { template, messages },
        checked,
        logprobs,
    })
}

/// The template that makes a text of a conversation with a model.
pub fn template(card: &ModelCard) -> Result<Arc<ChatTemplate>, ApiError> {
    card.chat_template.clone().ok_or_else(|| {
        let message = format!(
            "model {:?} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): it \
             completes text, at /v1/completions",
            card.id
        );
        ApiError::invalid_with_code("model", "no_chat_template", message)
    })
}

/// What these models do not do is refused unless it asks for what they do anyway.
fn refuse_unsupported(request: &CreateChatCompletion) -> Result<(), ApiError> {
    let none = || json!("none");
    for (field, value, harmless) in [
        (
            "response_format",
            &request.response_format,
            json!({"type": "text"}),
        ),
        ("modalities", &request.modalities, json!(["text"])),
        ("tools", &request.tools, json!([])),
        ("tool_choice", &request.tool_choice, none()),
        (
            "parallel_tool_calls",
            &request.parallel_tool_calls,
            json!(false),
        ),
        ("functions", &request.functions, json!([])),
        ("function_call", &request.function_call, none()),
        ("audio", &request.audio, Value::Null),
        ("prediction", &request.prediction, Value::Null),
        ("reasoning_effort", &request.reasoning_effort, none()),
        ("verbosity", &request.verbosity, Value::Null),
        (
            "web_search_options",
            &request.web_search_options,
            Value::Null,
        ),
        ("store", &request.store, json!(false)),
    ] {
        if value.as_ref().is_some_and(|value| *value != harmless) {
            let message = match harmless {
                Value::Null => format!("{field} is not supported; leave it out"),
                harmless => format!("{field} is not supported; leave it out, or give {harmless}"),
            };
            return Err(unsupported(field, message));
        }
    }
    Ok(())
}

/// The most tokens of a choice, and the field that says so.
fn max_tokens(request: &CreateChatCompletion) -> Result<(Option<usize>, &'static str), ApiError> {
    let (value, field) = match (request.max_completion_tokens, request.max_tokens) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(
                "max_tokens",
                "max_tokens and max_completion_tokens are one field; give one of them",
            ));
        }
        (None, Some(value)) => (Some(value), "max_tokens"),
        (value, None) => (value, "max_completion_tokens"),
    };
    match value {
        Some(0) => Err(ApiError::invalid(
            field,
            format!("{field} is 0; it must be at least 1"),
        )),
        value => Ok((value, field)),
    }
}

fn logprobs(request: &CreateChatCompletion) -> Result<Option<usize>, ApiError> {
    let wanted = request.logprobs.unwrap_or(false);
    match request.top_logprobs {
        Some(_) if !wanted => Err(ApiError::invalid(
            "top_logprobs",
            "top_logprobs needs logprobs to be true",
        )),
        Some(count) if count > MOST_TOP_LOGPROBS => Err(ApiError::invalid(
            "top_logprobs",
            format!("top_logprobs is {count}; it must be between 0 and {MOST_TOP_LOGPROBS}"),
        )),
        count => Ok(wanted.then(|| count.unwrap_or(0))),
    }
}
