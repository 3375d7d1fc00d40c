//! SentencePiece's `tokenizer.model`: its pieces and how a text is brought to them.
//!
//! The file is one protocol buffer message, of which few fields matter here; the others are passed over. Numbers below
//! are those of SentencePiece's `sentencepiece_model.proto`. What a field claims is held against the bytes that are there
//! before anything is allocated.

use super::error::TokenizerError;
use super::pieces::{Piece, PieceKind};

/// No vocabulary has more pieces.
const MOST_PIECES: usize = 1 << 20;

/// What a `tokenizer.model` says.
#[derive(Debug, Default, PartialEq)]
pub struct SentencePieceModel {
    pub pieces: Vec<Piece>,
    /// Whether a text gets a space before its first word.
    pub space_before: bool,
    /// Whether runs of spaces become one, and those at either end none.
    pub single_spaces: bool,
    /// The pieces that begin and end a text, where there are such.
    pub beginning: Option<u32>,
    pub end: Option<u32>,
}

/// A field's content.
#[derive(Debug, Clone, Copy)]
enum Content<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Four([u8; 4]),
    /// Eight bytes; no field that matters has them.
    Eight,
}

/// The fields of a message, one after the other.
struct Message<'a> {
    rest: &'a [u8],
}

impl<'a> Message<'a> {
    /// The next field's number and content; none at the end.
    fn next(&mut self) -> Result<Option<(u64, Content<'a>)>, String> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.number()?;
        let content = match key & 7 {
            0 => Content::Number(self.number()?),
            1 => {
                self.bytes(8)?;
                Content::Eight
            }
            2 => {
                let length = self.number()?;
                Content::Bytes(self.bytes(length)?)
            }
            5 => {
                let bytes = self.bytes(4)?;
                let four = bytes.try_into().map_err(|_| "the file is cut off")?;
                Content::Four(four)
            }
            kind => {
                return Err(format!(
                    "it has a field of kind {kind}; 0, 1, 2 and 5 are known"
                ));
            }
        };
        Ok(Some((key >> 3, content)))
    }

    /// A number in groups of seven bits, the lowest first.
    fn number(&mut self) -> Result<u64, String> {
        let mut number = 0u64;
        for place in 0..10 {
            let (&byte, rest) = self.rest.split_first().ok_or("the file is cut off")?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f)
                .checked_shl(7 * place)
                .unwrap_or_default();
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("it has a number of more than 64 bits".to_owned())
    }

    fn bytes(&mut self, length: u64) -> Result<&'a [u8], String> {
        let there = self.rest.len();
        let length = usize::try_from(length)
            .ok()
            .filter(|&length| length <= there);
        let length = length.ok_or("a field is longer than what is left of the file")?;
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(bytes)
    }
}

impl SentencePieceModel {
    /// Reads a `tokenizer.model`. What would split a text in a way that is not implemented here is refused by name.
    pub fn parse(file: &[u8]) -> Result<Self, TokenizerError> {
        Self::read(file).map_err(|problem| {
            TokenizerError::Invalid(format!("as a SentencePiece model, {problem}"))
        })
    }

    fn read(file: &[u8]) -> Result<Self, String> {
        let mut model = SentencePieceModel {
            space_before: true,
            single_spaces: true,
            beginning: Some(1),
            end: Some(2),
            ..SentencePieceModel::default()
        };
        // What the format has where the field is left out.
        let mut kind = UNIGRAM;
        let mut message = Message { rest: file };
        while let Some((field, content)) = message.next()? {
            match (field, content) {
                (1, Content::Bytes(bytes)) => {
                    if model.pieces.len() == MOST_PIECES {
                        return Err(format!("it has more than {MOST_PIECES} pieces"));
                    }
                    model.pieces.push(piece(bytes)?);
                }
                (2, Content::Bytes(bytes)) => kind = model.read_training(bytes, kind)?,
                (3, Content::Bytes(bytes)) => model.read_normalizer(bytes)?,
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err("it has no pieces".to_owned());
        }
        if kind != BYTE_PAIRS {
            let kind = KINDS.iter().find(|(number, _)| *number == kind);
            let kind = kind.map_or("unknown", |(_, name)| *name);
            return Err(format!(
                "its trainer_spec.model_type is {kind}; bpe is supported"
            ));
        }
        let known = |id: &u32| (*id as usize) < model.pieces.len();
        model.beginning = model.beginning.filter(known);
        model.end = model.end.filter(known);
        Ok(model)
    }

    /// The message `trainer_spec`; returns the kind of model.
    fn read_training(&mut self, bytes: &[u8], mut kind: u64) -> Result<u64, String> {
        let mut message = Message { rest: bytes };
        // A negative id is a way to name none.
        let id = |number: u64| u32::try_from(number).ok();
        while let Some((field, content)) = message.next()? {
            match (field, content) {
                (3, Content::Number(number)) => kind = number,
                (24, Content::Number(1..)) => {
                    let problem = "its spaces stand behind words (treat_whitespace_as_suffix)";
                    return Err(format!("{problem}, which is not supported"));
                }
                (41, Content::Number(number)) => self.beginning = id(number),
                (42, Content::Number(number)) => self.end = id(number),
                _ => {}
            }
        }
        Ok(kind)
    }

    /// The message `normalizer_spec`.
    fn read_normalizer(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut message = Message { rest: bytes };
        let mut name = String::new();
        let mut rewrites = false;
        while let Some((field, content)) = message.next()? {
            match (field, content) {
                (1, Content::Bytes(bytes)) => {
                    name = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
                }
                (2, Content::Bytes(map)) => rewrites = !map.is_empty(),
                (3, Content::Number(number)) => self.space_before = number != 0,
                (4, Content::Number(number)) => self.single_spaces = number != 0,
                (5, Content::Number(0)) => {
                    let problem = "its spaces stay as they are (escape_whitespaces)";
                    return Err(format!("{problem}, which is not supported"));
                }
                _ => {}
            }
        }
        match rewrites {
            false => Ok(()),
            true => Err(format!(
                "its normalizer_spec.name is {name:?}, which rewrites texts; identity is supported"
            )),
        }
    }
}

const UNIGRAM: u64 = 1;
const BYTE_PAIRS: u64 = 2;
const KINDS: [(u64, &str); 4] = [
    (UNIGRAM, "unigram"),
    (BYTE_PAIRS, "bpe"),
    (3, "word"),
    (4, "char"),
];

fn piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut message = Message { rest: bytes };
    let mut piece = Piece {
        text: String::new(),
        score: 0.0,
        kind: PieceKind::Normal,
    };
    while let Some((field, content)) = message.next()? {
        match (field, content) {
            (1, Content::Bytes(text)) => {
                let text = std::str::from_utf8(text).map_err(|_| "a piece is not UTF-8")?;
                piece.text = text.to_owned();
            }
            (2, Content::Four(score)) => piece.score = f32::from_le_bytes(score),
            (3, Content::Number(kind)) => {
                piece.kind = PieceKind::numbered(kind)
                    .ok_or_else(|| format!("a piece is of kind {kind}; 1 to 6 are known"))?;
            }
            _ => {}
        }
    }
    Ok(piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field with bytes.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8][..], content].concat()
    }

    /// A field with a number below 128.
    fn number(field: u16, number: u8) -> Vec<u8> {
        let key = field << 3;
        match key < 128 {
            true => vec![key as u8, number],
            false => vec![(key & 0x7f | 0x80) as u8, (key >> 7) as u8, number],
        }
    }

    fn piece_of(text: &str, score: f32, kind: u8) -> Vec<u8> {
        let score = [&[2 << 3 | 5][..], &score.to_le_bytes()].concat();
        field(
            1,
            &[field(1, text.as_bytes()), score, number(3, kind)].concat(),
        )
    }

    fn model(training: &[u8], normalizer: &[u8]) -> Vec<u8> {
        let pieces = [piece_of("<unk>", 0.0, 2), piece_of("\u{2581}a", -1.5, 1)].concat();
        [pieces, field(2, training), field(3, normalizer)].concat()
    }

    #[test]
    fn fields_are_read_and_others_passed_over() {
        let training = [number(3, 2), number(41, 0), number(99, 5), vec![0x91, 6]];
        let training = [training.concat(), vec![0; 8]].concat();
        let normalizer = [field(1, b"identity"), number(3, 0), number(4, 0)].concat();
        let found = SentencePieceModel::parse(&model(&training, &normalizer)).expect("a model");
        let piece = |text: &str, score, kind| Piece {
            text: text.to_owned(),
            score,
            kind,
        };
        let expected = SentencePieceModel {
            pieces: vec![
                piece("<unk>", 0.0, PieceKind::Unknown),
                piece("\u{2581}a", -1.5, PieceKind::Normal),
            ],
            space_before: false,
            single_spaces: false,
            beginning: Some(0),
            // There is no piece 2.
            end: None,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        for (training, normalizer, named) in [
            (number(3, 1), vec![], "unigram"),
            (vec![], vec![], "unigram"),
            (number(3, 4), vec![], "char"),
            (
                [number(3, 2), number(24, 1)].concat(),
                vec![],
                "treat_whitespace_as_suffix",
            ),
            (number(3, 2), number(5, 0), "escape_whitespaces"),
            (
                number(3, 2),
                [field(1, b"nmt_nfkc"), field(2, b"map")].concat(),
                "nmt_nfkc",
            ),
        ] {
            let refused = SentencePieceModel::parse(&model(&training, &normalizer));
            let refused = refused.expect_err("a refusal").to_string();
            assert!(refused.contains(named), "{refused}");
        }
    }

    #[test]
    fn claims_beyond_the_file_are_errors() {
        let whole = model(&number(3, 2), &number(3, 1));
        for length in 0..whole.len() {
            // Without its last field it is a whole file still.
            let refused = SentencePieceModel::parse(&whole[..length]).is_err();
            assert_eq!(refused, length != whole.len() - 4, "{length}");
        }
        for damaged in [
            &[
                1 << 3 | 2,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                1,
            ][..],
            &[0xff; 12],
            &[1 << 3 | 3],
        ] {
            assert!(SentencePieceModel::parse(damaged).is_err());
        }
    }
}
