//! The engine on a small random pair: what it promises, held against plain forward passes.

mod admission;
mod answers;
mod carrying;
pub mod forward;
mod loading;
pub mod pair;
mod scheduling;
mod steering;
mod thread;
