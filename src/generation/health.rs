//! What others may know of the engine: how much it has to do, and whether it can be trusted. A panic inside it fails one request; until the engine has then looked itself
//! over it is not sound, and a server says that it is not ready.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::request::{EngineError, GenerationRequest};
use crate::numerics::device;

/// What the scheduler is doing, for the metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Requests with an arm in the models.
    pub running: usize,
    /// Requests that wait for slots.
    pub waiting: usize,
    /// The share of cache slots in use, of the model with the most.
    pub cache_usage: f64,
}

/// What is kept of prompts for later requests, for the metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeptPrefixes {
    /// Prompt tokens that were looked up, since the start.
    pub queried_tokens: usize,
    /// Those of them that were there, and were not run.
    pub hit_tokens: usize,
    /// Of the keys and values that are kept now.
    pub bytes: usize,
}

/// Told of turns inside the engine, on its thread: for tests that make it fail on purpose.
pub trait Probe: Send + Sync {
    /// A request takes part in the step that is about to be computed; an error takes the step's place.
    fn computing(&self, _request: &GenerationRequest) -> Result<(), EngineError> {
        Ok(())
    }
    /// The engine looks itself over after a panic.
    fn recovering(&self) {}
}

/// Does nothing.
pub struct NoProbe;

impl Probe for NoProbe {}

/// Written by the engine, read by those who ask how it is.
pub struct EngineHealth {
    sound: AtomicBool,
    /// A device has failed for good.
    lost: watch::Sender<bool>,
    load: Mutex<Load>,
    kept: Mutex<KeptPrefixes>,
    pub probe: Box<dyn Probe>,
}

impl EngineHealth {
    pub fn new(probe: Box<dyn Probe>) -> Self {
        EngineHealth {
            sound: AtomicBool::new(true),
            lost: watch::Sender::new(false),
            load: Mutex::default(),
            kept: Mutex::default(),
            probe,
        }
    }

    pub fn is_sound(&self) -> bool {
        self.sound.load(Ordering::Acquire) && !self.is_lost()
    }

    /// Whether a device has failed for good: nothing makes the engine sound again.
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    /// Returns when that has happened.
    pub async fn lost(&self) {
        // The sender is here, and does not go before its receiver.
        let _ = self.lost.subscribe().wait_for(|lost| *lost).await;
    }

    /// What the engine is doing.
    pub fn load(&self) -> Load {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_load(&self, load: Load) {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) = load;
    }

    /// What is kept of prompts.
    pub fn kept(&self) -> KeptPrefixes {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_kept(&self, kept: KeptPrefixes) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }

    /// After the engine was found to work.
    pub fn restore(&self) {
        self.sound.store(true, Ordering::Release);
    }

    /// What an error says of a device: that it is lost, or that it has no room, and is to give back what it keeps unused.
    pub fn note(&self, error: &EngineError) {
        match error {
            EngineError::DeviceLost(details) => {
                tracing::error!(details, "a device is lost");
                self.lost.send_replace(true);
            }
            EngineError::NoMemory(_) => device::trim(),
            _ => {}
        }
    }

    /// Does something; a panic comes back as an error and costs the soundness, a device's failure may cost it for good.
    pub fn contain<T>(
        &self,
        work: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            self.sound.store(false, Ordering::Release);
            Err(panicked(&*panic))
        });
        if let Err(error) = &done {
            self.note(error);
        }
        done
    }
}

/// What a panic said.
fn panicked(panic: &(dyn Any + Send)) -> EngineError {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    EngineError::Failed(format!(
        "it panicked: {}",
        text.unwrap_or("without a message")
    ))
}
