//! The room for long request bodies, of all clients together.

use tokio::sync::{Semaphore, SemaphorePermit};

use super::ApiError;

/// In which room for bodies is counted.
const UNIT: usize = 1 << 10;

/// The room for long bodies that are being read or parsed.
#[derive(Debug)]
pub struct Unparsed(Semaphore);

impl Unparsed {
    /// Room for `bytes`.
    pub fn new(bytes: usize) -> Self {
        Unparsed(Semaphore::new(bytes / UNIT + 1))
    }

    /// Waits for room for a body of `bytes`.
    pub async fn take(&self, bytes: usize) -> Result<SemaphorePermit<'_>, ApiError> {
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX);
        let room = self.0.acquire_many(units).await;
        room.map_err(ApiError::internal)
    }
}
