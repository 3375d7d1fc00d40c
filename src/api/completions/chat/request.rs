//! The body of a chat completion's request.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::messages::ChatMessage;
use crate::api::completions::request::with_common_fields;

with_common_fields! {
    /// An answer to be made. Fields that are not listed here are refused. Edits count positions in the text that the
    /// model's chat template makes of the messages, and a prompt in `steer.edits[].to` is such a text, not messages.
    #[derive(Debug, Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    pub struct CreateChatCompletion {
        /// The id of a dense model, or of a sparse one, that has a chat template, or the full name of a preset of one.
        pub model: String,
        /// The conversation so far.
        #[schema(min_items = 1)]
        pub messages: Vec<ChatMessage>,
        /// The most tokens to generate for each choice; unless said, as many as the model's context and the server's
        /// budget leave room for.
        #[schema(minimum = 1)]
        pub max_completion_tokens: Option<usize>,
        /// OpenAI's older name for `max_completion_tokens`; give one of the two.
        #[schema(minimum = 1)]
        pub max_tokens: Option<usize>,
        /// Log-probabilities (in nats) of each token.
        pub logprobs: Option<bool>,
        /// Log-probabilities of so many of the most probable tokens too; only with `logprobs`.
        pub top_logprobs: Option<usize>,
        /// Only `{"type": "text"}`.
        #[schema(value_type = Option<Object>)]
        pub response_format: Option<Value>,
        /// Only `["text"]`.
        #[schema(value_type = Option<Vec<String>>)]
        pub modalities: Option<Value>,
        /// Not supported: only an empty list.
        #[schema(value_type = Option<Vec<Object>>)]
        pub tools: Option<Value>,
        /// Not supported: only `none`.
        #[schema(value_type = Option<String>)]
        pub tool_choice: Option<Value>,
        /// Not supported: only false.
        #[schema(value_type = Option<bool>)]
        pub parallel_tool_calls: Option<Value>,
        /// Not supported: only an empty list.
        #[schema(value_type = Option<Vec<Object>>)]
        pub functions: Option<Value>,
        /// Not supported: only `none`.
        #[schema(value_type = Option<String>)]
        pub function_call: Option<Value>,
        /// Not supported: only null.
        #[schema(value_type = Option<Object>)]
        pub audio: Option<Value>,
        /// Not supported: only null.
        #[schema(value_type = Option<Object>)]
        pub prediction: Option<Value>,
        /// Not supported: only `none`.
        #[schema(value_type = Option<String>)]
        pub reasoning_effort: Option<Value>,
        /// Not supported: only null.
        #[schema(value_type = Option<String>)]
        pub verbosity: Option<Value>,
        /// Not supported: only null.
        #[schema(value_type = Option<Object>)]
        pub web_search_options: Option<Value>,
        /// Not supported: only false.
        #[schema(value_type = Option<bool>)]
        pub store: Option<Value>,
    }
}
