//! `causeway eval tasks`: the table of all tasks.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use super::files::write_outputs;
use crate::cli::compute_on::ComputeOn;
use crate::discovery::contrast::ContrastOptions;
use crate::evaluation::report;
use crate::evaluation::task_table::{RouteFigures, TableOptions, TaskRow, task_row};
use crate::features::pair::Pair;
use crate::tasks::Task;

#[derive(Debug, Args)]
pub struct TableArguments {
    /// Only these tasks.
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<Task>,
    /// Held-out pairs that figures are measured on.
    #[arg(long, default_value_t = 128)]
    pairs: usize,
    /// Training pairs that groups are selected on.
    #[arg(long, default_value_t = 64)]
    train_pairs: usize,
    /// Places searched in earnest for each way in.
    #[arg(long, default_value_t = 3)]
    refined: usize,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

#[derive(Debug, Args)]
pub struct TasksArguments {
    #[arg(long)]
    pair: PathBuf,
    #[command(flatten)]
    on: ComputeOn,
    #[command(flatten)]
    table: TableArguments,
    /// Files to write: the table where the name ends in `.md`, every figure where it ends in `.json`.
    #[arg(long)]
    output: Vec<PathBuf>,
}

impl TableArguments {
    /// Rows of the tasks asked for, with a line of progress each. A task that cannot be measured is left out
    /// with a warning.
    pub fn rows(&self, models: &Pair) -> Vec<TaskRow> {
        let options = TableOptions {
            train_pairs: self.train_pairs,
            held_out_pairs: self.pairs,
            refined: self.refined,
            by_layer: true,
            seed: self.seed,
            contrast: ContrastOptions::default(),
        };
        let tasks = match self.tasks.is_empty() {
            true => Task::ALL.to_vec(),
            false => self.tasks.clone(),
        };
        let mut rows = Vec::new();
        for task in tasks {
            let started = Instant::now();
            match task_row(models, task, &options) {
                Ok(row) => {
                    let channels = |figures: Option<&RouteFigures>| {
                        figures.map(|figures| {
                            (figures.place.as_str().to_owned(), figures.channels_to_flip)
                        })
                    };
                    tracing::info!(
                        task = task.name(),
                        dense = row.dense_accuracy,
                        sparse = row.sparse_accuracy,
                        native = ?channels(row.native.as_ref()),
                        residual = ?channels(row.residual.as_ref()),
                        sublayer = ?channels(row.sublayer.as_ref()),
                        seconds = started.elapsed().as_secs(),
                        "measured"
                    );
                    rows.push(row);
                }
                Err(error) => tracing::warn!(task = task.name(), "left out: {error}"),
            }
        }
        rows
    }
}

impl TasksArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let models = self.on.pair(&self.pair)?;
        let rows = self.table.rows(&models);
        let table = report::task_table(&rows);
        print!("{table}");
        write_outputs(&self.output, &table, &rows)
    }
}
