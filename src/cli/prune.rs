//! `causeway prune`: the smallest circuit of a model for a task, by a recipe or by a few options that make one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::carrying_out::{CarryingOut, end_early};
use crate::artifacts::{ArtifactId, atomic};
use crate::bridge::pair::{is_pair, read_record};
use crate::circuits::circuit::Ablation;
use crate::circuits::directory::{self, CIRCUIT_FILE};
use crate::circuits::drawing::text::text;
use crate::features::reference::REFERENCE_FILE;
use crate::pruning::finding::{RESULT, prune};
use crate::pruning::recipe::{Controls, PruneOutput, PruneRecipe, Search};
use crate::tasks::Task;
use crate::training::recipe::{self, Check, LONGEST, Source};
use crate::training::run::{Cost, End, Mode};

/// Beside a result that was asked for without a recipe: the recipe that was made.
const RECIPE: &str = "recipe.toml";
/// What stands for every one of the twenty tasks.
const ALL: &str = "all";

/// Pruning by a recipe, or by options; a mask is trained for every node, and the fewest nodes that do the task are kept.
#[derive(Debug, Args)]
pub struct PruneArguments {
    /// The recipe, a TOML file. Everything that decides the result is in it.
    #[arg(long, required_unless_present_any = ["pair", "model"], conflicts_with = "short_form")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    short: ShortForm,
    #[command(flatten)]
    how: CarryingOut,
    /// Print circuits as JSON, a line each, instead of as text.
    #[arg(long)]
    json: bool,
}

/// What makes a recipe. What is left out is as in a recipe that leaves it out.
#[derive(Debug, Args)]
#[group(id = "short_form", multiple = true)]
struct ShortForm {
    /// The directory of a pair, one of whose models is pruned. Means are taken over its reference text.
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    pair: Option<PathBuf>,
    /// The directory of the model that is pruned.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Which model of the pair; the sparse one unless said.
    #[arg(long, requires = "pair", conflicts_with = "model")]
    side: Option<Side>,
    /// The task: one of the twenty, or the name of the one in the task file.
    #[arg(long, value_name = "NAME", required_unless_present_any = ["tasks", "recipe"])]
    task: Option<String>,
    /// Pairs of prompts, one a line as JSON, where the task is none of the twenty.
    #[arg(long, value_name = "FILE", requires = "task")]
    task_file: Option<PathBuf>,
    /// Several of the twenty, one after another, each into a folder of the output with its name; `all` for every one.
    #[arg(
        long,
        value_name = "A,B,C",
        value_delimiter = ',',
        conflicts_with_all = ["task", "task_file"]
    )]
    tasks: Vec<String>,
    /// Where metrics, checkpoints and the result go.
    #[arg(long, value_name = "DIR", required_unless_present = "recipe")]
    output: Option<PathBuf>,
    /// Another pair's reference text, of the same tokens.
    #[arg(long, value_name = "FILE")]
    reference: Option<PathBuf>,
    /// Text that means are taken over, plain or with a `text` in each line of a `.jsonl` file.
    #[arg(long, value_name = "FILE", conflicts_with = "reference")]
    text: Option<PathBuf>,
    /// Steps of the last round of the search.
    #[arg(long)]
    steps: Option<usize>,
    /// The task loss, in nats, that the circuit must reach.
    #[arg(long)]
    target_loss: Option<f64>,
    /// What nodes outside of the circuit are held at.
    #[arg(long)]
    ablation: Option<HeldAt>,
    /// Let norms divide by what they divide by in the whole model.
    #[arg(long)]
    frozen_norms: bool,
    /// Search for no controls: faster, but nothing says how much of the circuit to believe.
    #[arg(long)]
    no_controls: bool,
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    Sparse,
    Dense,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HeldAt {
    /// Their mean over reference text.
    Mean,
    Zero,
}

impl PruneArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let recipes = match &self.recipe {
            Some(path) => vec![recipe::read::<PruneRecipe>(path)?],
            None => self.short.recipes()?,
        };
        self.how.begin()?;
        let mode = self.how.mode();
        let several = recipes.len() > 1;
        let mut costs: BTreeMap<String, Cost> = BTreeMap::new();
        for recipe in recipes {
            let task = recipe.task.clone();
            let made_here = self.recipe.is_none();
            let end = carried_out(&recipe, mode, made_here);
            // The error of a pruning alone says by its type what this process exits with.
            let end = match several {
                true => end.with_context(|| format!("task {task}"))?,
                false => end?,
            };
            match end {
                End::Trained => self.show(&recipe)?,
                End::Early => end_early(),
                End::Measured(cost) => drop(costs.insert(task, cost)),
            }
        }
        let told = match (several, costs.values().next()) {
            (_, None) => return Ok(()),
            (true, _) => serde_json::to_string_pretty(&costs)?,
            (false, Some(cost)) => serde_json::to_string_pretty(cost)?,
        };
        println!("{told}");
        Ok(())
    }

    fn show(&self, recipe: &PruneRecipe) -> anyhow::Result<()> {
        let circuit = directory::read(&recipe.output.directory.join(RESULT))?;
        match self.json {
            true => println!("{}", serde_json::to_string(&circuit)?),
            false => print!("{}", text(&circuit)),
        }
        Ok(())
    }
}

/// Prunes by a recipe. One that was `made_here` is written down; where it was carried out to its end before, it is not
/// again when it is gone on with.
fn carried_out(recipe: &PruneRecipe, mode: Mode, made_here: bool) -> anyhow::Result<End> {
    if !made_here || mode == Mode::Measure {
        return Ok(prune(recipe, mode)?);
    }
    let directory = &recipe.output.directory;
    let (path, result) = (directory.join(RECIPE), directory.join(RESULT));
    let written = recipe::written(recipe).map_err(anyhow::Error::msg)?;
    let same = || {
        let before = atomic::read_small(&path, LONGEST);
        before.is_ok_and(|before| before == written.as_bytes())
    };
    if mode == Mode::Resume && result.join(CIRCUIT_FILE).is_file() && same() {
        return Ok(End::Trained);
    }
    atomic::create_directory(directory)?;
    atomic::write(&path, written.as_bytes())?;
    Ok(prune(recipe, mode)?)
}

/// A model's directory, what it is called, and the reference text that it came with.
struct Pruned {
    directory: PathBuf,
    id: Option<ArtifactId>,
    reference: Option<PathBuf>,
}

impl Pruned {
    /// A model of the pair in `pair`.
    fn half(pair: &Path, side: Side) -> anyhow::Result<Self> {
        let record = read_record(pair)?;
        let (folder, id) = match side {
            Side::Sparse => ("sparse", record.sparse),
            Side::Dense => ("dense", record.dense),
        };
        let reference = pair.join(REFERENCE_FILE);
        Ok(Pruned {
            directory: pair.join(folder),
            id: Some(id),
            reference: reference.is_file().then_some(reference),
        })
    }

    /// The model in `directory`, which may be in a pair's.
    fn model(directory: &Path) -> anyhow::Result<Self> {
        let side = match directory.file_name().and_then(|name| name.to_str()) {
            Some("sparse") => Some(Side::Sparse),
            Some("dense") => Some(Side::Dense),
            _ => None,
        };
        match (side, directory.parent()) {
            (Some(side), Some(pair)) if is_pair(pair) => Self::half(pair, side),
            _ => Ok(Pruned {
                directory: directory.to_owned(),
                id: None,
                reference: None,
            }),
        }
    }
}

impl ShortForm {
    /// A recipe for each task, checked.
    fn recipes(&self) -> anyhow::Result<Vec<PruneRecipe>> {
        let pruned = match (&self.pair, &self.model) {
            (Some(pair), _) => Pruned::half(pair, self.side.unwrap_or(Side::Sparse))?,
            (None, Some(model)) => Pruned::model(model)?,
            (None, None) => anyhow::bail!("name a pair or a model that is to be pruned"),
        };
        let output = self.output.clone().context("name an output directory")?;
        let tasks: Vec<(String, PathBuf)> = match &self.task {
            Some(task) => vec![(task.clone(), output)],
            None => {
                let tasks = several(&self.tasks)?.into_iter().map(Task::name);
                let place = |task: &str| (task.to_owned(), output.join(task));
                tasks.map(place).collect()
            }
        };
        let recipes = tasks.into_iter();
        let recipes = recipes.map(|(task, directory)| self.recipe(&pruned, task, directory));
        recipes.collect()
    }

    fn recipe(
        &self,
        pruned: &Pruned,
        task: String,
        directory: PathBuf,
    ) -> anyhow::Result<PruneRecipe> {
        if self.task_file.is_none() {
            task.parse::<Task>()?;
        }
        let sources = self.text.iter().map(|path| Source::File {
            path: path.clone(),
            weight: 1.0,
            held_out_every: 50,
        });
        let reference = self.reference.clone().or_else(|| pruned.reference.clone());
        let recipe = PruneRecipe {
            model: pruned.directory.clone(),
            model_id: pruned.id.clone(),
            id: None,
            task,
            task_file: self.task_file.clone(),
            reference: reference.filter(|_| self.text.is_none()),
            sources: sources.collect(),
            search: self.search(),
            controls: match self.no_controls {
                true => Controls {
                    shuffled_labels: false,
                    random_model: false,
                    frozen_norms: false,
                },
                false => Controls::default(),
            },
            output: PruneOutput {
                directory,
                checkpoint_every: 50,
            },
        };
        anyhow::ensure!(
            recipe.reference.is_some() || !recipe.sources.is_empty(),
            "{} came with no reference text; name a --reference or a --text that means are taken over",
            recipe.model.display()
        );
        recipe.check()?;
        Ok(recipe)
    }

    fn search(&self) -> Search {
        let default = Search::default();
        Search {
            ablation: match self.ablation {
                Some(HeldAt::Mean) => Ablation::Mean,
                Some(HeldAt::Zero) => Ablation::Zero,
                None => default.ablation,
            },
            frozen_norms: self.frozen_norms || default.frozen_norms,
            target_loss: self.target_loss.unwrap_or(default.target_loss),
            steps: self.steps.unwrap_or(default.steps),
            seed: self.seed.unwrap_or(default.seed),
            ..default
        }
    }
}

/// The tasks of these names, each once.
fn several(names: &[String]) -> anyhow::Result<Vec<Task>> {
    if names == [ALL] {
        return Ok(Task::ALL.to_vec());
    }
    let mut tasks = Vec::new();
    for name in names {
        let task = name.parse::<Task>()?;
        anyhow::ensure!(!tasks.contains(&task), "task {task} is named twice");
        tasks.push(task);
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        arguments: PruneArguments,
    }

    fn typed(line: &str) -> Result<PruneArguments, clap::Error> {
        let words = std::iter::once("prune").chain(line.split(' '));
        Typed::try_parse_from(words).map(|typed| typed.arguments)
    }

    fn shipped() -> String {
        format!("{}/bridges/tinypython", env!("CARGO_MANIFEST_DIR"))
    }

    fn recipes(line: &str) -> anyhow::Result<Vec<PruneRecipe>> {
        typed(line).expect("what can be typed").short.recipes()
    }

    #[test]
    fn options_make_a_recipe() {
        let pair = shipped();
        let options =
            "--steps 8 --target-loss 0.3 --ablation zero --frozen-norms --no-controls --seed 5";
        let line = format!("--pair {pair} --task single_double_quote --output out {options}");
        let made = recipes(&line).expect("recipes");
        let [recipe] = made.as_slice() else {
            panic!("{made:?}");
        };
        let pair = Path::new(&pair);
        assert_eq!(recipe.model, pair.join("sparse"));
        assert_eq!(recipe.reference, Some(pair.join(REFERENCE_FILE)));
        let record = read_record(pair).expect("a record");
        assert_eq!(recipe.model_id, Some(record.sparse));
        assert_eq!(recipe.output.directory, Path::new("out"));
        let search = &recipe.search;
        assert_eq!((search.steps, search.seed), (8, 5));
        assert_eq!((search.target_loss, search.ablation), (0.3, Ablation::Zero));
        assert!(search.frozen_norms && !recipe.controls.random_model);
        // A half's directory is as good as the pair's with the side.
        let half = pair.join("dense").display().to_string();
        let of_half = format!("--model {half} --task single_double_quote --output out");
        let of_side = format!(
            "--pair {} --side dense --task single_double_quote --output out",
            pair.display()
        );
        assert_eq!(
            recipes(&of_half).expect("a recipe"),
            recipes(&of_side).expect("a recipe")
        );
    }

    #[test]
    fn several_tasks_have_a_folder_each() {
        let line = |tasks: &str| format!("--pair {} --tasks {tasks} --output out", shipped());
        let made = recipes(&line("single_double_quote,bracket_brace")).expect("recipes");
        let places: Vec<&Path> = made
            .iter()
            .map(|recipe| recipe.output.directory.as_path())
            .collect();
        let expected = ["out/single_double_quote", "out/bracket_brace"].map(Path::new);
        assert_eq!(places, expected);
        assert_eq!(
            recipes(&line("all")).expect("recipes").len(),
            Task::ALL.len()
        );
        for (tasks, told) in [
            ("bracket_brac", "bracket_brace"),
            ("bracket_brace,bracket_brace", "twice"),
        ] {
            let problem = recipes(&line(tasks)).expect_err("a refusal").to_string();
            assert!(problem.contains(told), "{problem}");
        }
    }

    #[test]
    fn a_model_alone_needs_text() {
        let line = "--model somewhere --task bracket_brace --output out";
        let problem = recipes(line).expect_err("a refusal").to_string();
        assert!(problem.contains("--text"), "{problem}");
        let made = recipes(&format!("{line} --text code.jsonl")).expect("recipes");
        assert_eq!(made[0].sources.len(), 1);
        assert!(made[0].reference.is_none());
        let wrong = recipes(&format!("{line} --text code.jsonl --steps 0"));
        let problem = wrong.expect_err("a refusal").to_string();
        assert!(problem.contains("search.steps"), "{problem}");
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        assert!(typed("--recipe r.toml --resume --attended --nice 19").is_ok());
        for line in [
            "--recipe r.toml --pair p",
            "--recipe r.toml --steps 3",
            "--recipe r.toml --resume --export",
            "--pair p --model m --task t --output o",
            "--pair p --task t",
            "--pair p --output o",
            "--task t --output o",
            "--model m --side dense --task t --output o",
            "--pair p --task t --tasks a --output o",
            "--pair p --tasks a --task-file f --output o",
            "--pair p --task t --output o --reference r --text f",
        ] {
            assert!(typed(line).is_err(), "{line}");
        }
    }
}
