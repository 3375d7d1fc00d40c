//! The `steer` field as callers write it. Nothing here is resolved or checked beyond its types: see the plan.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::documented::documented;
use crate::features::group::{WeightedChannel, Write};
use crate::objects_only::objects_only;

/// Edits of sparse features, to be carried over to the dense model's answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SteerRequest {
    /// The bridge to carry edits over; left out, it is the model's `default_bridge`: the first that came into service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Made in the order of the forward pass, whatever their order here; at one place in the order of this list,
    /// each on the values that its predecessors left. A change inside a sublayer (`q`, `k`, `v`, `y`, `post_act`)
    /// goes on through the AbsTopKs behind it.
    #[serde(default)]
    #[schema(max_items = 64)]
    pub edits: Vec<EditRequest>,
    /// The arms to run, each once; each comes back as a choice of its own. Default: the steered one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 4, value_type = Option<BTreeSet<Variant>>)]
    pub variants: Option<Vec<Variant>>,
    /// What to tell beside the text.
    #[serde(default, rename = "return", skip_serializing_if = "Vec::is_empty")]
    pub returns: Vec<Return>,
}

documented! {
    /// One arm of a steered request.
    #[derive(
        Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
    )]
    #[serde(rename_all = "snake_case")]
    pub enum Variant {
        /// With the edits.
        Steered,
        /// Without them.
        Baseline,
        /// With a random direction of the same norm in place of each change, on the tokens that the edits touch. Each
        /// edit has one Gaussian direction for every prompt and every sample, the same at all tokens and strengths: 64
        /// prompts are 64 draws.
        Random,
        /// The same with another live channel's decoder column, drawn likewise for every edit, prompt and sample.
        RandomFeature,
    }
}

documented! {
    /// What can be told beside the text.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Return {
        /// What was done to each token.
        Receipt,
        /// The edited features' activations before and after.
        Activations,
    }
}

/// One change of one feature.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EditRequest {
    /// What is edited: a named feature, channels of the sparse model, or a direction of the dense one.
    pub feature: FeatureAddress,
    /// What is done to the feature's value.
    pub op: Operation,
    /// `add`, `set`, `scale`: the number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// `clamp`: the lower bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// `clamp`: the upper bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// `patch`: the counterfactual. `ablate`: `"zero"` (default) or `"mean"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Destination>,
    /// `swap`: another channel of the same node, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<usize>,
    /// The change is this times (target - value): a number in [-10, 10], default 1, or a list of them (a sweep;
    /// one list a request).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<Strength>,
    /// The unit of `value`, `min` and `max`; `raw` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
    /// Which tokens; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<At>,
    /// Conditions on features at the same token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<When>,
    /// Where the value comes from; `sparse` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<Read>,
    /// How the change enters the dense model; the feature's own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write: Option<Write>,
}

/// What is edited.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "a name, `NODE:CHANNEL`, or an object with `node` and `channel` or `channels`, `site` and `vector`, or \
                 `circuit`"
)]
pub enum FeatureAddress {
    /// A feature's id: the name of a registered one, or `NODE:CHANNEL` for one channel. The name of a direction of several
    /// sites stands for all of them, each with its own vector; where one value is needed it must have one site.
    Named(String),
    /// One channel of a node or residual site.
    Channel(ChannelAddress),
    /// Several channels of one node or site acting as one: the projection on their weights.
    Group(GroupAddress),
    /// A raw direction of the dense residual stream.
    Vector(VectorAddress),
    /// Nodes of a circuit, or those outside of it: every one of them is edited by itself. Where one value is needed it must
    /// be one node.
    Circuit(CircuitAddress),
}

/// One channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct ChannelAddress {
    /// The node's or site's name, such as `3.attn.act_in` or `2.resid_mid`.
    pub node: String,
    /// Counted from 0.
    pub channel: usize,
}

/// A weighted group of channels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct GroupAddress {
    /// The node's or site's name.
    pub node: String,
    /// The channels with their weights; the weights are scaled to unit length.
    #[schema(min_items = 1)]
    pub channels: Vec<WeightedChannel>,
}

/// A direction of the dense model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct VectorAddress {
    /// A residual site's name.
    pub site: String,
    /// One number a dense channel.
    #[schema(min_items = 1)]
    pub vector: Vec<f32>,
}

/// Nodes of a circuit of the answering model or, where that is a dense one, of the sparse model of its bridge. An operation
/// acts on each node alone: `add` adds `value` to every one, `scale` multiplies every one, and `ablate` to `mean` takes each
/// to its own mean. There is no `swap`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct CircuitAddress {
    /// The circuit's id.
    pub circuit: String,
    /// Only the nodes at this place, such as `2.mlp.post_act`; all places by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Only this channel of `node`, which must be a node of the circuit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<usize>,
    /// The nodes that are *not* in the circuit, instead of those that are: of the whole model, or of `node`. Not with
    /// `channel`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub complement: bool,
}

documented! {
    /// What is done to the feature's value.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Operation {
        /// Adds `value`.
        Add,
        /// Makes it `value`.
        Set,
        /// Keeps it between `min` and `max`.
        Clamp,
        /// Multiplies it by `value`.
        Scale,
        /// Takes each channel to zero, or to its mean over reference text.
        Ablate,
        /// Takes it from another prompt, or from a number.
        Patch,
        /// Exchanges it with the channel `with`: each takes the other's value.
        Swap,
    }
}

/// Where `patch` and `ablate` move the value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected \"zero\", \"mean\", or an object with `prompt` or `value`"
)]
pub enum Destination {
    /// `ablate`: where each channel moves.
    Ablation(AblateTo),
    /// `patch`: where the values come from.
    Counterfactual(Counterfactual),
}

documented! {
    /// Where `ablate` moves each channel.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum AblateTo {
        /// Zero.
        Zero,
        /// Its mean over reference text.
        Mean,
    }
}

/// Where `patch` takes its values from: `prompt` or `value`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Counterfactual {
    /// The prompt whose values are taken: one for all prompts, or one each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<CounterfactualPrompt>,
    /// A fixed value instead of a prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// `end` aligns prompts of different length at their ends; tokens without a partner stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub align: Option<Align>,
}

/// Text or token ids, one for all prompts or one each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected text, a list of texts, a list of token ids or a list of such lists"
)]
pub enum CounterfactualPrompt {
    /// One text for all prompts.
    Text(String),
    /// The token ids of one for all prompts.
    Tokens(Vec<u32>),
    /// A text for each prompt.
    Texts(Vec<String>),
    /// Token ids for each prompt.
    TokenLists(Vec<Vec<u32>>),
}

documented! {
    /// Which tokens of two prompts belong together.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Align {
        /// Token by token; the counts must agree.
        Start,
        /// From their ends.
        End,
    }
}

/// One strength or a sweep of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a number or a list of numbers")]
pub enum Strength {
    /// The same for all arms, from -10 to 10.
    One(f64),
    /// An arm for each, from -10 to 10.
    Sweep(Vec<f64>),
}

documented! {
    /// What the numbers of an edit are multiples of.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Unit {
        /// The activations themselves.
        Raw,
        /// The feature's standard deviation over reference text, of a direction at each site its own. What has no
        /// statistics yet, such as a group without a name, is measured over the text that the bridge came with, at its
        /// first use.
        Std,
        /// The feature's maximum over reference text, measured likewise.
        Max,
        /// `add` on a vector or a direction: the norm of the residual at that token.
        Residual,
    }
}

/// Which input tokens an edit touches. The first generated token is predicted at the last prompt position;
/// `generation: [0]` is that token fed back. `{"text": "hello"}` alone names the tokens of the prompt that a text
/// overlaps, and no generated ones.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct At {
    /// Tokens of the prompt, counted from 0 or, if negative, from its end; all by default. Not with `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<TokenPositions>,
    /// Generated tokens that are fed back, counted from 0; all by default, none with `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<TokenPositions>,
    /// A text of the prompt: all tokens that overlap it are touched. It must occur in every prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1)]
    pub text: Option<String>,
    /// Which occurrence of `text`: 1, the default, is the first one, -1 the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub occurrence: Option<i64>,
}

/// `"all"`, `"none"`, or a list of positions (negative: from the prompt's end), half-open ranges `[from, to]`, either
/// end `null` for open, and texts of the prompt, `{"text": "hello"}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected \"all\", \"none\", or a list of positions, ranges and texts"
)]
pub enum TokenPositions {
    /// Every token, or none.
    Word(AllOrNone),
    /// Tokens, ranges of tokens and texts, in any order.
    List(Vec<PositionOrRange>),
}

documented! {
    /// Every token, or none.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum AllOrNone {
        /// Every token.
        All,
        /// No token.
        None,
    }
}

/// A token or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a whole number, two of them or nulls, or an object with `text`"
)]
pub enum PositionOrRange {
    /// One token.
    Position(i64),
    /// From the first up to, and without, the second.
    Range([Option<i64>; 2]),
    /// Those that a text of the prompt overlaps.
    Text(TextOfPrompt),
}

/// A text that a prompt holds. All tokens that overlap it are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct TextOfPrompt {
    /// As it stands in the prompt. It must occur in every prompt.
    #[schema(min_length = 1)]
    pub text: String,
    /// Which occurrence: 1, the default, is the first one, -1 the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub occurrence: Option<i64>,
}

/// Conditions on features at the same token. They see unedited values: those of the same tokens without any edit,
/// whatever is edited before the place that they look at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum When {
    /// Conditions that must all hold.
    All(Vec<Threshold>),
    /// Conditions of which one must hold.
    Any(Vec<Threshold>),
}

/// One condition: `gt`, `lt` or both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// The feature whose value is compared.
    pub feature: FeatureAddress,
    /// Holds where the value is above this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gt: Option<f64>,
    /// Holds where the value is below this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lt: Option<f64>,
}

documented! {
    /// Which sparse values an edit starts from.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Read {
        /// The unedited sparse model, run on the tokens this arm has really produced.
        Sparse,
        /// The encoder's output for the dense residual, as edited at earlier sites. Conditions of the edit are read
        /// through the encoder too, but without any edits.
        Encoder,
    }
}

impl SteerRequest {
    /// Whether any edit or condition speaks of a circuit.
    pub fn names_circuits(&self) -> bool {
        let of_edit = |edit: &EditRequest| {
            let thresholds = edit.when.iter().flat_map(|when| match when {
                When::All(thresholds) | When::Any(thresholds) => thresholds,
            });
            edit.feature.is_circuit()
                || thresholds.into_iter().any(|test| test.feature.is_circuit())
        };
        self.edits.iter().any(of_edit)
    }
}

impl FeatureAddress {
    /// Whether it speaks of nodes of a circuit.
    pub fn is_circuit(&self) -> bool {
        matches!(self, FeatureAddress::Circuit(_))
    }
}

objects_only!(
    ChannelAddress,
    GroupAddress,
    VectorAddress,
    CircuitAddress,
    Counterfactual,
    TextOfPrompt
);
