//! Gemma 2: norms before and after, gains stored less one, soft caps, scores scaled by a number of the file's, every other
//! layer windowed, embeddings multiplied by the root of the width.

use super::family::Family;
use super::llama::{self, Defaults, activation_called, base, window};
use super::names::{Names, StoredAt};
use crate::models::config::{ConfigError, TransformerConfig};
use crate::models::fields::Fields;
use crate::models::variant::NormPlacement;

pub const FAMILY: Family = Family {
    model_type: "gemma2",
    config,
    names: &NAMES,
};

const NAMES: Names = Names {
    layer: &[
        ("ln_1", StoredAt::One("input_layernorm")),
        ("ln_1_after", StoredAt::One("post_attention_layernorm")),
        ("ln_2", StoredAt::One("pre_feedforward_layernorm")),
        ("ln_2_after", StoredAt::One("post_feedforward_layernorm")),
        llama::ATTENTION,
        llama::PROJECTION,
        llama::GATE,
        llama::UP,
        llama::DOWN,
    ],
    gains_less_one: true,
    ..llama::NAMES
};

fn config(fields: &Fields) -> Result<TransformerConfig, ConfigError> {
    let defaults = Defaults {
        tied: true,
        ..Defaults::LLAMA
    };
    let mut config = TransformerConfig {
        bias: fields.boolean("attention_bias", false)?,
        activation: activation_called(
            "hidden_activation",
            fields.text("hidden_activation", "gelu_pytorch_tanh")?,
        )?,
        ..base(fields, defaults)?
    };
    let single = |field| -> Result<Option<f32>, ConfigError> {
        Ok(fields.optional_number(field)?.map(|number| number as f32))
    };
    let scalar = fields
        .optional_number("query_pre_attn_scalar")?
        .unwrap_or(256.0);
    let variant = &mut config.variant;
    variant.norm_placement = NormPlacement::Both;
    variant.attention_scale = Some(scalar.powf(-0.5) as f32);
    variant.attention_soft_cap = single("attn_logit_softcapping")?;
    variant.logit_soft_cap = single("final_logit_softcapping")?;
    variant.embedding_scale = Some((config.d_model as f64).sqrt() as f32);
    variant.window = window(fields, config.n_layers, |layer| layer.is_multiple_of(2))?;
    config.validate()?;
    Ok(config)
}
