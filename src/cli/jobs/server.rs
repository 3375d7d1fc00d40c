//! What is asked of a server about its jobs.

use reqwest::Url;

use super::shown::Job;
use crate::cli::asking::{self, Server, Trouble};

/// The address of a server's jobs, or of what `parts` name below them.
pub fn address(server: &Url, parts: &[&str]) -> Url {
    let jobs = ["v1", "fine_tuning", "jobs"];
    asking::address(server, jobs.into_iter().chain(parts.iter().copied()))
}

/// One job.
pub fn job(server: &Server, id: &str) -> Result<Job, Trouble> {
    server.ask(server.client.get(address(&server.url, &[id])))
}
