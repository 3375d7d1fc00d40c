//! The body of a text completion's request.

use serde::Deserialize;
use utoipa::ToSchema;
use utoipa::openapi::Type;
use utoipa::openapi::schema::{Object, ObjectBuilder};

use crate::api::completions::request::with_common_fields;

with_common_fields! {
    /// A completion to be made. Fields that are not listed here are refused.
    #[derive(Debug, Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    pub struct CreateCompletion {
        /// The id of a dense model, or of a sparse one, or a preset's full name.
        pub model: String,
        /// Text, several texts, token ids, or several lists of them. A text's tokens begin with what the tokenizer's
        /// post-processor puts before one, unless the text begins with it already; ids are taken as they are. None, or
        /// an empty text, is the token that a text begins with.
        pub prompt: Option<PromptField>,
        /// The most tokens to generate for each choice; 16 unless said. 0, with `echo` only, scores the prompt.
        #[schema(minimum = 0, default = 16)]
        pub max_tokens: Option<usize>,
        /// Samples for each prompt, of which the `n` with the highest mean log-probability a token are kept. Not
        /// with `steer.variants` or a list of strengths.
        pub best_of: Option<usize>,
        /// The prompt is the beginning of the text that comes back.
        #[schema(default = false)]
        pub echo: Option<bool>,
        /// Log-probabilities (in nats) of each token and of so many of the most probable ones.
        pub logprobs: Option<usize>,
        #[schema(schema_with = unsupported)]
        pub suffix: Option<String>,
    }
}

fn unsupported() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Null)
        .description(Some(
            "Not supported, so only null: these models continue text, they do not fill gaps.",
        ))
        .build()
}

/// OpenAI's four forms of a prompt.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected text, a list of texts, a list of token ids or a list of such lists"
)]
pub enum PromptField {
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<u32>>),
}
