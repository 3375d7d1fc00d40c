//! Whether the engine can be trusted. A panic inside it fails one request; until the engine has then looked itself
//! over it is not sound, and a server says that it is not ready.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use super::request::{EngineError, GenerationRequest};

/// Told of turns inside the engine, on its thread: for tests that make it fail on purpose.
pub trait Probe: Send + Sync {
    /// A request takes part in the step that is about to be computed.
    fn computing(&self, _request: &GenerationRequest) {}
    /// The engine looks itself over after a panic.
    fn recovering(&self) {}
}

/// Does nothing.
pub struct NoProbe;

impl Probe for NoProbe {}

/// The state, seen by the engine and by those who ask whether it is ready.
pub struct Soundness {
    sound: AtomicBool,
    pub probe: Box<dyn Probe>,
}

impl Soundness {
    pub fn new(probe: Box<dyn Probe>) -> Self {
        Soundness {
            sound: AtomicBool::new(true),
            probe,
        }
    }

    pub fn is_sound(&self) -> bool {
        self.sound.load(Ordering::Acquire)
    }

    /// After the engine was found to work.
    pub fn restore(&self) {
        self.sound.store(true, Ordering::Release);
    }

    /// Does something; a panic comes back as an error and costs the soundness.
    pub fn contain<T>(
        &self,
        work: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            self.sound.store(false, Ordering::Release);
            Err(panicked(&*panic))
        })
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
