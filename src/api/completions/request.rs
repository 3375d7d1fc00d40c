//! The body of a completion's request: OpenAI's fields, a few samplers' that other servers have, and `steer`.

use std::collections::BTreeMap;

use serde::Deserialize;
use utoipa::ToSchema;
use utoipa::openapi::Type;
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType};

use crate::interventions::request::SteerRequest;

/// A completion to be made. Fields that are not listed here are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCompletion {
    /// The id of a dense model, or of a sparse one.
    pub model: String,
    /// Text, several texts, token ids, or several lists of them. None, or an empty text, starts a document.
    pub prompt: Option<PromptField>,
    /// The most tokens to generate for each choice; 16 unless said. 0, with `echo` only, scores the prompt.
    #[schema(minimum = 0, default = 16)]
    pub max_tokens: Option<usize>,
    /// Choices for each prompt; 1 unless said.
    #[schema(minimum = 1, maximum = 128, default = 1)]
    pub n: Option<usize>,
    /// Samples for each prompt, of which the `n` with the highest mean log-probability a token are kept. Not
    /// with `steer.variants` or a list of strengths.
    #[schema(minimum = 1, maximum = 128)]
    pub best_of: Option<usize>,
    /// The prompt is the beginning of the text that comes back.
    #[schema(default = false)]
    pub echo: Option<bool>,
    /// Log-probabilities (in nats) of each token and of so many of the most probable ones.
    #[schema(minimum = 0, maximum = 5)]
    pub logprobs: Option<usize>,
    /// Up to four texts that end a completion; they are no part of it.
    pub stop: Option<StopField>,
    /// The same seed and request give the same answer.
    pub seed: Option<i64>,
    /// 1 unless said; 0 takes the most probable token.
    #[schema(minimum = 0, maximum = 2, default = 1.0)]
    pub temperature: Option<f64>,
    /// Samples from the most probable tokens that together have this probability; 1 unless said.
    #[schema(minimum = 0, maximum = 1, default = 1.0)]
    pub top_p: Option<f64>,
    /// Samples from so many of the most probable tokens; 0 or -1, the default, from all.
    #[schema(minimum = -1, default = -1)]
    pub top_k: Option<i64>,
    /// Leaves out tokens with less than this share of the most probable one's probability; 0 unless said.
    #[schema(minimum = 0, maximum = 1, default = 0.0)]
    pub min_p: Option<f64>,
    #[schema(schema_with = biases)]
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// Taken from the logit of every token that has been generated; 0 unless said.
    #[schema(minimum = -2, maximum = 2, default = 0.0)]
    pub presence_penalty: Option<f64>,
    /// Taken from a token's logit for each time that it has been generated; 0 unless said.
    #[schema(minimum = -2, maximum = 2, default = 0.0)]
    pub frequency_penalty: Option<f64>,
    /// Divides the positive logits of tokens seen before, and multiplies the negative ones; 1 unless said.
    #[schema(exclusive_minimum = 0, maximum = 10, default = 1.0)]
    pub repetition_penalty: Option<f64>,
    /// Answer piece by piece, as server-sent events.
    #[schema(default = false)]
    pub stream: Option<bool>,
    /// For streams only.
    pub stream_options: Option<StreamOptions>,
    #[schema(schema_with = unsupported)]
    pub suffix: Option<String>,
    /// Who asks, in the caller's words; not used.
    pub user: Option<String>,
    /// Edits of sparse features that the dense model's answer is made with.
    pub steer: Option<SteerRequest>,
    /// Another name for `steer`; give one of the two.
    pub steering: Option<SteerRequest>,
}

/// How a stream is answered.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// A last chunk without choices tells the tokens used.
    #[schema(default = false)]
    pub include_usage: Option<bool>,
    /// Taken for the clients that send it; chunks are never padded.
    pub include_obfuscation: Option<bool>,
}

fn biases() -> Object {
    let bias = ObjectBuilder::new()
        .schema_type(Type::Number)
        .minimum(Some(-100.0))
        .maximum(Some(100.0));
    let token = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^[0-9]{1,10}$"));
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Object, Type::Null]))
        .description(Some(
            "Added to the logits of tokens, by their ids written as text.",
        ))
        .property_names(Some(token))
        .additional_properties(Some(bias))
        .build()
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

/// One text or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected text or a list of up to four")]
pub enum StopField {
    One(String),
    Several(Vec<String>),
}
