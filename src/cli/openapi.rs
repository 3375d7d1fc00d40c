//! `causeway openapi`: the API's description, as `openapi/openapi.json` holds it.

use std::io::Write;

use crate::api::server;

/// Prints the document to standard output.
pub fn run() -> anyhow::Result<()> {
    let text = server::document()?;
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}
