//! Completions, with the `steer` field: of text at `POST /v1/completions`, of conversations at
//! `POST /v1/chat/completions`.
//!
//! [`text`] and [`chat`] say what is particular to each: its fields, their checks, the form of its answers. What
//! they share is done once: [`request`] has the fields of both, [`parameters`] checks them against ranges and
//! budgets, [`prompt`] makes tokens of text and conversations off the threads that serve, [`answer`] asks the
//! engine, [`response`] frames what comes back, and [`stream`] does so piece by piece.

pub mod answer;
pub mod chat;
pub mod parameters;
pub mod prompt;
pub mod request;
pub mod response;
pub mod stream;
pub mod text;
