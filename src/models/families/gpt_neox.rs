//! GPT-NeoX and Pythia: LayerNorm, biases everywhere, a plain MLP, attention and MLP side by side, the first quarter or so
//! of each head rotated.

use super::family::Family;
use super::llama::activation_called;
use super::names::{Names, StoredAt};
use super::rope;
use crate::models::config::{ConfigError, Norm, Positions, ResidualActivation, TransformerConfig};
use crate::models::fields::{Fields, wrong};
use crate::models::variant::ModelVariant;

pub const FAMILY: Family = Family {
    model_type: "gpt_neox",
    config,
    names: &NAMES,
};

const NAMES: Names = Names {
    prefixes: &["gpt_neox."],
    unembedding: "embed_out.weight",
    embedding: "embed_in",
    final_norm: "final_layer_norm",
    layers: "layers",
    layer: &[
        ("ln_1", StoredAt::One("input_layernorm")),
        ("ln_2", StoredAt::One("post_attention_layernorm")),
        (
            "attn.c_attn",
            StoredAt::HeadByHead("attention.query_key_value"),
        ),
        ("attn.c_proj", StoredAt::One("attention.dense")),
        ("mlp.c_fc", StoredAt::One("mlp.dense_h_to_4h")),
        ("mlp.c_proj", StoredAt::One("mlp.dense_4h_to_h")),
    ],
    gains_less_one: false,
};

fn config(fields: &Fields) -> Result<TransformerConfig, ConfigError> {
    let d_model = fields.size("hidden_size")?;
    let n_heads = fields.size("num_attention_heads")?;
    if n_heads == 0 || !d_model.is_multiple_of(n_heads) {
        let problem = format!("is {n_heads}; it must divide hidden_size, {d_model}");
        return Err(wrong("num_attention_heads", problem));
    }
    let d_head = d_model / n_heads;
    let context_length = fields.size("max_position_embeddings")?;
    let base = fields
        .optional_number("rotary_emb_base")?
        .unwrap_or(10_000.0);
    let part = fields.optional_number("rotary_pct")?.unwrap_or(0.25);
    let epsilon = fields.optional_number("layer_norm_eps")?.unwrap_or(1e-5);
    let config = TransformerConfig {
        n_layers: fields.size("num_hidden_layers")?,
        d_model,
        n_heads,
        d_head,
        d_mlp: fields.size("intermediate_size")?,
        vocab_size: fields.size("vocab_size")?,
        context_length,
        norm: Norm::Layer,
        bias: true,
        activation: activation_called("hidden_act", fields.text("hidden_act", "gelu")?)?,
        residual_activation: ResidualActivation::Identity,
        positions: Positions::None,
        active_fraction: None,
        active_locations: Default::default(),
        tied_unembedding: fields.boolean("tie_word_embeddings", false)?,
        bigram_table: false,
        attention_sinks: false,
        variant: ModelVariant {
            norm_epsilon: Some(epsilon as f32),
            parallel_sublayers: fields.boolean("use_parallel_residual", true)?,
            rotary: Some(rope::rotary(fields, d_head, context_length, base, part)?),
            ..ModelVariant::default()
        },
    };
    config.validate()?;
    Ok(config)
}
