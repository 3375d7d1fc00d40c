//! A pair's directory: two models and the bridge between them.
//!
//! `dense/` and `sparse/` in any layout that can be served, `bridge.safetensors`, `bridge.json`
//! ([`BridgeRecord`]), and `manifest.json` with the hashes of everything. Features and reference statistics may lie
//! beside them; what is read together is a [`Pair`](crate::features::pair::Pair).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::Bridge;
use super::record::BridgeRecord;
use crate::artifacts::tensors::{FloatPrecision, Selection};
use crate::artifacts::{ArtifactError, atomic, tensors};
use crate::models::config::TransformerConfig;
use crate::models::layers::Purpose;
use crate::models::layout::{LayoutError, ModelFiles};
use crate::models::model::ModelError;
use crate::numerics::rows;

const WEIGHTS: &str = "bridge.safetensors";
const RECORD: &str = "bridge.json";
/// A record is small; a larger file is not one.
const LARGEST_RECORD: u64 = 1 << 20;

/// Why a pair cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    #[error("{path}: {problem}")]
    Invalid { path: String, problem: String },
}

/// Whether a directory claims to hold a pair.
pub fn is_pair(directory: &Path) -> bool {
    directory.join(RECORD).is_file()
}

/// The tensors of the bridge in `directory` by name; they and its record are checked against the configurations of
/// its models.
pub fn read_tensors(
    directory: &Path,
    record: &BridgeRecord,
    dense: &TransformerConfig,
    sparse: &TransformerConfig,
) -> Result<BTreeMap<String, Tensor>, PairError> {
    let shapes = Bridge::tensor_shapes(sparse.n_sites(), dense.d_model, sparse.d_model);
    let sizes = shapes.values().map(|shape| shape.iter().product::<usize>());
    let values: usize = sizes.sum();
    let selection = Selection {
        most_bytes: (values * size_of::<f32>()) as u64,
        ..Selection::ALL
    };
    let weights = directory.join(WEIGHTS);
    let tensors = tensors::read_selected(&weights, FloatPrecision::Single, selection)?;
    check(&tensors, record, dense, sparse).map_err(|problem| PairError::Invalid {
        path: directory.display().to_string(),
        problem,
    })?;
    Ok(tensors)
}

/// The record of the pair in `directory`.
pub fn read_record(directory: &Path) -> Result<BridgeRecord, PairError> {
    let path = directory.join(RECORD);
    let json = atomic::read_small(&path, LARGEST_RECORD)?;
    serde_json::from_slice(&json).map_err(|error| PairError::Invalid {
        path: path.display().to_string(),
        problem: error.to_string(),
    })
}

/// Writes a pair; each file is replaced in one step, the record last.
pub fn write(
    directory: &Path,
    (dense, sparse): (&ModelFiles, &ModelFiles),
    bridge: &BTreeMap<String, Tensor>,
    record: &BridgeRecord,
) -> Result<(), PairError> {
    dense.write(&directory.join("dense"))?;
    sparse.write(&directory.join("sparse"))?;
    tensors::write(&directory.join(WEIGHTS), bridge)?;
    let path = directory.join(RECORD);
    let json = serde_json::to_vec_pretty(record).map_err(|error| PairError::Invalid {
        path: path.display().to_string(),
        problem: error.to_string(),
    })?;
    atomic::write(&path, &json)?;
    Ok(())
}

/// The bridge of two models of these configurations, ready for inference.
pub fn build(
    tensors: &BTreeMap<String, Tensor>,
    record: &BridgeRecord,
    dense: &TransformerConfig,
    sparse: &TransformerConfig,
) -> candle_core::Result<Bridge> {
    let site_map = record
        .joined(dense, sparse)
        .map_err(candle_core::Error::Msg)?;
    Bridge::new(
        tensors,
        site_map,
        dense.d_model,
        sparse.d_model,
        record.encoder_fraction,
        Purpose::Inference,
    )
}

fn check(
    tensors: &BTreeMap<String, Tensor>,
    record: &BridgeRecord,
    dense: &TransformerConfig,
    sparse: &TransformerConfig,
) -> Result<(), String> {
    record
        .joined(dense, sparse)
        .map_err(|error| format!("{RECORD}: {error}"))?;
    if dense.vocab_size != sparse.vocab_size {
        return Err(DIFFERENT_TOKENIZERS.into());
    }
    if record.sites.len() != sparse.n_sites() {
        let (found, expected) = (record.sites.len(), sparse.n_sites());
        return Err(format!(
            "{RECORD} describes {found} sites, the sparse model has {expected}"
        ));
    }
    let fraction = record.encoder_fraction;
    if !(fraction > 0.0 && fraction <= 1.0) {
        return Err(format!(
            "encoder_fraction is {fraction}; it must be above 0 and at most 1"
        ));
    }
    for (name, shape) in Bridge::tensor_shapes(sparse.n_sites(), dense.d_model, sparse.d_model) {
        match tensors.get(&name) {
            Some(tensor) if tensor.dims() == shape => {
                if !is_finite(tensor) {
                    return Err(format!(
                        "{WEIGHTS}: {name} holds numbers that are not finite"
                    ));
                }
            }
            Some(tensor) => {
                return Err(format!(
                    "{WEIGHTS}: {name} has shape {:?}, expected {shape:?}",
                    tensor.dims()
                ));
            }
            None => {
                return Err(format!(
                    "{WEIGHTS}: has no {name}, expected one of shape {shape:?}"
                ));
            }
        }
    }
    Ok(())
}

/// What is wrong with two models whose tokens differ.
pub const DIFFERENT_TOKENIZERS: &str = "the two models have different tokenizers";

/// Whether a tensor holds nothing but finite f32 numbers.
fn is_finite(tensor: &Tensor) -> bool {
    let all = |values: &[f32]| values.iter().all(|value| value.is_finite());
    rows::with_values(tensor, all).is_ok_and(|finite| finite)
}
