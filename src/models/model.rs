//! A model that answers: its weights with its tokenizer and its chat template, held once and shared.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};

use super::chat_template::ChatTemplate;
use super::layers::Purpose;
use super::layout::{LayoutError, ModelFiles, ReadOptions};
use super::text_bounds::TextBounds;
use super::tokenizer::{Tokenizer, TokenizerError};
use super::transformer::Transformer;
use crate::artifacts::{ArtifactError, hexadecimal};
use crate::memory;
use crate::numerics::device::{self, DeviceError, MatrixType, Placement};
use crate::numerics::rows;

/// Why a directory's model cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(
        "{}: has no tokenizer.json, nor vocab.json with merges.txt, nor tokenizer.model; a model cannot answer without",
        .0.display()
    )]
    NoTokenizer(PathBuf),
}

/// Which side of a bridge a model can stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    Dense,
    Sparse,
}

/// A model that answers; it is used like its [`Transformer`].
#[derive(Debug)]
pub struct LoadedModel {
    /// The name that requests give.
    pub id: String,
    pub kind: ModelKind,
    /// Held for inference; gradients flow through it, never to its weights.
    pub transformer: Arc<Transformer>,
    pub tokenizer: Arc<Tokenizer>,
    /// How conversations are written out for it, where its maker says so.
    pub chat_template: Option<Arc<ChatTemplate>>,
    pub parameters: usize,
    pub nonzeros: usize,
    /// What a device holds its dense matrices in.
    pub matrices: MatrixType,
    /// Sha256 of its configuration and weights, in hexadecimal.
    pub fingerprint: String,
}

impl LoadedModel {
    /// Reads a model's directory. A model with an AbsTopK or mostly zero weights counts as sparse.
    pub fn read(id: &str, directory: &Path) -> Result<Self, ModelError> {
        Self::read_within(id, directory, ReadOptions::UNBOUNDED)
    }

    /// The same of a model that may not exceed `limits`.
    pub fn read_within(
        id: &str,
        directory: &Path,
        limits: ReadOptions,
    ) -> Result<Self, ModelError> {
        let files = ModelFiles::read_within(directory, limits)?;
        let model = Self::from_files(&files, id, None, directory, limits.placement);
        drop(files);
        memory::give_back();
        model
    }

    /// A model whose files were read from `directory`, where its chat template is.
    pub fn from_files(
        files: &ModelFiles,
        id: &str,
        kind: Option<ModelKind>,
        directory: &Path,
        placement: Placement,
    ) -> Result<Self, ModelError> {
        let Some(json) = &files.tokenizer else {
            return Err(ModelError::NoTokenizer(directory.to_owned()));
        };
        let tokenizer = shared_tokenizer(json, directory)?;
        Ok(LoadedModel {
            chat_template: ChatTemplate::read(directory)?.map(Arc::new),
            ..Self::new(id, files, kind, tokenizer, placement)?
        })
    }

    /// A model from its tensors. `kind` is taken from the weights where it is not known.
    pub fn new(
        id: &str,
        files: &ModelFiles,
        kind: Option<ModelKind>,
        tokenizer: Arc<Tokenizer>,
        placement: Placement,
    ) -> Result<Self, ModelError> {
        let (mut parameters, mut nonzeros) = (0, 0);
        let config = serde_json::to_vec(&files.config).map_err(candle_core::Error::wrap)?;
        let mut hash = Sha256::new_with_prefix(config);
        files.for_each_tensor(|name, values| {
            parameters += values.len();
            nonzeros += values.iter().filter(|value| **value != 0.0).count();
            hash_tensor(&mut hash, name, values);
        })?;
        let sparse = files.config.active_fraction.is_some() || 2 * nonzeros < parameters;
        let guessed = if sparse {
            ModelKind::Sparse
        } else {
            ModelKind::Dense
        };
        let fingerprint = hexadecimal(&hash.finalize());
        let kind = kind.unwrap_or(guessed);
        let device = match kind {
            ModelKind::Dense => placement.dense.open()?,
            ModelKind::Sparse => placement.sparse.open()?,
        };
        let purpose = match placement.matrices {
            MatrixType::Float32 => Purpose::Inference,
            MatrixType::Bfloat16 => Purpose::InferenceInBf16,
        };
        let held = format!("{} {purpose:?} {fingerprint}", device::name(&device));
        let transformer = TRANSFORMERS.get_or(&held, || {
            Transformer::stored(
                files.config.clone(),
                &*placed(&files.tensors, &device)?,
                &files.quantised,
                purpose,
            )
        })?;
        Ok(LoadedModel {
            id: id.to_owned(),
            kind,
            transformer,
            tokenizer,
            chat_template: None,
            parameters,
            nonzeros,
            matrices: match device.is_cpu() {
                true => MatrixType::Float32,
                false => placement.matrices,
            },
            fingerprint,
        })
    }
}

/// Tensors on a device: the same ones where they are there already.
pub fn placed<'t>(
    tensors: &'t BTreeMap<String, Tensor>,
    device: &Device,
) -> candle_core::Result<Cow<'t, BTreeMap<String, Tensor>>> {
    if device.is_cpu() {
        return Ok(Cow::Borrowed(tensors));
    }
    let moved = tensors.iter().map(|(name, tensor)| {
        let tensor = tensor.to_dtype(DType::F32)?.to_device(device)?;
        Ok((name.clone(), tensor))
    });
    moved.collect::<candle_core::Result<_>>().map(Cow::Owned)
}

impl Deref for LoadedModel {
    type Target = Transformer;

    fn deref(&self) -> &Transformer {
        &self.transformer
    }
}

/// Values that are held once however often they are read, by the sha256 of what they are made of. They go with their
/// last user.
struct HeldOnce<T>(Mutex<BTreeMap<String, Weak<T>>>);

static TRANSFORMERS: HeldOnce<Transformer> = HeldOnce(Mutex::new(BTreeMap::new()));
static TOKENIZERS: HeldOnce<Tokenizer> = HeldOnce(Mutex::new(BTreeMap::new()));

impl<T> HeldOnce<T> {
    /// The value of this content, made if nobody holds one.
    fn get_or<E>(&self, content: &str, make: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        let held = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = held().get(content).and_then(Weak::upgrade);
        if let Some(known) = known {
            return Ok(known);
        }
        let made = Arc::new(make()?);
        let mut held = held();
        held.retain(|_, value| value.strong_count() > 0);
        held.insert(content.to_owned(), Arc::downgrade(&made));
        Ok(made)
    }
}

/// The tokenizer of a `tokenizer.json` with the bounds of texts that the model's directory names; models with the same
/// ones share it.
pub fn shared_tokenizer(json: &[u8], directory: &Path) -> Result<Arc<Tokenizer>, ModelError> {
    let bounds = TextBounds::read(directory)?;
    let mut hash = Sha256::new_with_prefix(json);
    hash.update(format!("{bounds:?}"));
    let content = hexadecimal(&hash.finalize());
    TOKENIZERS.get_or(&content, || {
        Ok(Tokenizer::from_bytes(json)?.with_bounds(bounds))
    })
}

/// Sha256 of a text and named tensors, in hexadecimal.
pub fn fingerprint(text: &[u8], tensors: &BTreeMap<String, Tensor>) -> candle_core::Result<String> {
    let mut hash = Sha256::new();
    hash.update(text);
    for (name, tensor) in tensors {
        rows::with_values(tensor, |values| hash_tensor(&mut hash, name, values))?;
    }
    Ok(hexadecimal(&hash.finalize()))
}

fn hash_tensor(hash: &mut Sha256, name: &str, values: &[f32]) {
    hash.update(name.as_bytes());
    for block in values.chunks(1 << 14) {
        let bytes: Vec<u8> = block.iter().flat_map(|value| value.to_le_bytes()).collect();
        hash.update(&bytes);
    }
}
