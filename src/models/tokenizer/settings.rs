//! What stands beside a tokenizer's vocabulary in a Hugging Face directory: its class, its switches, and its special
//! tokens.
//!
//! `tokenizer_config.json` says all of it in newer directories. In older ones, whose configuration has no
//! `added_tokens_decoder`, `special_tokens_map.json` names the special tokens and `added_tokens.json` gives ids to those
//! that the vocabulary lacks.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::{LARGEST_ID, TokenizerError};
use super::parts::NamedToken;

/// The fields that name one special token each.
const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];
/// The fields that list further ones.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// The files as they are; none where there is none.
#[derive(Debug, Default)]
pub struct SettingsFiles {
    pub tokenizer_config: Option<Vec<u8>>,
    pub special_tokens_map: Option<Vec<u8>>,
    pub added_tokens: Option<Vec<u8>>,
}

/// What the files say.
#[derive(Debug, Default)]
pub struct TokenizerSettings {
    /// Without the ending `Fast`.
    pub class: Option<String>,
    pub prefix_space: Option<bool>,
    pub begins: Option<bool>,
    pub ends: Option<bool>,
    pub legacy: Option<bool>,
    /// Tokens with ids of their own.
    pub numbered: BTreeMap<u32, WrittenToken>,
    /// The special tokens by their roles.
    roles: BTreeMap<&'static str, WrittenToken>,
    /// Special tokens without a role.
    further: Vec<WrittenToken>,
}

/// A token that is found in a text before anything else is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct WrittenToken {
    pub content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a token's text or an object with its `content`"
)]
enum Written {
    Text(String),
    Object(WrittenToken),
}

impl Written {
    fn special(self) -> WrittenToken {
        match self {
            Written::Text(content) => WrittenToken {
                content,
                single_word: false,
                lstrip: false,
                rstrip: false,
                normalized: Some(false),
                special: true,
            },
            Written::Object(token) => WrittenToken {
                special: true,
                ..token
            },
        }
    }
}

impl WrittenToken {
    /// The token in the form of a `tokenizer.json`.
    pub fn with_id(&self, id: u32) -> Value {
        json!({
            "id": id, "content": self.content, "single_word": self.single_word, "lstrip": self.lstrip,
            "rstrip": self.rstrip, "normalized": self.normalized.unwrap_or(!self.special),
            "special": self.special,
        })
    }
}

impl TokenizerSettings {
    /// Reads the files, or says which of them is wrong.
    pub fn parse(files: &SettingsFiles) -> Result<Self, TokenizerError> {
        let configuration = object("tokenizer_config.json", files.tokenizer_config.as_deref())?;
        let mut settings = TokenizerSettings::default();
        let text = |name: &str| configuration.get(name).and_then(Value::as_str);
        settings.class = text("tokenizer_class")
            .map(|class| class.strip_suffix("Fast").unwrap_or(class).to_owned());
        let flag = |name: &str| configuration.get(name).and_then(Value::as_bool);
        settings.prefix_space = flag("add_prefix_space");
        settings.begins = flag("add_bos_token");
        settings.ends = flag("add_eos_token");
        settings.legacy = flag("legacy");
        settings.take_special("tokenizer_config.json", &configuration)?;
        let Some(numbered) = configuration.get("added_tokens_decoder") else {
            let map = object(
                "special_tokens_map.json",
                files.special_tokens_map.as_deref(),
            )?;
            settings.take_special("special_tokens_map.json", &map)?;
            settings.take_added(files.added_tokens.as_deref())?;
            return Ok(settings);
        };
        let in_field = |problem: String| {
            invalid(format!(
                "tokenizer_config.json: added_tokens_decoder: {problem}"
            ))
        };
        let numbered = BTreeMap::<String, WrittenToken>::deserialize(numbered)
            .map_err(|error| in_field(error.to_string()))?;
        for (id, token) in numbered {
            let id = id.parse().ok().filter(|id| *id < LARGEST_ID);
            let id = id.ok_or_else(|| in_field(format!("ids run from 0 below {LARGEST_ID}")))?;
            settings.numbered.insert(id, token);
        }
        Ok(settings)
    }

    fn take_special(
        &mut self,
        file: &str,
        fields: &Map<String, Value>,
    ) -> Result<(), TokenizerError> {
        let wrong =
            |field: &str, error: serde_json::Error| invalid(format!("{file}: {field}: {error}"));
        for role in ROLES {
            match fields.get(role) {
                None | Some(Value::Null) => {}
                Some(token) => {
                    let token = Written::deserialize(token).map_err(|error| wrong(role, error))?;
                    self.roles.insert(role, token.special());
                }
            }
        }
        for field in LISTS {
            // Some directories name them by roles of their own.
            let listed = match fields.get(field) {
                None | Some(Value::Null) => continue,
                Some(Value::Object(named)) => Value::Array(named.values().cloned().collect()),
                Some(listed) => listed.clone(),
            };
            let listed: Vec<Written> =
                serde_json::from_value(listed).map_err(|error| wrong(field, error))?;
            self.further
                .extend(listed.into_iter().map(Written::special));
        }
        Ok(())
    }

    /// `added_tokens.json`: ids by token.
    fn take_added(&mut self, file: Option<&[u8]>) -> Result<(), TokenizerError> {
        for (content, id) in object("added_tokens.json", file)? {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.filter(|id| *id < LARGEST_ID).ok_or_else(|| {
                invalid(format!(
                    "added_tokens.json: {content:?}: ids run from 0 below {LARGEST_ID}"
                ))
            })?;
            let mut special = self.roles.values().chain(&self.further);
            let token = match special.find(|token| token.content == content) {
                Some(special) => special.clone(),
                None => WrittenToken {
                    normalized: Some(true),
                    special: false,
                    ..Written::Text(content).special()
                },
            };
            self.numbered.insert(id, token);
        }
        Ok(())
    }

    /// The tokens that are added to a vocabulary, with their ids, in the order of ids. Special tokens that the vocabulary
    /// lacks come behind all others; a class's own `usual` ones count where the vocabulary has them.
    pub fn added(
        &self,
        vocabulary: &BTreeMap<String, u32>,
        usual: &[(&'static str, &'static str)],
    ) -> BTreeMap<u32, WrittenToken> {
        let mut added = self.numbered.clone();
        let numbered = self.numbered.values().map(|token| token.content.as_str());
        let mut known: HashSet<&str> = numbered.chain([""]).collect();
        let last = vocabulary.values().chain(added.keys()).max().copied();
        let mut behind = last.map_or(0, |last| last.saturating_add(1));
        for token in self.roles.values().chain(&self.further) {
            if !known.insert(&token.content) {
                continue;
            }
            let id = vocabulary.get(&token.content).copied();
            let id = id.unwrap_or_else(|| {
                behind = behind.saturating_add(1);
                behind - 1
            });
            added.insert(id, token.clone());
        }
        for (role, content) in usual {
            if !self.roles.contains_key(role)
                && let Some(&id) = vocabulary.get(*content)
                && known.insert(content)
            {
                added.insert(id, Written::Text((*content).to_owned()).special());
            }
        }
        added
    }

    /// The token of a role, or the class's usual one.
    pub fn role(&self, role: &str, usual: &[(&'static str, &'static str)]) -> Option<&str> {
        let named = self.roles.get(role).map(|token| token.content.as_str());
        named.or_else(|| {
            let usual = usual.iter().find(|(known, _)| *known == role);
            usual.map(|(_, content)| *content)
        })
    }
}

/// The token of this text among those added and those of a vocabulary.
pub fn named(
    content: &str,
    added: &BTreeMap<u32, WrittenToken>,
    vocabulary: &BTreeMap<String, u32>,
) -> Option<NamedToken> {
    let id = added
        .iter()
        .find(|(_, token)| token.content == content)
        .map(|(id, _)| *id);
    let id = id.or_else(|| vocabulary.get(content).copied())?;
    Some(NamedToken {
        id,
        content: content.to_owned(),
    })
}

fn object(name: &str, file: Option<&[u8]>) -> Result<Map<String, Value>, TokenizerError> {
    match file {
        None => Ok(Map::new()),
        Some(file) => {
            serde_json::from_slice(file).map_err(|error| invalid(format!("{name}: {error}")))
        }
    }
}

fn invalid(problem: String) -> TokenizerError {
    TokenizerError::Invalid(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(config: Value, map: Value, added: Value) -> TokenizerSettings {
        let bytes = |value: Value| Some(value.to_string().into_bytes());
        TokenizerSettings::parse(&SettingsFiles {
            tokenizer_config: bytes(config),
            special_tokens_map: bytes(map),
            added_tokens: bytes(added),
        })
        .expect("settings")
    }

    fn added(settings: &TokenizerSettings) -> Vec<(u32, String, bool)> {
        let vocabulary = [("a", 0), ("<eos>", 1), ("<|endoftext|>", 2)];
        let vocabulary = vocabulary.map(|(text, id)| (text.to_owned(), id)).into();
        let usual = [
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
            ("pad_token", "<pad>"),
        ];
        let added = settings.added(&vocabulary, &usual);
        let tokens = added.into_iter();
        tokens
            .map(|(id, token)| (id, token.content, token.special))
            .collect()
    }

    #[test]
    fn a_configuration_with_numbered_tokens_says_it_all() {
        let numbered = json!({"5": {"content": "<x>", "special": false}, "4": {"content": "<y>", "special": true}});
        let config = json!({"added_tokens_decoder": numbered, "tokenizer_class": "GPT2TokenizerFast",
            "eos_token": "<eos>", "add_prefix_space": true});
        let settings = parsed(config, json!({"bos_token": "<z>"}), json!({"<w>": 9}));
        assert_eq!(settings.class.as_deref(), Some("GPT2Tokenizer"));
        assert_eq!(settings.prefix_space, Some(true));
        let of = |id, text: &str, special| (id, text.to_owned(), special);
        let expected = [
            of(1, "<eos>", true),
            of(2, "<|endoftext|>", true),
            of(4, "<y>", true),
            of(5, "<x>", false),
        ];
        assert_eq!(added(&settings), expected);
    }

    #[test]
    fn older_directories_say_it_in_two_more_files() {
        let map = json!({"eos_token": {"content": "<eos>", "rstrip": true}, "pad_token": "<new>",
            "additional_special_tokens": ["<w>"]});
        let settings = parsed(
            json!({"eos_token": "a"}),
            map,
            json!({"<w>": 9, "plain": 8}),
        );
        let of = |id, text: &str, special| (id, text.to_owned(), special);
        let expected = [
            of(1, "<eos>", true),
            of(2, "<|endoftext|>", true),
            of(8, "plain", false),
            of(9, "<w>", true),
            // Nothing gives it an id: it is behind all others.
            of(10, "<new>", true),
        ];
        assert_eq!(added(&settings), expected);
        assert_eq!(settings.role("eos_token", &[]), Some("<eos>"));
        assert_eq!(settings.numbered[&8].with_id(8)["normalized"], json!(true));
    }

    #[test]
    fn the_file_at_fault_is_named() {
        for (files, named) in [
            (
                SettingsFiles {
                    tokenizer_config: Some(b"[]".to_vec()),
                    ..SettingsFiles::default()
                },
                "tokenizer_config.json",
            ),
            (
                SettingsFiles {
                    special_tokens_map: Some(br#"{"eos_token": 3}"#.to_vec()),
                    ..SettingsFiles::default()
                },
                "special_tokens_map.json: eos_token",
            ),
            (
                SettingsFiles {
                    added_tokens: Some(br#"{"<x>": 1e9}"#.to_vec()),
                    ..SettingsFiles::default()
                },
                "added_tokens.json: \"<x>\"",
            ),
        ] {
            let refused = TokenizerSettings::parse(&files).expect_err("a refusal");
            assert!(refused.to_string().contains(named), "{refused}");
        }
    }
}
