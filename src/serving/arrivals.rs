//! What comes into the library: from a hub, from a directory, or from a GGUF file.
//!
//! It is put together in a folder that is no entry, tried there in a process of its own, and gets its place in one step:
//! whoever looks finds all of it or nothing. What cannot be served leaves nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;

use super::library::Entry;
use super::snapshot::{Provenance, provenance};
use super::trial::Tried;
use super::trial_process::{TrialFailure, TrialProcess};
use crate::artifacts::manifest::{FORMAT_VERSION, FileName, FileRecord, Links, records};
use crate::artifacts::{ArtifactError, ArtifactId, Manifest, atomic};
use crate::bridge::pair::is_pair;
use crate::hub::fetch::{FetchedModel, WantedModel, remove_folder};
use crate::hub::listing;
use crate::settings::Settings;

/// Where things are put together, below the library: a name that no entry can have.
const DOWNLOADS: &str = ".downloads";
/// What is put together, in a folder that is removed afterwards.
const MODEL: &str = "model";
const INDEX_BYTES: u64 = 8 << 20;

/// Brings things into one library.
#[derive(Debug, Clone)]
pub struct Arrivals {
    library: PathBuf,
    trial: TrialProcess,
}

/// Something that is an entry of the library from now on.
#[derive(Debug)]
pub struct Arrival {
    pub entry: Entry,
    pub tried: Tried,
}

/// Why something did not come into the library.
#[derive(Debug, thiserror::Error)]
pub enum ArrivalError {
    /// Something is wrong with it.
    #[error("{0}")]
    Refused(String),
    #[error("the library has {0:?} already; give another id")]
    Taken(ArtifactId),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// This machine could not do it.
    #[error("{0}")]
    Failed(std::io::Error),
}

impl From<TrialFailure> for ArrivalError {
    fn from(failure: TrialFailure) -> Self {
        match failure {
            TrialFailure::System(error) => ArrivalError::Failed(error),
            failure => ArrivalError::Refused(failure.to_string()),
        }
    }
}

impl Arrivals {
    /// Into the library of the settings.
    pub fn new(settings: &Settings) -> Self {
        Arrivals {
            library: settings.library.clone(),
            trial: TrialProcess {
                program: settings.program.clone(),
                max_model_mib: settings.limits.max_model_mib,
                seconds: settings.limits.load_seconds,
            },
        }
    }

    /// Where what comes from a hub is put together.
    pub fn downloads(&self) -> PathBuf {
        self.library.join(DOWNLOADS)
    }

    /// An error where the library has something of this id.
    pub fn check_free(&self, id: &ArtifactId) -> Result<(), ArrivalError> {
        match fs::symlink_metadata(self.library.join(id.as_str())) {
            Ok(_) => Err(ArrivalError::Taken(id.clone())),
            Err(_) => Ok(()),
        }
    }

    /// Takes in what has been brought from a hub.
    pub async fn from_hub(
        &self,
        endpoint: &str,
        wanted: &WantedModel,
        fetched: FetchedModel,
        id: &ArtifactId,
    ) -> Result<Arrival, ArrivalError> {
        let mut provenance = Provenance::new();
        let mut tell = |name: &str, value: &str| provenance.insert(name.to_owned(), value.into());
        tell("hub", endpoint);
        tell("hub_id", wanted.id.as_str());
        tell("revision", wanted.revision.as_str());
        tell("commit", fetched.commit.as_str());
        if let Some(file) = &wanted.file {
            tell("file", file.as_str());
        }
        let arrived = match &fetched.gguf {
            Some(gguf) => self.converted(gguf, id, provenance).await,
            None => {
                let files = Some(fetched.files);
                self.settle(&fetched.folder, id, provenance, files).await
            }
        };
        // Whether it was made a model or can be none, it is needed no more. What this machine could not do may be done
        // another time.
        if matches!(arrived, Ok(_) | Err(ArrivalError::Refused(_))) {
            remove_folder(&fetched.folder)?;
        }
        arrived
    }

    /// Takes in the model in a GGUF file, which stays as it is.
    pub async fn from_gguf(&self, file: &Path, id: &ArtifactId) -> Result<Arrival, ArrivalError> {
        self.check_free(id)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let provenance = BTreeMap::from([("file".to_owned(), Value::from(name))]);
        self.converted(file, id, provenance).await
    }

    /// Takes in the model or pair in a directory, which stays as it is: by a copy of the files that are needed, or by a
    /// symbolic link to it.
    pub async fn from_directory(
        &self,
        directory: &Path,
        id: &ArtifactId,
        link: bool,
    ) -> Result<Arrival, ArrivalError> {
        self.check_free(id)?;
        if link {
            let tried = self.trial.run(directory, false).await?;
            let directory = directory.canonicalize().map_err(ArrivalError::Failed)?;
            atomic::create_directory(&self.library)?;
            let place = self.library.join(id.as_str());
            std::os::unix::fs::symlink(directory, &place).map_err(ArrivalError::Failed)?;
            return self.arrival(id, tried);
        }
        let files = match needed(directory) {
            Ok(files) => files,
            Err(problem) => {
                // Whoever reads it can say more of what is wrong with it.
                self.trial.run(directory, false).await?;
                return Err(ArrivalError::Refused(problem));
            }
        };
        let scratch = self.scratch()?;
        let folder = scratch.path().join(MODEL);
        for file in &files {
            let copy = file.under(&folder);
            if let Some(parent) = copy.parent() {
                atomic::create_directory(parent)?;
            }
            atomic::copy(&file.under(directory), &copy)?;
        }
        self.settle(&folder, id, provenance(directory), None).await
    }

    /// Takes something out of the library; whether there was anything of that id.
    pub fn remove(&self, id: &ArtifactId) -> Result<bool, ArtifactError> {
        let place = self.library.join(id.as_str());
        let Ok(found) = fs::symlink_metadata(&place) else {
            return Ok(false);
        };
        if found.is_symlink() {
            // The link alone: what it leads to is somebody else's.
            atomic::remove(&place)?;
            return Ok(true);
        }
        // First out of everybody's sight, in one step.
        let removed = self.downloads().join(format!("removed-{}", Uuid::new_v4()));
        atomic::create_directory(&self.downloads())?;
        atomic::rename_directory(&place, &removed)?;
        remove_folder(&removed)?;
        Ok(true)
    }

    /// A folder that is there for as long as this is, however it ends.
    fn scratch(&self) -> Result<TempDir, ArtifactError> {
        let downloads = self.downloads();
        atomic::create_directory(&downloads)?;
        tempfile::Builder::new()
            .prefix("adding-")
            .tempdir_in(&downloads)
            .map_err(ArtifactError::io("create a folder in", &downloads))
    }

    async fn converted(
        &self,
        file: &Path,
        id: &ArtifactId,
        provenance: Provenance,
    ) -> Result<Arrival, ArrivalError> {
        let scratch = self.scratch()?;
        let folder = scratch.path().join(MODEL);
        self.trial.convert(file, &folder).await?;
        self.settle(&folder, id, provenance, None).await
    }

    /// Tries what is in `folder` and gives it its place.
    async fn settle(
        &self,
        folder: &Path,
        id: &ArtifactId,
        provenance: Provenance,
        files: Option<Vec<FileRecord>>,
    ) -> Result<Arrival, ArrivalError> {
        let tried = self.trial.run(folder, false).await?;
        // A pair's own manifest is kept.
        if !is_pair(folder) {
            let manifest = match files {
                Some(files) => Manifest {
                    format_version: FORMAT_VERSION,
                    id: id.clone(),
                    description: String::new(),
                    files,
                    provenance,
                },
                None => Manifest::of_directory(folder, id.clone(), String::new(), provenance)?,
            };
            manifest.write(folder)?;
        }
        self.check_free(id)?;
        // From here on nothing is waited for: it is all done, or nothing of it.
        atomic::rename_directory(folder, &self.library.join(id.as_str()))?;
        self.arrival(id, tried)
    }

    fn arrival(&self, id: &ArtifactId, tried: Tried) -> Result<Arrival, ArrivalError> {
        let entry = Entry::of(self.library.join(id.as_str()));
        let entry = entry.ok_or_else(|| ArrivalError::Refused("it is gone already".to_owned()))?;
        Ok(Arrival { entry, tried })
    }
}

/// The files of a directory that its pair or model needs, or why it can be neither.
fn needed(directory: &Path) -> Result<BTreeSet<FileName>, String> {
    let told = |error: ArtifactError| error.to_string();
    if is_pair(directory) {
        let files = records(directory, Links::Followed).map_err(told)?;
        return Ok(files.into_iter().map(|file| file.name).collect());
    }
    let files = fs::read_dir(directory).map_err(|error| error.to_string())?;
    let names = files.flatten().filter_map(|file| {
        let is_file = file.path().is_file();
        file.file_name().to_str()?.parse().ok().filter(|_| is_file)
    });
    let names: BTreeSet<FileName> = names.collect();
    let needed = listing::needed(&names)?;
    let mut files: BTreeSet<FileName> = needed.files.into_iter().collect();
    if let Some(index) = needed.index {
        let json = atomic::read_small(&index.under(directory), INDEX_BYTES).map_err(told)?;
        files.extend(listing::shards(&json, &names)?);
    }
    Ok(files)
}
