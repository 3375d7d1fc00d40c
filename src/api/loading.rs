//! From settings to a server's state.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::delivery::Unsent;
use super::examiner::Examiner;
use super::jobs::background::Jobs;
use super::keys::Keys;
use super::metrics::Metrics;
use super::state::State;
use super::unparsed::Unparsed;
use crate::generation::engine::Engine;
use crate::generation::health::{NoProbe, Probe};
use crate::memory;
use crate::serving::data_directory::{DataDirectory, DataInUse};
use crate::serving::downloads::Downloads;
use crate::serving::service::{Service, StartError};
use crate::serving::template_process::TemplateProcesses;
use crate::settings::Settings;

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Service(#[from] StartError),
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
    let engine = Engine::start_probed(settings.engine, probe)?;
    let service = Arc::new(Service::start(settings, engine.clone())?);
    let state = State {
        engine,
        features: service.features.clone(),
        directions: service.directions.clone(),
        service,
        templates: TemplateProcesses::new(
            settings.program.clone(),
            settings.limits.template_mib,
            settings.limits.template_seconds,
        ),
        examiner: Examiner::new(&settings.limits),
        keys: Keys::new(&settings.keys),
        limits: settings.limits,
        parsing: Semaphore::new(1),
        tokenising: Arc::new(Semaphore::new(settings.limits.max_tokenisations)),
        unparsed: Unparsed::new(settings.limits.max_unparsed_bytes),
        unsent: Unsent::new(
            settings.limits.max_unsent_bytes,
            Duration::from_secs(settings.limits.unread_seconds),
        ),
        ready_timeout: Duration::from_secs_f64(settings.ready_seconds),
        loopback_only: address.ip().is_loopback(),
        metrics: Metrics::new()?,
        jobs: Jobs::open(settings)?,
        downloads: Downloads::new(settings),
        data,
    };
    // What was freed since the last model was read, of everything that was read with them.
    memory::give_back();
    Ok(state)
}
