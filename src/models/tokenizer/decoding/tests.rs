//! Text token by token against the library's decoder on the whole sequence.

use serde_json::{Value, json};

use super::*;

/// A tokenizer of these tokens, whose ids are their places, with this decoder.
fn tokenizer(tokens: &[&str], decoder: &Value) -> Tokenizer {
    let vocabulary: serde_json::Map<String, Value> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), json!(id)))
        .collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": tokens[0]}
    });
    Tokenizer::from_bytes(json.to_string().as_bytes()).expect("a tokenizer")
}

/// What is certain after each token, and in the end.
fn told(tokenizer: &Tokenizer, before: &[u32], ids: &[u32]) -> (Vec<String>, String) {
    let mut decoder = TextDecoder::after(before, tokenizer);
    let mut certain = Vec::new();
    for &id in ids {
        decoder.push(tokenizer, id);
        certain.push(decoder.text.lossy());
    }
    decoder.finish(tokenizer);
    assert_eq!(decoder.text.ends.len(), ids.len(), "every token has an end");
    assert!(decoder.text.ends.is_sorted());
    (certain, decoder.text.lossy())
}

/// Ids below `count` in no order.
fn scattered(count: u32, length: u32, seed: u32) -> Vec<u32> {
    let at = |index: u32| (index * index * 7 + index * seed + index / 3) % count;
    (0..length).map(at).collect()
}

const SPACE: &str = "\u{2581}";
const WORDS: [&str; 14] = [
    "a",
    "b",
    "\u{2581}the",
    "\u{2581}boat",
    "left",
    "\u{2581}",
    "##s",
    "n't",
    "end</w>",
    "<0xE6>",
    "<0xBC>",
    "<0xA2>",
    "<0x41>",
    "\u{e9}",
];

fn decoders() -> Vec<Value> {
    let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let string = |text: &str| json!({ "String": text });
    let chain = |steps: Value| json!({"type": "Sequence", "decoders": steps});
    let strip = |start: usize, stop: usize| json!({"type": "Strip", "content": " ", "start": start, "stop": stop});
    vec![
        json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": true}),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        json!({"type": "BPEDecoder", "suffix": "</w>"}),
        json!({"type": "CTC", "pad_token": "a", "word_delimiter_token": "b", "cleanup": true}),
        // Llama's.
        chain(json!([
            replace(string(SPACE), " "),
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            strip(1, 0)
        ])),
        chain(json!([{"type": "ByteFallback"}, {"type": "Fuse"}, strip(1, 1)])),
        // What two tokens make together is replaced.
        chain(json!([{"type": "Fuse"}, replace(string("ab"), "X")])),
        chain(json!([{"type": "Fuse"}, replace(json!({"Regex": "b+"}), "Y")])),
        Value::Null,
    ]
}

#[test]
fn pieces_of_text_are_the_decoder_s_text_of_the_whole() {
    for decoder in decoders() {
        let tokenizer = tokenizer(&WORDS, &decoder);
        for seed in 0..40 {
            let ids = scattered(WORDS.len() as u32, 150, seed);
            let whole = tokenizer.inner.decode(&ids, false).expect("a text");
            let (certain, text) = told(&tokenizer, &[], &ids);
            assert_eq!(text, whole, "{decoder} {seed}");
            for early in certain {
                assert!(whole.starts_with(&early), "{decoder} {seed}: {early:?}");
            }
        }
    }
}

#[test]
fn a_completion_goes_on_with_its_prompt() {
    let llama = &decoders()[4];
    for decoder in [&decoders()[0], &decoders()[1], llama] {
        let tokenizer = tokenizer(&WORDS, decoder);
        for seed in 0..20 {
            let mut ids = scattered(WORDS.len() as u32, 60, seed);
            // A prompt that ends within no character.
            ids[19] = 3;
            let whole = tokenizer.inner.decode(&ids, false).expect("a text");
            let before = tokenizer.inner.decode(&ids[..20], false).expect("a text");
            let (_, text) = told(&tokenizer, &ids[..20], &ids[20..]);
            assert_eq!(before + &text, whole, "{decoder} {seed}");
        }
    }
}

#[test]
fn bytes_become_text_when_their_run_ends() {
    let tokenizer = tokenizer(&WORDS, &decoders()[4]);
    // A character of three bytes; two bytes that are none; a letter's byte before one that is none.
    let (certain, text) = told(&tokenizer, &[], &[0, 9, 10, 11, 3, 9, 10, 4, 12, 9, 1]);
    assert_eq!(text, "a\u{6f22} boat\u{fffd}\u{fffd}left\u{fffd}\u{fffd}b");
    assert_eq!(certain[1..4], ["a", "a", "a"]);
    assert_eq!(certain[4], "a\u{6f22} boat");
    assert_eq!(certain[8], "a\u{6f22} boat\u{fffd}\u{fffd}left");
    let (_, starts) = tokenizer.decode_with_starts(&[0, 9, 10, 11, 3, 4]);
    assert_eq!(starts, [0, 1, 1, 1, 2, 7]);
    assert_eq!(tokenizer.token_bytes(9), [0xe6]);
    assert_eq!(tokenizer.token_bytes(3), b" boat");
}

#[test]
fn a_decoder_that_fails_takes_nobody_with_it() {
    // It counts back from the end of a token that has none.
    let strip = json!({"type": "Strip", "content": "a", "start": 0, "stop": 3});
    let tokenizer = tokenizer(&WORDS, &strip);
    let (_, text) = told(&tokenizer, &[], &[4, 0, 4]);
    assert!(text.starts_with("left") && text.ends_with("left"), "{text}");
}

#[test]
fn characters_are_counted_across_tokens() {
    let mut text = TokenText {
        bytes: b"a\xc3\xa9\xe2\x82x\xff\xf0\x9f\x98\x80".to_vec(),
        ends: vec![1, 2, 3, 4, 5, 6, 7, 9, 11],
        ..TokenText::default()
    };
    let starts: Vec<usize> = (0..9).map(|token| text.start_of(token)).collect();
    assert_eq!(starts, [0, 1, 1, 2, 2, 3, 4, 5, 5]);
    assert_eq!(text.lossy().chars().count(), 6);
}
