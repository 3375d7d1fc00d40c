//! `causeway prune` as a process: killed at random moments it finds the circuit that it would have found.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn recipe(directory: &Path) -> String {
    let pair = Path::new(env!("CARGO_MANIFEST_DIR")).join("bridges/tinypython");
    format!(
        r#"
        model = "{pair}/sparse"
        task = "while_return_true"
        reference = "{pair}/reference.safetensors"
        [search]
        train_pairs = 8
        held_out_pairs = 8
        batch_pairs = 4
        steps = 16
        learning_rates = [0.03, 0.1]
        node_penalties = [0.001]
        reference_sequences = 4
        reference_length = 64
        target_loss = 0.6
        [controls]
        random_model = false
        frozen_norms = false
        [output]
        directory = "{directory}"
        checkpoint_every = 3
        "#,
        pair = pair.display(),
        directory = directory.display(),
    )
}

fn prune(recipe: &Path, resume: bool) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_causeway"));
    command.arg("prune").arg("--recipe").arg(recipe);
    if resume {
        command.arg("--resume");
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
fn a_pruning_that_is_killed_again_and_again_finds_the_same_circuit() {
    let folder = tempfile::tempdir().expect("a folder");
    let circuit_of = |name: &str, kills: usize| -> String {
        let directory = folder.path().join(name);
        std::fs::create_dir_all(&directory).expect("a folder");
        let path = folder.path().join(format!("{name}.toml"));
        std::fs::write(&path, recipe(&directory)).expect("a recipe");
        let mut rng = SmallRng::seed_from_u64(7);
        let steps = || {
            let metrics = std::fs::read_to_string(directory.join("metrics.jsonl"));
            metrics.unwrap_or_default().lines().count()
        };
        for _ in 0..kills {
            let mut child = prune(&path, true).spawn().expect("a process");
            // Once it is at work, a moment that nobody chose.
            let before = steps();
            while steps() <= before && child.try_wait().expect("a status").is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(Duration::from_millis(rng.random_range(0..1500)));
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
        if kills > 0 {
            // One that is told to end does so after a checkpoint, and says so.
            let mut child = prune(&path, true).spawn().expect("a process");
            let before = steps();
            while steps() <= before && child.try_wait().expect("a status").is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
            if child.try_wait().expect("a status").is_none() {
                let told = Command::new("kill").arg(child.id().to_string()).status();
                assert!(told.expect("a process").success());
                let ended = child.wait().expect("ended").code();
                assert!(matches!(ended, Some(75 | 0)), "{ended:?}");
            }
        }
        let status = prune(&path, true).status().expect("a process");
        assert!(status.success(), "{name}: {status}");
        std::fs::read_to_string(directory.join("circuit/circuit.json")).expect("a circuit")
    };
    let (undisturbed, killed) = (circuit_of("undisturbed", 0), circuit_of("killed", 5));
    assert_eq!(undisturbed, killed);
    assert!(undisturbed.contains("\"task\":\"while_return_true\""));
}

#[test]
fn what_cannot_be_pruned_is_refused_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |from: &str, to: &str| -> String {
        let path = folder.path().join("recipe.toml");
        let text = recipe(&folder.path().join("out"));
        assert!(text.contains(from));
        std::fs::write(&path, text.replace(from, to)).expect("a recipe");
        let output = prune(&path, false).stderr(Stdio::piped()).output();
        let output = output.expect("a process");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for (from, to, told) in [
        ("while_return_true", "while_return_tru", "while_return_true"),
        ("target_loss = 0.6", "target_loss = 0", "search.target_loss"),
        ("batch_pairs = 4", "batch_pairs = 9", "8 training pairs"),
        ("steps = 16", "steps = 0", "search.steps"),
        ("steps = 16", "stepps = 16", "stepps"),
        ("/sparse\"", "/sparser\"", "sparser"),
    ] {
        let found = refused(from, to);
        assert!(found.contains(told), "expected {told:?} in: {found}");
    }
}
