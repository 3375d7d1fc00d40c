//! What comes back of a row whose next token is wanted: its logits, or, where nobody else needs them and the model is on a
//! device, the token that the device has drawn.

use crate::numerics::kernels::operations::TokenDraw;

/// A row whose next token, or whose logits, are wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WantedRow {
    /// Its number among the rows.
    pub row: usize,
    /// How its token is drawn; none where the logits themselves are needed.
    pub draw: Option<TokenDraw>,
}

/// What a row has come to.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// `[vocabulary]`.
    Logits(Vec<f32>),
    /// None where a logit is not a finite number.
    Token(Option<u32>),
}
