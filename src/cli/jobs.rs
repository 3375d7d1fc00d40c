//! `causeway jobs`: looks at, follows and steers the trainings of a running server.

mod follower;
mod server;
mod shown;

use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::Value;

use self::follower::Follower;
use self::server::{address, job};
use self::shown::{Job, JobList, table};
use super::asking::{Server, ServerArguments, Trouble, say};
use crate::serving::snapshot::unix_seconds;

/// Before a broken connection is made anew, and how often in a row.
const PAUSE: Duration = Duration::from_secs(1);
const MOST_BREAKS: u32 = 60;

/// Look at, follow and steer the trainings of a running server.
#[derive(Debug, Args)]
pub struct JobsArguments {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    server: ServerArguments,
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
        let server = self.server.server()?;
        match self.what {
            What::List(which) => list(&server, &which)?,
            What::Show { id, json } => show(&server, &id, json)?,
            What::Follow { id } => follow(&server, &id)?,
            What::Cancel { id } => wish(&server, &id, "cancel")?,
            What::Pause { id } => wish(&server, &id, "pause")?,
            What::Resume { id } => wish(&server, &id, "resume")?,
        }
        Ok(())
    }
}

fn name_and_value(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("it has no `=`")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn list(server: &Server, which: &Which) -> Result<(), Trouble> {
    let mut address = address(&server.url, &[]);
    let mut query = address.query_pairs_mut();
    query.append_pair("limit", &which.limit.to_string());
    for (name, value) in &which.metadata {
        query.append_pair(&format!("metadata[{name}]"), value);
    }
    drop(query);
    let answer: Value = server.ask(server.client.get(address))?;
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

fn show(server: &Server, id: &str, json: bool) -> Result<(), Trouble> {
    let request = server.client.get(address(&server.url, &[id]));
    match json {
        true => say(&format!("{:#}", server.ask::<Value>(request)?)),
        false => say(&server
            .ask::<Job>(request)?
            .description(unix_seconds() as i64)),
    }
}

fn wish(server: &Server, id: &str, wish: &str) -> Result<(), Trouble> {
    let request = server.client.post(address(&server.url, &[id, wish]));
    say(&server.ask::<Job>(request)?.summary())
}

fn follow(server: &Server, id: &str) -> anyhow::Result<()> {
    let mut follower = Follower::of(&job(server, id)?);
    while let Err(trouble) = follower.listen(server, id) {
        if !trouble.may_pass() {
            return Err(trouble.into());
        }
        if follower.breaks == MOST_BREAKS {
            return Err(trouble).context("gave up following; the job itself goes on");
        }
        follower.breaks += 1;
        thread::sleep(PAUSE);
    }
    let job = job(server, id)?;
    follower.bar.abandon();
    say(&job.summary())?;
    match job.status.as_str() {
        "failed" => bail!("the job failed: {}", job.failure().unwrap_or_default()),
        "cancelled" => bail!("the job was cancelled"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_a_name_and_a_value() {
        let pair = ("a".to_owned(), "b=c".to_owned());
        assert_eq!(name_and_value("a=b=c"), Ok(pair));
        assert!(name_and_value("a").is_err());
    }
}
