//! What things are called on a hub, held to characters that mean nothing in an address or a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::artifacts::ArtifactId;

/// The longest part of an id.
const LONGEST_PART: usize = 96;
const LONGEST_REVISION: usize = 128;
/// The longest id of Causeway's own.
const LONGEST_ENTRY: usize = 64;

/// A text that is no name on a hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: {rule}")]
pub struct HubNameError {
    text: String,
    what: &'static str,
    rule: &'static str,
}

impl HubNameError {
    fn new(text: &str, what: &'static str, rule: &'static str) -> Self {
        HubNameError {
            text: text.chars().take(80).collect(),
            what,
            rule,
        }
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// A model's id on a hub: `OWNER/NAME`, or a name alone. Each is 1 to 96 of letters, digits, `.`, `_` and `-`, begins
/// with a letter, a digit or `_`, and has no `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HubId(String);

/// A branch, a tag or a commit of a repository: 1 to 128 of letters, digits, `.`, `_`, `-` and `/`, no part empty or
/// beginning with a dot or a dash, no `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Revision(String);

/// A commit's whole hash: 40 digits of `0-9 a-f`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitHash(String);

impl HubId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the model is called here unless somebody says otherwise: its name in small letters, with dashes for what
    /// an id here cannot have.
    pub fn entry_id(&self) -> Option<ArtifactId> {
        let name = self.0.rsplit('/').next()?.to_ascii_lowercase();
        name.chars()
            .take(LONGEST_ENTRY)
            .collect::<String>()
            .parse()
            .ok()
    }
}

impl FromStr for HubId {
    type Err = HubNameError;

    fn from_str(text: &str) -> Result<Self, HubNameError> {
        let good = |part: &str| {
            (1..=LONGEST_PART).contains(&part.len())
                && part.bytes().all(is_plain)
                && !part.starts_with(['.', '-'])
                && !part.contains("..")
        };
        match text.split('/').count() <= 2 && text.split('/').all(good) {
            true => Ok(HubId(text.to_owned())),
            false => Err(HubNameError::new(
                text,
                "the id of a model on a hub",
                "OWNER/NAME or NAME, each of 1 to 96 letters, digits, '.', '_' and '-', no '..', no dot or dash at \
                 the start",
            )),
        }
    }
}

impl Revision {
    /// The branch that is meant where none is said.
    pub fn main() -> Self {
        Revision("main".to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Revision {
    type Err = HubNameError;

    fn from_str(text: &str) -> Result<Self, HubNameError> {
        let good = |part: &str| {
            !part.is_empty() && part.bytes().all(is_plain) && !part.starts_with(['.', '-'])
        };
        let valid =
            text.len() <= LONGEST_REVISION && text.split('/').all(good) && !text.contains("..");
        match valid {
            true => Ok(Revision(text.to_owned())),
            false => Err(HubNameError::new(
                text,
                "a revision",
                "a branch, a tag or a commit, of at most 128 letters, digits, '.', '_', '-' and '/', no '..', no part \
                 empty or with a dot or a dash at the start",
            )),
        }
    }
}

impl CommitHash {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CommitHash {
    type Err = HubNameError;

    fn from_str(text: &str) -> Result<Self, HubNameError> {
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match text.len() == 40 && text.bytes().all(digit) {
            true => Ok(CommitHash(text.to_owned())),
            false => Err(HubNameError::new(
                text,
                "a commit",
                "40 digits of 0-9 and a-f",
            )),
        }
    }
}

macro_rules! text_of {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = HubNameError;

            fn try_from(text: String) -> Result<Self, HubNameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

text_of!(HubId);
text_of!(Revision);
text_of!(CommitHash);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for good in ["gpt2", "openai-community/gpt2", "a_b/C.d-e"] {
            assert!(good.parse::<HubId>().is_ok(), "{good}");
        }
        for bad in [
            "", "/", "a/", "/a", "a/b/c", "../a", "a/..", "a..b", ".a", "-a", "a b", "a?b", "a%2f",
            "http://a", "a\\b", "a\n", "\u{e9}",
        ] {
            assert!(bad.parse::<HubId>().is_err(), "{bad}");
        }
        let long = "a".repeat(LONGEST_PART);
        assert!(format!("{long}/{long}").parse::<HubId>().is_ok());
        assert!(format!("{long}a").parse::<HubId>().is_err());
        for good in ["main", "v1.0", "refs/pr/1", "feature/x"] {
            assert!(good.parse::<Revision>().is_ok(), "{good}");
        }
        for bad in [
            "", "/main", "main/", "a//b", "../main", "a/../b", "-x", "a b", "a?", "a#",
        ] {
            assert!(bad.parse::<Revision>().is_err(), "{bad}");
        }
        assert!("0a".repeat(20).parse::<CommitHash>().is_ok());
        for bad in ["", "main", &"0A".repeat(20), &"0a".repeat(32)] {
            assert!(bad.parse::<CommitHash>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_model_is_called_by_its_name() {
        let called = |id: &str| id.parse::<HubId>().expect("an id").entry_id();
        let id = |text: &str| text.parse().ok();
        assert_eq!(
            called("HuggingFaceTB/SmolLM2-135M-Instruct"),
            id("smollm2-135m-instruct")
        );
        assert_eq!(called("gpt2"), id("gpt2"));
        assert_eq!(called(&"a".repeat(90)), id(&"a".repeat(64)));
    }
}
