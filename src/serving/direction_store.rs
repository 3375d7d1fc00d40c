//! Named directions by model, kept in the data directory as `directions/{model}@{fingerprint}/{name}.json`, each a
//! [`NamedDirection`].
//!
//! A direction is one of certain weights: a model that has other weights under the same id has none of it. The
//! fingerprint in the folder's name tells them apart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::feature_store::StoreError;
use super::snapshot::ModelCard;
use crate::artifacts::{ArtifactId, atomic};
use crate::features::direction::{NamedDirection, NamedDirections, check};
use crate::settings::Limits;

/// A longer file is no direction. Settings allow no more, so what was accepted under any of them is read again.
const LONGEST_FILE: u64 = Limits::LARGEST_DIRECTION_BYTES as u64;
/// Characters of a fingerprint in a folder's name.
const FINGERPRINT: usize = 16;

/// All directions of the models that are served.
#[derive(Debug)]
pub struct DirectionStore {
    directory: PathBuf,
    models: RwLock<BTreeMap<String, ModelDirections>>,
    /// Held over a whole change, so that no two overwrite each other.
    changing: tokio::sync::Mutex<()>,
    limits: Limits,
}

#[derive(Debug)]
struct ModelDirections {
    folder: PathBuf,
    named: Arc<NamedDirections>,
    /// Of each file.
    bytes: BTreeMap<String, usize>,
}

/// What a change makes of one name.
#[derive(Debug)]
pub enum DirectionChange {
    Put(Box<NamedDirection>),
    Remove(String),
}

impl DirectionStore {
    /// A store in `data_directory`; models are opened as they come into service.
    pub fn new(data_directory: &Path, limits: Limits) -> Self {
        DirectionStore {
            directory: data_directory.join("directions"),
            models: RwLock::default(),
            changing: tokio::sync::Mutex::new(()),
            limits,
        }
    }

    /// Takes up a model with the directions that were kept for its weights.
    pub fn open_model(&self, model: &ModelCard) -> Result<(), StoreError> {
        let fingerprint: String = model.fingerprint.chars().take(FINGERPRINT).collect();
        // No id has a `@`.
        let folder = self.directory.join(format!("{}@{fingerprint}", model.id));
        let (mut named, mut bytes) = (NamedDirections::new(), BTreeMap::new());
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let file_name = entry.file_name();
            // What a write has left behind that was broken off is no direction.
            let name = file_name
                .to_str()
                .and_then(|name| name.strip_suffix(".json"));
            let Some(Ok(name)) = name.map(str::parse::<ArtifactId>) else {
                continue;
            };
            let path = entry.path();
            let json = atomic::read_small(&path, LONGEST_FILE)?;
            let direction = parse(&path, &json)?;
            let problem = match direction.name == name.as_str() {
                true => check(&direction, &model.config).err(),
                false => Some(format!("holds a direction called {:?}", direction.name)),
            };
            if let Some(problem) = problem {
                let path = path.display().to_string();
                return Err(StoreError::Json { path, problem });
            }
            bytes.insert(name.to_string(), json.len());
            named.insert(name.to_string(), Arc::new(direction));
        }
        let opened = ModelDirections {
            folder,
            named: Arc::new(named),
            bytes,
        };
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        models.insert(model.id.clone(), opened);
        Ok(())
    }

    /// Lets go of the models that are not kept; what was made for them stays on the disk.
    pub fn keep_models(&self, is_kept: impl Fn(&str) -> bool) {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        models.retain(|model, _| is_kept(model));
    }

    /// Removes what was made for a model that there will not be again.
    pub fn remove_model(&self, model: &str) {
        self.keep_models(|kept| kept != model);
        let prefix = format!("{model}@");
        for entry in std::fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(&prefix)) {
                // What cannot be removed is of weights that nobody has any more.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    /// The directions of one model.
    pub fn of(&self, model: &str) -> Arc<NamedDirections> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        let found = models.get(model).map(|found| found.named.clone());
        found.unwrap_or_default()
    }

    /// The directions of all models, by the models' ids.
    pub fn all(&self) -> Vec<(String, Arc<NamedDirections>)> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        let all = models.iter();
        all.map(|(model, found)| (model.clone(), found.named.clone()))
            .collect()
    }

    /// Waits until no other change is under way; until the guard is dropped there will be none.
    pub async fn change(&self) -> DirectionGuard<'_> {
        DirectionGuard {
            store: self,
            _turn: self.changing.lock().await,
        }
    }

    /// How many directions there are, and their bytes, without the one of this model that has this name.
    fn taken_beside(&self, model: &str, name: &str) -> (usize, usize) {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        let all = models.iter().flat_map(|(id, found)| {
            let files = found.bytes.iter();
            files.filter(move |(other, _)| id != model || *other != name)
        });
        all.fold((0, 0), |(count, total), (_, bytes)| {
            (count + 1, total + bytes)
        })
    }

    /// Refuses more than may be kept. What makes a file smaller is let through: lowered limits do not stand in its way.
    fn check_quota(&self, model: &str, name: &str, bytes: usize) -> Result<(), StoreError> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        let before = models
            .get(model)
            .and_then(|found| found.bytes.get(name).copied());
        drop(models);
        if before.is_some_and(|before| bytes <= before) {
            return Ok(());
        }
        let (count, total) = self.taken_beside(model, name);
        if count + 1 > self.limits.max_directions {
            return Err(StoreError::Full(format!(
                "callers have registered {} directions already, as many as are kept (limits.max_directions); delete some",
                self.limits.max_directions
            )));
        }
        if total + bytes > self.limits.max_direction_bytes {
            return Err(StoreError::Full(format!(
                "with this the registered directions would take {} bytes; at most {} are kept \
                 (limits.max_direction_bytes): delete some, or register fewer sites",
                total + bytes,
                self.limits.max_direction_bytes
            )));
        }
        Ok(())
    }
}

/// The right to change directions.
#[derive(Debug)]
pub struct DirectionGuard<'a> {
    store: &'a DirectionStore,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

impl DirectionGuard<'_> {
    /// Makes a change, on the disk first.
    pub async fn apply(&self, model: &str, change: DirectionChange) -> Result<(), StoreError> {
        let store = self.store;
        let folder = {
            let models = store.models.read().unwrap_or_else(PoisonError::into_inner);
            // It has just gone where there is none.
            let found = models.get(model).ok_or(StoreError::Ended)?;
            found.folder.clone()
        };
        let (name, made) = match change {
            DirectionChange::Put(direction) => {
                let path = folder.join(format!("{}.json", direction.name));
                let json =
                    serde_json::to_vec(&*direction).map_err(|error| json_error(&path, &error))?;
                store.check_quota(model, &direction.name, json.len())?;
                let bytes = json.len();
                let writing = tokio::task::spawn_blocking(move || {
                    // It is read once before it is written: what could not be read would keep the next start from serving.
                    parse(&path, &json)?;
                    atomic::create_directory(&folder)?;
                    Ok::<_, StoreError>(atomic::write(&path, &json)?)
                });
                writing.await.map_err(|_| StoreError::Ended)??;
                (direction.name.clone(), Some((*direction, bytes)))
            }
            DirectionChange::Remove(name) => {
                let path = folder.join(format!("{name}.json"));
                let removing = tokio::task::spawn_blocking(move || atomic::remove(&path));
                removing.await.map_err(|_| StoreError::Ended)??;
                (name, None)
            }
        };
        let mut models = store.models.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = models.get_mut(model) {
            let mut named = NamedDirections::clone(&found.named);
            match made {
                Some((direction, bytes)) => {
                    found.bytes.insert(name.clone(), bytes);
                    named.insert(name, Arc::new(direction));
                }
                None => {
                    found.bytes.remove(&name);
                    named.remove(&name);
                }
            }
            found.named = Arc::new(named);
        }
        Ok(())
    }
}

fn parse(path: &Path, json: &[u8]) -> Result<NamedDirection, StoreError> {
    serde_json::from_slice(json).map_err(|error| json_error(path, &error))
}

fn json_error(path: &Path, error: &serde_json::Error) -> StoreError {
    StoreError::Json {
        path: path.display().to_string(),
        problem: error.to_string(),
    }
}
