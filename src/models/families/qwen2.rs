//! Qwen 2 and 2.5: biases of q, k and v; where it is switched on, a window in the later layers.

use super::family::Family;
use super::llama::{self, Defaults, base, window};
use crate::models::config::{ConfigError, TransformerConfig};
use crate::models::fields::Fields;

pub const FAMILY: Family = Family {
    model_type: "qwen2",
    config,
    names: &llama::NAMES,
};

fn config(fields: &Fields) -> Result<TransformerConfig, ConfigError> {
    let mut config = TransformerConfig {
        bias: true,
        ..base(fields, Defaults::LLAMA)?
    };
    if fields.boolean("use_sliding_window", false)? {
        let first = fields.optional_size("max_window_layers")?.unwrap_or(28);
        config.variant.window = window(fields, config.n_layers, |layer| layer >= first)?;
    }
    config.validate()?;
    Ok(config)
}
