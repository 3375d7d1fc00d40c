//! `causeway eval steering`: a dose-response curve, printed and written as CSV, SVG and JSON.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};

use super::files::{find_feature, write_json};
use crate::artifacts::atomic;
use crate::cli::compute_on::ComputeOn;
use crate::corpus::Split;
use crate::discovery::patching::Patching;
use crate::evaluation::steering::{Dose, dose_response};
use crate::evaluation::task_pairs;
use crate::features::group::Write;
use crate::interventions::carry::is_sublayer_input;
use crate::models::location::Location;
use crate::tasks::Task;

#[derive(Debug, Args)]
pub struct SteeringArguments {
    #[arg(long)]
    pair: PathBuf,
    #[command(flatten)]
    on: ComputeOn,
    /// A feature of the pair's `features.json`.
    #[arg(long, conflicts_with = "place")]
    feature: Option<String>,
    /// A node or residual site, with `--channels`.
    #[arg(long, requires = "channels")]
    place: Option<String>,
    /// Channels of the place, at most 16.
    #[arg(long, value_delimiter = ',')]
    channels: Vec<usize>,
    /// How changes enter the dense model; the feature's own by default.
    #[arg(long)]
    write: Option<WriteName>,
    /// The feature's first task by default.
    #[arg(long)]
    task: Option<Task>,
    /// Held-out pairs.
    #[arg(long, default_value_t = 256)]
    pairs: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long)]
    csv: Option<PathBuf>,
    #[arg(long)]
    svg: Option<PathBuf>,
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum WriteName {
    Residual,
    Sublayer,
}

impl SteeringArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let models = self.on.pair(&self.pair)?;
        let write = self.write.map(|write| match write {
            WriteName::Residual => Write::Residual,
            WriteName::Sublayer => Write::Sublayer,
        });
        let (name, place, channels, write, task) = match (&self.feature, &self.place) {
            (Some(name), _) => {
                let feature = find_feature(&self.pair, name)?;
                let place = Location::parse(&feature.node, models.n_layers())?;
                let channels = feature
                    .channels
                    .iter()
                    .map(|member| member.channel)
                    .collect();
                let task = self.task.or_else(|| feature.tasks.first().copied());
                (
                    name.clone(),
                    place,
                    channels,
                    write.unwrap_or(feature.write),
                    task,
                )
            }
            (None, Some(place)) => {
                let place = Location::parse(place, models.n_layers())?;
                let default = match is_sublayer_input(place) {
                    true => Write::Sublayer,
                    false => Write::Residual,
                };
                let channels = self.channels.clone();
                (
                    place.to_string(),
                    place,
                    channels,
                    write.unwrap_or(default),
                    self.task,
                )
            }
            (None, None) => bail!("name a --feature, or a --place with its --channels"),
        };
        ensure!(
            (1..=16).contains(&channels.len()),
            "a group has 1 to 16 channels"
        );
        let task = task.context("name a --task: the feature has none of its own")?;
        let pairs = |split| task_pairs(&models, task, self.pairs, self.seed, split);
        let mut held_out = Patching::new(&models, pairs(Split::HeldOut)?, &[place])?;
        let train = Patching::new(&models, pairs(Split::Train)?, &[])?;
        let dose = Dose {
            place,
            channels,
            write,
            seed: self.seed,
        };
        let response = dose_response(&mut held_out, &train, &dose)?;
        println!("{name} at {place} ({write:?}) on {task}");
        print!("{}", response.to_text());
        if let Some(path) = &self.csv {
            atomic::write(path, response.to_csv().as_bytes())?;
        }
        if let Some(path) = &self.svg {
            let svg = response.plot(&format!("{name} on {task}")).to_svg();
            atomic::write(path, svg.as_bytes())?;
        }
        if let Some(path) = &self.json {
            write_json(path, &response)?;
        }
        Ok(())
    }
}
