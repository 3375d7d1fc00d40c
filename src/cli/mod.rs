//! The command line: what can be typed, and what each command does.

pub mod asking;
pub mod carrying_out;
pub mod circuits;
pub mod client;
mod compute_on;
pub mod convert;
pub mod corpus;
pub mod eval;
pub mod features;
pub mod jobs;
pub mod key;
pub mod manifest;
pub mod models;
pub mod openapi;
pub mod prune;
pub mod ready;
pub mod serve;
pub mod template;
pub mod train;
pub mod trial;
pub mod worker;

use clap::{Parser, Subcommand};

use crate::numerics::device::DeviceLost;
use crate::settings::TelemetrySettings;
use crate::telemetry::Telemetry;
use crate::training::exit::TrainingExit;

/// Edit named features of a weight-sparse model inside a dense one: serve, train, measure.
#[derive(Debug, Parser)]
#[command(name = "causeway", version)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show circuits: as text, as a picture, as a graph.
    Circuits(circuits::CircuitsArguments),
    /// Write a model in Causeway's own form.
    Convert(convert::ConvertArguments),
    /// Write generated Python programs, one JSON object with a `text` a line.
    Corpus(corpus::CorpusArguments),
    /// Measure a pair: steering curves, tasks, losses, features.
    Eval(eval::EvalArguments),
    /// Make, bring and take away directions of a running server's models.
    Features(features::FeaturesCommand),
    /// Look at, follow and steer the trainings of a running server.
    Jobs(jobs::JobsArguments),
    /// Make an API key.
    Key(key::KeyArguments),
    /// Write or check the hashes of a directory's files.
    Manifest(manifest::ManifestArguments),
    /// Bring models into the library that `serve` serves, list them, take them out.
    Models(models::ModelsArguments),
    /// Print the description of the HTTP API.
    Openapi,
    /// Find the smallest circuit of a model for a task.
    Prune(prune::PruneArguments),
    /// Succeed if a server is ready.
    Ready(ready::ReadyArguments),
    /// Serve models over HTTP.
    Serve(serve::ServeArguments),
    /// Train a tokenizer, a dense or sparse model, or a sparse model with its bridge to a dense one.
    Train(train::TrainArguments),
    /// Write out conversations by chat templates: what the server runs in a process of its own.
    #[command(hide = true)]
    Template(template::TemplateArguments),
    /// Let a directory's models answer one token.
    #[command(hide = true)]
    Trial(trial::TrialArguments),
    /// Carry out the trainings that a server was asked for.
    Worker(worker::WorkerArguments),
}

/// What a process exits with that has failed: a training's says why, and so does a server's whose device is lost.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<DeviceLost>() {
        return DeviceLost::EXIT_CODE;
    }
    TrainingExit::of_error(error.as_ref()).map_or(1, TrainingExit::code)
}

impl Arguments {
    /// Does what was asked.
    pub fn run(self) -> anyhow::Result<()> {
        // What a server logs, and where it sends traces, is in its settings.
        let _telemetry = match &self.command {
            Command::Serve(_) | Command::Worker(_) => None,
            _ => Some(Telemetry::start(&TelemetrySettings::default())?),
        };
        match self.command {
            Command::Circuits(arguments) => arguments.run(),
            Command::Convert(arguments) => arguments.run(),
            Command::Corpus(arguments) => arguments.run(),
            Command::Eval(arguments) => arguments.run(),
            Command::Features(arguments) => arguments.run(),
            Command::Jobs(arguments) => arguments.run(),
            Command::Key(arguments) => arguments.run(),
            Command::Manifest(arguments) => arguments.run(),
            Command::Models(arguments) => arguments.run(),
            Command::Openapi => openapi::run(),
            Command::Prune(arguments) => arguments.run(),
            Command::Ready(arguments) => arguments.run(),
            Command::Serve(arguments) => arguments.run(),
            Command::Train(arguments) => arguments.run(),
            Command::Template(arguments) => arguments.run(),
            Command::Trial(arguments) => arguments.run(),
            Command::Worker(arguments) => arguments.run(),
        }
    }
}
