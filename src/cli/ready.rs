//! `causeway ready`: whether a server is ready, for containers and scripts that have no HTTP client.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;

/// How long to wait for each step of the conversation.
const PATIENCE: Duration = Duration::from_secs(4);

/// Succeed if the server at this address is ready to answer.
#[derive(Debug, Args)]
pub struct ReadyArguments {
    /// Such as http://127.0.0.1:8080.
    url: String,
}

impl ReadyArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let host = self
            .url
            .strip_prefix("http://")
            .context("the address begins with http://")?
            .trim_end_matches('/');
        let address = host
            .to_socket_addrs()?
            .next()
            .context("the name has no address")?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.lines().next().unwrap_or_default();
        ensure!(status.contains(" 200 "), "not ready: {status}");
        println!("ready");
        Ok(())
    }
}
