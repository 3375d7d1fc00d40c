//! `causeway features discover`: a pair's features, found by way of the circuit of a task.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::circuits::circuit::Circuit;
use crate::circuits::directory::{self, CIRCUIT_FILE};
use crate::cli::asking::{Server, address, say};
use crate::cli::circuits::file;
use crate::cli::compute_on::ComputeOn;
use crate::corpus::Split;
use crate::evaluation::catalogue::{Measured, feature, name_of};
use crate::evaluation::circuit_groups::{CircuitGroup, circuit_groups, row_of};
use crate::evaluation::task_pairs;
use crate::features::pair::Pair;
use crate::features::reference::REFERENCE_FILE;
use crate::features::registry::Feature;
use crate::pruning::finding::{RESULT, prune};
use crate::pruning::recipe::{Controls, PruneOutput, PruneRecipe, Search};
use crate::tasks::Task;
use crate::training::run::{End, Mode};

/// Pairs that groups are chosen on.
const TRAIN_PAIRS: usize = 64;

/// What is looked for, and where.
#[derive(Debug, Args)]
pub struct DiscoverArguments {
    /// The directory of a pair.
    #[arg(long, value_name = "DIR")]
    pair: PathBuf,
    #[command(flatten)]
    on: ComputeOn,
    /// One of the twenty tasks.
    #[arg(long, value_name = "NAME")]
    task: Task,
    /// The circuit of the pair's sparse model: its file, its directory, or a pruning's output. Left out, the one that the pair came
    /// with; where it came with none for this task, one is looked for, into --output.
    #[arg(long, value_name = "DIR")]
    circuit: Option<PathBuf>,
    /// Where a pruning goes; what is there already is gone on with.
    #[arg(long, value_name = "DIR", conflicts_with = "circuit")]
    output: Option<PathBuf>,
    /// Held-out pairs that groups are measured on.
    #[arg(long, default_value_t = 128, value_name = "COUNT")]
    pairs: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Register the best group at the server under this name, with its tests. The server must serve this pair.
    #[arg(long, value_name = "NAME")]
    register: Option<String>,
    /// Everything that was measured, as JSON.
    #[arg(long)]
    json: bool,
}

impl DiscoverArguments {
    pub fn run(&self, server: &Server) -> anyhow::Result<()> {
        ensure!(self.pairs > 0, "--pairs is 0; it must be 1 or more");
        let models = self.on.pair(&self.pair)?;
        let circuit = self.find_circuit(&models)?;
        let nodes = circuit.node_set(models.n_layers())?;
        let pairs = |count, split| task_pairs(&models, self.task, count, self.seed, split);
        let held_out = pairs(self.pairs, Split::HeldOut)?;
        let train = pairs(TRAIN_PAIRS, Split::Train)?;
        let groups = circuit_groups(&models, &nodes, train, held_out.clone(), self.seed)?;
        match self.json {
            true => say(&serde_json::to_string_pretty(&groups)?)?,
            false => say(&table(&groups))?,
        }
        let Some(name) = &self.register else {
            return Ok(());
        };
        let passing = groups.iter().find(|group| group.figures.passes());
        let Some(best) = passing else {
            bail!(
                "no group flips half of the held-out pairs with both controls at most 5%: nothing is registered"
            )
        };
        let Some(text) = &models.reference.text else {
            bail!("the pair has no reference text to measure a feature over")
        };
        let measured = Measured {
            models: &models,
            reference: &text.tokens,
            length: text.length,
            seed: self.seed,
            whole: true,
        };
        let row = row_of(&models, self.task, &held_out)?;
        let found = feature(&measured, &row, name, &best.figures)?;
        let found = found.context("no test of the best group passes: nothing is registered")?;
        let request = server
            .client
            .post(address(&server.url, ["v1", "features"]))
            .json(&as_request(&models, &circuit, self.task, &found));
        let made: Value = server.ask(request)?;
        let id = made["id"].as_str().unwrap_or(name);
        let told = format!("registered {id} with {} tests", found.tests.len());
        // The table or the JSON is what others read.
        eprintln!("{told}");
        Ok(())
    }

    fn find_circuit(&self, models: &Pair) -> anyhow::Result<Circuit> {
        let name = self.task.to_string();
        let circuit = match (&self.circuit, self.own(models)) {
            (Some(path), _) => directory::read_file(&file(path)?)?,
            (None, Some(own)) => own,
            (None, None) => {
                let output = self.output.as_ref().with_context(|| {
                    format!("the pair came with no circuit for {name}; say with --output where one is looked for, or give one with --circuit")
                })?;
                self.pruned(models, output)?
            }
        };
        let sparse = models.record.sparse.as_str();
        ensure!(
            circuit.model == sparse,
            "the circuit is of {}, not of the pair's sparse model {sparse}",
            circuit.model
        );
        ensure!(
            circuit.task == name,
            "the circuit is of the task {}, not of {name}",
            circuit.task
        );
        Ok(circuit)
    }

    /// The pair's own circuit of the task.
    fn own(&self, models: &Pair) -> Option<Circuit> {
        let name = self.task.to_string();
        let sparse = models.record.sparse.as_str();
        let mut circuits = models.circuits.values();
        let own = circuits.find(|circuit| circuit.task == name && circuit.model == sparse);
        own.map(|circuit| circuit.as_ref().clone())
    }

    fn pruned(&self, models: &Pair, output: &Path) -> anyhow::Result<Circuit> {
        let result = output.join(RESULT);
        if !result.join(CIRCUIT_FILE).is_file() {
            let recipe = PruneRecipe {
                model: self.pair.join("sparse"),
                model_id: Some(models.record.sparse.clone()),
                id: None,
                task: self.task.to_string(),
                task_file: None,
                reference: Some(self.pair.join(REFERENCE_FILE)),
                sources: Vec::new(),
                search: Search::default(),
                controls: Controls::default(),
                output: PruneOutput {
                    directory: output.to_owned(),
                    checkpoint_every: 50,
                },
            };
            let end = prune(&recipe, Mode::Resume)?;
            ensure!(
                end == End::Trained,
                "the pruning was stopped; the same command goes on with it"
            );
        }
        Ok(directory::read(&result)?)
    }
}

/// A line a group.
fn table(groups: &[CircuitGroup]) -> String {
    let mut lines = vec![format!(
        "{:<22}{:<10}{:>8}{:>8}{:>8}{:>9}{:>7}{:>10}",
        "place", "write", "channels", "to flip", "flips", "random", "other", "twin"
    )];
    for CircuitGroup { figures, twin } in groups {
        let to_flip = figures.channels_to_flip;
        lines.push(format!(
            "{:<22}{:<10}{:>8}{:>8}{:>7.0}%{:>8.0}%{:>6.0}%{:>10}",
            figures.place.as_str(),
            figures.route.to_string(),
            figures.channels.len(),
            to_flip.map_or("-".to_owned(), |count| count.to_string()),
            100.0 * figures.flips_16,
            100.0 * figures.random,
            100.0 * figures.random_feature,
            twin.correlation
                .map_or("-".to_owned(), |value| format!("{value:.3}"))
        ));
    }
    if groups.is_empty() {
        return "no group of the circuit's nodes flips any pair of the dense model".to_owned();
    }
    lines.join("\n")
}

/// What `POST /v1/features` is sent.
fn as_request(models: &Pair, circuit: &Circuit, task: Task, found: &Feature) -> Value {
    let (_, meaning) = name_of(task);
    json!({
        "bridge": models.record.id,
        "name": found.name,
        "description": format!("{meaning} Nodes of the circuit {} for the task {task}.", circuit.id),
        "node": found.node,
        "channels": found.channels,
        "write": found.write,
        "tasks": [task],
        "tests": found.tests,
    })
}
