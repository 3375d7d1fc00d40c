//! Directions of a dense model from contrast prompts: found on some prompts, checked on others.
//!
//! - [`reading`]: prompts become activations, one of each prompt at each site.
//! - [`fitting`]: activations `[prompts][d_model]` become a vector `[d_model]`, which is held against others.
//! - [`effect`]: how far adding a direction moves a measure, beside random directions of the same norm.
//! - [`finding`]: all of it.
//!
//! A direction can tell prompts apart without the model using it, so both are told: how well it separates held-out
//! prompts, and what adding it does.

pub mod effect;
pub mod finding;
pub mod fitting;
pub mod reading;
