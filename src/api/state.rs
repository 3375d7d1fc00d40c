//! What all handlers share.

use std::time::Duration;

use super::examiner::Examiner;
use super::feature_store::FeatureStore;
use super::inventory::Inventory;
use super::keys::Keys;
use super::metrics::Metrics;
use crate::generation::engine::EngineHandle;
use crate::settings::Limits;

/// One server's state; handlers get it as `web::Data<State>`. It is made by [`super::loading`].
pub struct State {
    pub engine: EngineHandle,
    pub inventory: Inventory,
    pub features: FeatureStore,
    pub examiner: Examiner,
    pub keys: Keys,
    pub limits: Limits,
    /// How long the engine may take to answer before the server is not ready.
    pub ready_timeout: Duration,
    /// Only this machine can reach the server.
    pub loopback_only: bool,
    pub metrics: Metrics,
}
