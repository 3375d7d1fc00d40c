//! Weights that stay as their file has them give the bits of the same weights in float32: quantised ones of GGUF files,
//! and those of a safetensors file in sixteen bits, served in place.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use causeway::artifacts::tensors::FloatPrecision;
use causeway::models::gguf;
use causeway::models::kv_cache::{CacheRow, KvCache};
use causeway::models::layers::Purpose;
use causeway::models::layout::{ModelFiles, ReadOptions};
use causeway::models::tap::NoTap;
use causeway::models::token_rows::TokenRows;
use causeway::models::transformer::Transformer;

const KEPT: ReadOptions = ReadOptions {
    precision: FloatPrecision::AsStored,
    ..ReadOptions::UNBOUNDED
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn transformer(files: &ModelFiles) -> Transformer {
    let config = files.config.clone();
    Transformer::stored(config, &files.tensors, &files.quantised, Purpose::Inference).unwrap()
}

fn bits(logits: &Tensor) -> Vec<u32> {
    let values = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// The logits of a few tokens, whole and token by token.
fn logits(model: &Transformer) -> [Vec<u32>; 2] {
    let ids: Vec<u32> = (3..27).collect();
    let mut rows = TokenRows::sequences(&ids, ids.len(), &Device::Cpu).unwrap();
    let whole = model.forward(&mut rows, &mut NoTap).unwrap();
    let mut cache = KvCache::new(&model.config, 1, ids.len(), &Device::Cpu).unwrap();
    let mut single = Vec::new();
    for (position, &id) in ids.iter().enumerate() {
        let at = vec![CacheRow { slot: 0, position }];
        let mut row = TokenRows::cached(&[id], at, &mut cache).unwrap();
        single.extend(bits(&model.forward(&mut row, &mut NoTap).unwrap()));
    }
    [bits(&whole), single]
}

#[track_caller]
fn assert_same(kept: &ModelFiles, single: &ModelFiles, name: &str) {
    let (kept, single) = (logits(&transformer(kept)), logits(&transformer(single)));
    assert!(kept == single, "{name}: the bits differ");
    assert!(
        kept[0] == kept[1],
        "{name}: whole and token by token differ"
    );
}

#[test]
fn quantised_weights_give_the_bits_of_their_float32() {
    for name in ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"] {
        let path = golden("gguf").join(format!("{name}.gguf"));
        let kept = gguf::read_as(&path, u64::MAX, FloatPrecision::AsStored).unwrap();
        let single = gguf::read(&path, u64::MAX).unwrap();
        let halves = kept.files.tensors.values();
        let halves = halves.filter(|tensor| tensor.dtype() != DType::F32).count();
        match name {
            "F16" | "BF16" => assert!(halves > 4, "{name} keeps {halves} matrices"),
            _ => assert!(kept.files.quantised.len() > 4, "{name}"),
        }
        assert!(single.files.quantised.is_empty());
        assert_same(&kept.files, &single.files, name);
    }
}

#[test]
fn halves_of_safetensors_give_the_bits_of_their_float32() {
    let directory = golden("families/llama-bfloat16");
    let kept = ModelFiles::read_within(&directory, KEPT).unwrap();
    let single = ModelFiles::read(&directory).unwrap();
    let halves = kept.tensors.values();
    assert!(
        halves
            .filter(|tensor| tensor.dtype() == DType::BF16)
            .count()
            > 4
    );
    let halves = single.tensors.values();
    assert!(halves.clone().all(|tensor| tensor.dtype() == DType::F32));
    assert_same(&kept, &single, "llama-bfloat16");
}

#[test]
fn a_directory_may_have_its_weights_in_a_gguf_file() {
    let path = golden("gguf/Q4_1.gguf");
    let model = gguf::read_as(&path, u64::MAX, FloatPrecision::AsStored).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    model
        .files
        .write_beside_gguf(&path, scratch.path())
        .unwrap();
    let kept = ModelFiles::read_within(scratch.path(), KEPT).unwrap();
    assert!(!kept.quantised.is_empty());
    let single = ModelFiles::read(scratch.path()).unwrap();
    assert_same(&kept, &single, "the directory");
    // As small as its file, and no larger model may be claimed.
    let file = std::fs::metadata(&path).unwrap().len();
    let need = ModelFiles::memory_need(scratch.path(), KEPT).unwrap();
    assert!(need.weights <= file, "{} of {file}", need.weights);
    let little = ReadOptions {
        model_bytes: file / 2,
        ..KEPT
    };
    assert!(ModelFiles::read_within(scratch.path(), little).is_err());
}
