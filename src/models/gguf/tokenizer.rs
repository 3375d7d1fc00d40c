//! The tokenizer of a GGUF file as a `tokenizer.json`.
//!
//! `tokenizer.ggml.model` says its kind: `gpt2` is a byte-level BPE with its vocabulary and merges, whose split is named by
//! `tokenizer.ggml.pre` ([`ByteSplit`]); `llama` is SentencePiece's, pieces with scores. Others are refused by name.

use std::collections::HashSet;

use serde_json::{Map, json};

use super::metadata::Metadata;
use crate::artifacts::gguf::HeaderValue;
use crate::models::tokenizer::TokenizerError;
use crate::models::tokenizer::parts::{NamedToken, SPACE, TokenizerParts, added, template};
use crate::models::tokenizer::pieces::{
    Piece, PieceKind, PieceTokenizer, SpaceBefore, UserDefined,
};
use crate::models::tokenizer::splits::ByteSplit;

const PRE: &str = "tokenizer.ggml.pre";
/// Special tokens of Phi 3 that white space behind them stays with. It is left out behind its others.
const PHI3_PLAIN: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// The file's tokenizer.
pub fn from_metadata(metadata: &Metadata) -> Result<Vec<u8>, String> {
    let model = metadata
        .text("tokenizer.ggml.model")?
        .ok_or("tokenizer.ggml.model is absent: the file has no tokenizer")?;
    let tokens = tokens(metadata)?;
    let parts = match model {
        "gpt2" => bytes(metadata, tokens)?,
        "llama" => pieces(metadata, tokens)?,
        model => {
            let model: String = model.chars().take(60).collect();
            return Err(format!(
                "tokenizer.ggml.model is {model:?}; gpt2 (byte-level BPE) and llama (SentencePiece) are supported"
            ));
        }
    };
    let invalid = |error: TokenizerError| error.to_string();
    parts.to_json().map_err(invalid)
}

/// The vocabulary, with scores where there are any.
fn tokens(metadata: &Metadata) -> Result<Vec<Piece>, String> {
    let types = metadata.list("tokenizer.ggml.token_type")?.unwrap_or(&[]);
    let kind = |id: usize| -> Result<PieceKind, String> {
        let number = match types.get(id) {
            None => return Ok(PieceKind::Normal),
            Some(HeaderValue::I32(kind)) => u64::try_from(*kind).ok(),
            Some(HeaderValue::U32(kind)) => Some(u64::from(*kind)),
            Some(_) => None,
        };
        let kind = number.and_then(|number| match number {
            // Undefined; it stands for the text it is.
            0 => Some(PieceKind::Normal),
            number => PieceKind::numbered(number),
        });
        kind.ok_or_else(|| {
            format!("tokenizer.ggml.token_type: that of token {id} is none of 0 to 6")
        })
    };
    let scores = metadata.list("tokenizer.ggml.scores")?.unwrap_or(&[]);
    let score = |id: usize| match scores.get(id) {
        Some(HeaderValue::F32(score)) => *score,
        Some(HeaderValue::I32(score)) => *score as f32,
        _ => 0.0,
    };
    texts(metadata, "tokenizer.ggml.tokens")?
        .into_iter()
        .enumerate()
        .map(|(id, text)| {
            Ok(Piece {
                text: text.to_owned(),
                score: score(id),
                kind: kind(id)?,
            })
        })
        .collect()
}

fn texts<'m>(metadata: &'m Metadata, key: &str) -> Result<Vec<&'m str>, String> {
    let values = metadata
        .list(key)?
        .ok_or_else(|| format!("{key} is absent"))?;
    let mut texts = Vec::with_capacity(values.len());
    for value in values {
        match value {
            HeaderValue::String(text) => texts.push(text.as_str()),
            _ => return Err(format!("{key} holds something that is no text")),
        }
    }
    Ok(texts)
}

/// A byte-level BPE.
fn bytes(metadata: &Metadata, tokens: Vec<Piece>) -> Result<TokenizerParts, String> {
    let pre = metadata.text(PRE)?.ok_or_else(|| {
        format!(
            "{PRE} is absent, so how texts are split is not known; {} are supported",
            ByteSplit::names()
        )
    })?;
    let split = ByteSplit::named(pre).map_err(|problem| format!("{PRE} {problem}"))?;
    let merges = texts(metadata, "tokenizer.ggml.merges")?
        .into_iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(format!("the merge {merge:?} is not two tokens")),
        })
        .collect::<Result<Vec<_>, String>>()?;
    let (beginning, end) = bounds(metadata, &tokens, split.begins)?;
    let mut vocabulary = Map::new();
    let mut added_tokens = Vec::new();
    for (token, id) in tokens.into_iter().zip(0u32..) {
        match token.kind {
            PieceKind::Control => added_tokens.push(added(id, &token.text, true)),
            PieceKind::UserDefined => added_tokens.push(added(id, &token.text, false)),
            _ => {}
        }
        if let Some(first) = vocabulary.insert(token.text, json!(id)) {
            return Err(format!("the tokens {first} and {id} are the same"));
        }
    }
    Ok(TokenizerParts {
        added_tokens,
        post_processor: template(beginning.as_ref(), end.as_ref()),
        ..split.parts(vocabulary, merges, false)
    })
}

/// SentencePiece's byte-pair encoding.
fn pieces(metadata: &Metadata, mut pieces: Vec<Piece>) -> Result<TokenizerParts, String> {
    let switch = |key: &str, usual: bool| -> Result<bool, String> {
        Ok(metadata.boolean(key)?.unwrap_or(usual))
    };
    let (beginning, end) = bounds(metadata, &pieces, true)?;
    let is_phi3 = metadata.text("general.architecture")? == Some("phi3");
    let space_before = match switch("tokenizer.ggml.add_space_prefix", true)? {
        true => SpaceBefore::Always,
        false => SpaceBefore::Never,
    };
    if space_before == SpaceBefore::Never {
        restore_spaces(&mut pieces);
    }
    let tokenizer = PieceTokenizer {
        pieces,
        added_tokens: Vec::new(),
        space_before,
        single_spaces: switch("tokenizer.ggml.remove_extra_whitespaces", false)?,
        user_defined: match space_before {
            SpaceBefore::Never => UserDefined::AsPieces,
            _ => UserDefined::AsTokens,
        },
        strips_behind: match is_phi3 {
            true => |piece| !PHI3_PLAIN.contains(&piece.text.as_str()),
            false => |_| false,
        },
        beginning,
        end,
    };
    tokenizer.parts().map_err(|error| error.to_string())
}

/// Converters write user-defined pieces with spaces; SentencePiece finds them by what stands for these.
fn restore_spaces(pieces: &mut [Piece]) {
    let known: HashSet<String> = pieces.iter().map(|piece| piece.text.clone()).collect();
    for piece in pieces {
        let restored = piece.text.replace(' ', SPACE);
        if piece.kind == PieceKind::UserDefined && !known.contains(&restored) {
            piece.text = restored;
        }
    }
}

/// The tokens that are put before and behind a text, where the file says so; `begins` holds where it does not say.
fn bounds(
    metadata: &Metadata,
    tokens: &[Piece],
    begins: bool,
) -> Result<(Option<NamedToken>, Option<NamedToken>), String> {
    let token =
        |id_key: &str, switch_key: &str, usual: bool| -> Result<Option<NamedToken>, String> {
            let is_on = metadata.boolean(switch_key)?.unwrap_or(usual);
            let id = metadata.size(id_key)?.filter(|_| is_on);
            Ok(id.and_then(|id| {
                Some(NamedToken {
                    content: tokens.get(id)?.text.clone(),
                    id: u32::try_from(id).ok()?,
                })
            }))
        };
    let beginning = token(
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.add_bos_token",
        begins,
    )?;
    let end = token(
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.add_eos_token",
        false,
    )?;
    Ok((beginning, end))
}
