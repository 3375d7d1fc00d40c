//! The twenty tasks.
