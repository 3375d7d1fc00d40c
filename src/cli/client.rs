//! The client of the commands that ask a running server.

use std::time::Duration;

use reqwest::Url;
use reqwest::blocking::{Client, ClientBuilder};

use crate::tls;

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// For an answer, and for each further part of one.
const PATIENCE: Duration = Duration::from_secs(60);

/// For the command line: a server's address.
pub fn server_url(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
    url.ok_or("it begins with http:// or https://")
}

/// A client that gives up when it has heard nothing for a minute, however long an answer takes in all: one that follows
/// a job takes hours.
pub fn client() -> reqwest::Result<Client> {
    // The HTTP client has no cryptography of its own: it takes what the process has chosen, and panics without.
    tls::choose();
    let settings = || ClientBuilder::new().connect_timeout(CONNECT_PATIENCE);
    let settings = || settings().timeout(PATIENCE);
    // A machine without certificates, as a bare container is, has no such client; without TLS it can still ask.
    let bare = |_| settings().tls_certs_only([]).build();
    settings().build().or_else(bare)
}
