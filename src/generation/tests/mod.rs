//! The engine on a small random pair: what it promises, held against plain forward passes.

mod admission;
mod answers;
mod budgets;
mod carrying;
mod circuits;
mod conditions;
mod controls;
mod deeper;
pub mod forward;
mod group_statistics;
mod loading;
pub mod pair;
mod prefix_orders;
mod prefixes;
mod scheduling;
mod steering;
mod thread;
