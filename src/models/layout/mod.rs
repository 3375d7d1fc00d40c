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
//! Safetensors of the last two may be sharded. In place of `model.safetensors`, Causeway's own form may have a `model.gguf`,
//! whose names and order are llama.cpp's. Beside each there may be the files of a tokenizer ([`tokenizer_files`]).
//! Whatever the form, the result holds the tensors of [`tensor_shapes`], finite and of the shape the configuration calls
//! for: in f32, or as the file has them where the caller wants that ([`ReadOptions::precision`]). Nothing is allocated by the
//! configuration's word alone, nor by the file's: the two bound each other, and a caller can bound both ([`ReadOptions`]).

mod error;
mod files;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde_json::{Map, Value};

pub use self::error::LayoutError;
use self::error::{tensor_error, unrecognised};
pub use self::files::ModelFiles;
use super::config::TransformerConfig;
use super::families::family::Family;
use super::families::{FAMILIES, family_of};
use super::fields::Fields;
use super::gguf::weights;
use super::layers::QuantisedMatrices;
use super::memory_need::MemoryNeed;
use super::tensor_names::{is_buffer, tensor_shapes};
use super::tokenizer::{Tokenizer, TokenizerError};
use super::{gpt2, released, tokenizer_files};
use crate::artifacts::tensors::{FloatPrecision, Selection};
use crate::artifacts::{ArtifactError, atomic, sparse_tensor, tensors, torch_pickle};
use crate::numerics::columns::StoredMatrix;
use crate::numerics::device::Placement;

const CONFIG_FILE: &str = "config.json";
const WEIGHTS_FILE: &str = "model.safetensors";
/// Weights that stay in llama.cpp's form.
pub const GGUF_FILE: &str = "model.gguf";
const TOKENIZER_FILE: &str = "tokenizer.json";
const RELEASED_CONFIG_FILE: &str = "beeg_config.json";
const RELEASED_WEIGHTS_FILE: &str = "final_model.pt";
/// What the Hugging Face copy of a released checkpoint puts before every name.
const HUGGING_FACE_PREFIX: &str = "circuit_model.";
const LONGEST_CONFIG: u64 = 1 << 20;
/// How much larger than its weights a model's file may be: weights in double precision, a tied matrix by both of its
/// names.
const FILE_PER_WEIGHTS: u64 = 2;

/// How a directory is read: what it may ask of whoever reads it, and where what is read goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadOptions {
    /// Bytes that a model's weights and the key-value cache of one sequence may take together.
    pub model_bytes: u64,
    /// Whether pickled checkpoints are read.
    pub pickles: bool,
    /// Whether weights in sixteen bits or quantised stay so.
    pub precision: FloatPrecision,
    /// Where a model computes. On a device weights are float32.
    pub placement: Placement,
}

impl ReadOptions {
    /// Whatever the directory holds, on the CPU: for files that the caller has chosen.
    pub const UNBOUNDED: Self = ReadOptions {
        model_bytes: u64::MAX,
        pickles: true,
        precision: FloatPrecision::Single,
        placement: Placement::CPU,
    };
}

impl ModelFiles {
    /// Reads the model in `directory`, whichever of the known forms it is in.
    pub fn read(directory: &Path) -> Result<Self, LayoutError> {
        Self::read_within(directory, ReadOptions::UNBOUNDED)
    }

    /// The same of a model that may not exceed `limits`.
    pub fn read_within(directory: &Path, limits: ReadOptions) -> Result<Self, LayoutError> {
        let described = Described::read(directory)?;
        let need = described.need(directory, limits.precision);
        check_need(need, directory, limits)?;
        let selection = Selection {
            passed_over: match described.form {
                Form::Own => Selection::ALL.passed_over,
                _ => is_buffer,
            },
            most_bytes: MemoryNeed::of(&described.config)
                .weights
                .saturating_mul(FILE_PER_WEIGHTS),
        };
        let precision = limits.precision;
        let (weights_path, mut model) = match described.form {
            Form::Own => read_own(directory, described.config, selection, precision)?,
            Form::HuggingFace => {
                read_hugging_face(directory, described.config, selection, precision)?
            }
            Form::Gpt2 => read_gpt2(directory, described.config, selection, precision)?,
            Form::Family(family) => {
                read_family(directory, family, described.config, selection, precision)?
            }
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

    /// What serving one sequence of the model in `directory` takes, by its configuration and the sizes of its files; held
    /// against `limits`.
    pub fn memory_need(directory: &Path, limits: ReadOptions) -> Result<MemoryNeed, LayoutError> {
        let need = Described::read(directory)?.need(directory, limits.precision);
        check_need(need, directory, limits)?;
        Ok(need)
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
        for (name, parts) in std::mem::take(&mut complete.quantised) {
            let single = StoredMatrix::Quantised(parts).to_float32();
            let single =
                single.map_err(|error| tensor_error(&weights_path, &name, error.to_string()))?;
            complete.tensors.insert(name, single);
        }
        complete.add_final_logits_bias(&weights_path)?;
        complete.check(&weights_path)?;
        let packed = sparse_tensor::pack(&complete.tensors)
            .map_err(|error| unrecognised(directory, error.to_string()))?;
        self.write_around(directory, || tensors::write(&weights_path, &packed))
    }

    /// Writes a model whose weights stay in the GGUF file that they were read from, of which `directory` gets a copy.
    pub fn write_beside_gguf(&self, file: &Path, directory: &Path) -> Result<(), LayoutError> {
        self.write_around(directory, || atomic::copy(file, &directory.join(GGUF_FILE)))
    }

    /// Writes everything but the weights, and those by `write_weights`.
    fn write_around(
        &self,
        directory: &Path,
        write_weights: impl FnOnce() -> Result<(), ArtifactError>,
    ) -> Result<(), LayoutError> {
        let config_path = directory.join(CONFIG_FILE);
        let tokenizer_path = directory.join(TOKENIZER_FILE);
        if let Some(json) = &self.tokenizer {
            let tokenizer = Tokenizer::from_bytes(json);
            check_tokenizer(&tokenizer_path, tokenizer, self.config.vocab_size)?;
        }
        let config = serde_json::to_vec_pretty(&self.config)
            .map_err(|error| unrecognised(directory, error.to_string()))?;
        atomic::create_directory(directory)?;
        atomic::remove(&config_path)?;
        write_weights()?;
        match &self.tokenizer {
            Some(tokenizer) => atomic::write(&tokenizer_path, tokenizer)?,
            None => atomic::remove(&tokenizer_path)?,
        }
        atomic::write(&config_path, &config)?;
        Ok(())
    }
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
    /// What serving takes: with weights as they are stored, no more than the files have. A file of our own leaves out zeros
    /// that are there in memory.
    fn need(&self, directory: &Path, precision: FloatPrecision) -> MemoryNeed {
        let mut need = MemoryNeed::of(&self.config);
        let as_stored = match self.form {
            Form::Own => !directory.join(WEIGHTS_FILE).exists(),
            Form::Gpt2 | Form::Family(_) => true,
            Form::Released | Form::HuggingFace => false,
        };
        if as_stored && precision == FloatPrecision::AsStored {
            let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let weights = files.filter(|file| {
                let name = file.file_name();
                let name = Path::new(&name);
                name.extension()
                    .is_some_and(|kind| kind == "safetensors" || kind == "gguf")
            });
            let sizes = weights.filter_map(|file| Some(file.metadata().ok()?.len()));
            need.weights = need.weights.min(sizes.fold(0, u64::saturating_add));
        }
        need
    }

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
    precision: FloatPrecision,
) -> Result<(PathBuf, ModelFiles), LayoutError> {
    let path = directory.join(WEIGHTS_FILE);
    let gguf_path = directory.join(GGUF_FILE);
    if !path.exists() && gguf_path.exists() {
        let (tensors, quantised) =
            weights::read(&gguf_path, &config, selection.most_bytes, precision)
                .map_err(|problem| unrecognised(&gguf_path, problem))?;
        let mut model = ModelFiles {
            config,
            tensors,
            quantised,
            tokenizer: None,
        };
        model.normalise(&gguf_path)?;
        return Ok((gguf_path, model));
    }
    let stored = tensors::read_selected(&path, precision, selection)?;
    let shapes = tensor_shapes(&config);
    let model = ModelFiles {
        config,
        tensors: sparse_tensor::unpack(&path, stored, |name| shapes.get(name).map(Vec::as_slice))?,
        quantised: QuantisedMatrices::new(),
        tokenizer: None,
    };
    Ok((path, model))
}

fn read_hugging_face(
    directory: &Path,
    config: TransformerConfig,
    selection: Selection,
    precision: FloatPrecision,
) -> Result<(PathBuf, ModelFiles), LayoutError> {
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
    precision: FloatPrecision,
) -> Result<(PathBuf, ModelFiles), LayoutError> {
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
    precision: FloatPrecision,
) -> Result<(PathBuf, ModelFiles), LayoutError> {
    let (path, stored) = tensors::read_sharded(directory, WEIGHTS_FILE, precision, selection)?;
    let stored = stored.into_iter();
    let stored = stored.map(|(name, tensor)| (name, StoredMatrix::Plain(tensor)));
    let translated = family.names.translate(&config, stored.collect());
    let plain = translated.and_then(|matrices| {
        let matrices = matrices.into_iter();
        let plain = matrices.map(|(name, matrix)| match matrix {
            StoredMatrix::Plain(tensor) => Ok((name, tensor)),
            quantised => Ok((name, quantised.to_float32()?)),
        });
        plain.collect::<candle_core::Result<_>>()
    });
    let tensors = plain.map_err(|error| unrecognised(&path, error.to_string()))?;
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

/// A model whose tensors carry canonical names but may still differ from the canonical set.
fn foreign_model(
    path: &Path,
    config: TransformerConfig,
    tensors: BTreeMap<String, Tensor>,
) -> Result<ModelFiles, LayoutError> {
    let mut model = ModelFiles {
        config,
        tensors,
        quantised: QuantisedMatrices::new(),
        tokenizer: None,
    };
    model.normalise(path)?;
    Ok(model)
}

fn check_need(need: MemoryNeed, directory: &Path, limits: ReadOptions) -> Result<(), LayoutError> {
    let within = need.within(limits.model_bytes);
    within.map_err(|source| LayoutError::TooLarge {
        directory: directory.to_owned(),
        source,
    })
}
