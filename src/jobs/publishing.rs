//! A job's result becomes a folder of the library, in one step: there is none, or a whole one.

use std::fs;
use std::io;
use std::path::Path;

use crate::artifacts::atomic::sync_directory;

/// Moves `result` to `library/id`. A result that is there already came of the same job: names are taken for good.
pub fn publish(result: &Path, library: &Path, id: &str) -> io::Result<()> {
    let published = library.join(id);
    if published.exists() {
        return Ok(());
    }
    fs::create_dir_all(library)?;
    match fs::rename(result, &published) {
        // Somebody was faster.
        Err(_) if published.exists() => return Ok(()),
        // Another file system: first beside the place, under a name that is no id.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let beside = library.join(format!(".{id}-{}", uuid::Uuid::new_v4()));
            copy_all(result, &beside)?;
            fs::rename(&beside, &published)?;
        }
        done => done?,
    }
    sync_directory(library).map_err(io::Error::other)
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_all(&entry.path(), &target)?,
            false => {
                fs::copy(entry.path(), &target)?;
                fs::File::open(&target)?.sync_all()?;
            }
        }
    }
    Ok(())
}
