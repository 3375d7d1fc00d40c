//! `/v1/tasks`: what models are asked: the twenty tasks, and those that callers have brought.
//!
//! [`mod@list`] tells which there are, with pairs of them, and how many of those a model can use; [`change`] keeps and
//! removes callers' own; [`counting`] counts pairs, and [`wire`] is how tasks are sent and answered.

pub mod change;
pub mod counting;
pub mod list;
pub mod wire;

pub use change::{create, delete, upload};
pub use list::{list, retrieve};
