//! `causeway openapi`: the API's description, as `openapi/openapi.json` holds it.

use std::io::Write;

use crate::api::openapi;

/// Prints the document to standard output.
pub fn run() -> anyhow::Result<()> {
    let text = openapi::text()?;
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}
