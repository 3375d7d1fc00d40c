//! What the routes need of the engine.

use std::future::Future;
use std::pin::Pin;

use crate::features::registry::Feature;
use crate::generation::request::{Activations, ActivationsRequest, EngineError, Generation, GenerationRequest};

/// An answer of the engine, to be awaited.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, EngineError>> + Send>>;

/// The engine as the routes see it.
pub trait Backend: Send + Sync {
    fn generate(&self, request: GenerationRequest) -> Answer<Generation>;
    fn activations(&self, request: ActivationsRequest) -> Answer<Activations>;
    /// Answers once the engine has worked off what it was asked before.
    fn ping(&self) -> Answer<()>;
    /// Replaces the features that edits of a bridge may name.
    fn set_features(&self, bridge: &str, features: Vec<Feature>) -> Answer<()>;
}
