//! What is wrong with a tokenizer or a text, and the bounds that some of that is measured by.

/// The token that separates documents.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Ids are indices into the embedding; one beyond this is a damaged file.
pub const LARGEST_ID: u32 = 1 << 20;

/// Why a tokenizer could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("the tokenizer file is not valid: {0}")]
    Invalid(String),
    #[error("the text could not be encoded: {0}")]
    Encode(String),
    #[error("training the tokenizer failed: {0}")]
    Train(String),
    #[error(
        "a byte-level vocabulary holds 256 bytes and {END_OF_TEXT}: {0} tokens are too few, at least 257 are needed"
    )]
    VocabularyTooSmall(usize),
    #[error(
        "the training text yields only {found} tokens of the {wanted} wanted; give more text or ask for fewer"
    )]
    TooLittleText { wanted: usize, found: usize },
}
