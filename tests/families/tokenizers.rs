//! Tokenizers of every kind that is read, against their own libraries on 500 texts: ids, decoded texts, and the text
//! that grows token by token (`tests/golden/tokenizer_files.py` wrote them).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use causeway::artifacts::gguf::GgufFile;
use causeway::models::gguf;
use causeway::models::gguf::metadata::Metadata;
use causeway::models::tokenizer::Tokenizer;
use causeway::models::tokenizer::decoding::TextDecoder;
use causeway::models::tokenizer_files;
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Expected {
    beginning: Vec<u32>,
    /// By the text's number, where decoding does not give the text itself.
    decoded: BTreeMap<usize, String>,
}

struct Kind {
    name: String,
    tokenizer: Tokenizer,
    expected: Expected,
    ids: Vec<Vec<u32>>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers")
}

fn texts() -> Vec<String> {
    serde_json::from_slice(&fs::read(root().join("texts.json")).unwrap()).unwrap()
}

fn of_gguf(path: &Path) -> Result<Tokenizer, String> {
    let file = GgufFile::read(path)?;
    let json = gguf::tokenizer::from_metadata(&Metadata(&file.content.metadata))?;
    Tokenizer::from_bytes(&json).map_err(|error| error.to_string())
}

fn kinds() -> Vec<Kind> {
    let entries = fs::read_dir(root()).unwrap();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    assert!(folders.len() >= 24, "{} folders", folders.len());
    folders.iter().map(|folder| kind(folder)).collect()
}

fn kind(folder: &Path) -> Kind {
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let gguf = folder.join("tokenizer.gguf");
    let tokenizer = match gguf.exists() {
        true => of_gguf(&gguf).unwrap_or_else(|error| panic!("{name}: {error}")),
        false => {
            let found = tokenizer_files::read(folder).unwrap().unwrap();
            found
                .tokenizer
                .unwrap_or_else(|error| panic!("{name}: {error}"))
        }
    };
    let stored = candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu);
    let stored = stored.unwrap();
    let numbers = |name: &str| {
        let tensor = stored[name].to_dtype(DType::U32).unwrap();
        tensor.to_vec1::<u32>().unwrap()
    };
    let mut flat = numbers("ids").into_iter();
    let lengths = numbers("lengths");
    Kind {
        name,
        tokenizer,
        expected: serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap(),
        ids: lengths
            .iter()
            .map(|&length| flat.by_ref().take(length as usize).collect())
            .collect(),
    }
}

#[test]
fn every_kind_gives_the_ids_of_its_own_library() {
    let texts = texts();
    for kind in kinds() {
        assert_eq!(kind.ids.len(), texts.len());
        for (text, ids) in texts.iter().zip(&kind.ids) {
            let found = kind.tokenizer.encode(text).unwrap();
            assert_eq!(found, *ids, "{}: {text:?}", kind.name);
            let begun = kind.tokenizer.encode_prompt(text).unwrap();
            if !ids.starts_with(&kind.expected.beginning) && !ids.is_empty() {
                let expected = [kind.expected.beginning.clone(), ids.clone()].concat();
                assert_eq!(begun, expected, "{}: {text:?}", kind.name);
            }
        }
    }
}

#[test]
fn every_kind_gives_the_texts_of_its_own_library_whole_and_token_by_token() {
    let texts = texts();
    for kind in kinds() {
        for (index, (text, ids)) in texts.iter().zip(&kind.ids).enumerate() {
            let expected = kind.expected.decoded.get(&index).unwrap_or(text);
            let found = kind.tokenizer.decode(ids);
            assert_eq!(found, *expected, "{}: {text:?}", kind.name);
            let mut decoder = TextDecoder::after(&[], &kind.tokenizer);
            let mut told = 0;
            for &id in ids {
                decoder.push(&kind.tokenizer, id);
                assert!(decoder.text.bytes.len() >= told);
                told = decoder.text.bytes.len();
            }
            decoder.finish(&kind.tokenizer);
            assert_eq!(decoder.text.lossy(), *expected, "{}: {text:?}", kind.name);
            assert_eq!(decoder.text.ends.len(), ids.len());
        }
    }
}

/// A directory with these files, and what is said of its tokenizer.
#[track_caller]
fn refusal(files: &[(&str, &[u8])]) -> String {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let found = tokenizer_files::read(folder.path()).unwrap().unwrap();
    found.tokenizer.expect_err("a refusal").to_string()
}

#[test]
fn classes_and_files_that_do_not_fit_are_named() {
    let vocabulary = fs::read(root().join("gpt2/vocab.json")).unwrap();
    let merges = fs::read(root().join("gpt2/merges.txt")).unwrap();
    let pieces = fs::read(root().join("llama/tokenizer.model")).unwrap();
    let class = |name: &str| json!({"tokenizer_class": name}).to_string().into_bytes();
    let config = |model_type: &str| json!({"model_type": model_type}).to_string().into_bytes();
    let pair = [("vocab.json", &vocabulary[..]), ("merges.txt", &merges[..])];
    let with = |more: &[(&'static str, Vec<u8>)], files: &[(&'static str, &[u8])]| {
        let more = more
            .iter()
            .map(|(name, content)| (*name, content.as_slice()));
        refusal(&files.iter().copied().chain(more).collect::<Vec<_>>())
    };
    let told = with(
        &[("tokenizer_config.json", class("WhisperTokenizerFast"))],
        &pair,
    );
    assert!(
        told.contains("\"WhisperTokenizer\"") && told.contains("GPT2Tokenizer"),
        "{told}"
    );
    let told = with(&[("config.json", config("smollm3"))], &pair);
    assert!(
        told.contains("Qwen2Tokenizer") && told.contains("tokenizer_class"),
        "{told}"
    );
    let told = with(&[("config.json", config("llama"))], &pair);
    assert!(
        told.contains("LlamaTokenizer is made of tokenizer.model"),
        "{told}"
    );
    let sole = [("tokenizer.model", &pieces[..])];
    let told = with(&[("config.json", config("gpt2"))], &sole);
    assert!(
        told.contains("GPT2Tokenizer is made of vocab.json"),
        "{told}"
    );
    // What a file of that name holds that is none of SentencePiece's.
    let ranks = [("tokenizer.model", &b"IQ== 0\nIg== 1\n"[..])];
    let told = with(&[("config.json", config("llama"))], &ranks);
    assert!(told.contains("SentencePiece"), "{told}");
    let broken = [
        ("vocab.json", &vocabulary[..]),
        ("merges.txt", &b"a b c\nab"[..]),
    ];
    let told = with(&[("config.json", config("gpt2"))], &broken);
    assert!(told.contains("merges.txt line 2"), "{told}");
}

#[test]
fn a_directory_s_tokenizer_is_written_as_one_file_that_reads_the_same() {
    let texts = texts();
    for name in ["gpt2-old", "qwen2", "llama", "gemma", "collapsing"] {
        let found = tokenizer_files::read(&root().join(name)).unwrap().unwrap();
        let (made, json) = (found.tokenizer.unwrap(), found.json.unwrap());
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tokenizer.json"), json).unwrap();
        let again = tokenizer_files::read(folder.path()).unwrap().unwrap();
        let again = again.tokenizer.unwrap();
        for text in &texts {
            assert_eq!(
                made.encode(text).unwrap(),
                again.encode(text).unwrap(),
                "{name}: {text:?}"
            );
        }
    }
}

/// What a training leaves in a `tokenizer.json` has no part in service.
#[test]
fn dropout_truncation_and_padding_are_off() {
    let found = tokenizer_files::read(&root().join("llama"))
        .unwrap()
        .unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&found.json.unwrap()).unwrap();
    json["model"]["dropout"] = json!(0.9);
    json["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": 8,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
    let changed = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
    let plain = found.tokenizer.unwrap();
    for text in texts() {
        let ids = plain.encode(&text).unwrap();
        assert_eq!(changed.encode(&text).unwrap(), ids, "{text:?}");
        assert_eq!(
            changed.tokens_of(&text, false).unwrap().len(),
            ids.len(),
            "{text:?}"
        );
    }
    let kept: serde_json::Value = serde_json::from_slice(&changed.to_json().unwrap()).unwrap();
    assert_eq!(kept["model"]["dropout"], json!(null));
    assert_eq!(kept["truncation"], json!(null));
    assert_eq!(kept["padding"], json!(null));
}
