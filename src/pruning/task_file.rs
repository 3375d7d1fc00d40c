//! The task that a recipe names: one of the twenty, or one whose pairs are in a file.

use super::recipe::PruneRecipe;
use crate::artifacts::atomic;
use crate::tasks::{AnyTask, LONGEST_TASK, Task, UserTask};
use crate::training::TrainingError;

/// Reads the task of a recipe.
pub fn read_task(recipe: &PruneRecipe) -> Result<AnyTask, TrainingError> {
    let Some(path) = &recipe.task_file else {
        let task = recipe.task.parse::<Task>();
        let told = |error| {
            TrainingError::Recipe(format!(
                "task: {error}; a task of your own needs a task_file"
            ))
        };
        return task.map(AnyTask::from).map_err(told);
    };
    let file = atomic::read_small(path, LONGEST_TASK as u64)?;
    let task = UserTask::parse(recipe.task.as_str(), "", &file);
    let told = |error| TrainingError::Recipe(format!("task_file: {}: {error}", path.display()));
    task.map(AnyTask::from).map_err(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Split;
    use crate::pruning::recipe::{Controls, PruneOutput, Search};

    fn recipe(task: &str) -> PruneRecipe {
        PruneRecipe {
            model: "model".into(),
            model_id: None,
            id: None,
            task: task.into(),
            task_file: None,
            reference: None,
            sources: Vec::new(),
            search: Search::default(),
            controls: Controls::default(),
            output: PruneOutput {
                directory: "out".into(),
                checkpoint_every: 1,
            },
        }
    }

    #[test]
    fn a_recipe_s_task_is_one_of_the_twenty_or_in_its_file() {
        let built_in = read_task(&recipe("with_open")).expect("a task");
        assert_eq!(
            (built_in.name(), built_in.pairs_of(Split::Train)),
            ("with_open", None)
        );
        let error = read_task(&recipe("with_opem"))
            .expect_err("no task")
            .to_string();
        assert!(
            error.contains("with_open") && error.contains("task_file"),
            "{error}"
        );

        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pairs.jsonl");
        let line = |number: usize| {
            format!(
                "{{\"presented\": {{\"prompt\": \"a{number}\", \"answer\": \"x\"}}, \
                 \"counterfactual\": {{\"prompt\": \"b{number}\", \"answer\": \"y\"}}}}\n"
            )
        };
        let lines: String = (0..60).map(line).collect();
        std::fs::write(&path, &lines).expect("a file");
        let own = PruneRecipe {
            task_file: Some(path.clone()),
            ..recipe("letters")
        };
        let task = read_task(&own).expect("a task");
        let pairs = [Split::Train, Split::HeldOut].map(|split| task.pairs_of(split));
        assert_eq!(pairs.into_iter().flatten().sum::<usize>(), 60);
        assert_eq!(task.name(), "letters");

        std::fs::write(&path, lines + "{}\n").expect("a file");
        let error = read_task(&own).expect_err("no pair").to_string();
        assert!(
            error.contains("pairs.jsonl: line 61: presented is missing"),
            "{error}"
        );
        std::fs::remove_file(&path).expect("removed");
        assert!(matches!(read_task(&own), Err(TrainingError::Artifact(_))));
    }
}
