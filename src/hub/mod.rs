//! Models of a hub that speaks Hugging Face's HTTP, brought into a folder.
//!
//! - [`name`]: what a model, a revision and a commit are called there. - [`listing`]: what a repository holds, and
//!   which of it a model needs. - [`client`]: asking. - [`transfer`]: one file. - [`fetch`]: one model.
//!
//! `hf-hub` makes the addresses and asks what a repository holds: its commit, and the size and hash of every file. What
//! it brings files with goes on where they were but cannot be stopped, holds no file against its hash, has no time
//! after which silence is an end, and keeps them where and as Python's library does; so the files are brought here, by
//! the client that everything else is asked with, in ranges, and written by
//! [`artifacts::partial_file`](crate::artifacts::partial_file).
//!
//! Address, token and bounds come from the settings, nothing from the environment or a home directory. A revision is
//! made a commit first, and every file is of that commit. Everything here waits: it belongs on a thread that may.

pub mod client;
pub mod error;
pub mod fetch;
pub mod listing;
pub mod name;
pub mod transfer;

pub use error::HubError;
