//! Qwen 3: norms of q and k, head by head; where it is switched on, a window in the later layers.

use super::family::Family;
use super::llama::{self, Defaults, base, window};
use crate::models::config::{ConfigError, TransformerConfig};
use crate::models::fields::Fields;
use crate::models::variant::QkNorm;

pub const FAMILY: Family = Family {
    model_type: "qwen3",
    config,
    names: &llama::NAMES,
};

fn config(fields: &Fields) -> Result<TransformerConfig, ConfigError> {
    let mut config = TransformerConfig {
        bias: fields.boolean("attention_bias", false)?,
        ..base(fields, Defaults::LLAMA)?
    };
    config.variant.qk_norm = Some(QkNorm::PerHead);
    if fields.boolean("use_sliding_window", false)? {
        let first = fields.optional_size("max_window_layers")?.unwrap_or(28);
        config.variant.window = window(fields, config.n_layers, |layer| layer >= first)?;
    }
    config.validate()?;
    Ok(config)
}
