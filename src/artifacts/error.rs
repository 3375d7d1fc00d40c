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

/// Whether there was no room on a disk, or no leave for more of it, somewhere down in an error.
pub fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind;
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(system) = error.downcast_ref::<std::io::Error>() {
            let full = [
                ErrorKind::StorageFull,
                ErrorKind::QuotaExceeded,
                ErrorKind::FileTooLarge,
            ];
            if full.contains(&system.kind()) {
                return true;
            }
            // The source of an error that wraps another is that one's source, not the other itself.
            if system.get_ref().is_some_and(|inner| is_full(inner)) {
                return true;
            }
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_full_disk_is_found_wherever_it_is_wrapped() {
        let path = Path::new("weights");
        for number in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG] {
            let full = || io::Error::from_raw_os_error(number);
            assert!(is_full(&full()));
            assert!(is_full(&io::Error::other(full())));
            assert!(is_full(&ArtifactError::io("write", path)(full())));
            let wrapped = ArtifactError::io("write", path)(io::Error::other(full()));
            assert!(is_full(&io::Error::other(wrapped)));
        }
        let refused = io::Error::from_raw_os_error(libc::EACCES);
        assert!(!is_full(&ArtifactError::io("write", path)(refused)));
        // Only the words of one.
        assert!(!is_full(&io::Error::other(
            "No space left on device (os error 28)"
        )));
    }
}
