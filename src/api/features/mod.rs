//! `/v1/features`: named features of a bridge's sparse model, unnamed ones addressed as `NODE:CHANNEL`, and named
//! directions of dense models.
//!
//! - [`wire`] and [`direction_wire`]: what is sent and what comes back.
//! - [`lookup`]: an id becomes a feature.
//! - [`list`](mod@list): search and paging. - [`detail`]: all that is known of one.
//! - [`naming`]: what they may be called.
//! - [`change`]: create, update, delete; [`directions`] does it for directions.
//! - [`mod@direction`]: directions from contrast prompts, which [`contrast_prompts`] reads.
//! - [`control_vector`]: directions as files of other programs.
//! - [`mod@contrast`]: which channels matter. - [`verify`]: a feature's own tests.

pub mod change;
pub mod contrast;
pub mod contrast_prompts;
pub mod control_vector;
pub mod detail;
pub mod direction;
pub mod direction_wire;
pub mod directions;
pub mod list;
pub mod lookup;
pub mod naming;
pub mod verify;
pub mod wire;

pub use change::{create, delete, update};
pub use detail::retrieve;
pub use list::list;
