//! Opening a file that a stranger may have put there: only a regular file is opened.
//!
//! A named pipe makes its reader wait for a writer that need never come, and a device can give bytes without end.

use std::fs::{self, File, FileType, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::ArtifactError;

/// Opens the regular file at `path`, or the one that a symbolic link there leads to; also returns its length in
/// bytes. Anything else is an error, and does not hold the caller up.
pub fn open(path: &Path) -> Result<(File, u64), ArtifactError> {
    // Opening a device can change what it does, so its kind is looked at before.
    let kind = fs::metadata(path).map_err(ArtifactError::io("open", path))?;
    refuse_other_kinds(path, kind.file_type())?;
    let file = OpenOptions::new()
        .read(true)
        // The file may have been replaced since: opening a named pipe must not wait for its writer.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(ArtifactError::io("open", path))?;
    let metadata = file.metadata().map_err(ArtifactError::io("open", path))?;
    refuse_other_kinds(path, metadata.file_type())?;
    Ok((file, metadata.len()))
}

fn refuse_other_kinds(path: &Path, found: FileType) -> Result<(), ArtifactError> {
    let kind = match found {
        found if found.is_file() => return Ok(()),
        found if found.is_dir() => "a directory",
        found if found.is_fifo() => "a named pipe",
        found if found.is_socket() => "a socket",
        _ => "a device",
    };
    let problem = format!("is {kind}; only regular files are read");
    Err(ArtifactError::damaged(path, "the file", problem))
}
