//! Generating text: the engine thread that owns the models, and what is asked of it.

pub mod request;
