//! What a circuit does, and what says how much of it to believe.
//!
//! [`effects`]: how much the task loss rises without each node and each edge. [`interchange`]: whether the answer follows
//! the circuit's nodes when they alone take their values from the other prompt. [`correlation`]: whether nodes do inside
//! the circuit what they do inside the whole model. [`activations`]: what they are on a task's prompts and on reference
//! text. [`measured`] is all of it as the record of a circuit, [`summary`] its figures in words, [`node_tap`] how a pass's
//! nodes are held, exchanged and looked at.

pub mod activations;
pub mod correlation;
pub mod effects;
pub mod interchange;
pub mod measured;
pub mod node_tap;
pub mod summary;
#[cfg(test)]
mod tests;
