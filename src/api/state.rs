//! What all handlers share.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::body::Unparsed;
use super::delivery::Unsent;
use super::examiner::Examiner;
use super::feature_store::FeatureStore;
use super::inventory::Inventory;
use super::jobs::background::Jobs;
use super::keys::Keys;
use super::library::Library;
use super::metrics::Metrics;
use crate::generation::engine::EngineHandle;
use crate::serving::data_directory::DataDirectory;
use crate::serving::trial_process::TrialProcess;
use crate::settings::Limits;

/// One server's state; handlers get it as `web::Data<State>`. It is made by [`super::loading`].
pub struct State {
    pub engine: EngineHandle,
    /// What is served just now; whoever looks keeps what it saw.
    pub served: RwLock<Arc<Inventory>>,
    pub library: Library,
    /// Tries what comes into service.
    pub trial: TrialProcess,
    pub features: FeatureStore,
    pub examiner: Examiner,
    pub keys: Keys,
    pub limits: Limits,
    /// Lets one long body be parsed at a time.
    pub parsing: Semaphore,
    pub unparsed: Unparsed,
    pub unsent: Unsent,
    /// How long the engine may take to answer before the server is not ready.
    pub ready_timeout: Duration,
    /// Only this machine can reach the server.
    pub loopback_only: bool,
    pub metrics: Metrics,
    pub jobs: Jobs,
    /// Keeps other servers out of the data directory.
    pub data: DataDirectory,
}

impl State {
    /// What is served now.
    pub fn inventory(&self) -> Arc<Inventory> {
        let served = self.served.read();
        served.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Something else is served from now on.
    pub fn serve(&self, inventory: Inventory) {
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        *served = Arc::new(inventory);
    }
}
