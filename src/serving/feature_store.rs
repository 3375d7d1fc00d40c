//! Named features by bridge: what a pair ships with, and over it what callers have made, kept in the data
//! directory as `features/{bridge}.json`, an array of [`Feature`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use crate::artifacts::{ArtifactError, atomic};
use crate::features::registry::Feature;
use crate::settings::Limits;

/// A longer file is no list of features. Settings allow no more, so what was accepted under any of them is read again.
const LONGEST_FILE: u64 = Limits::LARGEST_FEATURE_BYTES as u64;

/// A feature and where it is from.
#[derive(Debug, Clone)]
pub struct StoredFeature {
    pub bridge: String,
    pub feature: Feature,
    pub origin: Origin,
}

/// Whose a feature is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The pair's, untouched.
    Shipped,
    /// The pair's, with changes made here.
    Changed,
    /// Made here.
    Own,
}

/// All features of all bridges.
#[derive(Debug)]
pub struct FeatureStore {
    directory: PathBuf,
    bridges: RwLock<BTreeMap<String, BridgeFeatures>>,
    /// Held over a whole change, reading and writing, so that no two overwrite each other.
    changing: tokio::sync::Mutex<()>,
    limits: Limits,
}

#[derive(Debug)]
struct BridgeFeatures {
    /// Where its own are kept.
    path: PathBuf,
    shipped: Vec<Feature>,
    own: Vec<Feature>,
    /// Of the file.
    bytes: usize,
}

/// What a change makes of one name.
#[derive(Debug)]
pub enum Change {
    Put(Box<Feature>),
    /// A shipped feature comes back as it was shipped.
    Remove(String),
}

/// Why features could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    File(#[from] ArtifactError),
    #[error("{path}: {problem}")]
    Json { path: String, problem: String },
    #[error("the writing of features ended early, or what they belong to is gone")]
    Ended,
    #[error("{0}")]
    Full(String),
}

impl FeatureStore {
    /// A store in `data_directory`, with the features that each bridge ships with.
    pub fn open(
        data_directory: &Path,
        shipped: BTreeMap<String, Vec<Feature>>,
        limits: Limits,
    ) -> Result<Self, StoreError> {
        let store = FeatureStore {
            directory: data_directory.join("features"),
            bridges: RwLock::default(),
            changing: tokio::sync::Mutex::new(()),
            limits,
        };
        for (bridge, shipped) in shipped {
            store.open_bridge(&bridge, None, shipped)?;
        }
        Ok(store)
    }

    /// Takes up a bridge with the features that it ships with, and with those that were made for it before. `of` tells
    /// bridges apart that have had the same id one after the other; none where an id is one bridge's for good.
    pub fn open_bridge(
        &self,
        bridge: &str,
        of: Option<&str>,
        shipped: Vec<Feature>,
    ) -> Result<(), StoreError> {
        let path = self.path(bridge, of);
        let (own, bytes) = if path.is_file() {
            read_features(&path)?
        } else {
            (Vec::new(), 0)
        };
        let mut bridges = self.bridges.write().unwrap_or_else(PoisonError::into_inner);
        let features = BridgeFeatures {
            path,
            shipped,
            own,
            bytes,
        };
        bridges.insert(bridge.to_owned(), features);
        Ok(())
    }

    /// Where the features made for a bridge are; no id has a `@`.
    fn path(&self, bridge: &str, of: Option<&str>) -> PathBuf {
        self.directory.join(match of {
            Some(of) => format!("{bridge}@{of}.json"),
            None => format!("{bridge}.json"),
        })
    }

    /// Removes what was made for a bridge that there will not be again.
    pub fn remove_bridge(&self, bridge: &str, of: &str) {
        self.close_bridge(bridge);
        // There is none unless somebody made one.
        let _ = std::fs::remove_file(self.path(bridge, Some(of)));
    }

    /// Lets go of a bridge; what was made for it stays on the disk.
    pub fn close_bridge(&self, bridge: &str) {
        let mut bridges = self.bridges.write().unwrap_or_else(PoisonError::into_inner);
        bridges.remove(bridge);
    }

    /// Every feature: bridge by bridge, the shipped ones first, each as it is now.
    pub fn all(&self) -> Vec<StoredFeature> {
        let bridges = self.bridges.read().unwrap_or_else(PoisonError::into_inner);
        bridges
            .iter()
            .flat_map(|(bridge, features)| features.merged(bridge))
            .collect()
    }

    /// How many features a bridge has.
    pub fn count(&self, bridge: &str) -> usize {
        self.of(bridge).len()
    }

    /// The features of one bridge.
    pub fn of(&self, bridge: &str) -> Vec<StoredFeature> {
        let bridges = self.bridges.read().unwrap_or_else(PoisonError::into_inner);
        bridges
            .get(bridge)
            .map(|features| features.merged(bridge))
            .unwrap_or_default()
    }

    /// The features of one bridge by name.
    pub fn by_name(&self, bridge: &str) -> BTreeMap<String, Feature> {
        self.of(bridge)
            .into_iter()
            .map(|stored| (stored.feature.name.clone(), stored.feature))
            .collect()
    }

    /// What the features of all bridges but this one take.
    fn taken_beside(&self, bridge: &str) -> Taken {
        let bridges = self.bridges.read().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Taken::default();
        for (name, features) in &*bridges {
            match name == bridge {
                true => taken.before = features.bytes,
                false => {
                    taken.features += features.own.len();
                    taken.bytes += features.bytes;
                }
            }
        }
        taken
    }

    /// Waits until no other change is under way; until the guard is dropped there will be none.
    pub async fn change(&self) -> ChangeGuard<'_> {
        ChangeGuard {
            store: self,
            _turn: self.changing.lock().await,
        }
    }
}

/// The right to change features.
#[derive(Debug)]
pub struct ChangeGuard<'a> {
    store: &'a FeatureStore,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

impl ChangeGuard<'_> {
    /// Makes a change, on the disk first.
    pub async fn apply(&self, bridge: &str, change: Change) -> Result<(), StoreError> {
        let (path, mut own) = {
            let bridges = self
                .store
                .bridges
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            match bridges.get(bridge) {
                Some(features) => (features.path.clone(), features.own.clone()),
                // It has just gone.
                None => return Err(StoreError::Ended),
            }
        };
        match change {
            Change::Put(feature) => match own.iter_mut().find(|known| known.name == feature.name) {
                Some(known) => *known = *feature,
                None => own.push(*feature),
            },
            Change::Remove(name) => own.retain(|known| known.name != name),
        }
        let others = self.store.taken_beside(bridge);
        let (directory, limits) = (self.store.directory.clone(), self.store.limits);
        let writing = tokio::task::spawn_blocking(move || {
            let json = written(&path, &own)?;
            check_quota(&own, json.len(), &others, &limits)?;
            atomic::create_directory(&directory)?;
            atomic::write(&path, &json)?;
            Ok::<_, StoreError>((own, json.len()))
        });
        let (own, bytes) = writing.await.map_err(|_| StoreError::Ended)??;
        let mut bridges = self
            .store
            .bridges
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(features) = bridges.get_mut(bridge) {
            (features.own, features.bytes) = (own, bytes);
        }
        Ok(())
    }
}

/// What callers' features take.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    features: usize,
    bytes: usize,
    /// What the bridge in question had before its change.
    before: usize,
}

/// Refuses more than may be kept. What makes a file smaller is let through: lowered limits do not stand in its way.
fn check_quota(
    own: &[Feature],
    bytes: usize,
    others: &Taken,
    limits: &Limits,
) -> Result<(), StoreError> {
    if bytes <= others.before {
        return Ok(());
    }
    let (features, total) = (own.len() + others.features, bytes + others.bytes);
    if features > limits.max_features {
        return Err(StoreError::Full(format!(
            "callers have made {} features already, as many as are kept (limits.max_features); delete some",
            limits.max_features
        )));
    }
    if total > limits.max_feature_bytes {
        return Err(StoreError::Full(format!(
            "with this the features that callers have made would take {total} bytes; at most {} are kept \
             (limits.max_feature_bytes): give fewer or shorter tests and texts, or delete some features",
            limits.max_feature_bytes
        )));
    }
    Ok(())
}

impl BridgeFeatures {
    fn merged(&self, bridge: &str) -> Vec<StoredFeature> {
        let own = |name: &str| self.own.iter().find(|feature| feature.name == name);
        let shipped = self.shipped.iter().map(|feature| match own(&feature.name) {
            Some(changed) => (changed, Origin::Changed),
            None => (feature, Origin::Shipped),
        });
        let is_shipped = |name: &str| self.shipped.iter().any(|feature| feature.name == name);
        let made = self.own.iter().filter(|feature| !is_shipped(&feature.name));
        shipped
            .chain(made.map(|feature| (feature, Origin::Own)))
            .map(|(feature, origin)| StoredFeature {
                bridge: bridge.to_owned(),
                feature: feature.clone(),
                origin,
            })
            .collect()
    }
}

fn read_features(path: &Path) -> Result<(Vec<Feature>, usize), StoreError> {
    let json = atomic::read_small(path, LONGEST_FILE)?;
    Ok((parse(path, &json)?, json.len()))
}

fn parse(path: &Path, json: &[u8]) -> Result<Vec<Feature>, StoreError> {
    serde_json::from_slice(json).map_err(|error| json_error(path, &error))
}

/// The file of these features. It is read once before it is written: a number that has no JSON would be refused at the
/// next start.
fn written(path: &Path, features: &[Feature]) -> Result<Vec<u8>, StoreError> {
    let json = serde_json::to_vec_pretty(features).map_err(|error| json_error(path, &error))?;
    parse(path, &json)?;
    Ok(json)
}

fn json_error(path: &Path, error: &serde_json::Error) -> StoreError {
    StoreError::Json {
        path: path.display().to_string(),
        problem: error.to_string(),
    }
}
