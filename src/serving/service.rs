//! What comes into service and goes out of it while everything else goes on.
//!
//! Something is tried in a process of its own and read off the threads that serve, and comes into service in one step;
//! requests in progress keep what they began with.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::description;
use super::direction_store::DirectionStore;
use super::feature_store::{FeatureStore, StoreError};
use super::library::{Entry, EntryKind, Library, Trained};
use super::preset_store::{PresetError, PresetStore};
use super::snapshot::{Conflict, IncomingPair, ModelCard, Snapshot, provenance, shortened};
use super::task_store::{TaskStore, TaskStoreError};
use super::trial::Tried;
use super::trial_process::{TrialFailure, TrialProcess};
use super::weights::WeightMemory;
use crate::artifacts::tensors::FloatPrecision;
use crate::bridge::pair::PairError;
use crate::circuits::circuit::Circuit;
use crate::features::pair::Pair;
use crate::features::registry::{self, Feature};
use crate::generation::engine::EngineHandle;
use crate::generation::request::EngineError;
use crate::interventions::nearest::suggestion;
use crate::models::config::TransformerConfig;
use crate::models::layout::ReadOptions;
use crate::models::model::{LoadedModel, ModelError};
use crate::numerics::device::{DeviceError, Placement};
use crate::settings::Settings;

/// What a server serves, what it could serve, and what is kept for both.
pub struct Service {
    served: ArcSwap<Snapshot>,
    /// Held by whoever makes the next snapshot of the present one.
    changing: Mutex<()>,
    pub library: Library,
    pub features: Arc<FeatureStore>,
    pub presets: PresetStore,
    pub tasks: TaskStore,
    pub directions: Arc<DirectionStore>,
    /// Where the weights of what came from the library and of jobs' results come and go.
    pub weights: Arc<WeightMemory>,
    /// Tries what comes into service.
    pub trial: TrialProcess,
    engine: EngineHandle,
    /// How long reading may take.
    patience: Duration,
    /// One thing is tried and read at a time.
    reading: tokio::sync::Mutex<()>,
    /// One thing comes or goes at a time; no file is read meanwhile.
    turn: tokio::sync::Mutex<()>,
}

/// Why what the settings name cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Features(#[from] StoreError),
    #[error(transparent)]
    Presets(#[from] PresetError),
    #[error(transparent)]
    Tasks(#[from] TaskStoreError),
    #[error("kept for bridge {bridge}: {problem}")]
    Feature { bridge: String, problem: String },
}

/// Why something does not come into service or go out of it.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("the library has no {id:?}{near}")]
    NoEntry { id: String, near: String },
    /// Something is wrong with it.
    #[error("{0}")]
    CannotLoad(String),
    #[error("bridge {bridge:?} joins it: unload that")]
    InUse { bridge: String },
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// This server could not do it.
    #[error("{0}")]
    Failed(String),
}

/// Something read and not yet in service.
enum Read {
    Pair(Box<IncomingPair>),
    Model(Box<ModelCard>),
}

impl Service {
    /// Reads all that `settings` name.
    pub fn start(settings: &Settings, engine: EngineHandle) -> Result<Self, StartError> {
        let mut served = Snapshot::default();
        let (mut named, mut shipped) = (BTreeMap::new(), BTreeMap::new());
        let placement = settings.engine.placement().opened()?;
        let limits = ReadOptions {
            model_bytes: settings.limits.max_model_bytes(),
            pickles: false,
            precision: match placement == Placement::CPU {
                true => FloatPrecision::AsStored,
                false => FloatPrecision::Single,
            },
            placement,
        };
        // What the settings name may be pickled: whoever wrote them has chosen it.
        let chosen = ReadOptions {
            pickles: true,
            ..limits
        };
        for directory in &settings.pairs {
            let pair = Pair::read_within(directory, chosen)?;
            let entry = Entry {
                kind: EntryKind::Pair,
                directory: directory.clone(),
            };
            named.insert(pair.id().to_owned(), entry);
            let features: Vec<Feature> = pair.features.values().cloned().collect();
            shipped.insert(pair.id().to_owned(), features);
            let incoming = IncomingPair::resident(pair, provenance(directory));
            served = served.with_pair(incoming, directory)?;
        }
        for (id, directory) in &settings.models {
            let model = LoadedModel::read_within(id.as_str(), directory, chosen)?;
            let entry = Entry {
                kind: EntryKind::Model,
                directory: directory.clone(),
            };
            named.insert(id.to_string(), entry);
            let card = ModelCard::resident(Arc::new(model), provenance(directory));
            served = served.with_model(card, directory)?;
        }
        let features = FeatureStore::open(&settings.data_dir, shipped, settings.limits)?;
        for (id, pair) in served.bridges.clone() {
            if let Some(sparse) = served.models.get(pair.record.sparse.as_str()) {
                check_features(&features, &id, &sparse.config).map_err(|problem| {
                    let bridge = id.clone();
                    StartError::Feature { bridge, problem }
                })?;
            }
            served = served.with_features(&id, features.by_name(&id));
        }
        let presets = PresetStore::open(&settings.data_dir, settings.limits)?;
        served = served.with_presets(presets.all());
        let tasks = TaskStore::open(&settings.data_dir, settings.limits)?;
        let directions = DirectionStore::new(&settings.data_dir, settings.limits);
        let served = with_directions(served, &directions)?;
        let patience = Duration::from_secs(settings.limits.load_seconds);
        Ok(Service {
            served: ArcSwap::from_pointee(served),
            changing: Mutex::new(()),
            library: Library::new(named, settings.library.clone()),
            features: Arc::new(features),
            presets,
            tasks,
            directions: Arc::new(directions),
            weights: WeightMemory::new(
                settings.limits.max_weights_mib.saturating_mul(1 << 20),
                Duration::from_secs(settings.limits.weights_idle_seconds),
                limits,
                patience,
            ),
            trial: TrialProcess {
                program: settings.program.clone(),
                max_model_mib: settings.limits.max_model_mib,
                seconds: settings.limits.load_seconds,
            },
            engine,
            patience,
            reading: tokio::sync::Mutex::new(()),
            turn: tokio::sync::Mutex::new(()),
        })
    }

    /// What is served now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.served.load_full()
    }

    /// Serves what `next` makes of what is served, from now on; two changes do not undo each other.
    fn change<E>(&self, next: impl FnOnce(&Snapshot) -> Result<Snapshot, E>) -> Result<(), E> {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = next(&self.served.load())?;
        self.served.store(Arc::new(next));
        Ok(())
    }

    /// Serves the features of a bridge as the store has them now.
    pub fn renew_features(&self, bridge: &str) {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let features = self.features.by_name(bridge);
        let next = self.served.load().with_features(bridge, features);
        self.served.store(Arc::new(next));
    }

    /// Serves the presets as the store has them now.
    pub fn renew_presets(&self) {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.served.load().with_presets(self.presets.all());
        self.served.store(Arc::new(next));
    }

    /// Serves a circuit that a job has found, under its id.
    pub fn serve_circuit(&self, circuit: Circuit) {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.served.load().with_circuit(circuit);
        self.served.store(Arc::new(next));
    }

    /// Serves a circuit that a job has found no more; nothing changes where it is not served.
    pub fn give_up_circuit(&self, id: &str) {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.served.load().without_circuit(id);
        self.served.store(Arc::new(next));
    }

    /// Serves the directions of a model as the store has them now.
    pub fn renew_directions(&self, model: &str) {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let directions = self.directions.of(model);
        let next = self.served.load().with_directions(model, directions);
        self.served.store(Arc::new(next));
    }

    /// Serves an entry from now on, if it is not served already. It is tried in a process of its own and then read
    /// before the library's turn is taken: files that take long hold up nobody but those who wait to read others.
    pub async fn take_into_service(self: &Arc<Self>, id: &str) -> Result<EntryKind, ServiceError> {
        let _reading = self.reading.lock().await;
        let entry = self.found(id).await?;
        if self.snapshot().has(id, entry.kind) {
            return Ok(entry.kind);
        }
        let tried = self.trial.run(&entry.directory, false).await;
        let tried = tried.map_err(|failure| match failure {
            TrialFailure::System(error) => ServiceError::Failed(error.to_string()),
            failure => cannot_load(failure),
        })?;
        self.take_tried(id, entry, tried).await
    }

    /// The same of an entry that has just been tried.
    pub async fn take_arrival(
        self: &Arc<Self>,
        id: &str,
        tried: Tried,
    ) -> Result<EntryKind, ServiceError> {
        let _reading = self.reading.lock().await;
        let entry = self.found(id).await?;
        self.take_tried(id, entry, tried).await
    }

    async fn take_tried(
        self: &Arc<Self>,
        id: &str,
        entry: Entry,
        tried: Tried,
    ) -> Result<EntryKind, ServiceError> {
        let (name, of, memory) = (id.to_owned(), entry.clone(), self.weights.clone());
        // The weights wait on the disk until somebody asks for them.
        let reading = tokio::task::spawn_blocking(move || describe(&name, &of, &tried, &memory));
        // What was tried may have been replaced since.
        let read = tokio::time::timeout(self.patience, reading)
            .await
            .map_err(|_| cannot_load(TrialFailure::Slow(self.patience.as_secs())))?
            .map_err(failed)??;
        let _turn = self.turn.lock().await;
        // A job's result may have been deleted meanwhile.
        if self.found(id).await?.directory != entry.directory {
            return Err(cannot_load("it was replaced while it was read"));
        }
        self.take_in(id, &entry, read)?;
        tracing::info!(id, "taken into service");
        Ok(entry.kind)
    }

    /// Takes an entry out of service. A pair takes those of its models along that no other pair joins. Requests in
    /// progress are finished.
    pub async fn unload(self: &Arc<Self>, id: &str) -> Result<EntryKind, ServiceError> {
        let _turn = self.turn.lock().await;
        let kind = self.found(id).await?.kind;
        let served = self.snapshot();
        if served.has(id, kind) {
            if kind == EntryKind::Model
                && let Some(bridge) = served.bridges_of(id).next()
            {
                let bridge = bridge.record.id.to_string();
                return Err(ServiceError::InUse { bridge });
            }
            // It holds what is to be forgotten.
            drop(served);
            self.take_out(id, kind).await?;
            tracing::info!(id, "taken out of service");
        }
        Ok(kind)
    }

    /// Serves what a job has made no more, a model, a pair or a circuit. Requests in progress keep what they began with, which goes with the last.
    pub async fn give_up(&self, id: &str) -> Result<(), ServiceError> {
        let _turn = self.turn.lock().await;
        self.give_up_circuit(id);
        if let Some(trained) = self.library.trained().remove(id) {
            if self.snapshot().has(id, trained.entry.kind) {
                self.take_out(id, trained.entry.kind).await?;
                tracing::info!(id, "taken out of service");
            }
            self.features.remove_bridge(id, &trained.artifact);
            if trained.entry.kind == EntryKind::Model {
                self.directions.remove_model(id);
            }
            self.library.remove_trained(id);
        }
        Ok(())
    }

    /// The directory of a model: its own, or its half of a pair's. Looks at the library's directory.
    pub fn model_directory(&self, id: &str) -> Option<PathBuf> {
        let entries = self.library.entries();
        let own = entries.get(id);
        if let Some(entry) = own.filter(|entry| entry.kind == EntryKind::Model) {
            return Some(entry.directory.clone());
        }
        let served = self.snapshot();
        let bridge = served.bridges_of(id).next()?;
        let pair = entries.get(bridge.record.id.as_str())?;
        let half = match bridge.record.dense.as_str() == id {
            true => "dense",
            false => "sparse",
        };
        Some(pair.directory.join(half))
    }

    /// Drops weights that nobody has asked for in a while.
    pub async fn drop_idle(&self) {
        if self.weights.drop_idle() {
            // It has stopped only if the server has.
            let _ = self.engine.forget_unused().await;
        }
    }

    /// The entry of that id; looks at the library's directory on a thread that may wait.
    async fn found(self: &Arc<Self>, id: &str) -> Result<Entry, ServiceError> {
        let (service, name) = (self.clone(), id.to_owned());
        let found = tokio::task::spawn_blocking(move || service.library.find(&name)).await;
        found.map_err(failed)?.map_err(|known| {
            let id = shortened(id);
            let near = suggestion(&id, known.iter().map(String::as_str));
            ServiceError::NoEntry { id, near }
        })
    }

    /// First what stands beside it, then the snapshot: nothing is offered before all of it is there.
    fn take_in(&self, id: &str, entry: &Entry, read: Read) -> Result<(), ServiceError> {
        let directory = &entry.directory;
        let mut incoming = match read {
            Read::Pair(incoming) => incoming,
            Read::Model(model) => {
                let next = |served: &Snapshot| {
                    let next = served.with_model(*model, directory).map_err(cannot_load)?;
                    with_directions(next, &self.directions).map_err(cannot_load)
                };
                return self.change(next);
            }
        };
        let shipped = incoming.pair.features.values().cloned().collect();
        let trained: Option<Trained> = self.library.trained().remove(id);
        let of = trained.as_ref().map(|trained| trained.artifact.as_str());
        self.features
            .open_bridge(id, of, shipped)
            .map_err(cannot_load)?;
        let taken = check_features(&self.features, id, &incoming.sparse.config)
            .map_err(cannot_load)
            .and_then(|()| {
                incoming.pair.features = Arc::new(self.features.by_name(id));
                let next = |served: &Snapshot| {
                    let next = served.with_pair(*incoming, directory);
                    with_directions(next.map_err(cannot_load)?, &self.directions)
                        .map_err(cannot_load)
                };
                self.change(next)
            });
        taken.inspect_err(|_| self.features.close_bridge(id))
    }

    async fn take_out(&self, id: &str, kind: EntryKind) -> Result<(), ServiceError> {
        self.change(|served| {
            Ok::<_, ServiceError>(match kind {
                EntryKind::Pair => served.without_pair(id),
                EntryKind::Model => served.without_model(id),
            })
        })?;
        if kind == EntryKind::Pair {
            self.features.close_bridge(id);
        }
        let served = self.snapshot();
        self.directions
            .keep_models(|model| served.models.contains_key(model));
        Ok(self.engine.forget_unused().await?)
    }
}

/// What is told of an entry, whose weights come and go in `memory`.
fn describe(
    id: &str,
    entry: &Entry,
    tried: &Tried,
    memory: &Arc<WeightMemory>,
) -> Result<Read, ServiceError> {
    match entry.kind {
        EntryKind::Pair => {
            let pair = description::pair(&entry.directory, tried, memory).map_err(cannot_load)?;
            called(id, pair)
        }
        EntryKind::Model => {
            let card = description::model(id, &entry.directory, tried, memory);
            Ok(Read::Model(Box::new(card.map_err(cannot_load)?)))
        }
    }
}

/// A pair whose bridge is called like its entry.
fn called(id: &str, incoming: IncomingPair) -> Result<Read, ServiceError> {
    match incoming.pair.record.id.as_str() {
        own if own == id => Ok(Read::Pair(Box::new(incoming))),
        own => Err(cannot_load(format!(
            "the bridge in folder {id:?} calls itself {own:?}"
        ))),
    }
}

/// The same with the directions of the models that have just come.
fn with_directions(served: Snapshot, directions: &DirectionStore) -> Result<Snapshot, StoreError> {
    let mut with = served;
    for model in with.without_directions() {
        directions.open_model(&model)?;
        with = with.with_directions(&model.id, directions.of(&model.id));
    }
    Ok(with)
}

/// What was kept for a bridge may be for another one of its name, or edited by hand.
fn check_features(
    features: &FeatureStore,
    bridge: &str,
    sparse: &TransformerConfig,
) -> Result<(), String> {
    let kept = features.of(bridge).into_iter();
    kept.map(|stored| stored.feature)
        .try_for_each(|feature| registry::check(&feature, sparse))
}

fn cannot_load(problem: impl Display) -> ServiceError {
    ServiceError::CannotLoad(problem.to_string())
}

fn failed(error: impl Display) -> ServiceError {
    ServiceError::Failed(error.to_string())
}
