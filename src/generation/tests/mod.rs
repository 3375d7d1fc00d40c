//! The engine on a small random pair: what it promises, held against plain forward passes.

mod admission;
mod answers;
mod carrying;
mod forward;
mod loading;
mod pair;
mod scheduling;
mod steering;
mod thread;
