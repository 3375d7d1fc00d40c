//! From settings to a server's state: models and pairs are read, the features kept for them are laid over the
//! shipped ones, and the engine is started.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::body::Unparsed;
use super::delivery::Unsent;
use super::examiner::Examiner;
use super::feature_store::{FeatureStore, StoreError};
use super::features::change::unit_length;
use super::inventory::Inventory;
use super::jobs::background::Jobs;
use super::keys::Keys;
use super::library::{Entry, EntryKind, Library, provenance};
use super::metrics::Metrics;
use super::state::State;
use crate::features::registry::Feature;
use crate::generation::catalog::{Catalog, CatalogError, LoadedModel, LoadedPair};
use crate::generation::engine::Engine;
use crate::generation::vitals::{NoProbe, Probe};
use crate::models::config::TransformerConfig;
use crate::models::layout::ReadLimits;
use crate::models::location::Place;
use crate::serving::data_directory::{DataDirectory, DataInUse};
use crate::serving::trial_process::TrialProcess;
use crate::settings::Settings;

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Features(#[from] StoreError),
    #[error("feature {name:?} kept for bridge {bridge}: {problem}")]
    Feature {
        bridge: String,
        name: String,
        problem: String,
    },
    #[error(transparent)]
    Jobs(#[from] crate::jobs::artifact_store::ArtifactStoreError),
    #[error(transparent)]
    Data(#[from] DataInUse),
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    #[error("the engine's thread could not be started: {0}")]
    Engine(#[from] std::io::Error),
}

/// Loads all that `settings` name, for a server that listens at `address`.
pub fn load(settings: &Settings, address: SocketAddr) -> Result<State, LoadError> {
    load_probed(settings, address, Box::new(NoProbe))
}

/// The same with a probe inside the engine.
pub fn load_probed(
    settings: &Settings,
    address: SocketAddr,
    probe: Box<dyn Probe>,
) -> Result<State, LoadError> {
    let data = DataDirectory::take(&settings.data_dir)?;
    let mut catalog = Catalog::new();
    let mut directories = BTreeMap::new();
    // What the settings name may be pickled: whoever wrote them has chosen it.
    let limits = ReadLimits {
        model_bytes: settings.limits.max_model_bytes(),
        pickles: true,
    };
    for directory in &settings.pairs {
        let known: Vec<String> = catalog.bridges.keys().cloned().collect();
        catalog.insert_pair(LoadedPair::read_within(directory, limits)?, directory)?;
        let new = catalog.bridges.keys().find(|id| !known.contains(id));
        directories.extend(new.map(|id| (id.clone(), directory.clone())));
    }
    for (id, directory) in &settings.models {
        let model = LoadedModel::read_within(id.as_str(), directory, limits)?;
        catalog.insert_model(model, directory)?;
    }
    let pairs = directories
        .iter()
        .map(|(id, directory)| (id.clone(), EntryKind::Pair, directory));
    let models = settings.models.iter();
    let models = models.map(|(id, directory)| (id.to_string(), EntryKind::Model, directory));
    let named: BTreeMap<String, Entry> = pairs
        .chain(models)
        .map(|(id, kind, directory)| {
            let directory = directory.clone();
            (id, Entry { kind, directory })
        })
        .collect();
    let provenance = named
        .iter()
        .map(|(id, entry)| (id.clone(), provenance(&entry.directory)))
        .collect();
    let inventory = Inventory::of(&catalog, &Inventory::default(), &provenance);
    let shipped = catalog.bridges.iter().map(|(id, bridge)| {
        (
            id.clone(),
            bridge.features.values().cloned().collect::<Vec<Feature>>(),
        )
    });
    let features = FeatureStore::open(&settings.data_dir, shipped.collect(), settings.limits)?;
    let configs: BTreeMap<&str, &TransformerConfig> = catalog
        .models
        .iter()
        .map(|(id, model)| (id.as_str(), &model.transformer.config))
        .collect();
    for bridge in catalog.bridges.values() {
        if let Some(config) = configs.get(bridge.sparse.as_str()) {
            check_features(&features, &bridge.id, config)?;
        }
    }
    for (id, bridge) in &mut catalog.bridges {
        Arc::make_mut(bridge).features = features.by_name(id);
    }
    Ok(State {
        engine: Engine::start_probed(catalog, settings.engine, probe)?,
        served: RwLock::new(Arc::new(inventory)),
        library: Library::new(named, settings.library.clone()),
        trial: TrialProcess {
            program: settings.program.clone(),
            max_model_mib: settings.limits.max_model_mib,
            seconds: settings.limits.load_seconds,
        },
        features,
        examiner: Examiner::new(directories, &settings.limits),
        keys: Keys::new(&settings.keys),
        limits: settings.limits,
        parsing: Semaphore::new(1),
        unparsed: Unparsed::new(settings.limits.max_unparsed_bytes),
        unsent: Unsent::new(
            settings.limits.max_unsent_bytes,
            Duration::from_secs(settings.limits.unread_seconds),
        ),
        ready_timeout: Duration::from_secs_f64(settings.ready_seconds),
        loopback_only: address.ip().is_loopback(),
        metrics: Metrics::new()?,
        jobs: Jobs::open(settings)?,
        data,
    })
}

/// What was kept for a bridge may be for another one of its name, or edited by hand.
pub fn check_features(
    features: &FeatureStore,
    bridge: &str,
    config: &TransformerConfig,
) -> Result<(), LoadError> {
    for stored in features.of(bridge) {
        let feature = stored.feature;
        let checked = Place::parse(&feature.node, config.n_layers)
            .map_err(|error| error.to_string())
            .and_then(|place| {
                unit_length(&feature.channels, place.width(config), place)
                    .map_err(|error| error.to_string())
            });
        checked.map_err(|problem| LoadError::Feature {
            bridge: bridge.to_owned(),
            name: feature.name,
            problem,
        })?;
    }
    Ok(())
}
