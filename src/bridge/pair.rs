//! A pair on disk: two models and the bridge between them, in one directory.
//!
//! `dense/` and `sparse/` in any layout that can be served, `bridge.safetensors`, `bridge.json`
//! ([`BridgeRecord`]), and `manifest.json` with the hashes of everything. A pair is also the unit of serving.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::Bridge;
use super::record::BridgeRecord;
use crate::artifacts::tensors::{FloatPrecision, Selection};
use crate::artifacts::{ArtifactError, atomic, tensors};
use crate::models::layers::Purpose;
use crate::models::layout::{LayoutError, ModelFiles, ReadLimits};
use crate::numerics::rows;

const WEIGHTS: &str = "bridge.safetensors";
const RECORD: &str = "bridge.json";
/// A record is small; a larger file is not one.
const LARGEST_RECORD: u64 = 1 << 20;

/// Why a pair cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error("{path}: {problem}")]
    Invalid { path: String, problem: String },
}

/// Everything a pair's directory holds but its features.
#[derive(Debug, Clone)]
pub struct PairFiles {
    pub dense: ModelFiles,
    pub sparse: ModelFiles,
    pub tensors: BTreeMap<String, Tensor>,
    pub record: BridgeRecord,
}

impl PairFiles {
    /// Whether a directory claims to hold a pair.
    pub fn is_pair(directory: &Path) -> bool {
        directory.join(RECORD).is_file()
    }

    /// Reads a pair and checks that its parts fit each other.
    pub fn read(directory: &Path) -> Result<Self, PairError> {
        Self::read_within(directory, ReadLimits::NONE)
    }

    /// The same of a pair neither of whose models may exceed `limits`.
    pub fn read_within(directory: &Path, limits: ReadLimits) -> Result<Self, PairError> {
        let record_path = directory.join(RECORD);
        let json = atomic::read_small(&record_path, LARGEST_RECORD)?;
        let record: BridgeRecord =
            serde_json::from_slice(&json).map_err(|error| PairError::Invalid {
                path: record_path.display().to_string(),
                problem: error.to_string(),
            })?;
        let dense = ModelFiles::read_within(&directory.join("dense"), limits)?;
        let sparse = ModelFiles::read_within(&directory.join("sparse"), limits)?;
        let (depth, widths) = (
            dense.config.n_sites(),
            (dense.config.d_model, sparse.config.d_model),
        );
        let shapes = Bridge::tensor_shapes(depth, widths.0, widths.1);
        let values: usize = shapes
            .values()
            .map(|shape| shape.iter().product::<usize>())
            .sum();
        let selection = Selection {
            most_bytes: (values * size_of::<f32>()) as u64,
            ..Selection::ALL
        };
        let weights = directory.join(WEIGHTS);
        let pair = PairFiles {
            dense,
            sparse,
            tensors: tensors::read_selected(&weights, FloatPrecision::Single, selection)?,
            record,
        };
        pair.check().map_err(|problem| PairError::Invalid {
            path: directory.display().to_string(),
            problem,
        })?;
        Ok(pair)
    }

    /// Writes the pair; each file is replaced in one step, the record last.
    pub fn write(&self, directory: &Path) -> Result<(), PairError> {
        self.dense.write(&directory.join("dense"))?;
        self.sparse.write(&directory.join("sparse"))?;
        tensors::write(&directory.join(WEIGHTS), &self.tensors)?;
        let path = directory.join(RECORD);
        let json = serde_json::to_vec_pretty(&self.record).map_err(|error| PairError::Invalid {
            path: path.display().to_string(),
            problem: error.to_string(),
        })?;
        atomic::write(&path, &json)?;
        Ok(())
    }

    /// The bridge, ready for inference.
    pub fn bridge(&self) -> candle_core::Result<Bridge> {
        let (dense, sparse) = (&self.dense.config, &self.sparse.config);
        Bridge::new(
            &self.tensors,
            dense.n_sites(),
            dense.d_model,
            sparse.d_model,
            self.record.encoder_fraction,
            Purpose::Inference,
        )
    }

    fn check(&self) -> Result<(), String> {
        let (dense, sparse) = (&self.dense.config, &self.sparse.config);
        if dense.n_layers != sparse.n_layers {
            return Err(format!(
                "the dense model has {} layers, the sparse one {}; a bridge joins models of equal depth",
                dense.n_layers, sparse.n_layers
            ));
        }
        if dense.vocab_size != sparse.vocab_size || self.dense.tokenizer != self.sparse.tokenizer {
            return Err("the two models have different tokenizers".into());
        }
        if self.record.sites.len() != dense.n_sites() {
            let (found, expected) = (self.record.sites.len(), dense.n_sites());
            return Err(format!(
                "{RECORD} describes {found} sites, the models have {expected}"
            ));
        }
        let fraction = self.record.encoder_fraction;
        if !(fraction > 0.0 && fraction <= 1.0) {
            return Err(format!(
                "encoder_fraction is {fraction}; it must be above 0 and at most 1"
            ));
        }
        for (name, shape) in Bridge::tensor_shapes(dense.n_sites(), dense.d_model, sparse.d_model) {
            match self.tensors.get(&name) {
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
}

/// Whether a tensor holds nothing but finite f32 numbers.
fn is_finite(tensor: &Tensor) -> bool {
    let all = |values: &[f32]| values.iter().all(|value| value.is_finite());
    rows::with_values(tensor, all).is_ok_and(|finite| finite)
}
