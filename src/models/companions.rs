//! What stands beside a model's weights and tokenizer in its directory, and goes where they go: how a conversation is
//! written out, and where a text ends.

use std::path::Path;

use crate::artifacts::{ArtifactError, atomic};

const NAMES: [&str; 3] = [
    "chat_template.jinja",
    "tokenizer_config.json",
    "generation_config.json",
];
/// Each is a small text; a larger file is none.
const LARGEST: u64 = 64 << 20;

/// Copies those that there are as they are.
pub fn copy(from: &Path, to: &Path) -> Result<(), ArtifactError> {
    for name in NAMES {
        let source = from.join(name);
        if source.exists() {
            let content = atomic::read_small(&source, LARGEST)?;
            atomic::write(&to.join(name), &content)?;
        }
    }
    Ok(())
}
