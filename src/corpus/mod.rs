//! Deterministic simple Python for training.
