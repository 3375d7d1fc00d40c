//! What can go wrong with a file, said so that its reader knows which file, where in it, and what would be
//! right.

use std::path::{Path, PathBuf};

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// The file's content contradicts itself, its length or its format.
    #[error("{}: {place}: {problem}", path.display())]
    Damaged {
        path: PathBuf,
        /// The header, tensor or record at fault.
        place: String,
        problem: String,
    },
    /// A file's content is not the one its manifest describes.
    #[error("{}: its sha256 is {found}, the manifest says {expected}", path.display())]
    HashMismatch {
        path: PathBuf,
        expected: String,
        found: String,
    },
    /// A tensor could not be built or converted.
    #[error("{}: {place}: {source}", path.display())]
    Tensor {
        path: PathBuf,
        place: String,
        // Boxed, for it is several times the size of the others.
        source: Box<candle_core::Error>,
    },
}

impl ArtifactError {
    pub(crate) fn damaged(
        path: &Path,
        place: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        ArtifactError::Damaged {
            path: path.to_path_buf(),
            place: place.into(),
            problem: problem.into(),
        }
    }

    /// For `map_err`: names the action and the file of an operating system's error.
    pub(crate) fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| ArtifactError::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    /// For `map_err`: names the file and the tensor of a tensor library's error.
    pub(crate) fn tensor<'a>(
        path: &'a Path,
        place: &'a str,
    ) -> impl FnOnce(candle_core::Error) -> Self + 'a {
        move |source| ArtifactError::Tensor {
            path: path.to_path_buf(),
            place: place.to_owned(),
            source: Box::new(source),
        }
    }
}
