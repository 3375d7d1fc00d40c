//! Families of dense models in Hugging Face's form: each a table of names and a reading of its `config.json`.
//!
//! | family | `model_type` | beyond a Llama |
//! |---|---|---|
//! | [`llama`] | `llama` | |
//! | [`mistral`] | `mistral` | sliding window |
//! | [`qwen2`] | `qwen2` | biases of q, k, v; window in some layers |
//! | [`qwen3`] | `qwen3` | norms of q and k per head |
//! | [`gemma2`] | `gemma2` | norms before and after, soft caps, every other layer windowed, scaled embeddings |
//! | [`phi3`] | `phi3` | packed q, k, v and gate, up; partial rotation; LongRoPE |
//! | [`olmo2`] | `olmo2` | norms after, norms of q and k over the whole width |
//! | [`smollm3`] | `smollm3` | layers without rotation |
//! | [`gpt_neox`] | `gpt_neox` | LayerNorm, parallel sublayers, plain MLP, partial rotation |
//!
//! No family has a forward pass: all are configurations of [`Transformer`](super::transformer::Transformer). Biases that a
//! family leaves out where others have them are zero here.

pub mod family;
pub mod gemma2;
pub mod gpt_neox;
pub mod llama;
pub mod mistral;
pub mod names;
pub mod olmo2;
pub mod phi3;
pub mod qwen2;
pub mod qwen3;
pub mod rope;
pub mod smollm3;

use self::family::Family;

/// All of them.
pub const FAMILIES: [Family; 9] = [
    llama::FAMILY,
    mistral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    gemma2::FAMILY,
    phi3::FAMILY,
    olmo2::FAMILY,
    smollm3::FAMILY,
    gpt_neox::FAMILY,
];

/// The family of a `model_type`.
pub fn family_of(model_type: &str) -> Option<&'static Family> {
    FAMILIES
        .iter()
        .find(|family| family.model_type == model_type)
}
