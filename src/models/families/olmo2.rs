//! OLMo 2: norms after each sublayer instead of before, and of q and k over all heads together.

use super::family::Family;
use super::llama::{self, Defaults, base};
use super::names::{Names, StoredAt};
use crate::models::config::{ConfigError, TransformerConfig};
use crate::models::fields::Fields;
use crate::models::variant::{NormPlacement, QkNorm};

pub const FAMILY: Family = Family {
    model_type: "olmo2",
    config,
    names: &NAMES,
};

const NAMES: Names = Names {
    layer: &[
        ("ln_1_after", StoredAt::One("post_attention_layernorm")),
        ("ln_2_after", StoredAt::One("post_feedforward_layernorm")),
        llama::ATTENTION,
        llama::PROJECTION,
        ("attn.q_norm", StoredAt::One("self_attn.q_norm")),
        ("attn.k_norm", StoredAt::One("self_attn.k_norm")),
        llama::GATE,
        llama::UP,
        llama::DOWN,
    ],
    ..llama::NAMES
};

fn config(fields: &Fields) -> Result<TransformerConfig, ConfigError> {
    let defaults = Defaults {
        norm_epsilon: 1e-5,
        ..Defaults::LLAMA
    };
    let mut config = TransformerConfig {
        bias: fields.boolean("attention_bias", false)?,
        ..base(fields, defaults)?
    };
    config.variant.qk_norm = Some(QkNorm::WholeWidth);
    config.variant.norm_placement = NormPlacement::After;
    config.validate()?;
    Ok(config)
}
