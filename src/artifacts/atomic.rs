//! Replacing a file in one step: a reader, or a restart after a crash, sees the old content or the new one,
//! never a part of either.
//!
//! The content goes to a temporary file beside the target, is flushed to the disk, and is renamed over the
//! target; then the directory is flushed, for a rename is only as durable as its directory entry.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

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
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E>
where
    E: From<ArtifactError>,
{
    let temporary = TemporaryFile::beside(path)?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary.path)
        .map_err(ArtifactError::io("create", &temporary.path))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    fill(&mut writer)?;
    let file = writer
        .into_inner()
        .map_err(|error| ArtifactError::io("write", path)(error.into_error()))?;
    file.sync_all()
        .map_err(ArtifactError::io("flush", &temporary.path))?;
    drop(file);
    temporary.rename_to(path)?;
    sync_directory(directory_of(path))?;
    Ok(())
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

/// A file that is removed when dropped, unless it has been renamed to its target.
struct TemporaryFile {
    path: PathBuf,
    renamed: bool,
}

impl TemporaryFile {
    /// A name in the target's directory, for a rename is a single step only within one file system.
    fn beside(path: &Path) -> Result<Self, ArtifactError> {
        let Some(name) = path.file_name() else {
            let problem = "does not end in a file name";
            return Err(ArtifactError::damaged(path, "the path", problem));
        };
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}.part", uuid::Uuid::new_v4().simple()));
        Ok(TemporaryFile {
            path: directory_of(path).join(temporary),
            renamed: false,
        })
    }

    fn rename_to(mut self, target: &Path) -> Result<(), ArtifactError> {
        fs::rename(&self.path, target).map_err(ArtifactError::io("rename to", target))?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.renamed {
            // Nothing better can be done about a leftover than what the error being returned says.
            let _ = fs::remove_file(&self.path);
        }
    }
}
