//! What all handlers share.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::delivery::Unsent;
use super::examiner::Examiner;
use super::jobs::background::Jobs;
use super::keys::Keys;
use super::metrics::Metrics;
use super::unparsed::Unparsed;
use crate::generation::engine::EngineHandle;
use crate::serving::data_directory::DataDirectory;
use crate::serving::direction_store::DirectionStore;
use crate::serving::downloads::Downloads;
use crate::serving::feature_store::FeatureStore;
use crate::serving::service::Service;
use crate::serving::snapshot::Snapshot;
use crate::serving::template_process::TemplateProcesses;
use crate::settings::Limits;

/// One server's state; handlers get it as `web::Data<State>`. It is made by [`super::loading`].
pub struct State {
    pub engine: EngineHandle,
    pub service: Arc<Service>,
    /// Those of the service.
    pub features: Arc<FeatureStore>,
    pub directions: Arc<DirectionStore>,
    /// Run chat templates.
    pub templates: TemplateProcesses,
    pub examiner: Examiner,
    pub keys: Keys,
    pub limits: Limits,
    /// Lets one long body be parsed at a time.
    pub parsing: Semaphore,
    /// Lets `limits.max_tokenisations` texts be tokenised at a time.
    pub tokenising: Arc<Semaphore>,
    pub unparsed: Unparsed,
    pub unsent: Unsent,
    /// How long the engine may take to answer before the server is not ready.
    pub ready_timeout: Duration,
    /// Only this machine can reach the server.
    pub loopback_only: bool,
    pub metrics: Metrics,
    pub jobs: Jobs,
    /// Models that are being brought from a hub.
    pub downloads: Downloads,
    /// Keeps other servers out of the data directory.
    pub data: DataDirectory,
}

impl State {
    /// What is served now; whoever looks keeps what it saw.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.service.snapshot()
    }
}
