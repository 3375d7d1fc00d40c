//! A file that arrives piece by piece, maybe over several starts of the program, and takes its name only when it is
//! whole and has the hash that was announced.
//!
//! Until then its pieces are in `NAME.part`, which one writer at a time has: whoever comes later goes on where the file
//! ends. Its hashes are taken as it grows; what is there already is read again for them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{ArtifactError, atomic, hexadecimal};

/// What a file that has not all arrived is called behind its name.
const SUFFIX: &str = ".part";
const BLOCK: usize = 1 << 20;

/// What whoever sends a file says of it before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// In bytes.
    pub size: u64,
    pub hash: ContentHash,
}

/// A hash in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentHash {
    /// Of the content.
    Sha256(String),
    /// Git's of the content as a blob: the sha1 of `blob SIZE`, a zero byte, and the content.
    GitBlob(String),
}

/// A file that is arriving.
#[derive(Debug)]
pub struct PartialFile {
    path: PathBuf,
    part: PathBuf,
    file: File,
    announced: Announced,
    length: u64,
    sha256: Sha256,
    git: Sha1,
}

impl ContentHash {
    /// The hash that a text is: 64 digits are a sha256, 40 one of Git's.
    pub fn of_text(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let is_hexadecimal = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match text.len() {
            64 if is_hexadecimal => Some(ContentHash::Sha256(text)),
            40 if is_hexadecimal => Some(ContentHash::GitBlob(text)),
            _ => None,
        }
    }
}

impl PartialFile {
    /// The file at `path` as far as it has arrived: nothing of it, a part, or, after an earlier start, all.
    pub fn begin(path: &Path, announced: Announced) -> Result<Self, ArtifactError> {
        let mut part = path.as_os_str().to_owned();
        part.push(SUFFIX);
        let part = PathBuf::from(part);
        // It is checked once more before it has its name again.
        match fs::rename(path, &part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ArtifactError::io("rename", path)(error));
            }
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&part)
            .map_err(ArtifactError::io("create", &part))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let problem = "is being written by another download of the same file";
                return Err(ArtifactError::damaged(&part, "the file", problem));
            }
            // A file system without locks.
            Err(TryLockError::Error(_)) => {}
        }
        let mut opened = PartialFile {
            path: path.to_owned(),
            part,
            file,
            length: 0,
            sha256: Sha256::new(),
            git: beginning(announced.size),
            announced,
        };
        opened.take_in_what_is_there()?;
        Ok(opened)
    }

    fn take_in_what_is_there(&mut self) -> Result<(), ArtifactError> {
        let there = self
            .file
            .metadata()
            .map_err(ArtifactError::io("read", &self.part))?
            .len();
        if there > self.announced.size {
            return self.restart();
        }
        let mut block = vec![0u8; BLOCK];
        loop {
            let count = self
                .file
                .read(&mut block)
                .map_err(ArtifactError::io("read", &self.part))?;
            if count == 0 {
                return Ok(());
            }
            self.take_in(&block[..count]);
        }
    }

    fn take_in(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        self.sha256.update(bytes);
        if matches!(self.announced.hash, ContentHash::GitBlob(_)) {
            self.git.update(bytes);
        }
    }

    /// Bytes that have arrived.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes that are to come.
    pub fn missing(&self) -> u64 {
        self.announced.size.saturating_sub(self.length)
    }

    /// Adds the next bytes. More than were announced are an error, and nothing of them is kept.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), ArtifactError> {
        if bytes.len() as u64 > self.missing() {
            let problem = format!(
                "is longer than the {} bytes that were announced",
                self.announced.size
            );
            return Err(ArtifactError::damaged(&self.path, "the file", problem));
        }
        self.file
            .write_all(bytes)
            .map_err(ArtifactError::io("write", &self.part))?;
        self.take_in(bytes);
        Ok(())
    }

    /// Forgets what has arrived.
    pub fn restart(&mut self) -> Result<(), ArtifactError> {
        self.file
            .set_len(0)
            .map_err(ArtifactError::io("write", &self.part))?;
        self.length = 0;
        self.sha256 = Sha256::new();
        self.git = beginning(self.announced.size);
        Ok(())
    }

    /// Gives a whole file its name, on the disk, and tells its sha256. One whose content is not what was announced is
    /// removed: nothing would make it right.
    pub fn finish(self) -> Result<String, ArtifactError> {
        if self.missing() > 0 {
            let problem = format!(
                "has {} of the {} bytes that were announced",
                self.length, self.announced.size
            );
            return Err(ArtifactError::damaged(&self.path, "the file", problem));
        }
        let sha256 = hexadecimal(&self.sha256.finalize());
        let (kind, found, expected) = match &self.announced.hash {
            ContentHash::Sha256(expected) => ("sha256", sha256.clone(), expected),
            ContentHash::GitBlob(expected) => (
                "hash as a blob",
                hexadecimal(&self.git.finalize()),
                expected,
            ),
        };
        if found != *expected {
            atomic::remove(&self.part)?;
            let problem =
                format!("its {kind} is {found}; it was announced with {expected}, and was removed");
            return Err(ArtifactError::damaged(&self.path, "the content", problem));
        }
        self.file
            .sync_all()
            .map_err(ArtifactError::io("flush", &self.part))?;
        fs::rename(&self.part, &self.path).map_err(ArtifactError::io("rename to", &self.path))?;
        Ok(sha256)
    }
}

/// What Git puts before a blob of so many bytes.
fn beginning(size: u64) -> Sha1 {
    Sha1::new().chain_update(format!("blob {size}\0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf 'hello\n' | git hash-object --stdin`, and its sha256.
    const BLOB: &str = "ce013625030ba8dba906f756967f9e9ca394464a";
    const SHA256: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    fn announced(hash: &str) -> Announced {
        Announced {
            size: 6,
            hash: ContentHash::of_text(hash).expect("a hash"),
        }
    }

    #[test]
    fn a_file_goes_on_where_it_was_and_is_named_when_it_is_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("text");
        for hash in [BLOB, SHA256] {
            let mut file = PartialFile::begin(&path, announced(hash)).expect("a new file");
            file.restart().expect("from the beginning");
            file.append(b"hel").expect("a part");
            assert!(
                PartialFile::begin(&path, announced(hash)).is_err(),
                "two at a time"
            );
            drop(file);
            assert!(!path.exists());
            let mut file = PartialFile::begin(&path, announced(hash)).expect("the same file");
            assert_eq!((file.length(), file.missing()), (3, 3));
            assert!(file.append(b"lo, world\n").is_err(), "too much");
            file.append(b"lo\n").expect("the rest");
            assert_eq!(file.finish().expect("whole"), SHA256);
            assert_eq!(fs::read(&path).expect("the file"), b"hello\n");
            // All of it is there already.
            let file = PartialFile::begin(&path, announced(hash)).expect("the same file");
            assert_eq!(file.missing(), 0);
            assert_eq!(file.finish().expect("whole"), SHA256);
        }
    }

    #[test]
    fn other_content_is_told_and_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("text");
        for hash in [BLOB, SHA256] {
            let mut file = PartialFile::begin(&path, announced(hash)).expect("a new file");
            file.append(b"hallo").expect("a part");
            file.append(b"\n").expect("the rest");
            let error = file.finish().expect_err("other content").to_string();
            assert!(error.contains(hash) && error.contains("removed"), "{error}");
            assert_eq!(fs::read_dir(folder.path()).expect("a list").count(), 0);
        }
        let file = PartialFile::begin(&path, announced(BLOB)).expect("a new file");
        let error = file.finish().expect_err("nothing arrived").to_string();
        assert!(error.contains("0 of the 6 bytes"), "{error}");
        // One that is longer can be no part of it.
        fs::write(&path, b"hello, world").expect("another file");
        let file = PartialFile::begin(&path, announced(BLOB)).expect("a new file");
        assert_eq!(file.length(), 0);
        assert_eq!(ContentHash::of_text("main"), None);
        assert_eq!(ContentHash::of_text(&"g".repeat(40)), None);
    }
}
