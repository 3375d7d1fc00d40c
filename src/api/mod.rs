//! The HTTP API: OpenAI's shapes where OpenAI has one, one error shape everywhere, thin handlers.
//!
//! A request goes through [`observe`] (id, metrics, panics), is parsed into the wire types beside its route,
//! checked against the limits and the [snapshot](crate::serving::snapshot) before anything is allocated for it, and handed to the
//! engine as plain data. Nothing here touches a tensor, and no path is ever made from a request's text.

pub mod activations;
pub mod addresses;
pub mod attention;
pub mod body;
pub mod bridges;
pub mod circuits;
pub mod completions;
pub mod delivery;
pub mod disconnect;
pub mod docs;
pub mod error;
pub mod event_stream;
pub mod examiner;
pub mod features;
pub mod health;
pub mod jobs;
pub mod keys;
pub mod library;
pub mod loading;
pub mod metrics;
pub mod models;
pub mod objects;
pub mod observe;
pub mod openapi;
pub mod operations;
pub mod page;
pub mod parse_message;
pub mod presets;
pub mod server;
pub mod state;
pub mod steer_circuits;
pub mod tasks;
mod tokens;
pub mod unparsed;

pub use error::ApiError;
