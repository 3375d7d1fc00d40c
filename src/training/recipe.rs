//! Recipes: everything that decides a training's result, read from TOML.
//!
//! Unknown fields are refused, sizes are checked before anything is allocated. `configs/recipes` has the
//! recipes of the shipped pair.

pub mod checks;
mod fault;
mod reading;

use std::collections::HashMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::checks::Check;
pub use self::fault::Fault;
pub use self::reading::{LONGEST, read, written};
use crate::artifacts::ArtifactId;
use crate::models::config::TransformerConfig;
use crate::models::location::Site;
use crate::tasks::Task;

/// Where training text comes from. A batch draws its sequences from the sources in proportion to `weight`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// Programs of [`crate::corpus`].
    Generated {
        documents: usize,
        seed: u64,
        weight: f64,
    },
    /// `.py`, `.txt` and `.md` files below a directory, one document each, and `.jsonl` files with a `text` in
    /// each line.
    Directory {
        path: PathBuf,
        weight: f64,
        /// Every `held_out_every`-th file, by a hash of its path, is kept for evaluation.
        #[serde(default = "default_held_out")]
        held_out_every: u64,
    },
    /// One file: `.jsonl` with a `text` in each line, or plain text, which is cut into pieces of whole lines.
    File {
        path: PathBuf,
        weight: f64,
        /// One document of so many, and at least one, is kept for evaluation.
        #[serde(default = "default_held_out")]
        held_out_every: u64,
    },
}

/// Characters of a wrong name that an error repeats.
const LONGEST_SHOWN: usize = 60;

fn default_held_out() -> u64 {
    50
}

impl Source {
    pub fn weight(&self) -> f64 {
        match self {
            Source::Generated { weight, .. }
            | Source::Directory { weight, .. }
            | Source::File { weight, .. } => *weight,
        }
    }

    /// The name of generated text.
    pub const GENERATED: &'static str = "generated";

    /// The name its held-out loss is reported under.
    pub fn name(&self) -> &'static str {
        match self {
            Source::Generated { .. } => Self::GENERATED,
            Source::Directory { .. } | Source::File { .. } => "real",
        }
    }
}

/// How batches are cut and how long training goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Batches {
    pub steps: usize,
    /// Sequences of text a step.
    pub sequences: usize,
    /// Tokens a sequence.
    pub length: usize,
    /// Of all random draws of the training: a new model's and a new bridge's first weights, which text a step's sequences
    /// are cut from, and which sites, channels and pairs its terms take. The same request with the same seed gives the
    /// same weights on the same kind of machine; which programs are generated says `generated.seed`.
    pub seed: u64,
}

/// AdamW and its schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// The peak learning rate.
    #[serde(alias = "rate")]
    pub learning_rate: f64,
    pub warmup_steps: usize,
    /// The rate at the last step as a fraction of the peak; the decay is linear.
    #[serde(default)]
    pub final_fraction: f64,
    #[serde(default = "default_beta1")]
    pub beta1: f64,
    #[serde(default = "default_beta2")]
    pub beta2: f64,
    #[serde(default = "default_epsilon")]
    pub epsilon: f64,
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
    #[serde(default)]
    pub clip: Clip,
}

fn default_beta1() -> f64 {
    0.9
}
fn default_beta2() -> f64 {
    0.95
}
fn default_epsilon() -> f64 {
    1e-8
}
fn default_weight_decay() -> f64 {
    0.1
}

/// What is done to a gradient that is too large, over all parameters together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
pub enum Clip {
    /// Scale the gradient so that its Euclidean norm is at most this.
    Norm { at: f64 },
    /// Scale the gradient so that its root mean square is at most this.
    Rms { at: f64 },
    /// Scale the gradient so that its root mean square is this, whatever it was.
    NormaliseRms { to: f64 },
}

impl Default for Clip {
    fn default() -> Self {
        Clip::Norm { at: 1.0 }
    }
}

/// How weights are made sparse while they are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Sparsity {
    /// The fraction of each matrix's weights that is nonzero in the end.
    pub kept_fraction: f64,
    /// Annealing starts and ends at these fractions of the training.
    #[serde(default)]
    pub anneal_from: f64,
    #[serde(default = "default_anneal_to")]
    pub anneal_to: f64,
    #[serde(default)]
    pub anneal: Anneal,
    /// Nonzeros protected per neuron and attention channel, in and out; 0 protects none.
    #[serde(default)]
    pub protected: usize,
    /// The rate grows by `1/sqrt(kept fraction)`, at most by this.
    #[serde(default = "default_rate_growth")]
    pub rate_growth_limit: f64,
    /// Scale the schedule so that its peak is the configured rate.
    #[serde(default)]
    pub normalise_rate: bool,
}

fn default_anneal_to() -> f64 {
    0.5
}
fn default_rate_growth() -> f64 {
    4.0
}

/// The shape of the kept fraction's way from 1 to its target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Anneal {
    #[default]
    Linear,
    Exponential,
}

/// What a run writes and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Metrics, checkpoints and the result; made where it does not exist.
    pub directory: PathBuf,
    /// Steps from one checkpoint to the next.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: usize,
    /// Minutes after which one is written all the same.
    #[serde(default = "default_checkpoint_minutes")]
    pub checkpoint_minutes: f64,
    #[serde(default = "default_evaluate_every")]
    pub evaluate_every: usize,
    /// Held-out sequences of each source in an evaluation.
    #[serde(default = "default_evaluation_sequences")]
    pub evaluation_sequences: usize,
    /// Tasks that the pair is steered on at the end of its training.
    #[serde(default)]
    pub tasks: Vec<Task>,
    /// Pairs of prompts of each: as many to choose channels on, and as many held-out ones.
    #[serde(default = "default_task_pairs")]
    pub task_pairs: usize,
}

fn default_checkpoint_minutes() -> f64 {
    10.0
}
fn default_task_pairs() -> usize {
    64
}
fn default_checkpoint_every() -> usize {
    200
}
fn default_evaluate_every() -> usize {
    200
}
fn default_evaluation_sequences() -> usize {
    16
}

/// A byte-pair tokenizer trained on samples of the sources.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerRecipe {
    pub vocab_size: usize,
    /// Documents taken from each source, in proportion to its weight.
    pub documents: usize,
    pub sources: Vec<Source>,
    /// The `tokenizer.json` to write.
    pub output: PathBuf,
}

/// A model trained alone: dense, or sparse where `sparsity` is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecipe {
    pub tokenizer: PathBuf,
    pub model: TransformerConfig,
    /// A model to go on from instead of random weights: of the same configuration, or with fewer channels, heads or
    /// neurons, which is then widened.
    #[serde(default)]
    pub start_from: Option<PathBuf>,
    pub sources: Vec<Source>,
    pub batches: Batches,
    pub optimizer: Optimizer,
    #[serde(default)]
    pub sparsity: Option<Sparsity>,
    pub output: Output,
}

/// A sparse model and the bridge to a given dense one, trained together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeRecipe {
    /// The bridge's id; the dense model is served under it, the sparse one under `ID-sparse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ArtifactId>,
    /// The dense model's directory, in any layout that can be served. It stays as it is.
    pub dense: PathBuf,
    pub sparse: TransformerConfig,
    /// A pair, or a sparse model alone, to start from instead of random weights; a sparse model alone may have fewer
    /// channels, heads or neurons, and is then widened.
    #[serde(default)]
    pub start_from: Option<PathBuf>,
    /// For each residual site of the sparse model, in order, the dense model's that it is joined to: ascending, each once.
    /// Left out, they are those of the pair to start from, or evenly spaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_map: Option<Vec<String>>,
    /// The share of channels that an encoder's AbsTopK keeps.
    #[serde(default = "default_encoder_fraction")]
    pub encoder_fraction: f64,
    pub sources: Vec<Source>,
    pub batches: Batches,
    pub optimizer: Optimizer,
    /// The bridge's peak rate; the sparse model's is the optimizer's.
    #[serde(alias = "bridge_rate")]
    pub bridge_learning_rate: f64,
    pub sparsity: Sparsity,
    pub terms: Terms,
    pub output: Output,
}

fn default_encoder_fraction() -> f64 {
    0.25
}

/// The terms of the bridge loss and their weights; a weight of zero leaves the term out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    pub cross_entropy: f32,
    /// KL(dense || sparse).
    pub distillation: f32,
    /// NMSE of the encoders, mean over the sites.
    pub encoder: f32,
    /// NMSE of the decoders, mean over the sites.
    pub decoder: f32,
    /// The encoder's error also moves the sparse model, as in the paper; it can then make itself trivially
    /// predictable.
    #[serde(default)]
    pub encoder_moves_sparse: bool,
    /// KL of the dense-to-sparse hybrids, mean over the sites.
    pub dense_to_sparse: f32,
    /// KL of the sparse-to-dense hybrids, mean over the sites.
    pub sparse_to_dense: f32,
    /// Which sites the hybrids take in one step.
    #[serde(default)]
    pub sites: SiteChoice,
    /// The hybrids run on this many of a batch's sequences; none takes all.
    #[serde(default)]
    pub hybrid_sequences: Option<usize>,
    #[serde(default)]
    pub twin: Option<Twin>,
}

/// All sites in every step, or one of each kind drawn: the same in the mean, far cheaper.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SiteChoice {
    #[default]
    Sampled,
    All,
}

/// The twin term: a few channels of a site change places between two sequences, once inside the sparse model
/// and once, decoded, inside the dense one; the outcomes must agree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Twin {
    /// Of the bridged part: the dense model follows what the exchange did in the sparse one. The gradient reaches
    /// the decoder and, through the swapped values, the sparse model.
    pub weight: f32,
    /// Of the native part: after the exchange the sparse model says what it says of the other sequence.
    #[serde(default)]
    pub native_weight: f32,
    /// Of the counterfactual part: after the exchange the dense model says what it says of the other sequence.
    #[serde(default)]
    pub counterfactual_weight: f32,
    /// Pairs of sequences a step made of the tasks' minimal pairs, added to the batch.
    pub task_pairs: usize,
    /// The share of those pairs that is real code, cut from the directories of `sources`, in which some strings
    /// have the other quote.
    #[serde(default)]
    pub quote_share: f64,
    /// Pairs of ordinary sequences of the batch; they know the bridged part only.
    #[serde(default)]
    pub text_pairs: usize,
    /// Up to this many channels change places.
    #[serde(default = "default_twin_channels")]
    pub channels: usize,
    /// Sites drawn in one step.
    #[serde(default = "default_twin_sites")]
    pub sites: usize,
    /// The sparse model's sites to draw from, such as `1.resid_mid`; where none is given, all but the first and the last.
    #[serde(default)]
    pub at: Vec<String>,
    /// How much more a token counts whose successor differs between the two sequences.
    #[serde(default = "default_decisive_weight")]
    pub decisive_weight: f32,
}

impl Twin {
    /// The sites to draw from, or what is wrong with `at`.
    pub fn sites(&self, n_layers: usize) -> Result<Vec<Site>, Fault> {
        if self.at.is_empty() {
            return Ok(Site::all(n_layers).skip(1).take(2 * n_layers - 1).collect());
        }
        let fault = |problem: String| Fault::new("terms.twin.at", problem);
        let known: HashMap<String, Site> = Site::all(n_layers)
            .map(|site| (site.to_string(), site))
            .collect();
        if self.at.len() > known.len() {
            let (named, most) = (self.at.len(), known.len());
            return Err(fault(format!("names {named} sites; the model has {most}")));
        }
        let named = |name: &String| {
            known.get(name).copied().ok_or_else(|| {
                let name: String = name.chars().take(LONGEST_SHOWN).collect();
                let last = n_layers.saturating_sub(1);
                fault(format!(
                    "has {name:?}; the sites are 0.resid_in, 0.resid_mid and so on to {last}.resid_mid, and final_resid"
                ))
            })
        };
        self.at.iter().map(named).collect()
    }
}

fn default_twin_channels() -> usize {
    16
}
fn default_twin_sites() -> usize {
    1
}
fn default_decisive_weight() -> f32 {
    1.0
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::bridge::site_map::SiteMap;

    #[test]
    fn the_shipped_recipes_are_valid() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/recipes");
        for (folder, least) in [("tinypython", 4), ("smollm2", 2)] {
            let entries = std::fs::read_dir(root.join(folder)).expect("recipes");
            let paths = entries.map(|entry| entry.expect("an entry").path());
            let recipes = paths.filter(|path| path.extension().is_some_and(|ext| ext == "toml"));
            let mut count = 0;
            for path in recipes {
                let name = path
                    .file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned();
                let problem = if name.contains("tokenizer") {
                    read::<TokenizerRecipe>(&path).err()
                } else if name.contains("dense") {
                    read::<ModelRecipe>(&path).err()
                } else {
                    read::<BridgeRecipe>(&path).err()
                };
                assert!(problem.is_none(), "{problem:?}");
                count += 1;
            }
            assert!(count >= least, "{folder}: {count} recipes");
        }
    }

    #[test]
    fn the_shipped_map_to_a_deeper_model_is_the_even_one() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = root.join("configs/recipes/smollm2/2-bridge.toml");
        let recipe: BridgeRecipe = read(&path).expect("a recipe");
        let map = SiteMap::chosen(recipe.site_map.as_deref(), None, 30, recipe.sparse.n_layers);
        assert_eq!(map, SiteMap::spaced(30, 6));
    }

    #[test]
    fn sites_that_do_not_exist_are_named() {
        let twin = |at: &[&str]| Twin {
            weight: 1.0,
            native_weight: 0.0,
            counterfactual_weight: 0.0,
            task_pairs: 1,
            quote_share: 0.0,
            text_pairs: 0,
            channels: 4,
            sites: 1,
            at: at.iter().map(|site| (*site).to_owned()).collect(),
            decisive_weight: 1.0,
        };
        let sites = twin(&["1.resid_mid", "1.resid_in"])
            .sites(2)
            .expect("sites");
        assert_eq!(
            sites,
            [Site::before_mlp(1, 2), Site::before_attention(1, 2)]
        );
        assert_eq!(twin(&[]).sites(2).expect("sites").len(), 3);
        let problem = twin(&["2.resid_mid"]).sites(2).expect_err("a refusal");
        assert!(
            problem.to_string().contains("2.resid_mid") && problem.problem.contains("1.resid_mid"),
            "{problem}"
        );
    }
}
