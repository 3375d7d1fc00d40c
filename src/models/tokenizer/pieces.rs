//! SentencePiece's byte-pair encoding as a `tokenizer.json`: pieces with scores, as a `tokenizer.model` or a GGUF file
//! lists them.
//!
//! There is no list of merges. Two neighbours may be joined wherever what they make is a piece, the one with the best
//! score first; what is no piece in the end becomes bytes. Each way to join two pieces into a third is therefore written as
//! a merge, in the order of the scores.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::error::{LARGEST_ID, TokenizerError};
use super::parts::{NamedToken, SPACE, TokenizerParts, added, isolating, sequence, template};

/// No piece that takes part in merges has more bytes: the ways to cut one are looked up one by one.
const LONGEST_PIECE: usize = 256;

/// The first character of what is written like a byte's piece and stands alone: it is text, and no byte.
const WRITTEN_BYTE: &str = r"\A<(?=0x[0-9A-F]{2}>\z)";

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// Text that is merged together.
    Normal,
    /// Stands for what is no piece.
    Unknown,
    /// Stands for no text.
    Control,
    /// Text that is never cut or merged.
    UserDefined,
    /// One byte, written as `<0xE6>`.
    Byte,
    Unused,
}

impl PieceKind {
    /// What the number stands for that SentencePiece's files and GGUF files have in common.
    pub fn numbered(number: u64) -> Option<Self> {
        match number {
            1 => Some(PieceKind::Normal),
            2 => Some(PieceKind::Unknown),
            3 => Some(PieceKind::Control),
            4 => Some(PieceKind::UserDefined),
            5 => Some(PieceKind::Unused),
            6 => Some(PieceKind::Byte),
            _ => None,
        }
    }
}

/// One entry of the vocabulary; its place in the list is its id.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: PieceKind,
}

/// When a text gets a space before its first word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpaceBefore {
    Never,
    /// Before every stretch of text between special tokens.
    Always,
    /// Before the first stretch alone, and only where there is none yet.
    First,
}

/// How user-defined pieces are found in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserDefined {
    /// As special tokens are: in the text as it stands, which is cut there.
    AsTokens,
    /// As SentencePiece finds them: once spaces have become pieces' own.
    AsPieces,
}

/// A vocabulary and how it is used.
#[derive(Debug)]
pub struct PieceTokenizer {
    pub pieces: Vec<Piece>,
    /// What is added to the pieces, in the form of a `tokenizer.json`, in the order of ids.
    pub added_tokens: Vec<Value>,
    pub space_before: SpaceBefore,
    /// Whether runs of spaces become one, and those at either end none.
    pub single_spaces: bool,
    pub user_defined: UserDefined,
    /// Special tokens after which white space is left out.
    pub strips_behind: fn(&Piece) -> bool,
    pub beginning: Option<NamedToken>,
    pub end: Option<NamedToken>,
}

impl PieceTokenizer {
    /// The tokenizer, or which piece is wrong.
    pub fn parts(&self) -> Result<TokenizerParts, TokenizerError> {
        let invalid = |problem: String| Err(TokenizerError::Invalid(problem));
        if self.pieces.len() > LARGEST_ID as usize {
            return invalid(format!("it has more than {LARGEST_ID} pieces"));
        }
        let mut vocabulary = Map::new();
        let mut added_tokens: Vec<Value> = Vec::new();
        let given = self.added_tokens.iter();
        let given: HashSet<&str> = given
            .filter_map(|token| token["content"].as_str())
            .collect();
        let isolated = self.isolated();
        let has_bytes = self
            .pieces
            .iter()
            .any(|piece| piece.kind == PieceKind::Byte);
        for (id, piece) in self.pieces.iter().enumerate() {
            let twice = vocabulary.insert(piece.text.clone(), json!(id)).is_some();
            if twice {
                return invalid(format!("the piece {:?} is there twice", piece.text));
            }
            if piece.kind == PieceKind::Normal && piece.text.len() > LONGEST_PIECE {
                return invalid(format!("piece {id} has more than {LONGEST_PIECE} bytes"));
            }
            let (special, normalized) = match (piece.kind, self.user_defined) {
                (PieceKind::Control | PieceKind::Unknown, _) => (true, false),
                (PieceKind::UserDefined, UserDefined::AsTokens) => (false, false),
                (PieceKind::UserDefined, UserDefined::AsPieces) if isolated.is_none() => {
                    (false, true)
                }
                _ => continue,
            };
            if given.contains(piece.text.as_str()) {
                continue;
            }
            let mut token = added(id as u32, &piece.text, special);
            token["normalized"] = json!(normalized);
            token["rstrip"] = json!((self.strips_behind)(piece));
            added_tokens.push(token);
        }
        for token in &self.added_tokens {
            let content = token["content"].as_str().unwrap_or_default();
            vocabulary.insert(content.to_owned(), token["id"].clone());
            added_tokens.push(token.clone());
        }
        added_tokens.sort_by_key(|token| token["id"].as_u64());
        let unknown = self
            .pieces
            .iter()
            .find(|piece| piece.kind == PieceKind::Unknown);
        let mut pre_tokenizers = Vec::new();
        if self.space_before == SpaceBefore::First {
            pre_tokenizers.push(json!({
                "type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": false,
            }));
        }
        if let Some(pattern) = &isolated {
            pre_tokenizers.extend([isolating(pattern), isolating(WRITTEN_BYTE)]);
        }
        Ok(TokenizerParts {
            added_tokens,
            normalizer: self.normalizer(),
            pre_tokenizer: sequence("pretokenizers", pre_tokenizers),
            post_processor: template(self.beginning.as_ref(), self.end.as_ref()),
            decoder: self.decoder(has_bytes),
            model: json!({
                "type": "BPE", "dropout": null, "unk_token": unknown.map(|piece| &piece.text),
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": has_bytes,
                // A user-defined piece stands alone by now; no merges need lead to it.
                "ignore_merges": isolated.is_some(),
                "vocab": vocabulary, "merges": self.merges(),
            }),
        })
    }

    fn normalizer(&self) -> Value {
        let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let mut steps = Vec::new();
        if self.single_spaces {
            steps.push(replace(
                json!({"Regex": format!(r"\A +|[ {SPACE}]+\z")}),
                "",
            ));
            steps.push(replace(json!({"Regex": " {2,}"}), " "));
        }
        if self.space_before == SpaceBefore::Always {
            steps.push(json!({"type": "Prepend", "prepend": SPACE}));
        }
        steps.push(replace(json!({"String": " "}), SPACE));
        sequence("normalizers", steps)
    }

    fn decoder(&self, has_bytes: bool) -> Value {
        let mut steps = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "Fuse"}),
        ];
        if has_bytes {
            steps.insert(1, json!({"type": "ByteFallback"}));
        }
        if self.space_before != SpaceBefore::Never {
            steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        sequence("decoders", steps)
    }

    /// A pattern of the user-defined pieces; the longest is preferred. As tokens they would cut a text into stretches,
    /// each of which gets a space; where none does, they are tokens.
    fn isolated(&self) -> Option<String> {
        if self.user_defined == UserDefined::AsTokens || self.space_before != SpaceBefore::Always {
            return None;
        }
        let mut texts: Vec<&str> = self
            .pieces
            .iter()
            .filter(|piece| piece.kind == PieceKind::UserDefined && !piece.text.is_empty())
            .map(|piece| piece.text.as_str())
            .collect();
        if texts.is_empty() {
            return None;
        }
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let patterns: Vec<String> = texts.into_iter().map(escaped).collect();
        Some(patterns.join("|"))
    }

    /// Every way to join two pieces into a third, by the third's score; of the same score in the order of ids.
    fn merges(&self) -> Vec<(&str, &str)> {
        let pieces = self.pieces.iter();
        let mut whole: Vec<&Piece> = pieces
            .filter(|piece| piece.kind == PieceKind::Normal)
            .collect();
        whole.sort_by(|one, other| other.score.total_cmp(&one.score));
        let known: HashSet<&str> = whole.iter().map(|piece| piece.text.as_str()).collect();
        let mut merges = Vec::new();
        for piece in whole {
            for (middle, _) in piece.text.char_indices().skip(1) {
                let (left, right) = piece.text.split_at(middle);
                if known.contains(left) && known.contains(right) {
                    merges.push((left, right));
                }
            }
        }
        merges
    }
}

/// A text as a pattern that finds it and nothing else.
fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            // Letters may mean something behind a backslash; these never do.
            '_' => pattern.push('_'),
            character if character.is_ascii_alphanumeric() || !character.is_ascii() => {
                pattern.push(character);
            }
            character if character.is_ascii_graphic() || character == ' ' => {
                pattern.push('\\');
                pattern.push(character);
            }
            character => pattern.push_str(&format!("\\x{{{:x}}}", u32::from(character))),
        }
    }
    pattern
}
