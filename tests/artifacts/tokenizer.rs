//! Training, byte-exact pieces, and conversions that must agree with the vocabulary they came from.

use std::collections::HashMap;

use causeway::models::tokenizer::{
    END_OF_TEXT, SPLIT_PATTERN, Tokenizer, TokenizerError, formats, train_bpe,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

fn corpus() -> impl Iterator<Item = String> + Send {
    (0..60).map(|index| {
        format!(
            "def f{index}(items):\n    total = {index}\n    for item in items:\n        total += item\n    \
             return total\n\n\nname = \"x{index}\"\nprint('{index}', [1, 2, {index}], {{'k': name}})\n"
        )
    })
}

fn trained() -> Tokenizer {
    train_bpe(corpus(), 320).unwrap()
}

#[test]
fn training_gives_the_size_asked_for_and_ends_with_the_separator() {
    let tokenizer = trained();
    assert_eq!(tokenizer.vocab_size(), 320);
    assert_eq!(tokenizer.end_of_text(), Some(319));
    assert_eq!(tokenizer.token_bytes(319), END_OF_TEXT.as_bytes());
    let ids = tokenizer.encode("a<|endoftext|>b").unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 319).count(), 1);
    assert_eq!(ids.len(), 3);
    // Every byte is a token, so nothing is beyond this vocabulary.
    let mut bytes: Vec<u8> = (0..319)
        .filter_map(|id| match tokenizer.token_bytes(id) {
            [byte] => Some(*byte),
            _ => None,
        })
        .collect();
    bytes.sort_unstable();
    assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
}

#[test]
fn training_is_deterministic_whatever_the_order_of_the_texts() {
    let mut texts: Vec<String> = corpus().collect();
    let first = train_bpe(texts.clone().into_iter(), 330).unwrap().to_json();
    texts.reverse();
    let second = train_bpe(texts.into_iter(), 330).unwrap().to_json();
    let parse = |json: Vec<u8>| serde_json::from_slice::<Value>(&json).unwrap();
    assert_eq!(parse(first.unwrap()), parse(second.unwrap()));
}

#[test]
fn newlines_stick_to_the_punctuation_before_them() {
    let text = "if x:\n    y = 1\n".repeat(50);
    let tokenizer = train_bpe([text].into_iter(), 262).unwrap();
    let pieces: Vec<String> = tokenizer
        .encode("if x:\n")
        .unwrap()
        .iter()
        .map(|&id| tokenizer.token_text(id))
        .collect();
    assert_eq!(pieces.last().map(String::as_str), Some(":\n"));
}

#[test]
fn impossible_sizes_are_refused() {
    assert!(matches!(
        train_bpe(corpus(), 256),
        Err(TokenizerError::VocabularyTooSmall(256))
    ));
    assert!(matches!(
        train_bpe(["ab".to_owned()].into_iter(), 400),
        Err(TokenizerError::TooLittleText {
            wanted: 400,
            found: 258
        })
    ));
}

#[test]
fn any_text_survives_the_round_trip_byte_for_byte() {
    let tokenizer = trained();
    let reloaded = Tokenizer::from_bytes(&tokenizer.to_json().unwrap()).unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..300 {
        let length = rng.random_range(0..60);
        let text: String = (0..length)
            .map(|_| match rng.random_range(0..4) {
                0 => char::from_u32(rng.random_range(0..0x80)).unwrap(),
                1 => char::from_u32(rng.random_range(0x80..0x800)).unwrap(),
                2 => ['\n', '\r', ' ', '\t', '\u{a0}', '\u{2028}'][rng.random_range(0..6)],
                _ => char::from_u32(rng.random_range(0x1_0000..0x11_0000)).unwrap(),
            })
            .collect();
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
        assert_eq!(reloaded.encode(&text).unwrap(), ids);
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| tokenizer.token_bytes(id))
            .copied()
            .collect();
        assert_eq!(bytes, text.as_bytes());
        let mut end = 0;
        for (id, range) in tokenizer.encode_with_offsets(&text).unwrap() {
            assert_eq!(range.start, end);
            assert_eq!(&text.as_bytes()[range.clone()], tokenizer.token_bytes(id));
            end = range.end;
        }
        assert_eq!(end, text.len());
    }
}

/// The parts of a `tokenizer.json`'s model that older formats spell out.
fn vocabulary_and_merges(tokenizer: &Tokenizer) -> (HashMap<String, u32>, Vec<(String, String)>) {
    let json: Value = serde_json::from_slice(&tokenizer.to_json().unwrap()).unwrap();
    let vocabulary = serde_json::from_value(json["model"]["vocab"].clone()).unwrap();
    let merges = serde_json::from_value(json["model"]["merges"].clone()).unwrap();
    (vocabulary, merges)
}

const SAMPLE: &str = "def g(x):\n    return x + 1  # é — 試し\n\nprint(g(12345))<|endoftext|>\n";

#[test]
fn gpt2_files_convert_to_the_same_tokenizer() {
    let source = trained();
    let (mut vocabulary, merges) = vocabulary_and_merges(&source);
    vocabulary.insert(END_OF_TEXT.to_owned(), 319);
    let encoder = serde_json::to_vec(&vocabulary).unwrap();
    let mut vocab_bpe = "#version: 0.2\n".to_owned();
    for (left, right) in merges {
        vocab_bpe.push_str(&format!("{left} {right}\n"));
    }
    let converted = formats::from_gpt2(&encoder, &vocab_bpe, SPLIT_PATTERN).unwrap();
    assert_eq!(converted.vocab_size(), 320);
    assert_eq!(converted.end_of_text(), Some(319));
    assert_eq!(
        converted.encode(SAMPLE).unwrap(),
        source.encode(SAMPLE).unwrap()
    );
    for id in 0..320 {
        assert_eq!(converted.token_bytes(id), source.token_bytes(id));
    }
    let error = formats::from_gpt2(&encoder, "#version: 0.2\nab\n", SPLIT_PATTERN).unwrap_err();
    assert!(error.to_string().contains("line 2"), "{error}");
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut word = [0u8; 4];
        word[1..=chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes(word);
        for position in 0..4 {
            let value = (word >> (18 - 6 * position)) & 63;
            let used = position <= chunk.len();
            text.push(if used {
                ALPHABET[value as usize] as char
            } else {
                '='
            });
        }
    }
    text
}

#[test]
fn a_tiktoken_file_converts_to_the_same_tokenizer() {
    let source = trained();
    let lines: Vec<String> = (0..319)
        .map(|id| format!("{} {id}", base64(source.token_bytes(id))))
        .collect();
    let converted = formats::from_tiktoken(&lines.join("\n"), SPLIT_PATTERN).unwrap();
    assert_eq!(converted.end_of_text(), Some(319));
    assert_eq!(
        converted.encode(SAMPLE).unwrap(),
        source.encode(SAMPLE).unwrap()
    );
    let (_, merges) = vocabulary_and_merges(&source);
    let (_, recovered) = vocabulary_and_merges(&converted);
    assert_eq!(recovered, merges);
    for bad in ["!!! 3", "YQ==", "YQ== x", "YQ== 1\nYQ== 2", "YWJj 5"] {
        assert!(formats::from_tiktoken(bad, SPLIT_PATTERN).is_err(), "{bad}");
    }
}
