//! GGUF files: every quantised type against the reference on the weights as they are after quantisation, the tokenizer
//! against its own, every architecture against `transformers`, and files that are damaged or foreign
//! (`tests/golden/gguf_files.py` and `tests/golden/gguf_families.py` wrote them).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use causeway::artifacts::gguf::GgufFile;
use causeway::artifacts::tensors::FloatPrecision;
use causeway::models::gguf;
use causeway::models::gguf::weights::matrix;
use causeway::models::layers::Purpose;
use causeway::models::tap::NoTap;
use causeway::models::token_rows::TokenRows;
use causeway::models::tokenizer::Tokenizer;
use causeway::models::transformer::Transformer;
use causeway::models::variant::RotaryScaling;
use causeway::numerics::columns::{Columns, StoredMatrix};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf")
}

fn families() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf_families")
}

fn stored(path: PathBuf) -> BTreeMap<String, Tensor> {
    let stored = candle_core::safetensors::load(&path, &Device::Cpu);
    let stored = stored.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    stored.into_iter().collect()
}

/// Reads `NAME.gguf` and holds its logits against those of `NAME.safetensors`.
#[track_caller]
fn compare(folder: &Path, name: &str) -> gguf::GgufModel {
    let model = gguf::read(&folder.join(format!("{name}.gguf")), u64::MAX)
        .unwrap_or_else(|error| panic!("{error}"));
    let expected = stored(folder.join(format!("{name}.safetensors")));
    let ids = expected["ids"].to_vec1::<i32>().unwrap();
    let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
    let config = model.files.config.clone();
    let transformer = Transformer::new(config, &model.files.tensors, Purpose::Inference).unwrap();
    let mut rows = TokenRows::sequences(&ids, ids.len(), &Device::Cpu).unwrap();
    let logits = transformer.forward(&mut rows, &mut NoTap).unwrap();
    let furthest = (logits - &expected["logits"])
        .and_then(|difference| difference.abs()?.max_all()?.to_scalar::<f32>())
        .unwrap();
    assert!(furthest < 1e-3, "{name} is off by {furthest}");
    assert_eq!(model.bounds.beginning, Some(1));
    assert_eq!(model.bounds.ends, [2]);
    model
}

#[test]
fn every_type_gives_the_logits_of_its_weights() {
    for name in ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"] {
        let model = compare(&folder(), name);
        assert!(model.chat_template.unwrap().contains("for m in messages"));
    }
}

#[test]
fn every_architecture_gives_the_logits_of_the_reference() {
    for name in [
        "llama",
        "llama-llama3",
        "llama-biases",
        "qwen2",
        "qwen3",
        "gemma2",
        "phi3",
        "phi3-longrope",
        "olmo2",
        "smollm3",
    ] {
        let model = compare(&families(), name);
        let rotary = model.files.config.variant.rotary.expect("rotary positions");
        // What lies beyond the first context is longer than the prompts are.
        match (name, rotary.scaling) {
            (
                "phi3-longrope",
                RotaryScaling::Longrope {
                    long,
                    first_context,
                    ..
                },
            ) => {
                assert_eq!((long, first_context), (vec![2.0, 3.0], 64));
            }
            ("llama-llama3", RotaryScaling::Listed { factors }) => assert_eq!(factors.len(), 2),
            ("phi3-longrope" | "llama-llama3", scaling) => panic!("{name}: {scaling:?}"),
            (_, scaling) => assert_eq!(scaling, RotaryScaling::None, "{name}"),
        }
    }
}

#[test]
fn blocks_of_every_type_have_the_values_of_the_reference() {
    let expected = stored(families().join("types.safetensors"));
    let mut file = GgufFile::read(&families().join("types.gguf")).unwrap();
    let mut read = |precision| -> BTreeMap<String, StoredMatrix> {
        let tensors = file.tensors(|_| true, u64::MAX, precision).unwrap();
        let matrices = tensors.into_iter();
        matrices
            .map(|(name, tensor)| (name, matrix(tensor).unwrap()))
            .collect()
    };
    let (single, kept) = (read(FloatPrecision::Single), read(FloatPrecision::AsStored));
    assert_eq!(expected.len(), 12);
    let quantised = kept.values();
    let quantised = quantised.filter(|matrix| matches!(matrix, StoredMatrix::Quantised(_)));
    assert_eq!(quantised.count(), 10);
    for (name, expected) in expected {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let found = values(&single[&name].to_float32().unwrap());
        // A layer holds the same numbers.
        let layer = Columns::stored(&kept[&name], None).unwrap();
        let outputs: Vec<u32> = (0..layer.shape().0 as u32).collect();
        let outputs = Tensor::new(outputs, &Device::Cpu).unwrap();
        assert!(
            values(&layer.select_outputs(&outputs).unwrap()) == found,
            "{name}"
        );
        let expected = values(&expected);
        assert_eq!(found.len(), expected.len(), "{name}");
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // Two products and a difference of them, rounded in another order.
            let rounding = 1e-6 * expected.abs().max(1.0);
            let off = (found - expected).abs();
            assert!(off <= rounding, "{name} {index}: {found}, {expected}");
        }
    }
}

#[test]
fn the_tokenizer_cuts_texts_as_the_reference_does() {
    #[derive(serde::Deserialize)]
    struct Cut {
        text: String,
        ids: Vec<u32>,
    }
    let texts: Vec<Cut> =
        serde_json::from_slice(&fs::read(folder().join("texts.json")).unwrap()).unwrap();
    let model = gguf::read(&folder().join("F16.gguf"), u64::MAX).unwrap();
    let tokenizer = Tokenizer::from_bytes(&model.files.tokenizer.unwrap()).unwrap();
    for Cut { text, ids } in texts {
        assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
    }
}

/// The file with one text in it exchanged for another of the same length.
fn with(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes
        .windows(from.len())
        .position(|window| window == from.as_bytes())
        .unwrap();
    let mut changed = bytes.to_vec();
    changed[at..at + to.len()].copy_from_slice(to.as_bytes());
    changed
}

#[track_caller]
fn refusal(bytes: &[u8], most_bytes: u64) -> String {
    let scratch = tempfile::NamedTempFile::new().unwrap();
    fs::write(scratch.path(), bytes).unwrap();
    gguf::read(scratch.path(), most_bytes)
        .expect_err("a refusal")
        .problem
}

#[test]
fn what_cannot_be_read_is_named() {
    let bytes = fs::read(folder().join("Q8_0.gguf")).unwrap();
    let problem = refusal(&with(&bytes, "smollm", "smelly"), u64::MAX);
    assert!(
        problem.contains("\"smelly\"") && problem.contains("llama-bpe"),
        "{problem}"
    );
    // The first text after its key: the architecture's name itself.
    let architecture = "general.architecture\u{8}\0\0\0\u{5}\0\0\0\0\0\0\0llama";
    let foreign = "general.architecture\u{8}\0\0\0\u{5}\0\0\0\0\0\0\0mamba";
    let problem = refusal(&with(&bytes, architecture, foreign), u64::MAX);
    assert!(
        problem.contains("\"mamba\"") && problem.contains("qwen2"),
        "{problem}"
    );
    let problem = refusal(&bytes, 1000);
    assert!(problem.contains("they may take 1000"), "{problem}");
}

#[test]
fn damaged_files_are_errors_and_nothing_worse() {
    let bytes = fs::read(folder().join("Q4_0.gguf")).unwrap();
    for length in (0..bytes.len()).step_by(97) {
        refusal(&bytes[..length], u64::MAX);
    }
    // Every byte of the first part turned over in turn: whatever comes of it, no panic.
    let scratch = tempfile::NamedTempFile::new().unwrap();
    for at in 0..2000 {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0xff;
        fs::write(scratch.path(), &damaged).unwrap();
        let _ = gguf::read(scratch.path(), 1 << 30);
    }
    // An alignment of zero would be divided by.
    let mut aligned = bytes[..8].to_vec();
    aligned.extend(0u64.to_le_bytes());
    aligned.extend(1u64.to_le_bytes());
    aligned.extend(17u64.to_le_bytes());
    aligned.extend(b"general.alignment");
    aligned.extend(4u32.to_le_bytes());
    aligned.extend(0u32.to_le_bytes());
    let problem = refusal(&aligned, u64::MAX);
    assert!(problem.contains("general.alignment is 0"), "{problem}");
}
