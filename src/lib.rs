//! Causeway runs a dense and a weight-sparse language model side by side and lets a caller edit named
//! features of the sparse one inside the dense one.
//!
//! The modules below stand in layer order: a lower layer never imports a higher one
//! (`tests/house_rules.rs` keeps it so). `src/ARCHITECTURE.md` is the map.

pub mod api;
pub mod artifacts;
pub mod bridge;
pub mod circuits;
pub mod cli;
pub mod corpus;
pub mod discovery;
pub mod documented;
pub mod evaluation;
pub mod features;
pub mod generation;
pub mod hub;
pub mod interventions;
pub mod jobs;
pub mod memory;
pub mod models;
pub mod numerics;
pub mod objects_only;
pub mod plot;
pub mod pruning;
pub mod serving;
pub mod settings;
pub mod tasks;
pub mod telemetry;
pub mod tls;
pub mod training;
