//! `causeway ready`: whether a server is ready, for containers and scripts that have no HTTP client.

use anyhow::{Context, ensure};
use clap::Args;
use reqwest::Url;

use super::client::{client, server_url};

/// Succeed if the server at this address is ready to answer.
#[derive(Debug, Args)]
pub struct ReadyArguments {
    /// Such as http://127.0.0.1:8080.
    #[arg(value_parser = server_url)]
    url: Url,
}

impl ReadyArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let url = self.url.join("readyz")?;
        let asked = client()?.get(url).send();
        let answer = asked.with_context(|| format!("no server answers at {}", self.url))?;
        let status = answer.status();
        let body = answer.text().unwrap_or_default();
        ensure!(status.is_success(), "{}: {status}: {body}", self.url);
        println!("ready");
        Ok(())
    }
}
