//! `causeway circuits`: circuits in files, for people and for other programs.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use crate::circuits::circuit::Circuit;
use crate::circuits::directory::{self, CIRCUIT_FILE, CIRCUITS_FOLDER};
use crate::circuits::drawing::{dot::dot, svg::svg, table::table, text::text};
use crate::pruning::finding::RESULT;

/// Show circuits.
#[derive(Debug, Args)]
pub struct CircuitsArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// One circuit: what it does beside its controls, then its nodes and what each reads.
    Show(ShowArguments),
    /// Many circuits as a Markdown table, and what they come to together.
    Table(TableArguments),
}

#[derive(Debug, Args)]
struct TableArguments {
    /// A pair with circuits, or the output of a pruning of several tasks.
    path: PathBuf,
    /// The same of another model: for each task how many times as many edges its circuit has.
    #[arg(long, value_name = "DIR")]
    beside: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ShowArguments {
    /// A circuit's file, its directory, a pruning's output, or a pair with one circuit.
    path: PathBuf,
    /// As a Graphviz graph.
    #[arg(long, group = "form")]
    dot: bool,
    /// As a picture.
    #[arg(long, group = "form")]
    svg: bool,
    /// The record itself.
    #[arg(long, group = "form")]
    json: bool,
}

impl CircuitsArguments {
    pub fn run(self) -> anyhow::Result<()> {
        match self.what {
            What::Show(arguments) => {
                print!("{}", arguments.shown()?);
                Ok(())
            }
            What::Table(arguments) => {
                let circuits = circuits_in(&arguments.path)?;
                let others = arguments.beside.as_deref().map(circuits_in).transpose()?;
                print!(
                    "{}",
                    table(&circuits, others.as_deref().unwrap_or_default())
                );
                Ok(())
            }
        }
    }
}

impl ShowArguments {
    fn shown(&self) -> anyhow::Result<String> {
        let circuit = directory::read_file(&file(&self.path)?)?;
        Ok(match (self.dot, self.svg, self.json) {
            (true, _, _) => dot(&circuit),
            (_, true, _) => svg(&circuit),
            (_, _, true) => json(&circuit)?,
            _ => text(&circuit),
        })
    }
}

fn json(circuit: &Circuit) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(circuit)? + "\n")
}

/// Every circuit of a pair or of a pruning of several tasks, by the names of their folders.
fn circuits_in(path: &Path) -> anyhow::Result<Vec<Circuit>> {
    let of_pair = path.join(CIRCUITS_FOLDER);
    let folder = if of_pair.is_dir() { &of_pair } else { path };
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    let files = folders.iter().flat_map(|folder| {
        let places = [
            folder.join(CIRCUIT_FILE),
            folder.join(RESULT).join(CIRCUIT_FILE),
        ];
        places.into_iter().find(|file| file.is_file())
    });
    let circuits = files.map(|file| directory::read_file(&file));
    let circuits = circuits.collect::<Result<Vec<_>, _>>()?;
    if circuits.is_empty() {
        bail!("{} has no circuits", path.display());
    }
    Ok(circuits)
}

/// The file of the circuit that is meant by `path`: itself, or in it, in a pruning's output, or in a pair with one circuit.
pub fn file(path: &Path) -> anyhow::Result<PathBuf> {
    let places = [
        path.to_owned(),
        path.join(CIRCUIT_FILE),
        path.join(RESULT).join(CIRCUIT_FILE),
    ];
    if let Some(file) = places.into_iter().find(|place| place.is_file()) {
        return Ok(file);
    }
    let of_pair = path.join(CIRCUITS_FOLDER);
    let folders = std::fs::read_dir(&of_pair).into_iter().flatten().flatten();
    let files = folders.map(|folder| folder.path().join(CIRCUIT_FILE));
    let mut files: Vec<PathBuf> = files.filter(|file| file.is_file()).collect();
    files.sort();
    match files.as_slice() {
        [] => bail!(
            "{} is no circuit: neither a file, nor a directory with {CIRCUIT_FILE} in it, in its {RESULT} or in its \
             {CIRCUITS_FOLDER}",
            path.display()
        ),
        [file] => Ok(file.clone()),
        files => {
            let names: Vec<String> = files
                .iter()
                .filter_map(|file| file.parent())
                .map(|folder| folder.display().to_string())
                .collect();
            bail!(
                "{} has several circuits; name one of {}",
                path.display(),
                names.join(", ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::atomic;

    fn put(folder: &Path) {
        atomic::create_directory(folder).expect("a folder");
        atomic::write(&folder.join(CIRCUIT_FILE), b"{}").expect("written");
    }

    #[test]
    fn a_circuit_is_found_where_it_may_be() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path();
        let problem = file(root).expect_err("a refusal").to_string();
        assert!(problem.contains(CIRCUIT_FILE), "{problem}");
        let one = root.join(CIRCUITS_FOLDER).join("one");
        put(&one);
        let expected = one.join(CIRCUIT_FILE);
        for path in [root, one.as_path(), expected.as_path()] {
            assert_eq!(file(path).expect("a file"), expected);
        }
        put(&root.join(CIRCUITS_FOLDER).join("two"));
        let problem = file(root).expect_err("a refusal").to_string();
        assert!(
            problem.contains("one") && problem.contains("two"),
            "{problem}"
        );
        put(&root.join(RESULT));
        let result = root.join(RESULT).join(CIRCUIT_FILE);
        assert_eq!(file(root).expect("a file"), result);
    }

    #[test]
    fn what_is_no_circuit_says_so() {
        let root = tempfile::tempdir().expect("a folder");
        put(root.path());
        let arguments = ShowArguments {
            path: root.path().to_owned(),
            dot: false,
            svg: false,
            json: false,
        };
        let problem = arguments.shown().expect_err("a refusal").to_string();
        assert!(problem.contains(CIRCUIT_FILE), "{problem}");
    }
}
