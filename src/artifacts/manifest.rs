//! What an artifact's directory holds: `manifest.json` lists every file with its size and its sha256, so that
//! a truncated download or a swapped file is found before it is used.
//!
//! A manifest may come from a stranger: its file names parse into [`FileName`], which cannot leave the
//! directory, and [`Manifest::verify`] follows no symbolic link.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ArtifactError, atomic, regular};

/// The name of the manifest in its directory.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The version this code writes, and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;
/// A longer manifest is not read.
const LONGEST_MANIFEST: u64 = 1 << 20;
/// How deep a directory is walked.
const DEEPEST: usize = 8;

/// The contents of one artifact's directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format_version: u32,
    pub id: ArtifactId,
    #[serde(default)]
    pub description: String,
    /// Every file of the directory but the manifest itself, by name.
    pub files: Vec<FileRecord>,
    /// Where the artifact came from: recipe, seed, parents, whatever its maker records.
    #[serde(default)]
    pub provenance: BTreeMap<String, serde_json::Value>,
}

/// One file of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    pub name: FileName,
    /// In bytes.
    pub size: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// Hashes every file under `directory`. Hidden files are left out; symbolic links are refused.
    pub fn of_directory(
        directory: &Path,
        id: ArtifactId,
        description: String,
        provenance: BTreeMap<String, serde_json::Value>,
    ) -> Result<Self, ArtifactError> {
        let mut files = records(directory, Links::Refused)?;
        files.retain(|file| file.name.0 != MANIFEST_FILE);
        Ok(Manifest {
            format_version: FORMAT_VERSION,
            id,
            description,
            files,
            provenance,
        })
    }

    /// Writes `manifest.json` into `directory` in one step.
    pub fn write(&self, directory: &Path) -> Result<(), ArtifactError> {
        let path = directory.join(MANIFEST_FILE);
        let mut json = serde_json::to_vec_pretty(self)
            .map_err(|error| ArtifactError::damaged(&path, "the manifest", error.to_string()))?;
        json.push(b'\n');
        atomic::write(&path, &json)
    }

    /// Reads `manifest.json` from `directory`; [`Manifest::verify`] compares it with the files.
    pub fn read(directory: &Path) -> Result<Self, ArtifactError> {
        let path = directory.join(MANIFEST_FILE);
        let damaged = |problem: String| ArtifactError::damaged(&path, "the manifest", problem);
        let json = atomic::read_small(&path, LONGEST_MANIFEST)?;
        let manifest: Manifest =
            serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
        if manifest.format_version != FORMAT_VERSION {
            return Err(damaged(format!(
                "has format version {}; this program reads version {FORMAT_VERSION}",
                manifest.format_version
            )));
        }
        let mut names: Vec<&FileName> = manifest.files.iter().map(|file| &file.name).collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(damaged(format!("lists {} twice", twice[0])));
        }
        Ok(manifest)
    }

    /// Compares every listed file's size and hash with what `directory` holds.
    pub fn verify(&self, directory: &Path) -> Result<(), ArtifactError> {
        for file in &self.files {
            let path = file.name.under(directory);
            refuse_links(directory, &file.name)?;
            let length = fs::metadata(&path)
                .map_err(ArtifactError::io("read", &path))?
                .len();
            if length != file.size {
                let problem = format!(
                    "has {length} bytes (sha256 not computed); the manifest says {} and sha256 {}",
                    file.size, file.sha256
                );
                return Err(ArtifactError::damaged(&path, "the file", problem));
            }
            let (_, found) = hash_file(&path)?;
            if found != file.sha256 {
                return Err(ArtifactError::HashMismatch {
                    path,
                    expected: file.sha256.clone(),
                    found,
                });
            }
        }
        Ok(())
    }
}

/// What becomes of symbolic links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    Refused,
    /// The files that they lead to are taken; folders are not, and neither are names that no artifact's file may have.
    Followed,
}

/// Every file under `directory` by name, a manifest among them. Hidden files are left out.
pub fn records(directory: &Path, links: Links) -> Result<Vec<FileRecord>, ArtifactError> {
    let mut names = Vec::new();
    collect_names(directory, "", 0, links, &mut names)?;
    names.sort();
    let record = |name: FileName| {
        let (size, sha256) = hash_file(&name.under(directory))?;
        Ok(FileRecord { name, size, sha256 })
    };
    names.into_iter().map(record).collect()
}

/// The size and the sha256, in lower-case hexadecimal, of a file.
pub fn hash_file(path: &Path) -> Result<(u64, String), ArtifactError> {
    let (mut file, _) = regular::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    let mut size = 0;
    loop {
        let count = file
            .read(&mut buffer)
            .map_err(ArtifactError::io("read", path))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        size += count as u64;
    }
    Ok((size, hexadecimal(&hasher.finalize())))
}

/// How hashes are written: two digits of `0-9 a-f` a byte.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Gathers the names of the files below `directory/prefix`.
fn collect_names(
    directory: &Path,
    prefix: &str,
    depth: usize,
    links: Links,
    names: &mut Vec<FileName>,
) -> Result<(), ArtifactError> {
    let folder = directory.join(prefix);
    if depth > DEEPEST {
        let problem = format!("is nested more than {DEEPEST} deep");
        return Err(ArtifactError::damaged(&folder, "the directory", problem));
    }
    for entry in fs::read_dir(&folder).map_err(ArtifactError::io("list", &folder))? {
        let entry = entry.map_err(ArtifactError::io("list", &folder))?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let name = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        let kind = entry
            .file_type()
            .map_err(ArtifactError::io("read", &path))?;
        if kind.is_dir() {
            collect_names(directory, &name, depth + 1, links, names)?;
            continue;
        }
        let file = match links {
            Links::Refused => kind.is_file(),
            Links::Followed => fs::metadata(&path).is_ok_and(|found| found.is_file()),
        };
        match (file, FileName::from_str(&name), links) {
            (true, Ok(name), _) => names.push(name),
            (_, _, Links::Followed) => {}
            (true, Err(error), _) => {
                return Err(ArtifactError::damaged(&path, "its name", error.to_string()));
            }
            (false, _, _) => {
                let problem = "is neither a file nor a directory";
                return Err(ArtifactError::damaged(&path, "the entry", problem));
            }
        }
    }
    Ok(())
}

/// Refuses a file that is, or is reached through, a symbolic link inside `directory`.
fn refuse_links(directory: &Path, name: &FileName) -> Result<(), ArtifactError> {
    let mut path = directory.to_path_buf();
    for part in name.0.split('/') {
        path.push(part);
        let kind = fs::symlink_metadata(&path)
            .map_err(ArtifactError::io("read", &path))?
            .file_type();
        if kind.is_symlink() {
            let problem = "is a symbolic link; an artifact's files are its own";
            return Err(ArtifactError::damaged(&path, "the entry", problem));
        }
    }
    Ok(())
}

/// A text that is no valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind}: {rule}")]
pub struct NameError {
    text: String,
    kind: &'static str,
    rule: &'static str,
}

/// The id of a bridge, a model or another artifact. It is safe to use as a directory's name: 1 to 64 of
/// `a-z 0-9 . _ -`, no `..`, no dot at the start.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(pattern = "^[a-z0-9_-][a-z0-9._-]{0,63}$")]
pub struct ArtifactId(String);

impl ArtifactId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ArtifactId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        let valid = (1..=64).contains(&text.len())
            && text.bytes().all(allowed)
            && !text.starts_with('.')
            && !text.contains("..");
        if valid {
            return Ok(ArtifactId(text.to_owned()));
        }
        Err(NameError {
            text: text.chars().take(80).collect(),
            kind: "id",
            rule: "1 to 64 of a-z, 0-9, '.', '_' and '-', no '..', no dot at the start",
        })
    }
}

/// The name of a file relative to its artifact's directory: parts of `A-Z a-z 0-9 . _ -` joined by `/`, none
/// of them beginning with a dot. It cannot name anything outside the directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileName(String);

impl FileName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The file's path in `directory`.
    pub fn under(&self, directory: &Path) -> PathBuf {
        directory.join(&self.0)
    }
}

impl FromStr for FileName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let valid = text.len() <= 255
            && text.split('/').all(|part| {
                !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed)
            });
        if valid {
            return Ok(FileName(text.to_owned()));
        }
        Err(NameError {
            text: text.chars().take(80).collect(),
            kind: "file name",
            rule: "relative, of A-Z, a-z, 0-9, '.', '_', '-' and '/', no part empty or beginning with a dot",
        })
    }
}

macro_rules! text_conversions {
    ($name:ident) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

text_conversions!(ArtifactId);
text_conversions!(FileName);
