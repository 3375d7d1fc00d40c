//! Weights of what is served: those that stay in memory, and those of the library's folders and of jobs' results, which are
//! read when they are first asked for and dropped when nobody has asked for a while, or when others need their room.
//!
//! Whoever has been given weights keeps them for as long as it needs them: what is in use is never dropped.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::trial::Tried;
use crate::bridge::pair::{PairError, is_pair};
use crate::features::pair::Pair;
use crate::models::layout::ReadOptions;
use crate::models::model::{LoadedModel, ModelError};

/// How long weights that are asked for wait for those of requests that are just ending.
const ROOM_WAIT: Duration = Duration::from_secs(2);
const MIB: u64 = 1 << 20;

/// Why there are no weights to be had.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("{id:?} could not be read within {seconds} seconds (limits.load_seconds)")]
    Slow { id: String, seconds: u64 },
    #[error(
        "{id:?} takes {mib} MiB; what comes and goes may take {limit_mib} MiB together (limits.max_weights_mib)"
    )]
    TooLarge {
        id: String,
        mib: u64,
        limit_mib: u64,
    },
    /// All room is taken by weights that are being used.
    #[error("other weights are in use and leave no room for {id:?} (limits.max_weights_mib)")]
    NoRoom { id: String },
    #[error("the reading of {id:?} ended early")]
    Ended { id: String },
    #[error(
        "the files of {id:?} have changed since they were tried; whoever runs the server can load it again \
         (POST /v1/library/{id}/unload, then load)"
    )]
    Changed { id: String },
}

/// What was read from one directory.
#[derive(Debug, Clone)]
pub enum Loaded {
    Pair(Pair),
    Model(Arc<LoadedModel>),
}

/// Where the weights of a model or a pair come from.
#[derive(Debug, Clone)]
pub enum ServedWeights {
    /// They stay for as long as they are served.
    Resident(Loaded),
    /// They come and go.
    OnDemand(Arc<OnDemand>),
}

/// Weights that are read when they are asked for.
#[derive(Debug)]
pub struct OnDemand {
    id: String,
    directory: PathBuf,
    /// Of what was tried: a model's, or the two models' and the bridge's.
    fingerprints: Vec<String>,
    /// What they take in memory.
    bytes: u64,
    memory: Arc<WeightMemory>,
    held: Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    loaded: Loaded,
    used: Instant,
}

/// The memory that weights share which come and go.
#[derive(Debug)]
pub struct WeightMemory {
    /// Bytes that they may take together.
    budget: u64,
    /// How long they stay when nobody asks.
    idle: Duration,
    pub limits: ReadOptions,
    /// How long reading may take.
    patience: Duration,
    /// One is read at a time.
    reading: tokio::sync::Mutex<()>,
    all: Mutex<Vec<Weak<OnDemand>>>,
    /// Something was dropped since it was asked last.
    dropped: AtomicBool,
}

impl ServedWeights {
    /// The weights, which are read first where they are not there.
    pub async fn get(&self) -> Result<Loaded, WeightsError> {
        match self {
            ServedWeights::Resident(loaded) => Ok(loaded.clone()),
            ServedWeights::OnDemand(weights) => weights.get().await,
        }
    }

    /// Whether they are in memory now.
    pub fn in_memory(&self) -> bool {
        match self {
            ServedWeights::Resident(_) => true,
            ServedWeights::OnDemand(weights) => weights.held().is_some(),
        }
    }
}

impl ServedWeights {
    /// Makes a pair whose weights stay run the same model as another that stays: their sequences then share a cache.
    pub fn share(&mut self, other: &ServedWeights, id: &str) {
        let ServedWeights::Resident(Loaded::Pair(pair)) = self else {
            return;
        };
        let ServedWeights::Resident(other) = other else {
            return;
        };
        let models = match other {
            Loaded::Model(model) => vec![model],
            Loaded::Pair(other) => vec![&other.dense, &other.sparse],
        };
        for half in [&mut pair.dense, &mut pair.sparse] {
            if half.id == id
                && let Some(model) = models.iter().find(|model| model.id == id)
            {
                *half = (*model).clone();
            }
        }
    }
}

impl Loaded {
    /// Whether these are the weights of which these are the fingerprints. A trial of an earlier version told fewer.
    fn are(&self, fingerprints: &[String]) -> bool {
        let own = match self {
            Loaded::Model(model) => vec![&model.fingerprint],
            Loaded::Pair(pair) => vec![
                &pair.dense.fingerprint,
                &pair.sparse.fingerprint,
                &pair.fingerprint,
            ],
        };
        let mut both = own.into_iter().zip(fingerprints);
        both.all(|(own, tried)| own == tried)
    }

    /// Whether anything but this value and its clones' holder uses the weights.
    fn in_use(&self) -> bool {
        match self {
            Loaded::Model(model) => Arc::strong_count(model) > 1,
            Loaded::Pair(pair) => {
                [&pair.dense, &pair.sparse]
                    .iter()
                    .any(|model| Arc::strong_count(model) > 1)
                    || Arc::strong_count(&pair.bridge) > 1
            }
        }
    }
}

impl OnDemand {
    fn held(&self) -> std::sync::MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> Option<Loaded> {
        let mut held = self.held();
        let held = held.as_mut()?;
        held.used = Instant::now();
        Some(held.loaded.clone())
    }

    async fn get(self: &Arc<Self>) -> Result<Loaded, WeightsError> {
        if let Some(loaded) = self.known() {
            return Ok(loaded);
        }
        let _reading = self.memory.reading.lock().await;
        if let Some(loaded) = self.known() {
            return Ok(loaded);
        }
        self.memory.wait_for_room(self).await?;
        let ended = || WeightsError::Ended {
            id: self.id.clone(),
        };
        let slow = || WeightsError::Slow {
            id: self.id.clone(),
            seconds: self.memory.patience.as_secs(),
        };
        let (of, directory, limits) = (self.id.clone(), self.directory.clone(), self.memory.limits);
        let read = tokio::task::spawn_blocking(move || match is_pair(&directory) {
            true => Ok::<_, WeightsError>(Loaded::Pair(Pair::read_within(&directory, limits)?)),
            false => {
                let model = LoadedModel::read_within(&of, &directory, limits)?;
                Ok(Loaded::Model(Arc::new(model)))
            }
        });
        let read = tokio::time::timeout(self.memory.patience, read).await;
        let loaded = read.map_err(|_| slow())?.map_err(|_| ended())??;
        if !loaded.are(&self.fingerprints) {
            let id = self.id.clone();
            return Err(WeightsError::Changed { id });
        }
        *self.held() = Some(Held {
            loaded: loaded.clone(),
            used: Instant::now(),
        });
        tracing::info!(id = self.id, "weights are read");
        Ok(loaded)
    }

    /// Drops the weights if nobody uses them and nobody has asked for them since `before`.
    fn drop_unused(&self, before: Instant) -> bool {
        let mut held = self.held();
        let unused = held
            .as_ref()
            .is_some_and(|held| held.used <= before && !held.loaded.in_use());
        if unused {
            *held = None;
            self.memory.dropped.store(true, Ordering::Release);
            tracing::info!(id = self.id, "weights are dropped");
        }
        unused
    }
}

impl WeightMemory {
    /// Memory of `budget` bytes, in which weights that nobody asks for stay for `idle`. Reading is held to `limits`
    /// and given up after `patience`.
    pub fn new(budget: u64, idle: Duration, limits: ReadOptions, patience: Duration) -> Arc<Self> {
        Arc::new(WeightMemory {
            budget,
            idle,
            limits,
            patience,
            reading: tokio::sync::Mutex::new(()),
            all: Mutex::default(),
            dropped: AtomicBool::new(false),
        })
    }

    /// The weights in `directory`, which take so many bytes and are not read yet; of what was `tried`, and of nothing else.
    pub fn weights(
        self: &Arc<Self>,
        id: &str,
        directory: PathBuf,
        tried: &Tried,
        bytes: u64,
    ) -> ServedWeights {
        let fingerprints = tried.fingerprints.iter().chain(&tried.bridge);
        let weights = Arc::new(OnDemand {
            id: id.to_owned(),
            directory,
            fingerprints: fingerprints.cloned().collect(),
            bytes,
            memory: self.clone(),
            held: Mutex::default(),
        });
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.strong_count() > 0);
        all.push(Arc::downgrade(&weights));
        ServedWeights::OnDemand(weights)
    }

    /// Drops what nobody has asked for in a while. Whether anything was dropped since this was asked last, for this or
    /// another reason: whoever keeps something beside weights can let go of it.
    pub fn drop_idle(&self) -> bool {
        if let Some(before) = Instant::now().checked_sub(self.idle) {
            for weights in self.in_memory() {
                weights.drop_unused(before);
            }
        }
        self.dropped.swap(false, Ordering::AcqRel)
    }

    fn in_memory(&self) -> Vec<Arc<OnDemand>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let there = all.iter().filter_map(Weak::upgrade);
        there.filter(|weights| weights.held().is_some()).collect()
    }

    /// Makes room for weights that are to be read, or waits a moment for it: a request that has just been answered may
    /// not have let go of its own yet.
    async fn wait_for_room(&self, wanted: &OnDemand) -> Result<(), WeightsError> {
        let begun = Instant::now();
        loop {
            match self.make_room(wanted) {
                Err(WeightsError::NoRoom { .. }) if begun.elapsed() < ROOM_WAIT => {
                    tokio::time::sleep(ROOM_WAIT / 100).await;
                }
                ended => return ended,
            }
        }
    }

    /// Makes room for weights that are to be read: those that were asked for longest ago go first.
    fn make_room(&self, wanted: &OnDemand) -> Result<(), WeightsError> {
        let id = wanted.id.clone();
        if wanted.bytes > self.budget {
            return Err(WeightsError::TooLarge {
                id,
                mib: wanted.bytes.div_ceil(MIB),
                limit_mib: self.budget / MIB,
            });
        }
        let mut there = self.in_memory();
        there.sort_by_key(|weights| weights.held().as_ref().map(|held| held.used));
        let mut taken: u64 = there.iter().map(|weights| weights.bytes).sum();
        for weights in there {
            if taken + wanted.bytes <= self.budget {
                break;
            }
            if weights.drop_unused(Instant::now()) {
                taken -= weights.bytes;
            }
        }
        match taken + wanted.bytes <= self.budget {
            true => Ok(()),
            false => Err(WeightsError::NoRoom { id }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::test_pair::random_pair;

    fn memory(budget: u64, idle: Duration) -> Arc<WeightMemory> {
        WeightMemory::new(
            budget,
            idle,
            ReadOptions::UNBOUNDED,
            Duration::from_secs(60),
        )
    }

    /// What a trial of the pair in a folder finds.
    fn tried(folder: &tempfile::TempDir) -> Tried {
        let pair = Pair::read(folder.path()).expect("a pair");
        Tried {
            fingerprints: vec![
                pair.dense.fingerprint.clone(),
                pair.sparse.fingerprint.clone(),
            ],
            sizes: Vec::new(),
            bridge: Some(pair.fingerprint),
        }
    }

    #[tokio::test]
    async fn weights_of_files_that_have_changed_are_not_served() {
        let folder = tempfile::tempdir().expect("a folder");
        random_pair(1).write(folder.path());
        let memory = memory(u64::MAX, Duration::from_secs(3600));
        let weights = memory.weights("test", folder.path().to_owned(), &tried(&folder), 100);
        random_pair(2).write(folder.path());
        let refused = weights.get().await.expect_err("another pair");
        assert!(matches!(refused, WeightsError::Changed { .. }), "{refused}");
        random_pair(1).write(folder.path());
        weights.get().await.expect("what was tried");
    }

    #[tokio::test]
    async fn weights_are_read_when_asked_for_and_dropped_when_idle_but_never_in_use() {
        let folder = tempfile::tempdir().expect("a folder");
        random_pair(1).write(folder.path());
        let memory = memory(u64::MAX, Duration::ZERO);
        let weights = memory.weights("test", folder.path().to_owned(), &tried(&folder), 100);
        assert!(!weights.in_memory());
        let loaded = weights.get().await.expect("a pair");
        assert!(weights.in_memory());
        let Loaded::Pair(pair) = &loaded else {
            panic!("it is a pair");
        };
        // Each of these is enough: a completion may hold no more than one of the models.
        let (sparse, bridge) = (pair.sparse.clone(), pair.bridge.clone());
        drop(loaded);
        assert!(!memory.drop_idle() && weights.in_memory());
        drop(sparse);
        assert!(!memory.drop_idle() && weights.in_memory());
        drop(bridge);
        assert!(memory.drop_idle() && !weights.in_memory());
        assert!(!memory.drop_idle(), "nothing else was there");
        weights.get().await.expect("it is read again");
        let patient = self::memory(u64::MAX, Duration::from_secs(3600));
        let weights = patient.weights("test", folder.path().to_owned(), &tried(&folder), 100);
        weights.get().await.expect("a pair");
        assert!(
            !patient.drop_idle() && weights.in_memory(),
            "it was just asked for"
        );
    }

    #[tokio::test]
    async fn the_weights_asked_for_longest_ago_make_room() {
        let folders: Vec<tempfile::TempDir> = (0..3)
            .map(|seed| {
                let folder = tempfile::tempdir().expect("a folder");
                random_pair(seed).write(folder.path());
                folder
            })
            .collect();
        let memory = memory(250, Duration::from_secs(3600));
        let results: Vec<ServedWeights> = folders
            .iter()
            .map(|folder| memory.weights("test", folder.path().to_owned(), &tried(folder), 100))
            .collect();
        let there = || {
            results
                .iter()
                .map(ServedWeights::in_memory)
                .collect::<Vec<_>>()
        };
        results[0].get().await.expect("room for it");
        results[1].get().await.expect("room for it");
        results[0].get().await.expect("it is there");
        let third = results[2].get().await.expect("the second makes room");
        assert_eq!(there(), [true, false, true]);
        let first = results[0].get().await.expect("it is there");
        let refused = results[1].get().await.expect_err("both are used");
        assert!(
            refused.to_string().contains("limits.max_weights_mib"),
            "{refused}"
        );
        assert!(matches!(refused, WeightsError::NoRoom { .. }));
        drop(third);
        results[1].get().await.expect("the third makes room");
        assert_eq!(there(), [true, true, false]);
        drop(first);
        let large = memory.weights(
            "large",
            folders[0].path().to_owned(),
            &tried(&folders[0]),
            251,
        );
        let refused = large.get().await.expect_err("no room ever");
        assert!(
            matches!(refused, WeightsError::TooLarge { .. }),
            "{refused}"
        );
    }

    #[test]
    fn equal_weights_are_held_once() {
        let (one, same, other) = (
            random_pair(5).pair(),
            random_pair(5).pair(),
            random_pair(7).pair(),
        );
        assert!(Arc::ptr_eq(&one.dense.transformer, &same.dense.transformer));
        assert!(!Arc::ptr_eq(
            &one.dense.transformer,
            &other.dense.transformer
        ));
    }
}
