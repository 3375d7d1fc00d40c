//! What is served, apart from how it is asked for: nothing here knows HTTP.
//!
//! - [`data_directory`]: one server at a time keeps what callers make.
//! - [`trial`]: a pair or a model answers one token, or is told why it cannot be served.
//! - [`trial_process`]: the same in a process of its own, whose memory and time are bounded.

pub mod data_directory;
pub mod trial;
pub mod trial_process;
