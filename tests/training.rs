//! Training from the command line: small recipes from start to end, in a process of their own each time. Losses
//! fall, masks hold, a resumed training is the uninterrupted one, and what is wrong is said before anything is
//! written.

#[path = "training/bridge.rs"]
mod bridge;
#[path = "training/outcome.rs"]
mod outcome;
#[path = "training/refusals.rs"]
mod refusals;
#[path = "training/resume.rs"]
mod resume;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use causeway::corpus::{CorpusGenerator, Split};
use causeway::models::tokenizer::train_bpe;
use serde_json::Value;

const VOCABULARY: usize = 1000;
const STEPS: usize = 80;

/// A directory with everything a training reads; removed when dropped.
struct Workshop(PathBuf);

impl Workshop {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("causeway-training-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(path.join("python")).expect("a temporary directory");
        let workshop = Workshop(path);
        let texts: Vec<String> = (0..12).map(program).collect();
        for (index, text) in texts.iter().enumerate() {
            fs::write(workshop.0.join(format!("python/part_{index}.py")), text)
                .expect("a source file");
        }
        // Generated programs among the texts let the tokenizer keep the two sides of a task's pairs equally long.
        let generated =
            (0..400).map(|index| CorpusGenerator::starting_at(3, Split::Train, index).document());
        let tokenizer = train_bpe(texts.into_iter().chain(generated), VOCABULARY)
            .and_then(|tokenizer| tokenizer.to_json());
        fs::write(
            workshop.0.join("tokenizer.json"),
            tokenizer.expect("a tokenizer"),
        )
        .expect("a written tokenizer");
        workshop
    }

    /// The directory that trainings here write to.
    fn output(&self) -> PathBuf {
        self.0.join("output")
    }

    /// Trains by a recipe; the error's text if it fails.
    fn train(&self, kind: &str, recipe: &str, options: &[&str]) -> Result<(), String> {
        let path = self.0.join("recipe.toml");
        fs::write(&path, recipe).expect("a written recipe");
        let output = Command::new(env!("CARGO_BIN_EXE_causeway"))
            .args(["train", kind, "--recipe"])
            .arg(&path)
            .args(options)
            .env("RAYON_NUM_THREADS", "2")
            .output()
            .expect("the program runs");
        match output.status.code() {
            Some(0) => Ok(()),
            Some(1) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            other => panic!(
                "ended with {other:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }

    fn dense_recipe(&self) -> String {
        format!(
            r#"
tokenizer = "{root}/tokenizer.json"

[model]
n_layers = 2
d_model = 32
n_heads = 2
d_head = 16
d_mlp = 64
vocab_size = {VOCABULARY}
context_length = 48
norm = "layer"
bias = true
activation = "gelu"
positions = "added"

[[sources]]
kind = "generated"
documents = 60
seed = 3
weight = 0.4

[[sources]]
kind = "directory"
path = "{root}/python"
weight = 0.6
held_out_every = 3

[batches]
steps = {STEPS}
sequences = 8
length = 32
seed = 5

[optimizer]
learning_rate = 1e-2
warmup_steps = 5
final_fraction = 0.1

[output]
directory = "{root}/output"
checkpoint_every = 40
evaluate_every = 40
evaluation_sequences = 8
"#,
            root = self.0.display()
        )
    }

    fn sparse_recipe(&self) -> String {
        let model = "norm = \"rms\"\nbigram_table = true\nattention_sinks = true\nactive_fraction = 0.25\n\
             active_locations = [\"attn_in\", \"attn_q\", \"attn_k\", \"attn_v\", \"attn_out\", \"mlp_in\", \
             \"mlp_neuron\", \"mlp_out\"]";
        let sparsity = "\n[sparsity]\nkept_fraction = 0.15\nanneal_to = 0.6\nprotected = 2\n";
        self.dense_recipe().replace("norm = \"layer\"", model) + sparsity
    }

    /// Every line of `metrics.jsonl`.
    fn metrics(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.output().join("metrics.jsonl")).expect("metrics");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect()
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A small program with some variety and much repetition.
fn program(index: usize) -> String {
    let mut text = String::from("import sys\n\n");
    for part in 0..12 {
        let (name, other) = (
            ["total", "count", "names", "values"][(part + index) % 4],
            part * index % 7,
        );
        text += &format!(
            "def make_{name}_{part}(items, limit={other}):\n    {name} = []\n    for item in items:\n        \
             if item > {part}:\n            {name}.append(item * {other})\n    return {name}[:limit]\n\n\n"
        );
    }
    text + "if __name__ == \"__main__\":\n    print(make_total_0([1, 2, 3]), file=sys.stderr)\n"
}

/// Every file below a directory with its content; empty where there is none.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            let content = fs::read(&path).expect("a readable file");
            files.insert(path, content);
        }
    }
    files
}
