//! One model as a directory of files, in any of the forms that Causeway reads.
//!
//! | form | configuration | weights |
//! |---|---|---|
//! | Causeway's own | `config.json` ([`TransformerConfig`]) | `model.safetensors`, mostly-zero matrices packed |
//! | released checkpoint | `beeg_config.json` | `final_model.pt` |
//! | its Hugging Face copy | `config.json` with the same fields | safetensors, names prefixed `circuit_model.` |
//! | Hugging Face GPT-2 | `config.json`, `"model_type": "gpt2"` | safetensors, linear weights `[in, out]` |
//! | other dense families | `config.json` with a `model_type` of [`families`](super::families) | safetensors |
//!
//! Safetensors of the last two may be sharded. Beside each there may be the files of a tokenizer
//! ([`tokenizer_files`]). Whatever the form, the result holds the tensors of [`tensor_shapes`], all of them f32, finite,
//! and of the shape the configuration calls for. Nothing is allocated by the configuration's word alone, nor by the
//! file's: the two bound each other, and a caller can bound both ([`ReadLimits`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};

use super::config::{ConfigError, Positions, TransformerConfig};
use super::families::family::Family;
use super::families::{FAMILIES, family_of};
use super::fields::Fields;
use super::memory_need::{MemoryNeed, TooLarge};
use super::tensor_names::{
    EMBEDDING, FINAL_LOGITS_BIAS, POSITIONS, UNEMBEDDING, is_buffer, tensor_shapes,
};
use super::tokenizer::{Tokenizer, TokenizerError};
use super::{gpt2, released, tokenizer_files};
use crate::artifacts::tensors::{FloatPrecision, Selection};
use crate::artifacts::{ArtifactError, atomic, sparse_tensor, tensors, torch_pickle};
use crate::numerics::rows;

const CONFIG_FILE: &str = "config.json";
const WEIGHTS_FILE: &str = "model.safetensors";
const TOKENIZER_FILE: &str = "tokenizer.json";
const RELEASED_CONFIG_FILE: &str = "beeg_config.json";
const RELEASED_WEIGHTS_FILE: &str = "final_model.pt";
/// What the Hugging Face copy of a released checkpoint puts before every name.
const HUGGING_FACE_PREFIX: &str = "circuit_model.";
const LONGEST_CONFIG: u64 = 1 << 20;
/// How much larger than its weights a model's file may be: weights in double precision, a tied matrix by both of its
/// names.
const FILE_PER_WEIGHTS: u64 = 2;

/// Why a directory could not be read or written as a model.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error("{}: {source}", path.display())]
    Config { path: PathBuf, source: ConfigError },
    #[error("{}: {problem}", directory.display())]
    Unrecognised { directory: PathBuf, problem: String },
    #[error("{}: tensor {name} is missing; the configuration calls for shape {expected:?}", path.display())]
    MissingTensor {
        path: PathBuf,
        name: String,
        expected: Vec<usize>,
    },
    #[error("{}: tensor {name} has shape {found:?}; the configuration calls for {expected:?}", path.display())]
    Shape {
        path: PathBuf,
        name: String,
        expected: Vec<usize>,
        found: Vec<usize>,
    },
    #[error("{}: tensor {name}: {problem}", path.display())]
    Tensor {
        path: PathBuf,
        name: String,
        problem: String,
    },
    #[error("{}: {source}", path.display())]
    Tokenizer {
        path: PathBuf,
        source: TokenizerError,
    },
    #[error("{}: {source}", directory.display())]
    TooLarge {
        directory: PathBuf,
        source: TooLarge,
    },
    #[error(
        "{}: is a pickled checkpoint, which is not read while serving; `causeway convert` writes it as safetensors",
        directory.display()
    )]
    Pickled { directory: PathBuf },
}

/// What a directory may ask of whoever reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// Bytes that a model's weights and the key-value cache of one sequence may take together.
    pub model_bytes: u64,
    /// Whether pickled checkpoints are read.
    pub pickles: bool,
}

impl ReadLimits {
    /// Whatever the directory holds: for files that the caller has chosen.
    pub const NONE: Self = ReadLimits {
        model_bytes: u64::MAX,
        pickles: true,
    };
}

/// A model: its configuration, its tensors by their canonical names, and its `tokenizer.json`.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    pub config: TransformerConfig,
    pub tensors: BTreeMap<String, Tensor>,
    pub tokenizer: Option<Vec<u8>>,
}

impl ModelFiles {
    /// Reads the model in `directory`, whichever of the known forms it is in.
    pub fn read(directory: &Path) -> Result<Self, LayoutError> {
        Self::read_within(directory, ReadLimits::NONE)
    }

    /// The same of a model that may not exceed `limits`.
    pub fn read_within(directory: &Path, limits: ReadLimits) -> Result<Self, LayoutError> {
        let described = Described::read(directory)?;
        let need = MemoryNeed::of(&described.config);
        need.within(limits.model_bytes)
            .map_err(|source| LayoutError::TooLarge {
                directory: directory.to_owned(),
                source,
            })?;
        let selection = Selection {
            passed_over: match described.form {
                Form::Own => Selection::ALL.passed_over,
                _ => is_buffer,
            },
            most_bytes: need.weights.saturating_mul(FILE_PER_WEIGHTS),
        };
        let (weights_path, mut model) = match described.form {
            Form::Own => read_own(directory, described.config, selection)?,
            Form::HuggingFace => read_hugging_face(directory, described.config, selection)?,
            Form::Gpt2 => read_gpt2(directory, described.config, selection)?,
            Form::Family(family) => read_family(directory, family, described.config, selection)?,
            Form::Released if !limits.pickles => {
                let directory = directory.to_owned();
                return Err(LayoutError::Pickled { directory });
            }
            Form::Released => {
                let path = directory.join(RELEASED_WEIGHTS_FILE);
                let tensors = torch_pickle::read(&path)?;
                let model = foreign_model(&path, described.config, tensors)?;
                (path, model)
            }
        };
        model.check(&weights_path)?;
        model.tokenizer = read_tokenizer(directory, model.config.vocab_size)?;
        Ok(model)
    }

    /// The configuration of the model in `directory`, whose weights are not looked at.
    pub fn read_config(directory: &Path) -> Result<TransformerConfig, LayoutError> {
        Ok(Described::read(directory)?.config)
    }

    /// The `tokenizer.json` of the model in `directory`, whose weights are not looked at; none where it has none.
    pub fn read_tokenizer(
        directory: &Path,
        config: &TransformerConfig,
    ) -> Result<Option<Vec<u8>>, LayoutError> {
        read_tokenizer(directory, config.vocab_size)
    }

    /// Whether a directory claims to hold a model in one of the known forms.
    pub fn is_model(directory: &Path) -> bool {
        directory.join(CONFIG_FILE).is_file() || directory.join(RELEASED_CONFIG_FILE).is_file()
    }

    /// Writes the model to `directory`, which is created if need be, in Causeway's own form. Each file is
    /// replaced in one step and `config.json` comes last, so a directory whose writing was cut short is no
    /// model rather than a mixture of two.
    pub fn write(&self, directory: &Path) -> Result<(), LayoutError> {
        let weights_path = directory.join(WEIGHTS_FILE);
        let config_path = directory.join(CONFIG_FILE);
        self.config
            .validate()
            .map_err(|source| LayoutError::Config {
                path: config_path.clone(),
                source,
            })?;
        let mut complete = self.clone();
        complete.add_final_logits_bias(&weights_path)?;
        complete.check(&weights_path)?;
        let tokenizer_path = directory.join(TOKENIZER_FILE);
        if let Some(json) = &self.tokenizer {
            let tokenizer = Tokenizer::from_bytes(json);
            check_tokenizer(&tokenizer_path, tokenizer, self.config.vocab_size)?;
        }
        let packed = sparse_tensor::pack(&complete.tensors)
            .map_err(|error| unrecognised(directory, error.to_string()))?;
        let config = serde_json::to_vec_pretty(&self.config)
            .map_err(|error| unrecognised(directory, error.to_string()))?;
        atomic::create_directory(directory)?;
        atomic::remove(&config_path)?;
        tensors::write(&weights_path, &packed)?;
        match &self.tokenizer {
            Some(tokenizer) => atomic::write(&tokenizer_path, tokenizer)?,
            None => atomic::remove(&tokenizer_path)?,
        }
        atomic::write(&config_path, &config)?;
        Ok(())
    }

    /// Brings the tensors of a foreign form to the canonical set, wherever that loses nothing.
    fn normalise(&mut self, path: &Path) -> Result<(), LayoutError> {
        // A pickle is read as a whole.
        self.tensors.retain(|name, _| !is_buffer(name));
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
    fn add_final_logits_bias(&mut self, path: &Path) -> Result<(), LayoutError> {
        if let Some(embedding) = self.tensors.get(EMBEDDING)
            && let &[vocabulary, width] = embedding.dims()
            && width > 0
            && !self.tensors.contains_key(FINAL_LOGITS_BIAS)
        {
            let zeros = Tensor::zeros(vocabulary, DType::F32, &Device::Cpu)
                .map_err(|error| tensor_error(path, FINAL_LOGITS_BIAS, error.to_string()))?;
            self.tensors.insert(FINAL_LOGITS_BIAS.to_owned(), zeros);
        }
        Ok(())
    }

    /// Every tensor there, of the right shape and type, finite, and no other.
    fn check(&self, path: &Path) -> Result<(), LayoutError> {
        if self.config.n_layers > self.tensors.len() {
            let problem = format!(
                "has {} tensors, too few for the {} layers of the configuration",
                self.tensors.len(),
                self.config.n_layers
            );
            return Err(unrecognised(path, problem));
        }
        let shapes = tensor_shapes(&self.config);
        for (name, expected) in &shapes {
            let Some(tensor) = self.tensors.get(name) else {
                return Err(LayoutError::MissingTensor {
                    path: path.to_path_buf(),
                    name: name.clone(),
                    expected: expected.clone(),
                });
            };
            if tensor.dims() != expected.as_slice() {
                return Err(LayoutError::Shape {
                    path: path.to_path_buf(),
                    name: name.clone(),
                    expected: expected.clone(),
                    found: tensor.dims().to_vec(),
                });
            }
            let infinite = with_values(tensor, path, name, |values| {
                let mut numbered = values.iter().enumerate();
                let (position, value) = numbered.find(|(_, value)| !value.is_finite())?;
                Some(format!("entry {position} is {value}; all must be finite"))
            })?;
            if let Some(problem) = infinite {
                return Err(tensor_error(path, name, problem));
            }
        }
        match self.tensors.keys().find(|name| !shapes.contains_key(*name)) {
            None => Ok(()),
            Some(name) => {
                let problem = "is not part of a model of this configuration".to_owned();
                Err(tensor_error(path, name, problem))
            }
        }
    }
}

/// A model whose tensors carry canonical names but may still differ from the canonical set.
fn foreign_model(
    path: &Path,
    config: TransformerConfig,
    tensors: BTreeMap<String, Tensor>,
) -> Result<ModelFiles, LayoutError> {
    let mut model = ModelFiles {
        config,
        tensors,
        tokenizer: None,
    };
    model.normalise(path)?;
    Ok(model)
}

/// The forms in which a model can be stored.
#[derive(Debug, Clone, Copy)]
enum Form {
    Own,
    Released,
    HuggingFace,
    Gpt2,
    Family(&'static Family),
}

/// What a directory says of its model before its weights are looked at.
struct Described {
    form: Form,
    config: TransformerConfig,
}

impl Described {
    fn read(directory: &Path) -> Result<Self, LayoutError> {
        let config_path = directory.join(CONFIG_FILE);
        let released_path = directory.join(RELEASED_CONFIG_FILE);
        let (path, is_released) = match (config_path.exists(), released_path.exists()) {
            (true, _) => (config_path, false),
            (false, true) => (released_path, true),
            (false, false) => {
                let problem =
                    format!("holds neither {CONFIG_FILE} nor {RELEASED_CONFIG_FILE}: no model");
                return Err(unrecognised(directory, problem));
            }
        };
        let object = read_object(&path)?;
        let in_config = |source| LayoutError::Config {
            path: path.clone(),
            source,
        };
        let (form, config) = if is_released {
            (Form::Released, released::from_object(&object))
        } else if object.get("model_type") == Some(&Value::from("gpt2")) {
            (Form::Gpt2, gpt2::from_object(&object))
        } else if object.contains_key("block_size") {
            (Form::HuggingFace, released::from_object(&object))
        } else if let Some(model_type) = object.get("model_type") {
            let family = model_type.as_str().and_then(family_of).ok_or_else(|| {
                let known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
                let model_type: String = model_type.to_string().chars().take(60).collect();
                let problem = format!(
                    "{CONFIG_FILE} says model_type {model_type}; gpt2, {} are supported",
                    known.join(", ")
                );
                unrecognised(directory, problem)
            })?;
            (Form::Family(family), (family.config)(&Fields(&object)))
        } else {
            let config = serde_json::from_value::<TransformerConfig>(Value::Object(object));
            let config = config.map_err(|error| {
                let problem =
                    format!("{CONFIG_FILE} is of no known form; as Causeway's own, {error}");
                unrecognised(directory, problem)
            })?;
            (Form::Own, config.validate().map(|()| config))
        };
        Ok(Described {
            form,
            config: config.map_err(in_config)?,
        })
    }
}

fn read_own(
    directory: &Path,
    config: TransformerConfig,
    selection: Selection,
) -> Result<(PathBuf, ModelFiles), LayoutError> {
    let path = directory.join(WEIGHTS_FILE);
    let stored = tensors::read_selected(&path, FloatPrecision::Single, selection)?;
    let shapes = tensor_shapes(&config);
    let model = ModelFiles {
        config,
        tensors: sparse_tensor::unpack(&path, stored, |name| shapes.get(name).map(Vec::as_slice))?,
        tokenizer: None,
    };
    Ok((path, model))
}

fn read_hugging_face(
    directory: &Path,
    config: TransformerConfig,
    selection: Selection,
) -> Result<(PathBuf, ModelFiles), LayoutError> {
    let precision = FloatPrecision::Single;
    let (path, stored) = tensors::read_sharded(directory, WEIGHTS_FILE, precision, selection)?;
    let mut tensors = BTreeMap::new();
    for (name, tensor) in stored {
        let Some(plain) = name.strip_prefix(HUGGING_FACE_PREFIX) else {
            let problem = format!("its name lacks the prefix {HUGGING_FACE_PREFIX:?}");
            return Err(tensor_error(&path, &name, problem));
        };
        tensors.insert(plain.to_owned(), tensor);
    }
    let model = foreign_model(&path, config, tensors)?;
    Ok((path, model))
}

fn read_gpt2(
    directory: &Path,
    config: TransformerConfig,
    selection: Selection,
) -> Result<(PathBuf, ModelFiles), LayoutError> {
    let precision = FloatPrecision::Single;
    let (path, stored) = tensors::read_sharded(directory, WEIGHTS_FILE, precision, selection)?;
    let tensors =
        gpt2::translate(stored).map_err(|error| unrecognised(&path, error.to_string()))?;
    let model = foreign_model(&path, config, tensors)?;
    Ok((path, model))
}

fn read_family(
    directory: &Path,
    family: &Family,
    config: TransformerConfig,
    selection: Selection,
) -> Result<(PathBuf, ModelFiles), LayoutError> {
    let precision = FloatPrecision::Single;
    let (path, stored) = tensors::read_sharded(directory, WEIGHTS_FILE, precision, selection)?;
    let tensors = family
        .names
        .translate(&config, stored)
        .map_err(|error| unrecognised(&path, error.to_string()))?;
    let model = foreign_model(&path, config, tensors)?;
    Ok((path, model))
}

fn read_object(path: &Path) -> Result<Map<String, Value>, LayoutError> {
    let json = atomic::read_small(path, LONGEST_CONFIG)?;
    serde_json::from_slice(&json).map_err(|error| {
        ArtifactError::damaged(path, "the configuration", error.to_string()).into()
    })
}

/// The directory's tokenizer as a `tokenizer.json`, none of whose ids is beyond the model's vocabulary.
fn read_tokenizer(directory: &Path, vocab_size: usize) -> Result<Option<Vec<u8>>, LayoutError> {
    let Some(found) = tokenizer_files::read(directory)? else {
        return Ok(None);
    };
    let tokenizer = check_tokenizer(&found.path, found.tokenizer, vocab_size)?;
    match found.json {
        Some(json) => Ok(Some(json)),
        None => tokenizer
            .to_json()
            .map(Some)
            .map_err(|source| LayoutError::Tokenizer {
                path: found.path,
                source,
            }),
    }
}

fn check_tokenizer(
    path: &Path,
    tokenizer: Result<Tokenizer, TokenizerError>,
    vocab_size: usize,
) -> Result<Tokenizer, LayoutError> {
    let failed = |source| LayoutError::Tokenizer {
        path: path.to_path_buf(),
        source,
    };
    let tokenizer = tokenizer.map_err(failed)?;
    let tokens = tokenizer.vocab_size();
    if tokens > vocab_size {
        let problem = format!("it has {tokens} tokens, the model's vocabulary {vocab_size}");
        return Err(failed(TokenizerError::Invalid(problem)));
    }
    Ok(tokenizer)
}

/// Calls `read` with the values of a tensor, which must be f32.
fn with_values<T>(
    tensor: &Tensor,
    path: &Path,
    name: &str,
    read: impl FnOnce(&[f32]) -> T,
) -> Result<T, LayoutError> {
    if tensor.dtype() != DType::F32 {
        let problem = format!(
            "has type {:?}; weights are floating-point numbers",
            tensor.dtype()
        );
        return Err(tensor_error(path, name, problem));
    }
    let read = rows::with_values(tensor, read);
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

fn tensor_error(path: &Path, name: &str, problem: String) -> LayoutError {
    LayoutError::Tensor {
        path: path.to_path_buf(),
        name: name.to_owned(),
        problem,
    }
}

fn unrecognised(directory: &Path, problem: String) -> LayoutError {
    LayoutError::Unrecognised {
        directory: directory.to_path_buf(),
        problem,
    }
}
