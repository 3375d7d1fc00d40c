//! The record of a circuit: its nodes and edges with what each of them does, what the circuit does as a whole, and the
//! controls that say how much of it to believe.
//!
//! Losses are *task losses*: the mean over both prompts of a pair of the cross-entropy of the right answer among the two,
//! in nats; `ln 2` is chance. A node is *held* at its mean over reference text, or at zero, where it is not in a circuit.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::nodes::NodeSet;
use crate::artifacts::ArtifactId;
use crate::documented::documented;
use crate::models::location::{Location, LocationName, Node, UnknownLocation};

/// Circuits by the ids that requests name them by.
pub type NamedCircuits = BTreeMap<String, Arc<Circuit>>;

/// A circuit of one model for one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Circuit {
    pub id: ArtifactId,
    /// The id of the model that it is a part of.
    pub model: String,
    /// Of that model's configuration and weights: sha256 in hexadecimal.
    pub model_fingerprint: String,
    /// The task's name.
    pub task: String,
    /// What its figures say, in words: whether it does its task, and whether it beats its controls.
    pub summary: String,
    pub method: PruningMethod,
    pub figures: CircuitFigures,
    pub controls: CircuitControls,
    /// In the order of the pass.
    pub nodes: Vec<CircuitNode>,
    /// In the order of the pass.
    pub edges: Vec<CircuitEdge>,
    /// Task loss by the number of nodes kept, those of the largest mask parameters first: what the size was chosen on.
    pub sizes: Vec<LossAtSize>,
}

documented! {
    /// What a node outside of a circuit is held at.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Ablation {
        /// Its mean over reference text.
        Mean,
        /// Zero.
        Zero,
    }
}

/// How a circuit was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PruningMethod {
    pub ablation: Ablation,
    /// Whether every norm divided by what it divides by in the whole model.
    pub frozen_norms: bool,
    /// The task loss that a circuit must reach on the pairs that it is chosen on.
    pub target_loss: f64,
    /// Of the mask parameters, as the search chose it.
    pub learning_rate: f64,
    /// The loss of keeping a node, as the search chose it.
    pub node_penalty: f64,
    /// Steps of the training that the circuit is of.
    pub steps: usize,
    /// Pairs of a step.
    pub batch_pairs: usize,
    /// Pairs that the mask was trained on; those that its nodes and edges were chosen on, half of them of the held-out
    /// split; and those that its figures are measured on, all of them of that split and none used before.
    pub train_pairs: usize,
    #[serde(default)]
    pub trimming_pairs: usize,
    pub held_out_pairs: usize,
    pub seed: u64,
    /// Tokens of reference text that means were taken over.
    pub reference_tokens: usize,
    /// What its answers are multiplied by, and what is added to them: fitted to the pairs that it was chosen on.
    pub scale: f64,
    pub shift: f64,
}

/// What a circuit does, on held-out pairs unless said otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CircuitFigures {
    /// Nodes, and edges after those that the task does not need were taken away.
    pub nodes: usize,
    pub edges: usize,
    /// Nonzero weights between its nodes.
    pub edges_before_pruning: usize,
    /// Of the circuit alone, and the share of prompts that it answers rightly.
    pub task_loss: f64,
    pub accuracy: f64,
    /// On the pairs that it was chosen on.
    pub task_loss_train: f64,
    /// Of the circuit alone without scale and shift.
    pub task_loss_unscaled: f64,
    /// Of the whole model.
    pub task_loss_whole: f64,
    pub accuracy_whole: f64,
    /// Of the whole model without the circuit's nodes: how necessary they are.
    pub task_loss_without: f64,
    pub accuracy_without: f64,
    /// Whether the circuit reaches the target on the pairs that it was chosen on.
    pub reaches_target: bool,
}

/// What a circuit is compared with. A control that was not asked for is null.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CircuitControls {
    /// The same task with its answers exchanged in half of the pairs, drawn at random: there is nothing to be found.
    #[schema(required = true)]
    pub shuffled_labels: Option<ControlCircuit>,
    /// The same task in a model of the same shape, each tensor's numbers in a random order: what a mask alone can make of
    /// any network.
    #[schema(required = true)]
    pub random_model: Option<ControlCircuit>,
    /// The same task with norms that divide by what they divide by in the whole model.
    #[schema(required = true)]
    pub frozen_norms: Option<ControlCircuit>,
    /// In the whole model, the share of prompts, among those that it answers rightly, whose answer becomes the other
    /// prompt's when the circuit's nodes alone take their values from it; and the same with as many nodes drawn at random
    /// from the same places.
    #[schema(required = true)]
    pub interchange: Option<f64>,
    #[schema(required = true)]
    pub interchange_random_nodes: Option<f64>,
    /// Over nodes: the mean and the least correlation of a node's activations inside the circuit with those inside the
    /// whole model.
    #[schema(required = true)]
    pub mean_correlation: Option<f64>,
    #[schema(required = true)]
    pub least_correlation: Option<f64>,
    /// Whether the circuit reaches its target with fewer nodes than those on shuffled labels and in the random model.
    #[schema(required = true)]
    pub beats_controls: Option<bool>,
}

/// The circuit that the same search finds where there should be none, or by other rules.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlCircuit {
    /// Nodes, or all nodes that the search kept where the target was not reached.
    pub nodes: usize,
    /// Nonzero weights between them.
    pub edges: usize,
    /// On the pairs that it was found on.
    pub task_loss_train: f64,
    pub reaches_target: bool,
}

/// One node of a circuit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CircuitNode {
    #[schema(value_type = String)]
    pub node: LocationName,
    pub channel: usize,
    /// What it is held at outside of circuits.
    pub held_at: f32,
    /// How much the circuit's task loss rises when it is held too, and how much that of the whole model does, over the
    /// first 16 held-out pairs. Null in a circuit of too many nodes to take them away one by one.
    #[schema(required = true)]
    pub effect: Option<f64>,
    #[schema(required = true)]
    pub effect_in_whole_model: Option<f64>,
    /// Of its activations inside the circuit with those inside the whole model, over all tokens of the first 64
    /// held-out pairs; null where either never changes.
    #[schema(required = true)]
    pub correlation: Option<f64>,
    /// Inside the whole model, at the last token: the mean over presented and over counterfactual held-out prompts.
    pub presented: f32,
    pub counterfactual: f32,
    /// Inside the whole model over reference text.
    pub reference: ReferenceActivations,
    /// Inside the whole model on the prompts in [`Circuit`]'s examples: both sides of a few held-out pairs.
    pub examples: Vec<TokenActivations>,
}

/// A node over reference text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReferenceActivations {
    pub mean: f32,
    pub std: f32,
    pub min: f32,
    pub max: f32,
    /// The share of tokens at which it is not zero.
    pub density: f32,
}

/// A text with a node's activation at every token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenActivations {
    pub tokens: Vec<String>,
    /// One a token.
    pub values: Vec<f32>,
}

/// One edge of a circuit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CircuitEdge {
    pub from: NodeName,
    pub to: NodeName,
    /// The model's own weight.
    pub weight: f32,
    /// How much the circuit's task loss rises without it, its mean contribution left in place, over the first 16 held-out
    /// pairs. Null in a circuit of too many edges to take them away one by one.
    #[schema(required = true)]
    pub effect: Option<f64>,
}

/// A node by its place and channel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeName {
    #[schema(value_type = String)]
    pub node: LocationName,
    pub channel: usize,
}

/// A point of the curve of sizes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LossAtSize {
    pub nodes: usize,
    /// On the pairs that the circuit was chosen on, with scale and shift fitted to this size.
    pub task_loss: f64,
}

impl Circuit {
    /// Its nodes as a set, in a model of `n_layers` layers; an unknown place's name is the error.
    pub fn node_set(&self, n_layers: usize) -> Result<NodeSet, UnknownLocation> {
        self.node_places(n_layers).map(NodeSet::new)
    }

    /// Where its nodes are, in its own order, in a model of `n_layers` layers.
    pub fn node_places(&self, n_layers: usize) -> Result<Vec<(Node, usize)>, UnknownLocation> {
        let nodes = self.nodes.iter();
        let places = nodes.map(|node| Ok((inside(&node.node, n_layers)?, node.channel)));
        places.collect()
    }
}

/// The node location called `name`; a residual site is none.
fn inside(name: &LocationName, n_layers: usize) -> Result<Node, UnknownLocation> {
    match name.in_model(n_layers)? {
        Location::Node(node) => Ok(node),
        Location::Site(_) => Err(UnknownLocation {
            name: name.as_str().to_owned(),
            last_layer: n_layers.saturating_sub(1),
        }),
    }
}
