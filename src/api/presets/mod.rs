//! `/v1/presets`: `steer` fields kept under ids. Clients that know nothing of steering name the model `MODEL@PRESET`, at
//! every address that takes a model's id and answers with what it computes.
//!
//! [`change`] makes and removes them, [`mod@list`] tells which there are, [`wire`] is how they are sent and answered, and
//! [`applied`] is what they make of a request.

pub mod applied;
pub mod change;
pub mod list;
pub mod wire;

pub use change::{create, delete};
pub use list::{list, retrieve};
