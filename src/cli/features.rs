//! `causeway features`: directions of a running server's models, made of contrast prompts or brought as control vectors, and
//! features of a pair that its circuits lead to.

mod discover;
mod prompts;
mod shown;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use self::discover::DiscoverArguments;
use self::prompts::read_prompts;
use self::shown::{FoundAnswer, ShownDirection};
use super::asking::{Server, ServerArguments, address, say};
use crate::artifacts::atomic;

/// A search takes minutes, and answers when it is done.
const SEARCH_PATIENCE: Duration = Duration::from_secs(3600);
/// A server reads no longer file unless its settings say so, and whoever wrote them may have said more.
const LARGEST_FILE: u64 = 1 << 30;

/// Make, bring and take away directions of a running server's models.
#[derive(Debug, Args)]
pub struct FeaturesCommand {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    server: ServerArguments,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a direction of contrast prompts and check it on prompts that it was not made of.
    Direction(Box<DirectionArguments>),
    /// Find the group of a circuit's nodes that steers the dense model of a pair best.
    Discover(DiscoverArguments),
    /// Register a control vector, a GGUF file as llama.cpp and repeng write them.
    Import(ImportArguments),
    /// Write a direction as a control vector.
    Export(ExportArguments),
}

#[derive(Debug, Args)]
struct DirectionArguments {
    /// A dense model of the server.
    #[arg(long, value_name = "ID")]
    model: String,
    /// Prompts that have what the direction is to stand for: one a line, or with the ending .jsonl a JSON value a line:
    /// text, a list of token ids, or an object with `prompt` and `answer`.
    #[arg(long, value_name = "FILE")]
    positive: PathBuf,
    /// Prompts that lack it.
    #[arg(long, value_name = "FILE")]
    negative: PathBuf,
    /// Prompts to check it on; without them every fourth of the others is held out.
    #[arg(long, value_name = "FILE", requires = "held_out_negative")]
    held_out_positive: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "held_out_positive")]
    held_out_negative: Option<PathBuf>,
    /// A residual site, such as 2.resid_in; may be given several times.
    #[arg(long = "site", value_name = "SITE", required = true)]
    sites: Vec<String>,
    /// difference_of_means or pca.
    #[arg(long)]
    method: Option<String>,
    /// The tokens that are read: last, all or answer.
    #[arg(long)]
    positions: Option<String>,
    /// What it is to make likelier after every held-out prompt, and what less likely.
    #[arg(long, num_args = 2, value_names = ["POSITIVE", "NEGATIVE"])]
    answers: Option<Vec<String>>,
    /// A share of the residual stream's norm that is added in the check; may be given several times.
    #[arg(long = "strength", value_name = "SHARE", allow_negative_numbers = true)]
    strengths: Vec<f64>,
    /// What random directions are drawn from.
    #[arg(long)]
    seed: Option<u64>,
    /// Register what is found under this name.
    #[arg(long, value_name = "NAME")]
    register: Option<String>,
    /// What is said of it.
    #[arg(long, requires = "register")]
    description: Option<String>,
    /// What the server answers, as JSON, with the vectors.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ImportArguments {
    file: PathBuf,
    /// A dense model of the server.
    #[arg(long, value_name = "ID")]
    model: String,
    /// What it is to be called; without this, what the file is, without its ending and in small letters.
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// What is said of it.
    #[arg(long)]
    description: Option<String>,
    /// Added to the file's numbers of blocks; -1 for files of llama.cpp's own generator.
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    layer_offset: Option<i64>,
    /// Only the file's directions from A to B, both included.
    #[arg(long, value_name = "A:B")]
    layers: Option<String>,
}

#[derive(Debug, Args)]
struct ExportArguments {
    /// The direction's name.
    id: String,
    /// The file to write.
    file: PathBuf,
    /// Its model, where several have a direction of this name.
    #[arg(long, value_name = "ID")]
    model: Option<String>,
}

impl FeaturesCommand {
    pub fn run(self) -> anyhow::Result<()> {
        let server = self.server.server()?;
        match self.what {
            What::Direction(arguments) => direction(&server, *arguments),
            What::Discover(arguments) => arguments.run(&server),
            What::Import(arguments) => import(&server, arguments),
            What::Export(arguments) => export(&server, &arguments),
        }
    }
}

fn direction(server: &Server, arguments: DirectionArguments) -> anyhow::Result<()> {
    let mut body = json!({
        "model": arguments.model,
        "positive": read_prompts(&arguments.positive)?,
        "negative": read_prompts(&arguments.negative)?,
        "sites": arguments.sites,
    });
    if let (Some(positive), Some(negative)) =
        (&arguments.held_out_positive, &arguments.held_out_negative)
    {
        body["held_out"] = json!({
            "positive": read_prompts(positive)?, "negative": read_prompts(negative)?
        });
    }
    if let Some([positive, negative]) = arguments.answers.as_deref() {
        body["answers"] = json!({"positive": positive, "negative": negative});
    }
    if let Some(id) = arguments.register {
        let description = arguments.description.unwrap_or_default();
        body["register"] = json!({"id": id, "description": description});
    }
    let strengths = Some(arguments.strengths).filter(|strengths| !strengths.is_empty());
    for (field, value) in [
        ("method", arguments.method.map(Value::from)),
        ("positions", arguments.positions.map(Value::from)),
        ("strengths", strengths.map(Value::from)),
        ("seed", arguments.seed.map(Value::from)),
    ] {
        if let Some(value) = value {
            body[field] = value;
        }
    }
    let asked = address(&server.url, ["v1", "features", "direction"]);
    let request = server
        .client
        .post(asked)
        .timeout(SEARCH_PATIENCE)
        .json(&body);
    let answer: Value = server.ask(request)?;
    match arguments.json {
        true => say(&format!("{answer:#}"))?,
        false => {
            let found: FoundAnswer = serde_json::from_value(answer)?;
            say(&found.description())?;
        }
    }
    Ok(())
}

fn import(server: &Server, arguments: ImportArguments) -> anyhow::Result<()> {
    let bytes = atomic::read_small(&arguments.file, LARGEST_FILE)?;
    let id = match arguments.id {
        Some(id) => id,
        None => {
            let stem = arguments.file.file_stem().and_then(|stem| stem.to_str());
            stem.context("the file's name is no text; say with --id what it is to be called")?
                .to_lowercase()
        }
    };
    let mut asked = address(&server.url, ["v1", "features", "control_vector"]);
    let offset = arguments.layer_offset.map(|offset| offset.to_string());
    for (name, value) in [
        ("model", Some(arguments.model)),
        ("id", Some(id)),
        ("description", arguments.description),
        ("layer_offset", offset),
        ("layers", arguments.layers),
    ] {
        if let Some(value) = value {
            asked.query_pairs_mut().append_pair(name, &value);
        }
    }
    let request = server.client.post(asked).timeout(SEARCH_PATIENCE);
    let request = request
        .header(CONTENT_TYPE, "application/octet-stream")
        .body(bytes);
    let made: ShownDirection = server.ask(request)?;
    Ok(say(&made.summary())?)
}

fn export(server: &Server, arguments: &ExportArguments) -> anyhow::Result<()> {
    let parts = ["v1", "features", &arguments.id, "control_vector"];
    let mut asked = address(&server.url, parts);
    if let Some(model) = &arguments.model {
        asked.query_pairs_mut().append_pair("model", model);
    }
    let answer = server.send(server.client.get(asked))?;
    let bytes = answer.bytes().context("the connection broke")?;
    ensure!(bytes.starts_with(b"GGUF"), "the answer is no GGUF file");
    atomic::write(&arguments.file, &bytes)?;
    Ok(())
}
