//! SmolLM3: some layers are not rotated, every fourth where the file does not say which.

use super::family::Family;
use super::llama::{self, Defaults, base, window};
use crate::models::config::{ConfigError, TransformerConfig};
use crate::models::fields::Fields;

use std::collections::BTreeSet;

pub const FAMILY: Family = Family {
    model_type: "smollm3",
    config,
    names: &llama::NAMES,
};

fn config(fields: &Fields) -> Result<TransformerConfig, ConfigError> {
    let defaults = Defaults {
        rope_base: 2_000_000.0,
        tied: true,
        ..Defaults::LLAMA
    };
    let mut config = TransformerConfig {
        bias: fields.boolean("attention_bias", false)? || fields.boolean("mlp_bias", false)?,
        ..base(fields, defaults)?
    };
    let layers_without: BTreeSet<usize> = match fields.list("no_rope_layers")? {
        // One number a layer: zero where it is not rotated.
        Some(list) => {
            let numbered = list.iter().enumerate();
            numbered
                .filter(|(_, kept)| **kept == 0)
                .map(|(layer, _)| layer)
                .collect()
        }
        None => {
            let every = fields
                .optional_size("no_rope_layer_interval")?
                .unwrap_or(4)
                .max(1);
            let layers = 0..config.n_layers.min(1024);
            layers
                .filter(|layer| (layer + 1).is_multiple_of(every))
                .collect()
        }
    };
    if let Some(rotary) = &mut config.variant.rotary {
        rotary.layers_without = layers_without;
    }
    if fields.boolean("use_sliding_window", false)? {
        config.variant.window = window(fields, config.n_layers, |_| true)?;
    }
    config.validate()?;
    Ok(config)
}
