//! What a family of dense models is: a reading of its configuration and a table of names.

use super::names::Names;
use crate::models::config::TransformerConfig;
use crate::models::config_error::ConfigError;
use crate::models::fields::Fields;

/// One family.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// As `config.json` says.
    pub model_type: &'static str,
    /// Reads a `config.json`; settings that would change the forward pass and are not supported are refused.
    pub config: fn(&Fields) -> Result<TransformerConfig, ConfigError>,
    pub names: &'static Names,
}
