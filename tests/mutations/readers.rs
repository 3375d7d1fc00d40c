//! The readers, and whole files for each.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use causeway::artifacts::gguf::GgufFile;
use causeway::artifacts::tensors::{FloatPrecision, Selection};
use causeway::artifacts::{tensors, torch_pickle};
use causeway::models::gguf;
use causeway::models::gguf::metadata::Metadata;
use causeway::models::layout::ModelFiles;
use causeway::models::tokenizer::Tokenizer;
use causeway::models::tokenizer_files;
use serde_json::{Value, json};

use super::Reader;

/// Texts that a tokenizer which was accepted is tried on.
const TEXTS: [&str; 4] = [
    "",
    "a<s> b\n\n<|im_end|>  it's 1234 <0x0A>\u{2581}",
    "Stra\u{df}e e\u{301} \u{4f60}\u{597d} \u{1f469}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{661}\u{662}",
    "def f(x):\r\n\treturn x + 1   # [UNK] [CLS]",
];
fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(path)
}

fn all(paths: &[&str]) -> Vec<Vec<u8>> {
    paths
        .iter()
        .map(|path| fs::read(golden(path)).unwrap())
        .collect()
}

fn written(file: &[u8], folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, file).unwrap();
    path
}

pub fn safetensors() -> Reader {
    Reader {
        files: all(&[
            "families/llama/model.safetensors",
            "families/llama-bfloat16/model-00001-of-00002.safetensors",
        ]),
        read: |file, folder| {
            let path = written(file, folder, "model.safetensors");
            tensors::read(&path, FloatPrecision::Single).is_ok()
        },
    }
}

pub fn shard_index() -> Reader {
    Reader {
        files: all(&["families/llama-bfloat16/model.safetensors.index.json"]),
        read: |file, folder| {
            for name in [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ] {
                let shard = folder.join(name);
                if !shard.exists() {
                    fs::copy(golden("families/llama-bfloat16").join(name), shard).unwrap();
                }
            }
            written(file, folder, "model.safetensors.index.json");
            let precision = FloatPrecision::Single;
            tensors::read_sharded(folder, "model.safetensors", precision, Selection::ALL).is_ok()
        },
    }
}

pub fn gguf_models() -> Reader {
    Reader {
        files: all(&[
            "gguf_families/llama-llama3.gguf",
            "gguf_families/phi3-longrope.gguf",
            "gguf_families/gemma2.gguf",
            "gguf/Q4_0.gguf",
        ]),
        read: |file, folder| gguf::read(&written(file, folder, "m.gguf"), u64::MAX).is_ok(),
    }
}

/// Directories of dense families, with no other bound than what their files hold.
pub fn families() -> Reader {
    let directory = |name: &str| -> Vec<u8> {
        let file = |file| fs::read(golden("families").join(name).join(file)).unwrap();
        [file("config.json"), file("model.safetensors")].join(BETWEEN)
    };
    Reader {
        files: [
            "llama-llama3",
            "gpt_neox",
            "phi3-longrope",
            "olmo2",
            "gemma2",
        ]
        .iter()
        .map(|name| directory(name))
        .collect(),
        read: |file, folder| {
            let (config, weights) = parts(file);
            written(config, folder, "config.json");
            written(weights, folder, "model.safetensors");
            ModelFiles::read(folder).is_ok()
        },
    }
}

pub fn gguf_tokenizers() -> Reader {
    Reader {
        files: all(&[
            "tokenizers/gguf-llama-bpe/tokenizer.gguf",
            "tokenizers/gguf-deepseek-llm/tokenizer.gguf",
            "tokenizers/gguf-gemma/tokenizer.gguf",
            "tokenizers/gguf-phi3/tokenizer.gguf",
        ]),
        read: |file, folder| {
            let Ok(file) = GgufFile::read(&written(file, folder, "t.gguf")) else {
                return false;
            };
            let json = gguf::tokenizer::from_metadata(&Metadata(&file.content.metadata));
            json.is_ok_and(|json| Tokenizer::from_bytes(&json).is_ok_and(|made| is_used(&made)))
        },
    }
}

pub fn checkpoints() -> Reader {
    Reader {
        files: all(&[
            "circuit_sparsity/plain/final_model.pt",
            "circuit_sparsity/sink_bigram/final_model.pt",
        ]),
        read: |file, folder| torch_pickle::read(&written(file, folder, "m.pt")).is_ok(),
    }
}

/// The archive's checksums hide most changes from the program's reader, so here they are made after the changes.
pub fn pickles() -> Reader {
    let checkpoint = fs::read(golden("circuit_sparsity/sink_bigram/final_model.pt")).unwrap();
    let mut archive = zip::ZipArchive::new(Cursor::new(checkpoint)).unwrap();
    let mut program = Vec::new();
    let mut entry = archive.by_name("final_model/data.pkl").unwrap();
    entry.read_to_end(&mut program).unwrap();
    Reader {
        files: vec![program],
        read: |program, folder| {
            let checkpoint = fs::File::open(golden("circuit_sparsity/sink_bigram/final_model.pt"));
            let mut source = zip::ZipArchive::new(checkpoint.unwrap()).unwrap();
            let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
            let plain = zip::write::SimpleFileOptions::default()
                .compression_method(zip::CompressionMethod::Stored);
            for index in 0..source.len() {
                let mut entry = source.by_index(index).unwrap();
                let name = entry.name().unwrap().into_owned();
                archive.start_file(name.as_str(), plain).unwrap();
                if name.ends_with("data.pkl") {
                    archive.write_all(program).unwrap();
                } else {
                    std::io::copy(&mut entry, &mut archive).unwrap();
                }
            }
            let archive = archive.finish().unwrap().into_inner();
            torch_pickle::read(&written(&archive, folder, "m.pt")).is_ok()
        },
    }
}

/// Of every kind of model, normalizer, pre-tokenizer and decoder that a `tokenizer.json` may name.
pub fn tokenizer_jsons() -> Reader {
    let mut files: Vec<Vec<u8>> = ["qwen2", "llama-later", "collapsing"]
        .iter()
        .map(|kind| {
            let found = tokenizer_files::read(&golden("tokenizers").join(kind)).unwrap();
            found.unwrap().json.unwrap()
        })
        .collect();
    files.extend(
        other_kinds()
            .iter()
            .map(|kind| kind.to_string().into_bytes()),
    );
    Reader {
        files,
        read: |file, folder| is_read(&[("tokenizer.json", file)], folder),
    }
}

fn other_kinds() -> Vec<Value> {
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": true, "lstrip": true, "rstrip": true,
            "normalized": true, "special": id == 0})
    };
    let words = [
        "[UNK]", "a", "##b", "it", "'", "s", "re", "##turn", "def", "x",
    ];
    let vocabulary: Value = words
        .iter()
        .zip(0..)
        .map(|(word, id)| ((*word).to_owned(), json!(id)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let scored: Value = words.iter().map(|word| json!([word, -1.5])).collect();
    let around = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[UNK]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[UNK]": {"id": "[UNK]", "ids": [0], "tokens": ["[UNK]"]}}});
    // 2048 bytes of a tree without branches, after their number.
    let character_map = format!("AAgA{}", "A".repeat(2732));
    let whole = |normalizer: Value, pre: Value, post: Value, decoder: Value, model: Value| {
        json!({"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(0, "[UNK]"), added(8, "def")], "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model})
    };
    vec![
        whole(
            json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": true}),
            json!({"type": "BertPreTokenizer"}),
            json!({"type": "BertProcessing", "sep": ["x", 9], "cls": ["[UNK]", 0]}),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocabulary}),
        ),
        whole(
            json!({"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
                {"type": "Strip", "strip_left": true, "strip_right": true}, {"type": "Prepend", "prepend": "\u{2581}"},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}, {"type": "Nmt"},
                {"type": "Precompiled", "precompiled_charsmap": character_map}]}),
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": true},
                {"type": "Punctuation", "behavior": "Contiguous"}, {"type": "Digits", "individual_digits": true},
                {"type": "UnicodeScripts"}]}),
            around,
            json!({"type": "Sequence", "decoders": [{"type": "Metaspace", "replacement": "\u{2581}",
                "prepend_scheme": "always", "split": true}, {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 1}]}),
            json!({"type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": scored}),
        ),
        whole(
            json!(null),
            json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"},
                {"type": "CharDelimiterSplit", "delimiter": "x"},
                {"type": "Split", "pattern": {"Regex": "\\p{L}+"}, "behavior": "MergedWithNext", "invert": true}]}),
            json!({"type": "RobertaProcessing", "sep": ["x", 9], "cls": ["[UNK]", 0], "trim_offsets": true,
                "add_prefix_space": true}),
            json!({"type": "CTC", "pad_token": "x", "word_delimiter_token": "'", "cleanup": true}),
            json!({"type": "WordLevel", "unk_token": "[UNK]", "vocab": vocabulary}),
        ),
        whole(
            json!({"type": "ByteLevel"}),
            json!({"type": "Whitespace"}),
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
            json!({"type": "BPEDecoder", "suffix": "</w>"}),
            json!({"type": "BPE", "dropout": 0.5, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "end_of_word_suffix": "</w>", "fuse_unk": true, "byte_fallback": true, "ignore_merges": true,
                "vocab": vocabulary, "merges": []}),
        ),
    ]
}

pub fn sentencepiece_models() -> Reader {
    Reader {
        files: all(&[
            "tokenizers/llama/tokenizer.model",
            "tokenizers/gemma/tokenizer.model",
            "tokenizers/collapsing/tokenizer.model",
        ]),
        read: |file, folder| {
            let config = json!({"tokenizer_class": "LlamaTokenizer"}).to_string();
            let files = [
                ("tokenizer.model", file),
                ("tokenizer_config.json", config.as_bytes()),
            ];
            is_read(&files, folder)
        },
    }
}

/// What stands between the files of a directory that are changed as one.
const BETWEEN: &[u8] = b"\0\0\0\0";

/// The first file, and those behind it.
fn parts(files: &[u8]) -> (&[u8], &[u8]) {
    let mut windows = files.windows(BETWEEN.len());
    match windows.position(|window| window == BETWEEN) {
        Some(end) => (&files[..end], &files[end + BETWEEN.len()..]),
        None => (files, &[]),
    }
}

pub fn vocabularies() -> Reader {
    let files = |kind: &str, names: [&str; 4]| -> Vec<u8> {
        let file = |name| fs::read(golden("tokenizers").join(kind).join(name)).unwrap_or_default();
        names.map(file).join(BETWEEN)
    };
    Reader {
        files: vec![
            files(
                "qwen2",
                [
                    "tokenizer_config.json",
                    "config.json",
                    "merges.txt",
                    "vocab.json",
                ],
            ),
            files(
                "gpt2-prefix",
                [
                    "tokenizer_config.json",
                    "config.json",
                    "merges.txt",
                    "vocab.json",
                ],
            ),
        ],
        read: |file, folder| {
            let mut rest = file;
            let mut files = Vec::new();
            for name in [
                "tokenizer_config.json",
                "config.json",
                "merges.txt",
                "vocab.json",
            ] {
                let windows = rest.windows(BETWEEN.len());
                let end = windows.clone().position(|window| window == BETWEEN);
                let (content, behind) = match end {
                    Some(end) => (&rest[..end], &rest[end + BETWEEN.len()..]),
                    None => (rest, &[][..]),
                };
                files.push((name, content));
                rest = behind;
            }
            is_read(&files, folder)
        },
    }
}

/// Whether a directory with these files has a tokenizer that works.
fn is_read(files: &[(&str, &[u8])], folder: &Path) -> bool {
    for (name, content) in files {
        written(content, folder, name);
    }
    match tokenizer_files::read(folder) {
        Ok(Some(found)) => found.tokenizer.is_ok_and(|made| is_used(&made)),
        _ => false,
    }
}

/// Runs a tokenizer both ways; it may refuse a text.
fn is_used(tokenizer: &Tokenizer) -> bool {
    for text in TEXTS {
        let Ok(ids) = tokenizer.encode(text) else {
            continue;
        };
        let _ = tokenizer.encode_prompt(text);
        let _ = tokenizer.tokens_of(text, true);
        let _ = tokenizer.encode_with_offsets(text);
        let whole = tokenizer.decode(&ids);
        let (grown, starts) = tokenizer.decode_with_starts(&ids);
        assert_eq!(starts.len(), ids.len());
        let _ = (whole, grown);
    }
    true
}
