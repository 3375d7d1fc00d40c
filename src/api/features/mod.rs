//! `/v1/features`: named features of a bridge's sparse model, and unnamed ones addressed as `NODE:CHANNEL`.
//!
//! - [`wire`]: what is sent and what comes back.
//! - [`lookup`]: an id becomes a feature.
//! - [`list`](mod@list): search and paging. - [`detail`]: all that is known of one.
//! - [`change`]: create, update, delete.
//! - [`mod@contrast`]: which channels matter. - [`verify`]: a feature's own tests.

pub mod change;
pub mod contrast;
pub mod detail;
pub mod list;
pub mod lookup;
pub mod verify;
pub mod wire;

pub use change::{create, delete, update};
pub use detail::retrieve;
pub use list::list;
