//! Pairs as they come from a directory.

use std::path::PathBuf;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde_json::json;

use super::pair::{Catalog, D_SPARSE, answer, bits, catalog, feature_list, pair_files, steered};
use crate::artifacts::tensors;
use crate::features::pair::Pair;
use crate::models::model::{LoadedModel, ModelKind};

/// A directory of its own, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn with_pair() -> Self {
        let folder =
            Folder(std::env::temp_dir().join(format!("causeway-{}", uuid::Uuid::new_v4())));
        pair_files("pair", 3).write(&folder.0);
        folder
    }

    fn put(&self, name: &str, content: &str) {
        std::fs::write(self.0.join(name), content).expect("written");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_pair_read_from_its_directory_answers_like_the_one_that_was_written() {
    let folder = Folder::with_pair();
    folder.put(
        "features.json",
        &json!({"features": feature_list()}).to_string(),
    );
    let read = Catalog::of(Pair::read(&folder.0).expect("a pair"));
    let edit = json!({"feature": "quote_type", "op": "add", "value": 1, "unit": "std"});
    let request = steered(
        &[&[40, 257, 33]],
        json!({"bridge": "pair", "edits": [edit]}),
    );
    assert_eq!(
        bits(&answer(&read, &request).choices[0]),
        bits(&answer(&catalog(), &request).choices[0])
    );
    let (dense, sparse) = (&read.models["dense"], &read.models["sparse"]);
    assert_eq!(
        (dense.kind, sparse.kind),
        (ModelKind::Dense, ModelKind::Sparse)
    );
    assert!(sparse.nonzeros < sparse.parameters);
    let alone = LoadedModel::read("alone", &folder.0.join("sparse")).expect("a model");
    assert_eq!(alone.kind, ModelKind::Sparse);
}

#[test]
fn statistics_are_read_where_they_are_and_missed_where_they_are_not() {
    let folder = Folder::with_pair();
    let edit =
        json!({"feature": {"node": "1.resid_in", "channel": 2}, "op": "ablate", "to": "mean"});
    let request = steered(&[&[40, 257, 33]], json!({"edits": [edit]}));
    let load = || Pair::read(&folder.0).map(Catalog::of);
    super::pair::refusal(&load().expect("a pair"), &request);
    let write = |width: usize, parts: &[&str]| {
        let values = Tensor::ones(width, candle_core::DType::F32, &Device::Cpu).expect("ones");
        let mut named: BTreeMap<String, Tensor> = parts
            .iter()
            .map(|part| (format!("1.resid_in.{part}"), values.clone()))
            .collect();
        let tokens = Tensor::new(&[64i64], &Device::Cpu).expect("a number");
        named.insert("1.resid_in.tokens".to_owned(), tokens);
        tensors::write(&folder.0.join("reference.safetensors"), &named).expect("written");
    };
    write(D_SPARSE, &["mean", "std", "max", "min", "density"]);
    answer(&load().expect("a pair"), &request);
    write(D_SPARSE + 1, &["mean", "std", "max", "min", "density"]);
    assert!(load().is_err(), "another width");
    write(D_SPARSE, &["mean", "std"]);
    assert!(load().is_err(), "no largest values");
}

#[test]
fn features_that_fit_no_place_are_refused() {
    let folder = Folder::with_pair();
    for (field, value) in [
        ("node", json!("2.attn.act_in")),
        ("channels", json!([])),
        ("channels", json!([{"channel": 28, "weight": 1}])),
        (
            "channels",
            json!([{"channel": 2, "weight": 1}, {"channel": 2, "weight": 1}]),
        ),
        ("name", json!("depth")),
        ("unknown", json!(1)),
    ] {
        let mut features = feature_list();
        features[0][field] = value.clone();
        folder.put("features.json", &json!({"features": features}).to_string());
        assert!(Pair::read(&folder.0).is_err(), "{field} {value}");
    }
}
