//! The fields that a completion of text and one of a conversation have in common: OpenAI's, a few samplers' that
//! other servers have, and `steer`.
//!
//! They are written into both bodies by a macro. Flattening one struct into two would lose what the errors of a
//! body say: which field is unknown, and the path of a wrong one.

use serde::Deserialize;
use utoipa::ToSchema;
use utoipa::openapi::Type;
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType};

use crate::generation::sampling::LARGEST_BIAS;

/// Declares a struct with its own fields and, after them, the common ones.
macro_rules! with_common_fields {
    ($(#[$attribute:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$attribute])*
        pub struct $name {
            $($own)*
            /// Choices for each prompt; 1 unless said.
            #[schema(default = 1)]
            pub n: Option<usize>,
            /// Up to four texts that end a completion; they are no part of it.
            pub stop: Option<$crate::api::completions::request::StopField>,
            /// The same seed and request give the same answer. Samples of different seeds have nothing in common.
            pub seed: Option<i64>,
            /// 1 unless said; 0 takes the most probable token.
            pub temperature: Option<f64>,
            /// Samples from the most probable tokens that together have this probability; 1 unless said; 0 takes the
            /// most probable token.
            pub top_p: Option<f64>,
            /// Samples from so many of the most probable tokens; 0 or -1, the default, from all.
            #[schema(minimum = -1, default = -1)]
            pub top_k: Option<i64>,
            /// Leaves out tokens with less than this share of the most probable one's probability; 0 unless said.
            pub min_p: Option<f64>,
            #[schema(schema_with = $crate::api::completions::request::biases)]
            pub logit_bias: Option<std::collections::BTreeMap<String, f64>>,
            /// Taken from the logit of every token that has been generated; 0 unless said.
            pub presence_penalty: Option<f64>,
            /// Taken from a token's logit for each time that it has been generated; 0 unless said.
            pub frequency_penalty: Option<f64>,
            /// Divides the positive logits of tokens seen before, and multiplies the negative ones; 1 unless said.
            pub repetition_penalty: Option<f64>,
            /// Answer piece by piece, as server-sent events.
            #[schema(default = false)]
            pub stream: Option<bool>,
            /// For streams only.
            pub stream_options: Option<$crate::api::completions::request::StreamOptions>,
            /// Who asks, in the caller's words; not used.
            pub user: Option<String>,
            /// Only requests of the same salt, or without one, start where the other's prompt parts from theirs: how
            /// long a first token takes tells others nothing of a prompt whose salt they do not know.
            #[schema(min_length = 1)]
            pub cache_salt: Option<String>,
            /// Edits of sparse features that the dense model's answer is made with. To a preset, which has its own, it may
            /// only add what to `return`.
            pub steer: Option<$crate::interventions::request::SteerRequest>,
            /// Another name for `steer`; give one of the two.
            pub steering: Option<$crate::interventions::request::SteerRequest>,
        }
    };
}

/// Moves the common fields out of a body.
macro_rules! common_fields {
    ($body:ident) => {
        $crate::api::completions::request::Common {
            n: $body.n,
            stop: $body.stop,
            seed: $body.seed,
            temperature: $body.temperature,
            top_p: $body.top_p,
            top_k: $body.top_k,
            min_p: $body.min_p,
            logit_bias: $body.logit_bias,
            presence_penalty: $body.presence_penalty,
            frequency_penalty: $body.frequency_penalty,
            repetition_penalty: $body.repetition_penalty,
            stream: $body.stream,
            stream_options: $body.stream_options,
            user: $body.user,
            cache_salt: $body.cache_salt,
            steer: $body.steer,
            steering: $body.steering,
        }
    };
}

pub(super) use {common_fields, with_common_fields};

with_common_fields! {
    /// The common fields of either body.
    #[derive(Debug, ToSchema)]
    pub struct Common {}
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

pub fn biases() -> Object {
    let bias = ObjectBuilder::new()
        .schema_type(Type::Number)
        .minimum(Some(-LARGEST_BIAS))
        .maximum(Some(LARGEST_BIAS));
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

/// One text or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected text or a list of up to four")]
pub enum StopField {
    One(String),
    Several(Vec<String>),
}
