//! `causeway eval`: what a pair can do, in figures for its card.

pub mod card;
pub mod features;
pub mod files;
pub mod losses;
pub mod quote;
pub mod steering;
pub mod tasks;

use clap::{Args, Subcommand};

/// Measurements of a pair.
#[derive(Debug, Args)]
pub struct EvalArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The dose-response curve of one feature on a task's held-out pairs.
    Steering(steering::SteeringArguments),
    /// The table of all tasks, natively and through the bridge.
    Tasks(tasks::TasksArguments),
    /// Held-out losses beside those of n-grams, and the bridge's fidelity at every site.
    Losses(losses::LossesArguments),
    /// Find a pair's features; writes `features.json` and `reference.safetensors` into its directory.
    Features(features::FeaturesArguments),
    /// Everything a pair's card tells: its features, and the figures in its README.md.
    Card(card::CardArguments),
    /// Run the features' own tests.
    Verify(features::VerifyArguments),
    /// Whether features do in the dense model what they do in the sparse one.
    Twin(features::TwinArguments),
    /// The quote feature on strings of real files and on prompts that have nothing to do with it.
    Quote(quote::QuoteArguments),
}

impl EvalArguments {
    pub fn run(self) -> anyhow::Result<()> {
        match self.what {
            What::Steering(arguments) => arguments.run(),
            What::Tasks(arguments) => arguments.run(),
            What::Losses(arguments) => arguments.run(),
            What::Features(arguments) => arguments.run(),
            What::Card(arguments) => arguments.run(),
            What::Verify(arguments) => arguments.run(),
            What::Twin(arguments) => arguments.run(),
            What::Quote(arguments) => arguments.run(),
        }
    }
}
