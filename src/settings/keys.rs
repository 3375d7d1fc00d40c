//! API keys: who may do what, and how often. Keys themselves are never stored, only their hashes.

use serde::{Deserialize, Serialize};

use crate::artifacts::ArtifactId;

/// One caller's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySettings {
    /// What the log calls the caller.
    pub name: ArtifactId,
    /// The SHA-256 of the key, in hexadecimal; `causeway key` makes both.
    pub sha256: String,
    #[serde(default)]
    pub role: Role,
    /// Requests that the caller may make in a minute; no bound where none is given.
    #[serde(default)]
    pub requests_per_minute: Option<u32>,
}

/// What a key allows; each role allows what those before it do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Asking: completions, activations, looking things up.
    #[default]
    Infer,
    /// And changing what others see: features.
    Train,
    /// Everything.
    Admin,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Infer => "infer",
            Role::Train => "train",
            Role::Admin => "admin",
        })
    }
}

/// The hash in [`KeySettings::sha256`] as bytes.
pub fn digest(sha256: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if sha256.len() != 2 * bytes.len() || !sha256.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&sha256[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

/// What is wrong with a list of keys, if anything is.
pub fn check(keys: &[KeySettings]) -> Result<(), String> {
    for (index, key) in keys.iter().enumerate() {
        if digest(&key.sha256).is_none() {
            return Err(format!(
                "keys[{index}].sha256 is not 64 hexadecimal digits; `causeway key {}` makes them",
                key.name
            ));
        }
        if keys[..index].iter().any(|other| other.name == key.name) {
            return Err(format!("keys[{index}]: another key is called {}", key.name));
        }
        if key.requests_per_minute == Some(0) {
            return Err(format!(
                "keys[{index}].requests_per_minute is 0; leave the key out instead"
            ));
        }
    }
    Ok(())
}
