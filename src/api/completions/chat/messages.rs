//! The messages of a conversation: OpenAI's forms are all read, so that those a model of text cannot take are
//! refused by name.

use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::api::completions::parameters::unsupported;
use crate::models::chat_template::{Message, Role};
use crate::serving::snapshot::shortened;

/// One message of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    pub role: ChatRole,
    /// What is said: text, or parts of text, which are joined by newlines.
    #[schema(required = true)]
    pub content: Option<Content>,
    /// Who says it, for templates that tell speakers apart.
    pub name: Option<String>,
    /// Taken where it is null, as in an answer that is sent back.
    pub refusal: Option<String>,
    /// Not supported: only null.
    #[schema(value_type = Option<Object>)]
    pub audio: Option<Value>,
    /// Not supported: only null, or none.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tool_calls: Option<Value>,
    /// Not supported: only null.
    pub tool_call_id: Option<String>,
    /// Not supported: only null.
    #[schema(value_type = Option<Object>)]
    pub function_call: Option<Value>,
    /// Not supported: only null, or none.
    #[schema(value_type = Option<Vec<Object>>)]
    pub annotations: Option<Value>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChatRole {
    System,
    /// OpenAI's newer name for `system`; templates get that one.
    Developer,
    User,
    Assistant,
    /// Not supported.
    Tool,
    /// Not supported.
    Function,
}

/// Text, or a list of parts.
#[derive(Debug, ToSchema)]
#[schema(as = ChatContent)]
#[serde(untagged)]
pub enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

/// A part of what is said. Of OpenAI's other kinds the fields are read and the kind is refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContentPart {
    /// Only `text` is supported.
    #[serde(rename = "type")]
    #[schema(example = "text")]
    pub kind: String,
    #[schema(required = true)]
    pub text: Option<String>,
    #[serde(default, rename = "image_url")]
    #[schema(ignore)]
    _image_url: Option<Value>,
    #[serde(default, rename = "input_audio")]
    #[schema(ignore)]
    _input_audio: Option<Value>,
    #[serde(default, rename = "file")]
    #[schema(ignore)]
    _file: Option<Value>,
    #[serde(default, rename = "refusal")]
    #[schema(ignore)]
    _refusal: Option<Value>,
}

/// By hand, so that an error inside a part keeps its path.
impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor;

        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("text or a list of parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<Content, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(parts)).map(Content::Parts)
            }
        }

        deserializer.deserialize_any(ContentVisitor)
    }
}

/// The messages as a template takes them.
pub fn check(messages: Vec<ChatMessage>) -> Result<Vec<Message>, ApiError> {
    if messages.is_empty() {
        let message = "messages is empty; a conversation has at least one";
        return Err(ApiError::invalid("messages", message));
    }
    let messages = messages.into_iter().enumerate();
    messages
        .map(|(index, message)| check_message(message, &format!("messages[{index}]")))
        .collect()
}

fn check_message(message: ChatMessage, path: &str) -> Result<Message, ApiError> {
    let role = match message.role {
        ChatRole::System | ChatRole::Developer => Role::System,
        ChatRole::User => Role::User,
        ChatRole::Assistant => Role::Assistant,
        ChatRole::Tool | ChatRole::Function => {
            let message =
                "these models call no tools; roles are system, developer, user and assistant";
            return Err(unsupported(&format!("{path}.role"), message));
        }
    };
    // A list of nothing says as little as null.
    let lists = |value: &Option<Value>| {
        value
            .as_ref()
            .is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty()))
    };
    for (field, given) in [
        ("refusal", message.refusal.is_some()),
        ("audio", message.audio.is_some()),
        ("tool_calls", lists(&message.tool_calls)),
        ("tool_call_id", message.tool_call_id.is_some()),
        ("function_call", message.function_call.is_some()),
        ("annotations", lists(&message.annotations)),
    ] {
        if given {
            let message = format!("{field} is not supported: messages are text");
            return Err(unsupported(&format!("{path}.{field}"), message));
        }
    }
    let content = match message.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => joined(parts, path)?,
        None => {
            let field = format!("{path}.content");
            let message = format!("{field} is missing; it is text or a list of parts of text");
            return Err(ApiError::invalid_with_code(
                &field,
                "missing_field",
                message,
            ));
        }
    };
    Ok(Message {
        role,
        content,
        name: message.name,
    })
}

fn joined(parts: Vec<ContentPart>, path: &str) -> Result<String, ApiError> {
    let text = |(index, part): (usize, ContentPart)| {
        let path = format!("{path}.content[{index}]");
        if part.kind != "text" {
            let kind = shortened(&part.kind);
            let message =
                format!("parts of the type {kind:?} are not supported: messages are text");
            return Err(unsupported(&format!("{path}.type"), message));
        }
        part.text.ok_or_else(|| {
            let field = format!("{path}.text");
            let message = format!("{field} is missing");
            ApiError::invalid_with_code(&field, "missing_field", message)
        })
    };
    let texts: Result<Vec<String>, ApiError> = parts.into_iter().enumerate().map(text).collect();
    Ok(texts?.join("\n"))
}
