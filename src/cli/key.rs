//! `causeway key`: a new API key, and what to put into the settings for it. The key itself goes to standard error, so
//! that `causeway key NAME >> FILE` shows it and writes only its hash.

use clap::Args;
use rand::TryRngCore;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};

use crate::artifacts::{ArtifactId, hexadecimal};

/// Make an API key. It is shown once: the settings keep only its hash.
#[derive(Debug, Args)]
pub struct KeyArguments {
    /// What the log is to call the caller.
    name: ArtifactId,
}

impl KeyArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let mut secret = [0u8; 32];
        OsRng.try_fill_bytes(&mut secret)?;
        let key = format!("ck-{}", hexadecimal(&secret));
        eprintln!("The key, for the caller; it is not kept anywhere:");
        eprintln!("{key}");
        println!("\n[[keys]]");
        println!("name = \"{}\"", self.name);
        println!("sha256 = \"{}\"", hexadecimal(&Sha256::digest(&key)));
        println!("role = \"infer\"");
        Ok(())
    }
}
