//! Generating text: the engine thread that owns the models, and what is asked of it.
//!
//! [`request`] is the contract; [`engine`] the thread and its handle; [`catalog`] what is loaded. A request becomes
//! a [`session`]: its arms step together through the model until all of them are [`arms`] that are finished.

pub mod activations;
pub mod arms;
pub mod catalog;
pub mod engine;
pub mod request;
pub mod sampler;
pub mod session;
pub mod stop;

#[cfg(test)]
mod tests;
