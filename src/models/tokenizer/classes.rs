//! The tokenizers of Hugging Face directories without a `tokenizer.json`: `vocab.json` with `merges.txt`, or
//! `tokenizer.model`, built as the directory's tokenizer class calls for.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::error::TokenizerError;
use super::formats::parse_merges;
use super::parts::{NamedToken, TokenizerParts, template};
use super::pieces::{PieceTokenizer, SpaceBefore, UserDefined};
use super::sentencepiece::SentencePieceModel;
use super::settings::{TokenizerSettings, named};
use super::splits::{ByteSplit, GPT_NEOX, GPT2, QWEN};

/// A class of tokenizers, and what its directories leave unsaid.
#[derive(Debug, Clone, Copy)]
struct Class {
    name: &'static str,
    kind: Kind,
    /// Tokens by role.
    usual: &'static [(&'static str, &'static str)],
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// `vocab.json` and `merges.txt`.
    Bytes(ByteSplit),
    /// `tokenizer.model`.
    Pieces,
}

const END_OF_TEXT_FOR_ALL: &[(&str, &str)] = &[
    ("bos_token", "<|endoftext|>"),
    ("eos_token", "<|endoftext|>"),
    ("unk_token", "<|endoftext|>"),
];
const CLASSES: [Class; 6] = [
    Class {
        name: "GPT2Tokenizer",
        kind: Kind::Bytes(GPT2),
        usual: END_OF_TEXT_FOR_ALL,
    },
    Class {
        name: "CodeGenTokenizer",
        kind: Kind::Bytes(GPT2),
        usual: END_OF_TEXT_FOR_ALL,
    },
    Class {
        name: "GPTNeoXTokenizer",
        kind: Kind::Bytes(GPT_NEOX),
        usual: &[
            ("bos_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
            ("pad_token", "<|padding|>"),
        ],
    },
    Class {
        name: "Qwen2Tokenizer",
        kind: Kind::Bytes(QWEN),
        usual: &[
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
            ("pad_token", "<|endoftext|>"),
        ],
    },
    Class {
        name: "LlamaTokenizer",
        kind: Kind::Pieces,
        usual: &[],
    },
    Class {
        name: "GemmaTokenizer",
        kind: Kind::Pieces,
        usual: &[],
    },
];
/// The classes of models whose directories name none.
const OF_MODELS: [(&str, &str); 8] = [
    ("gpt2", "GPT2Tokenizer"),
    ("gpt_neox", "GPTNeoXTokenizer"),
    ("qwen2", "Qwen2Tokenizer"),
    ("qwen3", "Qwen2Tokenizer"),
    ("llama", "LlamaTokenizer"),
    ("mistral", "LlamaTokenizer"),
    ("phi3", "LlamaTokenizer"),
    ("gemma2", "GemmaTokenizer"),
];

impl Class {
    /// The class that the settings name, or that of the model.
    fn of(settings: &TokenizerSettings, model_type: Option<&str>) -> Result<Self, TokenizerError> {
        let of_model = || {
            let mut known = OF_MODELS.iter();
            let known = known.find(|(known, _)| Some(*known) == model_type)?;
            Some(known.1)
        };
        let Some(name) = settings.class.as_deref().or_else(of_model) else {
            return Err(TokenizerError::Invalid(format!(
                "no tokenizer_config.json names its tokenizer_class, and the model's type does not tell; {} are supported",
                Self::names()
            )));
        };
        let known = CLASSES.iter().find(|class| class.name == name);
        known.copied().ok_or_else(|| {
            let name: String = name.chars().take(60).collect();
            TokenizerError::Invalid(format!(
                "its tokenizer_class is {name:?}; without a tokenizer.json {} are supported",
                Self::names()
            ))
        })
    }

    fn names() -> String {
        CLASSES.map(|class| class.name).join(", ")
    }

    fn other_file(&self, found: &str) -> TokenizerError {
        let wanted = match self.kind {
            Kind::Bytes(_) => "vocab.json and merges.txt",
            Kind::Pieces => "tokenizer.model",
        };
        TokenizerError::Invalid(format!("{} is made of {wanted}, not of {found}", self.name))
    }

    /// The token of a role, where the settings or the class switch it on.
    fn bound(
        &self,
        role: &str,
        switched_on: bool,
        settings: &TokenizerSettings,
        find: impl Fn(&str) -> Option<NamedToken>,
    ) -> Option<NamedToken> {
        let content = settings.role(role, self.usual).filter(|_| switched_on)?;
        find(content)
    }
}

/// The tokenizer of `vocab.json` (ids by token) and `merges.txt` (one merge a line).
pub fn from_merges(
    vocabulary: &[u8],
    merges: &str,
    settings: &TokenizerSettings,
    model_type: Option<&str>,
) -> Result<TokenizerParts, TokenizerError> {
    let class = Class::of(settings, model_type)?;
    let Kind::Bytes(split) = class.kind else {
        return Err(class.other_file("vocab.json and merges.txt"));
    };
    let mut vocabulary: BTreeMap<String, u32> = serde_json::from_slice(vocabulary)
        .map_err(|error| TokenizerError::Invalid(format!("vocab.json: {error}")))?;
    let merges = parse_merges("merges.txt", merges)?;
    let added = settings.added(&vocabulary, class.usual);
    let find = |content: &str| named(content, &added, &vocabulary);
    let begins = settings.begins.unwrap_or(false);
    let beginning = class.bound("bos_token", begins, settings, find);
    let end = class.bound("eos_token", settings.ends.unwrap_or(false), settings, find);
    // A token of an id of its own is no part of the vocabulary's file.
    for (id, token) in &added {
        vocabulary.insert(token.content.clone(), *id);
    }
    let ids: Map<String, Value> = vocabulary
        .into_iter()
        .map(|(token, id)| (token, json!(id)))
        .collect();
    Ok(TokenizerParts {
        added_tokens: added.iter().map(|(id, token)| token.with_id(*id)).collect(),
        post_processor: template(beginning.as_ref(), end.as_ref()),
        ..split.parts(ids, merges, settings.prefix_space.unwrap_or(false))
    })
}

/// The tokenizer of a `tokenizer.model`.
pub fn from_pieces(
    file: &[u8],
    settings: &TokenizerSettings,
    model_type: Option<&str>,
) -> Result<TokenizerParts, TokenizerError> {
    let class = Class::of(settings, model_type)?;
    if !matches!(class.kind, Kind::Pieces) {
        return Err(class.other_file("tokenizer.model"));
    }
    let mut model = SentencePieceModel::parse(file)?;
    // A directory may give a piece another text.
    for (id, token) in &settings.numbered {
        if let Some(piece) = model.pieces.get_mut(*id as usize) {
            piece.text.clone_from(&token.content);
        }
    }
    let pieces = model.pieces.iter().zip(0u32..);
    let vocabulary: BTreeMap<String, u32> = pieces
        .clone()
        .map(|(piece, id)| (piece.text.clone(), id))
        .collect();
    let added = settings.added(&vocabulary, class.usual);
    let of_id = |id: Option<u32>| -> Option<NamedToken> {
        let id = id?;
        let content = model.pieces.get(id as usize)?.text.clone();
        Some(NamedToken { id, content })
    };
    let bound = |role: &str, switched_on: bool, usual: Option<u32>| -> Option<NamedToken> {
        match settings.role(role, class.usual) {
            Some(content) => named(content, &added, &vocabulary),
            None => of_id(usual),
        }
        .filter(|_| switched_on)
    };
    let beginning = bound(
        "bos_token",
        settings.begins.unwrap_or(true),
        model.beginning,
    );
    let end = bound("eos_token", settings.ends.unwrap_or(false), model.end);
    let space_before = match settings.prefix_space.unwrap_or(model.space_before) {
        false => SpaceBefore::Never,
        // The form that the class began with; a directory that follows the later one says so.
        true if settings.legacy.unwrap_or(true) => SpaceBefore::Always,
        true => SpaceBefore::First,
    };
    let added_tokens = added.iter().map(|(id, token)| {
        let mut token = token.with_id(*id);
        // They are found in the text as it stands, before it gets its spaces.
        token["normalized"] = json!(false);
        token
    });
    PieceTokenizer {
        added_tokens: added_tokens.collect(),
        pieces: model.pieces,
        space_before,
        single_spaces: model.single_spaces,
        user_defined: UserDefined::AsPieces,
        strips_behind: |_| false,
        beginning,
        end,
    }
    .parts()
}
