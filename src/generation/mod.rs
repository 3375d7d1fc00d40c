//! Generating text: the engine thread that runs the models, and what is asked of it.
//!
//! [`request`] is the contract; [`engine`] the thread and its handle. A request brings its model. The engine's handle
//! has measured what its edits need ([`needed_groups`]). It passes [`admission`] and becomes a [`session`] of one or
//! more [`arms`]. The [`scheduler`] lends arms [`slots`] of the models' caches and picks who takes part in the next
//! step; [`mod@batch`] runs the step, all requests' rows together. What the slots hold of a prompt outlives its request
//! ([`reuse`]): each slot is a text ([`slot_text`]) whose blocks are named by a chain of hashes ([`prefix_chain`]) and
//! kept by their names ([`prefix_cache`]).

pub mod activations;
pub mod admission;
pub mod arms;
pub mod batch;
pub mod capacity;
pub mod engine;
pub mod health;
pub mod needed_groups;
pub mod next;
pub mod pass;
pub mod prefix_cache;
pub mod prefix_chain;
pub mod request;
pub mod reuse;
pub mod sampler;
pub mod sampling;
pub mod scheduler;
pub mod session;
pub mod slot_text;
pub mod slots;
pub mod stop;

#[cfg(test)]
mod tests;
