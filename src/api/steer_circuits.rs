//! The circuits that a request's edits and features may name: those of the snapshot that it looks its names up in.

use std::sync::Arc;

use crate::circuits::circuit::NamedCircuits;
use crate::interventions::request::{FeatureAddress, SteerRequest};
use crate::serving::snapshot::Snapshot;

/// All circuits that are served, or none where none is named: requests that name none pay nothing.
pub fn circuits_of(
    snapshot: &Snapshot,
    steer: Option<&SteerRequest>,
    features: &[FeatureAddress],
) -> Arc<NamedCircuits> {
    let is_named = steer.is_some_and(SteerRequest::names_circuits)
        || features.iter().any(FeatureAddress::is_circuit);
    match is_named {
        true => Arc::new(snapshot.circuits.clone()),
        false => Arc::default(),
    }
}
