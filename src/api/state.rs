//! What all handlers share.

use std::net::SocketAddr;
use std::time::Duration;

use super::backend::Backend;
use super::feature_store::FeatureStore;
use super::inventory::Inventory;
use super::metrics::Metrics;
use crate::settings::{Limits, Settings};

/// One server's state; handlers get it as `web::Data<State>`.
pub struct State {
    pub backend: Box<dyn Backend>,
    pub inventory: Inventory,
    pub features: FeatureStore,
    pub limits: Limits,
    /// How long the engine may take to answer before the server is not ready.
    pub ready_timeout: Duration,
    /// Only this machine can reach the server.
    pub loopback_only: bool,
    pub metrics: Metrics,
}

impl State {
    /// A server's state before its first request.
    pub fn new(
        settings: &Settings,
        listening_at: SocketAddr,
        backend: Box<dyn Backend>,
        inventory: Inventory,
        features: FeatureStore,
    ) -> Result<Self, prometheus::Error> {
        Ok(State {
            backend,
            inventory,
            features,
            limits: settings.limits,
            ready_timeout: Duration::from_secs_f64(settings.ready_seconds),
            loopback_only: listening_at.ip().is_loopback(),
            metrics: Metrics::new()?,
        })
    }
}
