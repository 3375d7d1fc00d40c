//! The room for long request bodies, of all clients together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ApiError;

/// In which room for bodies is counted.
const UNIT: usize = 1 << 10;

/// The room for long bodies that are being read or parsed, or whose values are not yet checked: many requests at once
/// may wait for that, and what was parsed takes memory as the body did.
#[derive(Debug)]
pub struct Unparsed(Arc<Semaphore>);

/// The room of one body, given back when dropped; a short body takes none.
#[derive(Debug, Default)]
pub struct BodyRoom {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Unparsed {
    /// Room for `bytes`.
    pub fn new(bytes: usize) -> Self {
        Unparsed(Arc::new(Semaphore::new(bytes / UNIT + 1)))
    }

    /// Waits for room for a body of `bytes`.
    pub async fn take(&self, bytes: usize) -> Result<BodyRoom, ApiError> {
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX);
        let room = self.0.clone().acquire_many_owned(units).await;
        let permit = room.map_err(ApiError::internal)?;
        Ok(BodyRoom {
            _permit: Some(permit),
        })
    }
}
