//! What is wrong with a configuration.

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{field}: {problem}")]
pub struct ConfigError {
    /// The offending field of `config.json`.
    pub field: &'static str,
    pub problem: String,
}
