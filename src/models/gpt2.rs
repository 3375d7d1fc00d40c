//! A dense GPT-2 in Hugging Face form, translated: its `config.json` and its tensors' names and orientation.
//!
//! GPT-2's linear layers are "Conv1D" and store `[in, out]`; ours are `[out, in]`. Names come with or without
//! the `transformer.` prefix. The unembedding is normally the embedding.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::{Map, Value};

use super::config::{
    Activation, ConfigError, Norm, Positions, ResidualActivation, TransformerConfig,
};
use super::fields::Fields;
use super::tensor_names::UNEMBEDDING;

/// Parses a GPT-2 `config.json`. Settings that would change the forward pass are refused.
pub fn from_object(object: &Map<String, Value>) -> Result<TransformerConfig, ConfigError> {
    let fields = Fields(object);
    let wrong = |field, problem: String| Err(ConfigError { field, problem });
    let must_be = [
        ("scale_attn_weights", true),
        ("scale_attn_by_inverse_layer_idx", false),
        ("add_cross_attention", false),
    ];
    for (field, expected) in must_be {
        if fields.boolean(field, expected)? != expected {
            return wrong(
                field,
                format!("must be {expected}; the other is not supported"),
            );
        }
    }
    let norm = Norm::Layer;
    let epsilon = fields.optional_number("layer_norm_epsilon")?;
    if let Some(epsilon) = epsilon
        && epsilon as f32 != norm.epsilon()
    {
        let problem = format!("is {epsilon}; only {} is supported", norm.epsilon());
        return wrong("layer_norm_epsilon", problem);
    }
    let activation = match fields.text("activation_function", "gelu_new")? {
        "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        "gelu" => Activation::Gelu,
        "relu" => Activation::Relu,
        other => {
            let problem =
                format!("is {other:?}; gelu_new, gelu_pytorch_tanh, gelu and relu are supported");
            return wrong("activation_function", problem);
        }
    };
    let d_model = fields.size("n_embd")?;
    let n_heads = fields.size("n_head")?;
    if n_heads == 0 || !d_model.is_multiple_of(n_heads) {
        return wrong(
            "n_head",
            format!("is {n_heads}; it must divide n_embd, {d_model}"),
        );
    }
    let config = TransformerConfig {
        n_layers: fields.size("n_layer")?,
        d_model,
        n_heads,
        d_head: d_model / n_heads,
        d_mlp: fields
            .optional_size("n_inner")?
            .unwrap_or(d_model.saturating_mul(4)),
        vocab_size: fields.size("vocab_size")?,
        context_length: fields.size("n_positions")?,
        norm,
        bias: true,
        activation,
        residual_activation: ResidualActivation::Identity,
        positions: Positions::Added,
        active_fraction: None,
        active_locations: Default::default(),
        tied_unembedding: fields.boolean("tie_word_embeddings", true)?,
        bigram_table: false,
        attention_sinks: false,
        variant: Default::default(),
    };
    config.validate()?;
    Ok(config)
}

/// Gives every tensor its name and orientation here.
pub fn translate(
    tensors: BTreeMap<String, Tensor>,
) -> candle_core::Result<BTreeMap<String, Tensor>> {
    let mut translated = BTreeMap::new();
    for (name, tensor) in tensors {
        let canonical = if name == UNEMBEDDING || name.starts_with("transformer.") {
            name
        } else {
            format!("transformer.{name}")
        };
        let is_linear = canonical.ends_with(".weight")
            && (canonical.contains(".attn.c_") || canonical.contains(".mlp.c_"));
        let tensor = if is_linear && tensor.rank() == 2 {
            tensor.t()?.contiguous()?
        } else {
            tensor
        };
        translated.insert(canonical, tensor);
    }
    Ok(translated)
}
