//! Training, byte-exact pieces, and conversions that must agree with the vocabulary they came from.

use std::collections::HashMap;

use causeway::models::tokenizer::{
    END_OF_TEXT, SPLIT_PATTERN, Tokenizer, TokenizerError, formats, train_bpe,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

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

/// A tokenizer of whole words, with these parts beside its model.
fn of_words(words: &[&str], parts: Value) -> Tokenizer {
    let vocabulary: serde_json::Map<String, Value> = words
        .iter()
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), json!(id)))
        .collect();
    let mut whole = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": words[0]}
    });
    for (name, part) in parts.as_object().unwrap() {
        whole[name] = part.clone();
    }
    Tokenizer::from_bytes(whole.to_string().as_bytes()).unwrap()
}

fn starts(tokenizer: &Tokenizer, text: &str) -> Vec<usize> {
    let tokens = tokenizer.tokens_of(text, false).unwrap();
    tokens.iter().map(|token| token.characters.start).collect()
}

#[test]
fn offsets_are_the_tokenizer_s_own() {
    let byte_level = |space: bool, trim: bool| json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": trim});
    let spaced = of_words(
        &["?", "\u{120}The", "\u{120}boat", "\u{120}left"],
        json!({"pre_tokenizer": byte_level(true, true), "post_processor": byte_level(true, true),
            "decoder": byte_level(true, true)}),
    );
    let text = "The boat left";
    assert_eq!(spaced.encode(text).unwrap(), [1, 2, 3]);
    assert_eq!(starts(&spaced, text), [0, 4, 9]);
    let composed = of_words(
        &["?", "caf\u{c3}\u{a9}", "\u{120}au", "\u{120}lait"],
        json!({"normalizer": {"type": "NFC"}, "pre_tokenizer": byte_level(false, false),
            "decoder": byte_level(false, false)}),
    );
    let text = "cafe\u{301} au lait";
    assert_eq!(composed.encode(text).unwrap(), [1, 2, 3]);
    assert_eq!(starts(&composed, text), [0, 5, 8]);
    assert_eq!(
        composed.decode_with_starts(&[1, 2, 3]),
        ("caf\u{e9} au lait".to_owned(), vec![0, 4, 7])
    );
}

#[test]
fn what_is_for_training_alone_stays_off() {
    let mut json: Value = serde_json::from_slice(&trained().to_json().unwrap()).unwrap();
    let text = "def compute(first, second):\n    return first + second\n".repeat(20);
    let expected = trained().encode(&text).unwrap();
    json["model"]["dropout"] = json!(0.5);
    json["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 4096}, "direction": "Left", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "a"});
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
    for _ in 0..3 {
        assert_eq!(tokenizer.encode(&text).unwrap(), expected);
        assert_eq!(tokenizer.encode_prompt(&text).unwrap(), expected);
        let tokens = tokenizer.tokens_of(&text, true).unwrap();
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        assert_eq!(ids, expected);
    }
}

#[test]
fn a_prompt_begins_as_the_post_processor_says() {
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let template = |single: Value| {
        let token = |id: u32, name: &str| json!({"id": name, "ids": [id], "tokens": [name]});
        json!({"post_processor": {"type": "TemplateProcessing", "single": single, "pair": [],
            "special_tokens": {"<s>": token(1, "<s>"), "</s>": token(2, "</s>")}},
            "added_tokens": [special(1, "<s>"), special(2, "</s>")],
            "pre_tokenizer": {"type": "WhitespaceSplit"}})
    };
    let words = ["?", "<s>", "</s>", "a", "b"];
    let (text, begin) = (
        json!({"Sequence": {"id": "A", "type_id": 0}}),
        json!({"SpecialToken": {"id": "<s>", "type_id": 0}}),
    );
    let end = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
    let both = of_words(&words, template(json!([begin, text, end])));
    assert_eq!(both.encode_prompt("a b").unwrap(), [1, 3, 4]);
    assert_eq!(both.encode_prompt("<s>a b").unwrap(), [1, 3, 4]);
    assert_eq!(both.encode_prompt("").unwrap(), [1]);
    assert_eq!(both.encode("a b").unwrap(), [3, 4]);
    let tokens = both.tokens_of("a b", true).unwrap();
    let places: Vec<_> = tokens
        .into_iter()
        .map(|token| (token.id, token.characters))
        .collect();
    assert_eq!(places, [(1, 0..0), (3, 0..1), (4, 2..3)]);
    let undefined = json!({"SpecialToken": {"id": "<t>", "type_id": 0}});
    let mut parts = template(json!([undefined, text]));
    parts["model"] = json!({"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"});
    let refused = Tokenizer::from_bytes(parts.to_string().as_bytes());
    assert!(matches!(refused, Err(TokenizerError::Invalid(_))));
    let neither = of_words(&words, template(json!([text, end])));
    assert_eq!(neither.encode_prompt("a b").unwrap(), [3, 4]);
    assert_eq!(neither.encode_prompt("").unwrap(), Vec::<u32>::new());
}
