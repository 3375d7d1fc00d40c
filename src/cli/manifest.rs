//! `causeway manifest`: what a directory holds, by hash, for those who receive it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use crate::artifacts::{ArtifactId, Manifest};

/// Writes `manifest.json` with the size and sha256 of every file below a directory, or checks it.
#[derive(Debug, Args)]
pub struct ManifestArguments {
    directory: PathBuf,
    /// Hold the directory against the manifest it has instead of writing one.
    #[arg(long)]
    verify: bool,
    /// The id the manifest gives the directory.
    #[arg(long, required_unless_present = "verify")]
    id: Option<ArtifactId>,
    #[arg(long, default_value = "")]
    description: String,
}

impl ManifestArguments {
    pub fn run(self) -> anyhow::Result<()> {
        match self.id {
            Some(id) if !self.verify => {
                let manifest =
                    Manifest::of_directory(&self.directory, id, self.description, BTreeMap::new())?;
                manifest.write(&self.directory)?;
            }
            _ => Manifest::read(&self.directory)?.verify(&self.directory)?,
        }
        Ok(())
    }
}
