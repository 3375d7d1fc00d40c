//! `causeway corpus`: generated programs on disk.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::artifacts::atomic;
use crate::corpus::{CorpusGenerator, Split};

/// Programs that exercise the idioms of all tasks. The same seed gives the same programs on every machine.
#[derive(Debug, Args)]
pub struct CorpusArguments {
    /// How many programs.
    #[arg(long, default_value_t = 1000)]
    documents: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Draw from the names and words that no training program uses.
    #[arg(long)]
    held_out: bool,
    /// The JSONL file to write.
    #[arg(long)]
    output: PathBuf,
}

impl CorpusArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let split = if self.held_out {
            Split::HeldOut
        } else {
            Split::Train
        };
        let programs = CorpusGenerator::new(self.seed, split).take(self.documents);
        atomic::write_with(
            &self.output,
            |file| -> Result<(), crate::artifacts::ArtifactError> {
                for text in programs {
                    let line = serde_json::json!({ "text": text });
                    writeln!(file, "{line}").map_err(|source| {
                        crate::artifacts::ArtifactError::Io {
                            action: "write",
                            path: self.output.clone(),
                            source,
                        }
                    })?;
                }
                Ok(())
            },
        )
        .with_context(|| format!("could not write {}", self.output.display()))
    }
}
