//! Mistral: a Llama that sees the last tokens only.

use super::family::Family;
use super::llama::{self, Defaults, base, window};
use crate::models::config::{ConfigError, TransformerConfig};
use crate::models::fields::Fields;

pub const FAMILY: Family = Family {
    model_type: "mistral",
    config,
    names: &llama::NAMES,
};

fn config(fields: &Fields) -> Result<TransformerConfig, ConfigError> {
    let mut config = base(fields, Defaults::LLAMA)?;
    config.variant.window = window(fields, config.n_layers, |_| true)?;
    config.validate()?;
    Ok(config)
}
