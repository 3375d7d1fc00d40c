//! The data directory belongs to one server at a time.
//!
//! A server holds the features that callers make in memory and writes them whole: a second server on the same
//! directory would overwrite what the first has acknowledged. The operating system ends the lock with the process,
//! however that ends.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// The file that a server locks. It is empty and stays.
const LOCK: &str = "server.lock";

/// A data directory that no other server has while this exists.
#[derive(Debug)]
pub struct DataDirectory {
    /// Nothing where the file system keeps no locks.
    _lock: Option<File>,
}

/// Another server has the directory.
#[derive(Debug, thiserror::Error)]
#[error(
    "another server keeps its data in {0}: stop it, or give this one a directory of its own with --data-dir or \
     data_dir"
)]
pub struct DataInUse(PathBuf);

impl DataDirectory {
    /// Takes `directory`, which is created if it does not exist. A disk that is full or keeps no locks is told in the
    /// log and stops no server: what needs the directory fails for itself.
    pub fn take(directory: &Path) -> Result<Self, DataInUse> {
        let path = directory.join(LOCK);
        let open = || {
            fs::create_dir_all(directory)?;
            File::options().append(true).create(true).open(&path)
        };
        let unlocked = |error| {
            tracing::warn!(path = %path.display(), %error, "cannot be locked: no second server may use the directory");
            Ok(DataDirectory { _lock: None })
        };
        let file = match open() {
            Ok(file) => file,
            Err(error) => return unlocked(error),
        };
        match file.try_lock() {
            Ok(()) => Ok(DataDirectory { _lock: Some(file) }),
            Err(TryLockError::WouldBlock) => Err(DataInUse(directory.to_owned())),
            Err(TryLockError::Error(error)) => unlocked(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_one_server_s_until_it_is_given_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let data = directory.path().join("new/data");
        let first = DataDirectory::take(&data).expect("free");
        let error = DataDirectory::take(&data).expect_err("taken").to_string();
        assert!(error.contains(&*data.to_string_lossy()) && error.contains("--data-dir"));
        drop(first);
        DataDirectory::take(&data).expect("free again");
    }
}
