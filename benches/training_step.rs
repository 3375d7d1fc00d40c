//! What a step of training costs: `cargo bench --bench training_step [-- OTHER]`.
//!
//! Steps of distillation and of a whole bridge, at 1 in 16 and 1 in 64 nonzero weights, on one thread and on two. For
//! each it prints tokens a second, the dense equivalent in GFLOP/s (the products of all weights, zeros included), and
//! the shares of a step's parts. `OTHER` is another build's `causeway`: both are measured in turns, and what is printed
//! beside is how many times faster this one is. `benches/peers/training_step.py` takes the same steps with PyTorch.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Turns of each build; the fastest of each counts.
const TURNS: usize = 3;
/// Sequences and tokens of a step's text.
const SEQUENCES: usize = 8;
const LENGTH: usize = 256;
/// The dense model of the shipped pair.
const DENSE: &str = "bridges/tinypython/dense";

/// A training that is measured.
struct Case {
    name: &'static str,
    is_bridge: bool,
    d_model: usize,
    d_mlp: usize,
    kept_fraction: f64,
    threads: usize,
}

const CASES: [Case; 5] = [
    Case {
        name: "distillation, 1 in 16, one thread",
        is_bridge: false,
        d_model: 384,
        d_mlp: 1024,
        kept_fraction: 0.0625,
        threads: 1,
    },
    Case {
        name: "distillation, 1 in 16, two threads",
        is_bridge: false,
        d_model: 384,
        d_mlp: 1024,
        kept_fraction: 0.0625,
        threads: 2,
    },
    Case {
        name: "bridge, 1 in 16, one thread",
        is_bridge: true,
        d_model: 384,
        d_mlp: 1024,
        kept_fraction: 0.0625,
        threads: 1,
    },
    Case {
        name: "bridge, 1 in 16, two threads",
        is_bridge: true,
        d_model: 384,
        d_mlp: 1024,
        kept_fraction: 0.0625,
        threads: 2,
    },
    Case {
        name: "distillation, 1 in 64, width 1024, one thread",
        is_bridge: false,
        d_model: 1024,
        d_mlp: 2048,
        kept_fraction: 1.0 / 64.0,
        threads: 1,
    },
];

impl Case {
    /// The field names of rates are those that earlier builds know too.
    fn recipe(&self, folder: &Path) -> String {
        let hybrids = if self.is_bridge { 1.0 } else { 0.0 };
        format!(
            r#"
dense = "{DENSE}"
bridge_rate = 1e-3
encoder_fraction = 0.25
[sparse]
n_layers = 4
d_model = {d_model}
n_heads = {heads}
d_head = 16
d_mlp = {d_mlp}
vocab_size = 2048
context_length = 256
norm = "rms"
bias = true
activation = "gelu"
positions = "added"
attention_sinks = true
active_fraction = 0.25
active_locations = [
    "attn_in", "attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out",
]
[[sources]]
kind = "generated"
documents = 100
weight = 1.0
seed = 1
[batches]
steps = 10
sequences = {SEQUENCES}
length = {LENGTH}
seed = 1
[optimizer]
rate = 1e-3
warmup_steps = 1
[sparsity]
kept_fraction = {kept}
anneal_to = 0.0
protected = 4
[terms]
cross_entropy = 1.0
distillation = 1.0
encoder = {hybrids}
decoder = {hybrids}
dense_to_sparse = {hybrids}
sparse_to_dense = {hybrids}
[output]
directory = {folder:?}
checkpoint_every = 1000
evaluate_every = 1000
evaluation_sequences = 1
"#,
            d_model = self.d_model,
            heads = self.d_model / 16,
            d_mlp = self.d_mlp,
            kept = self.kept_fraction,
            folder = folder.join("training"),
        )
    }

    /// What one step costs by a build.
    fn measure(&self, program: &Path, folder: &Path) -> Value {
        let recipe = folder.join("recipe.toml");
        std::fs::write(&recipe, self.recipe(folder)).expect("a recipe");
        let output = Command::new(program)
            .args(["train", "bridge", "--dry-run", "--recipe"])
            .arg(&recipe)
            .env("RAYON_NUM_THREADS", self.threads.to_string())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("a training");
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr))
        })
    }

    /// Multiplications and additions of a step of distillation, zeros included: two a weight and token forward, twice
    /// as many backward.
    fn operations(&self) -> f64 {
        let weights = 4 * (4 * self.d_model * self.d_model + 2 * self.d_model * self.d_mlp)
            + 2048 * self.d_model;
        6.0 * weights as f64 * (SEQUENCES * LENGTH) as f64
    }
}

fn main() {
    let given: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let own = Path::new(env!("CARGO_BIN_EXE_causeway"));
    let other = given.first().map(Path::new);
    let folder = tempfile::tempdir().expect("a folder");
    for case in &CASES {
        let (mut best, mut best_of_other) = (None::<Value>, f64::INFINITY);
        let seconds = |cost: &Value| cost["step_seconds"].as_f64().expect("seconds");
        for _ in 0..TURNS {
            if let Some(other) = other {
                best_of_other = best_of_other.min(seconds(&case.measure(other, folder.path())));
            }
            let cost = case.measure(own, folder.path());
            if best
                .as_ref()
                .is_none_or(|best| seconds(&cost) < seconds(best))
            {
                best = Some(cost);
            }
        }
        let Some(cost) = best else { continue };
        let taken = seconds(&cost);
        print!(
            "{}: {:.3} s a step, {:.0} tokens/s",
            case.name,
            taken,
            (SEQUENCES * LENGTH) as f64 / taken
        );
        if !case.is_bridge {
            print!(", {:.0} GFLOP/s", case.operations() / taken * 1e-9);
        }
        if best_of_other.is_finite() {
            print!(", {:.2} times the other's", best_of_other / taken);
        }
        println!();
        let mut rest = 1.0;
        for (part, share) in cost["parts"].as_object().into_iter().flatten() {
            let share = share.as_f64().unwrap_or(0.0);
            rest -= share;
            print!("  {part} {:.0}%", 100.0 * share);
        }
        println!("  other {:.0}%", 100.0 * rest);
    }
}
