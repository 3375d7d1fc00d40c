//! How long an examination may go on: until its time is over, or nobody waits for what it finds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::DiscoveryError;

/// Looked at between any two passes of an examination.
#[derive(Debug, Clone, Default)]
pub struct Patience {
    is_lost: Arc<AtomicBool>,
    until: Option<Instant>,
}

impl Patience {
    /// As long as it takes.
    pub fn endless() -> Self {
        Patience::default()
    }

    /// Until this moment.
    pub fn until(moment: Instant) -> Self {
        Patience {
            until: Some(moment),
            ..Patience::default()
        }
    }

    /// Nobody waits any more: all clones of this end what they are in.
    pub fn lose(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
    }

    /// Refuses to go on where the time is over or nobody waits.
    pub fn check(&self) -> Result<(), DiscoveryError> {
        let is_over = self.until.is_some_and(|until| Instant::now() >= until);
        match is_over || self.is_lost.load(Ordering::Relaxed) {
            true => Err(DiscoveryError::GivenUp),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_with_its_time_or_when_it_is_lost() {
        assert!(Patience::endless().check().is_ok());
        let over = Patience::until(Instant::now());
        assert!(matches!(over.check(), Err(DiscoveryError::GivenUp)));
        let patience = Patience::endless();
        let clone = patience.clone();
        patience.lose();
        assert!(matches!(clone.check(), Err(DiscoveryError::GivenUp)));
    }
}
