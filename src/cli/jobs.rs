//! `causeway jobs`: looks at, follows and steers the trainings of a running server.

mod follower;
mod shown;

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::{StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::follower::Follower;
use self::shown::{Job, JobList, table};
use super::client::{client, server_url};
use crate::api::inventory::unix_seconds;

/// What OpenAI's clients read. `causeway serve` would refuse a `CAUSEWAY_KEY` in its environment as no setting.
const KEY_VARIABLE: &str = "OPENAI_API_KEY";
/// Before a broken connection is made anew, and how often in a row.
const PAUSE: Duration = Duration::from_secs(1);
const MOST_BREAKS: u32 = 60;

/// Look at, follow and steer the trainings of a running server.
#[derive(Debug, Args)]
pub struct JobsArguments {
    #[command(subcommand)]
    what: What,
    /// Where the server is.
    #[arg(long, global = true, value_name = "URL", default_value = "http://127.0.0.1:8080", value_parser = server_url)]
    server: Url,
    /// The API key, where the server wants one; without this, that in the environment variable OPENAI_API_KEY.
    #[arg(long, global = true)]
    key: Option<String>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The newest jobs, a line each: with the model that came of it, or else the one that it began with.
    List(Which),
    /// Everything about one job.
    Show {
        id: String,
        /// What the server answers, as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Watch a job until it ends. Fails if the job fails or is cancelled.
    Follow { id: String },
    /// End a job for good.
    Cancel { id: String },
    /// Let a job rest.
    Pause { id: String },
    /// Let a job go on that was paused, or that failed, from its last checkpoint.
    Resume { id: String },
}

#[derive(Debug, Args)]
struct Which {
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=100))]
    limit: u16,
    /// Only jobs with this metadata; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    metadata: Vec<(String, String)>,
    /// What the server answers, as JSON.
    #[arg(long)]
    json: bool,
}

impl JobsArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let key = self.key.or_else(|| std::env::var(KEY_VARIABLE).ok());
        let server = Server {
            client: client()?,
            url: self.server,
            key: key.filter(|key| !key.is_empty()),
        };
        match self.what {
            What::List(which) => server.list(&which)?,
            What::Show { id, json } => server.show(&id, json)?,
            What::Follow { id } => server.follow(&id)?,
            What::Cancel { id } => server.wish(&id, "cancel")?,
            What::Pause { id } => server.wish(&id, "pause")?,
            What::Resume { id } => server.wish(&id, "resume")?,
        }
        Ok(())
    }
}

fn name_and_value(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("it has no `=`")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Why a question had no answer.
#[derive(Debug, thiserror::Error)]
enum Trouble {
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
    fn may_pass(&self) -> bool {
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
fn innermost(error: impl Into<anyhow::Error>) -> String {
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
fn say(line: &str) -> Result<(), Trouble> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

/// The address of a server's jobs, or of what `parts` name below them.
fn address(server: &Url, parts: &[&str]) -> Url {
    let mut address = server.clone();
    let jobs = ["v1", "fine_tuning", "jobs"];
    // Every address that begins with http:// has a path.
    if let Ok(mut path) = address.path_segments_mut() {
        path.pop_if_empty().extend(jobs).extend(parts);
    }
    address
}

/// The server that is asked.
struct Server {
    client: Client,
    url: Url,
    key: Option<String>,
}

impl Server {
    fn send(&self, request: RequestBuilder) -> Result<Response, Trouble> {
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

    fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Trouble> {
        let text = self.send(request)?.text();
        let text = text.map_err(|error| Trouble::Broken(innermost(error)))?;
        Ok(serde_json::from_str(&text)?)
    }

    fn job(&self, id: &str) -> Result<Job, Trouble> {
        self.ask(self.client.get(address(&self.url, &[id])))
    }

    fn list(&self, which: &Which) -> Result<(), Trouble> {
        let mut address = address(&self.url, &[]);
        let mut query = address.query_pairs_mut();
        query.append_pair("limit", &which.limit.to_string());
        for (name, value) in &which.metadata {
            query.append_pair(&format!("metadata[{name}]"), value);
        }
        drop(query);
        let answer: Value = self.ask(self.client.get(address))?;
        if which.json {
            return say(&format!("{answer:#}"));
        }
        let list: JobList = serde_json::from_value(answer)?;
        if list.has_more {
            // Not among the lines of jobs, which may be for a program.
            eprintln!("there are more; --limit says how many to list");
        }
        say(&table(&list.data, unix_seconds() as i64))
    }

    fn show(&self, id: &str, json: bool) -> Result<(), Trouble> {
        let request = self.client.get(address(&self.url, &[id]));
        match json {
            true => say(&format!("{:#}", self.ask::<Value>(request)?)),
            false => say(&self.ask::<Job>(request)?.description(unix_seconds() as i64)),
        }
    }

    fn wish(&self, id: &str, wish: &str) -> Result<(), Trouble> {
        let request = self.client.post(address(&self.url, &[id, wish]));
        say(&self.ask::<Job>(request)?.summary())
    }

    fn follow(&self, id: &str) -> anyhow::Result<()> {
        let mut follower = Follower::of(&self.job(id)?);
        while let Err(trouble) = follower.listen(self, id) {
            if !trouble.may_pass() {
                return Err(trouble.into());
            }
            if follower.breaks == MOST_BREAKS {
                return Err(trouble).context("gave up following; the job itself goes on");
            }
            follower.breaks += 1;
            thread::sleep(PAUSE);
        }
        let job = self.job(id)?;
        follower.bar.abandon();
        say(&job.summary())?;
        match job.status.as_str() {
            "failed" => bail!("the job failed: {}", job.failure().unwrap_or_default()),
            "cancelled" => bail!("the job was cancelled"),
            _ => Ok(()),
        }
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
        let address = address(&server, &["a/b", "events"]);
        let expected = "http://h/x/v1/fine_tuning/jobs/a%2Fb/events";
        assert_eq!(address.as_str(), expected);
        let pair = ("a".to_owned(), "b=c".to_owned());
        assert_eq!(name_and_value("a=b=c"), Ok(pair));
        assert!(server_url("localhost:8080").is_err());
    }
}
