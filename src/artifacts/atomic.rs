//! Replacing a file in one step: a reader, or a restart after a crash, sees the old content or the new one,
//! never a part of either.
//!
//! The content goes to a temporary file beside the target, is flushed to the disk, and is renamed over the
//! target; then the directory is flushed, for a rename is only as durable as its directory entry.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use tempfile::NamedTempFile;

use super::{ArtifactError, regular};

/// Writes `content` to `path` in one step.
pub fn write(path: &Path, content: &[u8]) -> Result<(), ArtifactError> {
    write_with(path, |file| {
        file.write_all(content)
            .map_err(ArtifactError::io("write", path))
    })
}

/// Lets `fill` write the content of `path`, which appears in one step once `fill` has succeeded. After an
/// error the target is as it was and no temporary file is left.
pub fn write_with<E>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<NamedTempFile>) -> Result<(), E>,
) -> Result<(), E>
where
    E: From<ArtifactError>,
{
    let temporary = beside(path)?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary);
    fill(&mut writer)?;
    let temporary = writer
        .into_inner()
        .map_err(|error| ArtifactError::io("write", path)(error.into_error()))?;
    temporary
        .as_file()
        .sync_all()
        .map_err(ArtifactError::io("flush", temporary.path()))?;
    temporary
        .persist(path)
        .map_err(|error| ArtifactError::io("rename to", path)(error.error))?;
    sync_directory(directory_of(path))?;
    Ok(())
}

/// Copies a regular file to `to` in one step.
pub fn copy(from: &Path, to: &Path) -> Result<(), ArtifactError> {
    let (mut source, _) = regular::open(from)?;
    write_with(to, |file| {
        std::io::copy(&mut source, file)
            .map(drop)
            .map_err(ArtifactError::io("copy", from))
    })
}

/// Gives a directory, all of whose files are on the disk, another name in the same file system, durably. Nothing may be
/// there by that name.
pub fn rename_directory(from: &Path, to: &Path) -> Result<(), ArtifactError> {
    sync_directory(from)?;
    fs::rename(from, to).map_err(ArtifactError::io("rename to", to))?;
    sync_directory(directory_of(to))
}

/// Flushes a directory's entries to the disk.
pub fn sync_directory(directory: &Path) -> Result<(), ArtifactError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(ArtifactError::io("flush", directory))
}

/// Creates a directory and its parents, if they are not there yet.
pub fn create_directory(directory: &Path) -> Result<(), ArtifactError> {
    fs::create_dir_all(directory).map_err(ArtifactError::io("create", directory))
}

/// Removes a file, durably, if it is there.
pub fn remove(path: &Path) -> Result<(), ArtifactError> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(directory_of(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ArtifactError::io("remove", path)(error)),
    }
}

/// Reads a whole regular file of at most `limit` bytes: for configurations and other small files, whose size must
/// not be a stranger's choice.
pub fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>, ArtifactError> {
    let (file, length) = regular::open(path)?;
    let mut content = Vec::new();
    // A longer file is not read at all; one that grows meanwhile is read up to the limit.
    if length <= limit {
        file.take(limit.saturating_add(1))
            .read_to_end(&mut content)
            .map_err(ArtifactError::io("read", path))?;
    }
    if length.max(content.len() as u64) > limit {
        let problem = format!("is longer than the {limit} bytes that are read");
        return Err(ArtifactError::damaged(path, "the file", problem));
    }
    Ok(content)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A temporary file in the target's directory, for a rename is a single step only within one file system. It is
/// removed when dropped.
fn beside(path: &Path) -> Result<NamedTempFile, ArtifactError> {
    let Some(name) = path.file_name() else {
        let problem = "does not end in a file name";
        return Err(ArtifactError::damaged(path, "the path", problem));
    };
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".part");
    // Others may read what is written, as the process's mask allows; a temporary file is private otherwise.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let directory = directory_of(path);
    builder
        .tempfile_in(directory)
        .map_err(ArtifactError::io("create a file in", directory))
}
