//! Features: named channels and groups of channels, what is known of them, and how they are found.

pub mod registry;
