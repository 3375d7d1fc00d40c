//! What was read of a model: its configuration, its tensors by their canonical names, its tokenizer.
//!
//! Tensors of a foreign form are brought to the canonical set of [`tensor_shapes`], and all of them are checked.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::error::{LayoutError, tensor_error, unrecognised};
use crate::models::config::{Positions, TransformerConfig};
use crate::models::layers::QuantisedMatrices;
use crate::models::tensor_names::{
    EMBEDDING, FINAL_LOGITS_BIAS, POSITIONS, UNEMBEDDING, is_buffer, tensor_shapes,
};
use crate::numerics::columns::StoredMatrix;
use crate::numerics::rows;

/// A model: its configuration, its tensors by their canonical names, and its `tokenizer.json`.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    pub config: TransformerConfig,
    pub tensors: BTreeMap<String, Tensor>,
    /// Matrices that are kept quantised; none of them is among the tensors.
    pub quantised: QuantisedMatrices,
    pub tokenizer: Option<Vec<u8>>,
}

impl ModelFiles {
    /// Brings the tensors of a foreign form to the canonical set, wherever that loses nothing.
    pub(super) fn normalise(&mut self, path: &Path) -> Result<(), LayoutError> {
        // A pickle is read as a whole.
        self.tensors.retain(|name, _| !is_buffer(name));
        if self.config.tied_unembedding
            && let Some(unembedding) = self.quantised.remove(UNEMBEDDING)
        {
            // A file that has both says itself that they are two.
            self.quantised
                .entry(EMBEDDING.to_owned())
                .or_insert(unembedding);
        }
        if self.config.tied_unembedding
            && let Some(unembedding) = self.tensors.remove(UNEMBEDDING)
        {
            // A file may keep either name of the shared matrix, or both.
            match self.tensors.get(EMBEDDING) {
                None => {
                    self.tensors.insert(EMBEDDING.to_owned(), unembedding);
                }
                Some(embedding) => {
                    if !same_values(embedding, &unembedding, path)? {
                        let problem = format!("differs from {EMBEDDING}, though the two are tied");
                        return Err(tensor_error(path, UNEMBEDDING, problem));
                    }
                }
            }
        }
        if self.config.positions == Positions::Added {
            let unused = match self.tensors.get(POSITIONS) {
                None => true,
                Some(embedding) => with_values(embedding, path, POSITIONS, |values| {
                    values.iter().all(|&value| value == 0.0)
                })?,
            };
            if unused {
                self.tensors.remove(POSITIONS);
                self.config.positions = Positions::None;
            }
        }
        self.add_final_logits_bias(path)
    }

    /// An absent bias is zero. Its length is taken from the embedding that is there, not from the
    /// configuration; [`ModelFiles::check`] compares the two.
    pub(super) fn add_final_logits_bias(&mut self, path: &Path) -> Result<(), LayoutError> {
        let dims = self.dims(EMBEDDING, path)?;
        if let Some(&[vocabulary, width]) = dims.as_deref()
            && width > 0
            && !self.tensors.contains_key(FINAL_LOGITS_BIAS)
        {
            let zeros = Tensor::zeros(vocabulary, DType::F32, &Device::Cpu)
                .map_err(|error| tensor_error(path, FINAL_LOGITS_BIAS, error.to_string()))?;
            self.tensors.insert(FINAL_LOGITS_BIAS.to_owned(), zeros);
        }
        Ok(())
    }

    /// The shape of a tensor, however it is held.
    pub(super) fn dims(&self, name: &str, path: &Path) -> Result<Option<Vec<usize>>, LayoutError> {
        match (self.tensors.get(name), self.quantised.get(name)) {
            (Some(tensor), _) => Ok(Some(tensor.dims().to_vec())),
            (None, Some(parts)) => {
                let shape = StoredMatrix::Quantised(parts.clone()).shape();
                let (outputs, inputs) =
                    shape.map_err(|error| tensor_error(path, name, error.to_string()))?;
                Ok(Some(vec![outputs, inputs]))
            }
            (None, None) => Ok(None),
        }
    }

    /// Calls `read` with each tensor's name and its values in float32, one tensor after another.
    pub fn for_each_tensor(&self, mut read: impl FnMut(&str, &[f32])) -> candle_core::Result<()> {
        for (name, tensor) in &self.tensors {
            let single = tensor.to_dtype(DType::F32)?;
            rows::with_values(&single, |values| read(name, values))?;
        }
        for (name, parts) in &self.quantised {
            let single = StoredMatrix::Quantised(parts.clone()).to_float32()?;
            rows::with_values(&single, |values| read(name, values))?;
        }
        Ok(())
    }

    /// Every tensor there, of the right shape and type, finite, and no other.
    pub(super) fn check(&self, path: &Path) -> Result<(), LayoutError> {
        let count = self.tensors.len() + self.quantised.len();
        if self.config.n_layers > count {
            let problem = format!(
                "has {count} tensors, too few for the {} layers of the configuration",
                self.config.n_layers
            );
            return Err(unrecognised(path, problem));
        }
        let shapes = tensor_shapes(&self.config);
        for (name, expected) in &shapes {
            let Some(found) = self.dims(name, path)? else {
                return Err(LayoutError::MissingTensor {
                    path: path.to_path_buf(),
                    name: name.clone(),
                    expected: expected.clone(),
                });
            };
            if found != *expected {
                return Err(LayoutError::Shape {
                    path: path.to_path_buf(),
                    name: name.clone(),
                    expected: expected.clone(),
                    found,
                });
            }
            if let Some(tensor) = self.tensors.get(name) {
                check_float(tensor, path, name)?;
            }
        }
        let mut infinite = None;
        let read = self.for_each_tensor(|name, values| {
            let mut numbered = values.iter().enumerate();
            let found = numbered.find(|(_, value)| !value.is_finite());
            if let (None, Some((position, value))) = (&infinite, found) {
                let problem = format!("entry {position} is {value}; all must be finite");
                infinite = Some(tensor_error(path, name, problem));
            }
        });
        read.map_err(|error| unrecognised(path, error.to_string()))?;
        if let Some(infinite) = infinite {
            return Err(infinite);
        }
        let mut names = self.tensors.keys().chain(self.quantised.keys());
        match names.find(|name| !shapes.contains_key(*name)) {
            None => Ok(()),
            Some(name) => {
                let problem = "is not part of a model of this configuration".to_owned();
                Err(tensor_error(path, name, problem))
            }
        }
    }
}

fn check_float(tensor: &Tensor, path: &Path, name: &str) -> Result<(), LayoutError> {
    if tensor.dtype().is_float() {
        return Ok(());
    }
    let problem = format!(
        "has type {:?}; weights are floating-point numbers",
        tensor.dtype()
    );
    Err(tensor_error(path, name, problem))
}

/// Calls `read` with the values of a tensor in float32.
fn with_values<T>(
    tensor: &Tensor,
    path: &Path,
    name: &str,
    read: impl FnOnce(&[f32]) -> T,
) -> Result<T, LayoutError> {
    check_float(tensor, path, name)?;
    let single = tensor.to_dtype(DType::F32);
    let read = single.and_then(|single| rows::with_values(&single, read));
    read.map_err(|error| tensor_error(path, name, error.to_string()))
}

fn same_values(left: &Tensor, right: &Tensor, path: &Path) -> Result<bool, LayoutError> {
    if left.dims() != right.dims() {
        return Ok(false);
    }
    with_values(left, path, EMBEDDING, |left| {
        with_values(right, path, UNEMBEDDING, |right| left == right)
    })?
}
