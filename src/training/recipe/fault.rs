//! What is wrong with a recipe.

/// A field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct Fault {
    /// Its path in the recipe, such as `batches.length`.
    pub field: String,
    pub problem: String,
}

impl Fault {
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Fault {
            field: field.into(),
            problem: problem.into(),
        }
    }
}
