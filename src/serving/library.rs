//! What can be served: pairs and single models by their ids.
//!
//! An entry is in a directory that the settings name, in a folder of the settings' `library`, or brought from the
//! artifact store after a job has trained it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use serde::Serialize;
use utoipa::ToSchema;

use crate::artifacts::ArtifactId;
use crate::bridge::pair::is_pair;
use crate::models::layout::ModelFiles;

/// Where entries are.
#[derive(Debug)]
pub struct Library {
    /// By id: those that the settings name.
    named: BTreeMap<String, Entry>,
    /// Whose folders are entries too.
    directory: PathBuf,
    /// By id: what jobs have trained.
    trained: RwLock<BTreeMap<String, Trained>>,
}

/// A job's result that this server has brought.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The sha256 of its artifact.
    pub artifact: String,
    pub entry: Entry,
}

/// What a directory holds.
#[derive(Debug, Clone)]
pub struct Entry {
    pub kind: EntryKind,
    pub directory: PathBuf,
}

/// A folder of the library that cannot be an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SkippedFolder {
    /// Its name in the library's directory.
    #[schema(example = "My Model")]
    pub folder: String,
    /// What is wrong with its name, or with what it holds.
    pub problem: String,
}

/// What an entry brings into service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A dense and a sparse model with the bridge between them; its id is the bridge's.
    Pair,
    Model,
}

impl Library {
    pub fn new(named: BTreeMap<String, Entry>, directory: PathBuf) -> Self {
        Library {
            named,
            directory,
            trained: RwLock::default(),
        }
    }

    /// All entries; reads the directory.
    pub fn entries(&self) -> BTreeMap<String, Entry> {
        let folders = std::fs::read_dir(&self.directory).into_iter().flatten();
        let found = folders.flatten().filter_map(|folder| {
            // A folder whose name is no id cannot be asked for.
            let id: ArtifactId = folder.file_name().to_str()?.parse().ok()?;
            Some((id.to_string(), Entry::of(folder.path())?))
        });
        let mut entries: BTreeMap<String, Entry> = found.collect();
        let trained = self.trained().into_iter();
        entries.extend(trained.map(|(id, trained)| (id, trained.entry)));
        entries.extend(self.named.clone());
        entries
    }

    /// The folders that are no entries, each with why; reads the directory. Those that begin with a dot are not meant
    /// to be any.
    pub fn skipped(&self) -> Vec<SkippedFolder> {
        let folders = std::fs::read_dir(&self.directory).into_iter().flatten();
        let mut skipped: Vec<SkippedFolder> = folders
            .flatten()
            .filter(|folder| folder.path().is_dir())
            .filter_map(|folder| {
                let name = folder.file_name().to_string_lossy().into_owned();
                let problem = match name.parse::<ArtifactId>() {
                    _ if name.starts_with('.') => return None,
                    Err(problem) => problem.to_string(),
                    Ok(_) if Entry::of(folder.path()).is_some() => return None,
                    Ok(_) => "it holds neither a pair nor a model".to_owned(),
                };
                Some(SkippedFolder {
                    folder: name,
                    problem,
                })
            })
            .collect();
        skipped.sort_by(|one, other| one.folder.cmp(&other.folder));
        skipped
    }

    /// Whether an id is that of something that no job has trained.
    pub fn is_own(&self, id: &str) -> bool {
        self.named.contains_key(id) || Entry::of(self.directory.join(id)).is_some()
    }

    /// What jobs have trained, by id.
    pub fn trained(&self) -> BTreeMap<String, Trained> {
        let trained = self.trained.read().unwrap_or_else(PoisonError::into_inner);
        trained.clone()
    }

    /// Makes a job's result an entry.
    pub fn add_trained(&self, id: &str, trained: Trained) {
        let mut all = self.trained.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(id.to_owned(), trained);
    }

    /// Leaves a job's result out from now on.
    pub fn remove_trained(&self, id: &str) {
        let mut all = self.trained.write().unwrap_or_else(PoisonError::into_inner);
        all.remove(id);
    }

    /// The directory of a pair.
    pub fn pair_directory(&self, id: &str) -> Option<PathBuf> {
        let entry = self.entries().remove(id)?;
        (entry.kind == EntryKind::Pair).then_some(entry.directory)
    }

    /// The entry of that id, or the ids of all.
    pub fn find(&self, id: &str) -> Result<Entry, Vec<String>> {
        let mut entries = self.entries();
        let found = entries.remove(id);
        found.ok_or_else(|| entries.into_keys().collect())
    }
}

impl Entry {
    /// What `directory` holds, if it is something to serve.
    pub fn of(directory: PathBuf) -> Option<Self> {
        let kind = match (is_pair(&directory), ModelFiles::is_model(&directory)) {
            (true, _) => EntryKind::Pair,
            (false, true) => EntryKind::Model,
            (false, false) => return None,
        };
        Some(Entry { kind, directory })
    }
}
