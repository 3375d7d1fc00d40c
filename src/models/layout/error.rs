//! Why a directory is not the model that it should be.

use std::path::{Path, PathBuf};

use crate::artifacts::ArtifactError;
use crate::models::config::ConfigError;
use crate::models::memory_need::TooLarge;
use crate::models::tokenizer::TokenizerError;

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

pub fn tensor_error(path: &Path, name: &str, problem: String) -> LayoutError {
    LayoutError::Tensor {
        path: path.to_path_buf(),
        name: name.to_owned(),
        problem,
    }
}

pub fn unrecognised(directory: &Path, problem: String) -> LayoutError {
    LayoutError::Unrecognised {
        directory: directory.to_path_buf(),
        problem,
    }
}
