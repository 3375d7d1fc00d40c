//! Phi 3 and 4: q, k, v in one matrix, gate and up in another; partial rotation, LongRoPE, a window.

use super::family::Family;
use super::llama::{self, Defaults, base, window};
use super::names::{Names, StoredAt};
use crate::models::config::{ConfigError, TransformerConfig};
use crate::models::fields::Fields;

pub const FAMILY: Family = Family {
    model_type: "phi3",
    config,
    names: &NAMES,
};

const NAMES: Names = Names {
    layer: &[
        ("ln_1", StoredAt::One("input_layernorm")),
        ("ln_2", StoredAt::One("post_attention_layernorm")),
        ("attn.c_attn", StoredAt::One("self_attn.qkv_proj")),
        llama::PROJECTION,
        ("mlp.c_gate", StoredAt::Half("mlp.gate_up_proj", 0)),
        ("mlp.c_fc", StoredAt::Half("mlp.gate_up_proj", 1)),
        llama::DOWN,
    ],
    ..llama::NAMES
};

fn config(fields: &Fields) -> Result<TransformerConfig, ConfigError> {
    let defaults = Defaults {
        norm_epsilon: 1e-5,
        ..Defaults::LLAMA
    };
    let mut config = base(fields, defaults)?;
    config.variant.window = window(fields, config.n_layers, |_| true)?;
    config.validate()?;
    Ok(config)
}
