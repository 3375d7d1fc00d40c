//! The server that commands ask, and why a question had no answer.

use std::io::{self, Write};

use clap::Args;
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::{StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::client::{client, server_url};

/// What OpenAI's clients read. `causeway serve` would refuse a `CAUSEWAY_KEY` in its environment as no setting.
const KEY_VARIABLE: &str = "OPENAI_API_KEY";

/// Which server is asked.
#[derive(Debug, Args)]
pub struct ServerArguments {
    /// Where the server is.
    #[arg(long, global = true, value_name = "URL", default_value = "http://127.0.0.1:8080", value_parser = server_url)]
    server: Url,
    /// The API key, where the server wants one; without this, that in the environment variable OPENAI_API_KEY.
    #[arg(long, global = true)]
    key: Option<String>,
}

impl ServerArguments {
    pub fn server(self) -> reqwest::Result<Server> {
        let key = self.key.or_else(|| std::env::var(KEY_VARIABLE).ok());
        Ok(Server {
            client: client()?,
            url: self.server,
            key: key.filter(|key| !key.is_empty()),
        })
    }
}

/// Why a question had no answer.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("no server answers at {0}: {1}")]
    NoServer(String, String),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("{1}")]
    Refused(StatusCode, String),
    #[error("the answer is not one of a Causeway server")]
    Unreadable(#[from] serde_json::Error),
    #[error("what is to be shown cannot be written")]
    Output(#[from] io::Error),
}

impl Trouble {
    /// Whether asking again may help.
    pub fn may_pass(&self) -> bool {
        match self {
            Trouble::NoServer(..) | Trouble::Broken(_) => true,
            Trouble::Refused(StatusCode::TOO_MANY_REQUESTS, _) => true,
            Trouble::Refused(status, _) => status.is_server_error(),
            // It ended before its end.
            Trouble::Unreadable(error) => error.is_eof(),
            Trouble::Output(_) => false,
        }
    }
}

/// What is at the bottom of an error; the layers above it say only that there is one.
pub fn innermost(error: impl Into<anyhow::Error>) -> String {
    error.into().root_cause().to_string()
}

/// What an answer that is an error says. Whoever stands between here and the server answers in its own way.
fn refusal(status: StatusCode, body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    let error = &body["error"];
    match (error["message"].as_str(), error["code"].as_str()) {
        (Some(message), Some(code)) => format!("{message} ({code})"),
        (Some(message), None) => message.to_owned(),
        (None, _) => format!("the server answered {status}"),
    }
}

/// Writes a line. `println!` would panic once nobody reads: behind `| head`.
pub fn say(line: &str) -> Result<(), Trouble> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

/// The address of what `parts` name below a server's own.
pub fn address<'p>(server: &Url, parts: impl IntoIterator<Item = &'p str>) -> Url {
    let mut address = server.clone();
    // Every address that begins with http:// has a path.
    if let Ok(mut path) = address.path_segments_mut() {
        path.pop_if_empty().extend(parts);
    }
    address
}

/// The server that is asked.
pub struct Server {
    pub client: Client,
    pub url: Url,
    pub key: Option<String>,
}

impl Server {
    pub fn send(&self, request: RequestBuilder) -> Result<Response, Trouble> {
        let with_key = |request: RequestBuilder, key| request.bearer_auth(key);
        let request = self.key.iter().fold(request, with_key);
        let server = self.url.as_str().trim_end_matches('/');
        let response = request.send().map_err(|error| match error.is_connect() {
            true => Trouble::NoServer(server.to_owned(), innermost(error)),
            false => Trouble::Broken(innermost(error)),
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        // A body that cannot be read leaves the status.
        let body = response.text().unwrap_or_default();
        Err(Trouble::Refused(status, refusal(status, &body)))
    }

    pub fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Trouble> {
        let text = self.send(request)?.text();
        let text = text.map_err(|error| Trouble::Broken(innermost(error)))?;
        Ok(serde_json::from_str(&text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_the_server_said() {
        let body = r#"{"error": {"message": "no such job", "code": "job_not_found"}}"#;
        let said = refusal(StatusCode::NOT_FOUND, body);
        assert_eq!(said, "no such job (job_not_found)");
        let said = refusal(StatusCode::BAD_GATEWAY, "<html>");
        assert_eq!(said, "the server answered 502 Bad Gateway");
    }

    #[test]
    fn addresses_are_below_the_servers() {
        let server = server_url("http://h/x/").expect("an address");
        let address = address(&server, ["v1", "fine_tuning", "jobs", "a/b", "events"]);
        let expected = "http://h/x/v1/fine_tuning/jobs/a%2Fb/events";
        assert_eq!(address.as_str(), expected);
        assert!(server_url("localhost:8080").is_err());
    }
}
