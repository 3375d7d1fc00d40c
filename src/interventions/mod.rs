//! Interventions: what a caller asks to have changed inside a model, validated, compiled and carried out.
//!
//! [`request`] is what can be written in the `steer` field; a plan is what is left of it once every name is
//! resolved and every number checked; [`carry`] is how a change of the sparse model becomes one of the dense.

pub mod carry;
pub mod request;
