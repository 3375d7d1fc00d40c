//! One model from a hub into a folder: its revision made a commit, its files chosen and weighed, then brought one after
//! the other.
//!
//! The folder is called by the model and the commit, so that whoever wants the same again finds what has arrived. What
//! is given up is forgotten; what broke is kept for [`KEPT`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hf_hub::{Repo, RepoType};

use super::client::{HubClient, RemoteFile};
use super::error::HubError;
use super::listing::{self, Listing, NeededFiles};
use super::name::{CommitHash, HubId, Revision};
use super::transfer::{Transfer, bring};
use crate::artifacts::manifest::{FileName, FileRecord};
use crate::artifacts::partial_file::Announced;
use crate::artifacts::{ArtifactError, atomic};
use crate::settings::HubSettings;

/// How long a model that has not all arrived is kept when nothing more comes of it.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);
/// The longest index of weights in several files, in bytes.
const LONGEST_INDEX: u64 = 8 << 20;
/// GGUF files that are named to somebody who asked for another.
const MOST_NAMED: usize = 20;
const MIB: u64 = 1 << 20;

/// What is asked of a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedModel {
    pub id: HubId,
    pub revision: Revision,
    /// The GGUF file that is meant; none for the files of Hugging Face's form.
    pub file: Option<FileName>,
}

/// A model that has arrived.
#[derive(Debug)]
pub struct FetchedModel {
    /// Has its files and nothing else.
    pub folder: PathBuf,
    pub commit: CommitHash,
    pub files: Vec<FileRecord>,
    /// The one file, where it is GGUF.
    pub gguf: Option<PathBuf>,
}

/// Brings a model into a folder below `downloads`.
pub fn fetch(
    settings: &HubSettings,
    wanted: &WantedModel,
    downloads: &Path,
    transfer: &Transfer,
) -> Result<FetchedModel, HubError> {
    let hub = HubClient::new(settings)?;
    let listing = hub.listing(&wanted.id, &wanted.revision)?;
    transfer.set_commit(&listing.commit);
    transfer.go_on()?;
    let needed = needed(&listing, wanted)?;
    let folder = downloads.join(folder_name(wanted, &listing.commit));
    atomic::create_directory(&folder)?;
    let fetching = Fetching {
        settings,
        hub: &hub,
        wanted,
        listing: &listing,
        folder: &folder,
        transfer,
    };
    let fetched = fetching.all(needed);
    if matches!(fetched, Err(HubError::Stopped)) && transfer.is_forgotten() {
        remove_folder(&folder)?;
    }
    if fetched.is_err() {
        // Only where nothing has arrived.
        let _ = fs::remove_dir(&folder);
    }
    let files = fetched?;
    let gguf = wanted.file.as_ref().map(|file| local(file).under(&folder));
    Ok(FetchedModel {
        gguf,
        commit: listing.commit,
        files,
        folder,
    })
}

/// Forgets what has not all arrived and has had no more for so long.
pub fn forget_old(downloads: &Path, unused_for: Duration) {
    let folders = fs::read_dir(downloads).into_iter().flatten().flatten();
    for folder in folders {
        let path = folder.path();
        let is_old = last_changed(&path)
            .and_then(|changed| changed.elapsed().ok())
            .is_some_and(|age| age > unused_for);
        if is_old && let Err(error) = remove_folder(&path) {
            tracing::warn!(path = %path.display(), %error, "an old download is still there");
        }
    }
}

/// Removes a folder and what is in it.
pub fn remove_folder(folder: &Path) -> Result<(), ArtifactError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(ArtifactError::io("remove", folder)),
    }
}

/// When a folder or a file in it changed last.
fn last_changed(folder: &Path) -> Option<SystemTime> {
    let of = |path: &Path| fs::symlink_metadata(path).and_then(|it| it.modified()).ok();
    let inside = fs::read_dir(folder).into_iter().flatten().flatten();
    let inside = inside.filter_map(|entry| of(&entry.path()));
    inside.chain(of(folder)).max()
}

/// `models--OWNER--NAME--COMMIT`, as Hugging Face's own cache begins its names, and the file where one is meant.
fn folder_name(wanted: &WantedModel, commit: &CommitHash) -> String {
    let repo = Repo::new(wanted.id.to_string(), RepoType::Model);
    let name = format!("{}--{commit}", repo.folder_name());
    match &wanted.file {
        None => name,
        Some(file) => format!("{name}--{}", file.as_str().replace('/', "--")),
    }
}

/// What a file is called here: a single GGUF file without the folders that it is in there.
fn local(file: &FileName) -> FileName {
    let name = file
        .as_str()
        .rsplit('/')
        .next()
        .and_then(|name| name.parse().ok());
    name.unwrap_or_else(|| file.clone())
}

fn needed(listing: &Listing, wanted: &WantedModel) -> Result<NeededFiles, HubError> {
    let no_model = |problem: String| HubError::NoModel {
        id: wanted.id.clone(),
        problem,
    };
    let Some(file) = &wanted.file else {
        return listing.needed().map_err(no_model);
    };
    if !listing::is_gguf(file) {
        let problem = format!("`file` is {file}; a single file is a .gguf");
        return Err(no_model(problem));
    }
    if !listing.files.contains_key(file) {
        let ggufs = listing.files.keys().filter(|name| listing::is_gguf(name));
        let ggufs: Vec<&str> = ggufs.map(FileName::as_str).take(MOST_NAMED).collect();
        return Err(no_model(match ggufs.is_empty() {
            true => format!("it has no file {file}, and no other GGUF file"),
            false => format!(
                "it has no file {file}; its GGUF files are {}",
                ggufs.join(", ")
            ),
        }));
    }
    Ok(NeededFiles {
        files: vec![file.clone()],
        index: None,
    })
}

/// A model that is being brought.
struct Fetching<'f> {
    settings: &'f HubSettings,
    hub: &'f HubClient,
    wanted: &'f WantedModel,
    listing: &'f Listing,
    folder: &'f Path,
    transfer: &'f Transfer,
}

impl Fetching<'_> {
    fn all(&self, needed: NeededFiles) -> Result<Vec<FileRecord>, HubError> {
        let mut files: BTreeMap<FileName, Announced> = BTreeMap::new();
        for file in needed.files {
            let announced = self.announced(&file)?;
            files.insert(file, announced);
        }
        let mut records = Vec::new();
        if let Some(index) = needed.index {
            for shard in self.shards(&index, files.remove(&index), &mut records)? {
                let announced = self.announced(&shard)?;
                files.insert(shard, announced);
            }
        }
        let there: u64 = records.iter().map(|record: &FileRecord| record.size).sum();
        let sizes = files.values().map(|announced| announced.size);
        let total = sizes.fold(there, u64::saturating_add);
        self.bounded(total)?;
        self.transfer.set_total(total);
        for (file, announced) in &files {
            records.push(self.bring(file, announced)?);
        }
        records.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(records)
    }

    /// The files that the index names, which is brought for it.
    fn shards(
        &self,
        index: &FileName,
        announced: Option<Announced>,
        records: &mut Vec<FileRecord>,
    ) -> Result<BTreeSet<FileName>, HubError> {
        let Some(announced) = announced else {
            return Ok(BTreeSet::new());
        };
        let senseless = |problem: String| self.hub.senseless(index.as_str(), problem);
        if announced.size > LONGEST_INDEX {
            let problem = format!("it has {} bytes; {LONGEST_INDEX} are read", announced.size);
            return Err(senseless(problem));
        }
        records.push(self.bring(index, &announced)?);
        let json = atomic::read_small(&index.under(self.folder), LONGEST_INDEX)?;
        let names = self.listing.files.keys().cloned().collect();
        listing::shards(&json, &names).map_err(senseless)
    }

    fn remote<'r>(&'r self, name: &'r FileName) -> RemoteFile<'r> {
        RemoteFile {
            id: &self.wanted.id,
            commit: &self.listing.commit,
            name,
        }
    }

    fn announced(&self, file: &FileName) -> Result<Announced, HubError> {
        self.transfer.go_on()?;
        match self.listing.files.get(file).cloned().flatten() {
            Some(announced) => Ok(announced),
            None => self.hub.announced(&self.remote(file)),
        }
    }

    /// Refuses what is too large before any of it is brought.
    fn bounded(&self, total: u64) -> Result<(), HubError> {
        if total > self.settings.max_download_bytes() {
            return Err(HubError::TooLarge {
                id: self.wanted.id.clone(),
                revision: self.wanted.revision.clone(),
                mib: total.div_ceil(MIB),
                most_mib: self.settings.max_download_mib,
            });
        }
        // A file system that does not tell is written until it is full.
        if let Ok(disk) = rustix::fs::statvfs(self.folder) {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let missing = total.saturating_sub(size_of_files(self.folder));
            if missing > free {
                return Err(HubError::NoRoom {
                    mib: missing.div_ceil(MIB),
                    free_mib: free / MIB,
                });
            }
        }
        Ok(())
    }

    fn bring(&self, file: &FileName, announced: &Announced) -> Result<FileRecord, HubError> {
        let name = match self.wanted.file {
            Some(_) => local(file),
            None => file.clone(),
        };
        let path = name.under(self.folder);
        if let Some(parent) = path.parent() {
            atomic::create_directory(parent)?;
        }
        let (remote, retries) = (self.remote(file), self.settings.retries);
        let sha256 = bring(self.hub, &remote, &path, announced, retries, self.transfer)?;
        Ok(FileRecord {
            name,
            size: announced.size,
            sha256,
        })
    }
}

/// Bytes of the files that have arrived in a folder.
fn size_of_files(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum()
}
