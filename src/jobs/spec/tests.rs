//! Prunings as a caller gives them, and the recipes they become.

use serde_json::{Value, json};

use super::*;

fn recipe_of(fields: Value, places: &Places) -> Result<Recipe, Fault> {
    let method = json!({"type": "prune", "prune": {"hyperparameters": fields}});
    let method: Method = serde_json::from_value(method).expect("a method");
    Recipe::of(&method, &"quotes".parse().expect("an id"), places)
}

fn within_pair() -> Places {
    Places {
        model_id: Some("small-sparse".parse().expect("an id")),
        ..Places::of_job(false, None).within_pair("sparse")
    }
}

fn fault(fields: Value, places: &Places) -> Fault {
    recipe_of(fields, places).expect_err("a refusal")
}

const FIELDS: &str = "method.prune.hyperparameters";

#[test]
fn a_pruning_takes_the_reference_text_of_its_models_pair() {
    let fields = json!({"task": "single_double_quote", "search": {"steps": 8, "seed": 3}, "checkpoint_every": 4});
    let recipe = recipe_of(fields, &within_pair()).expect("a recipe");
    assert_eq!((recipe.seed(), recipe.trained_tokens_a_step()), (3, 0));
    assert_eq!(recipe.command(), ["prune"]);
    assert_eq!(recipe.result_kind(), ResultKind::Circuit);
    let output: ArtifactId = "quotes".parse().expect("an id");
    assert_eq!(recipe.names(&output), ["quotes"]);
    let recipe = recipe.into_directory(Path::new("attempt"));
    let steps = recipe.steps();
    let Recipe::Prune(prune) = &recipe else {
        panic!("{recipe:?}");
    };
    assert_eq!(steps, prune.steps());
    assert_eq!(prune.model, Path::new("inputs/model/sparse"));
    let reference = Path::new("inputs/model/reference.safetensors");
    assert_eq!(prune.reference.as_deref(), Some(reference));
    assert!(prune.sources.is_empty() && prune.task_file.is_none());
    assert_eq!(prune.output.directory, Path::new("attempt"));
    assert_eq!(prune.output.checkpoint_every, 4);
    // What the process reads is what was checked.
    let text = recipe.to_toml().expect("TOML");
    let read: PruneRecipe = toml::from_str(&text).expect("a recipe");
    assert_eq!(&read, prune.as_ref());
}

#[test]
fn text_that_is_given_takes_the_references_place() {
    let places = Places::of_job(false, Some("text.jsonl"));
    let fields = json!({"task": "single_double_quote", "generated": {"documents": 5, "seed": 1, "weight": 2}});
    let Recipe::Prune(prune) = recipe_of(fields, &places).expect("a recipe") else {
        panic!("another recipe");
    };
    assert_eq!(prune.model, Path::new("inputs/model"));
    assert!(prune.reference.is_none());
    let names: Vec<&str> = prune.sources.iter().map(Source::name).collect();
    assert_eq!(names, ["real", "generated"]);
    let none = fault(
        json!({"task": "single_double_quote"}),
        &Places::of_job(false, None),
    );
    assert_eq!(none.field, "training_file");
}

#[test]
fn a_task_that_was_added_comes_as_a_file() {
    let places = within_pair().with_task();
    let recipe = recipe_of(json!({"task": "my-task"}), &places).expect("a recipe");
    let Recipe::Prune(prune) = recipe else {
        panic!("another recipe");
    };
    assert_eq!(prune.task, "my-task");
    let file = Path::new("inputs/task/pairs.jsonl");
    assert_eq!(prune.task_file.as_deref(), Some(file));
}

#[test]
fn faults_name_the_fields_of_the_request() {
    let wrong = |fields: Value| fault(fields, &within_pair()).field;
    let of = |field: &str| format!("{FIELDS}.{field}");
    let unknown = fault(json!({"task": "single_double_quot"}), &within_pair());
    assert_eq!(unknown.field, of("task"));
    assert!(unknown.problem.contains("single_double_quote"), "{unknown}");
    for (search, field) in [
        (json!({"steps": 0}), "search.steps"),
        (json!({"target_loss": 0}), "search.target_loss"),
        (json!({"learning_rates": []}), "search.learning_rates"),
        (
            json!({"batch_pairs": 64, "train_pairs": 32}),
            "search.batch_pairs",
        ),
    ] {
        let fields = json!({"task": "single_double_quote", "search": search});
        assert_eq!(wrong(fields), of(field));
    }
    let fields = json!({"task": "single_double_quote", "checkpoint_every": 0});
    assert_eq!(wrong(fields), of("checkpoint_every"));
}

#[test]
fn reference_text_must_fit_into_the_models_context() {
    let config = json!({
        "n_layers": 1, "d_model": 16, "n_heads": 1, "d_head": 16, "d_mlp": 32, "vocab_size": 64,
        "context_length": 64, "norm": "rms", "bias": true, "activation": "gelu", "positions": "added",
    });
    let places = Places {
        model_config: Some(serde_json::from_value(config).expect("a configuration")),
        ..within_pair()
    };
    let fields = |length: usize| json!({"task": "single_double_quote", "search": {"reference_length": length}});
    let refused = fault(fields(65), &places);
    assert_eq!(refused.field, format!("{FIELDS}.search.reference_length"));
    assert!(refused.problem.contains("64"), "{refused}");
    assert!(recipe_of(fields(64), &places).is_ok());
}

#[test]
fn fields_of_another_type_are_refused() {
    let method = json!({"type": "prune", "prune": {"hyperparameters": {"task": "single_double_quote"}},
    "dense": {"hyperparameters": {
        "generated": {"documents": 1, "seed": 1},
        "batches": {"steps": 1, "sequences": 1, "length": 2, "seed": 1},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0},
    }}});
    let method: Method = serde_json::from_value(method).expect("a method");
    let output = "quotes".parse().expect("an id");
    let fault = Recipe::of(&method, &output, &within_pair()).expect_err("a refusal");
    assert_eq!(fault.field, "method.dense");
    let missing: Method = serde_json::from_value(json!({"type": "prune"})).expect("a method");
    let fault = Recipe::of(&missing, &output, &within_pair()).expect_err("a refusal");
    assert_eq!(fault.field, "method.prune");
}
