//! The `steer` field as callers write it. Nothing here is resolved or checked beyond its types: see the plan.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Edits of sparse features, to be carried over to the dense model's answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SteerRequest {
    /// The bridge to carry edits over; may be left out when the model has exactly one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    #[serde(default)]
    pub edits: Vec<EditRequest>,
    /// The arms to run; each comes back as a choice of its own. Default: the steered one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variants: Option<Vec<Variant>>,
    /// What to tell beside the text.
    #[serde(default, rename = "return", skip_serializing_if = "Vec::is_empty")]
    pub returns: Vec<Return>,
}

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
    /// With a random direction of the same norm in place of each change.
    Random,
    /// With another live channel's decoder column at the same norm.
    RandomFeature,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Return {
    /// What was done to each token.
    Receipt,
    /// The edited features' activations before and after.
    Activations,
}

/// One change of one feature.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EditRequest {
    pub feature: FeatureAddress,
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
    /// `swap`: another channel of the same node.
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
#[serde(untagged)]
pub enum FeatureAddress {
    /// A registered feature's name or id.
    Named(String),
    /// One channel of a node or residual site.
    Channel(ChannelAddress),
    /// Several channels of one node or site acting as one.
    Group(GroupAddress),
    /// A raw direction of the dense residual stream.
    Vector(VectorAddress),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChannelAddress {
    /// The node's or site's name, such as `3.attn.act_in` or `2.resid_mid`.
    pub node: String,
    pub channel: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupAddress {
    pub node: String,
    pub channels: Vec<WeightedChannel>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedChannel {
    pub channel: usize,
    pub weight: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VectorAddress {
    /// A residual site's name.
    pub site: String,
    /// One number a dense channel.
    pub vector: Vec<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    Add,
    Set,
    Clamp,
    Scale,
    Ablate,
    Patch,
    Swap,
}

/// Where `patch` and `ablate` move the value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Destination {
    Ablation(AblateTo),
    Counterfactual(Counterfactual),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AblateTo {
    Zero,
    Mean,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
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

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum CounterfactualPrompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Align {
    /// Token by token; the counts must agree.
    Start,
    End,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Strength {
    One(f64),
    Sweep(Vec<f64>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Raw,
    /// The feature's standard deviation over reference text.
    Std,
    /// The feature's maximum over reference text.
    Max,
    /// `add` on a vector: the norm of the residual at that token.
    Residual,
}

/// Which input tokens an edit touches. The first generated token is predicted at the last prompt position;
/// `generation: [0]` is that token fed back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct At {
    #[serde(default)]
    pub prompt: Positions,
    #[serde(default)]
    pub generation: Positions,
}

/// `"all"`, `"none"`, or a list of positions (negative: from the prompt's end) and half-open ranges
/// `[from, to]`, either end `null` for open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Positions {
    Word(AllOrNone),
    List(Vec<PositionOrRange>),
}

impl Default for Positions {
    fn default() -> Self {
        Positions::Word(AllOrNone::All)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AllOrNone {
    All,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum PositionOrRange {
    Position(i64),
    Range([Option<i64>; 2]),
}

/// Conditions on features at the same token, seeing unedited values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum When {
    All(Vec<Threshold>),
    Any(Vec<Threshold>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    pub feature: FeatureAddress,
    /// Holds where the value is above this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gt: Option<f64>,
    /// Holds where the value is below this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lt: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Read {
    /// The unedited sparse model, run on the tokens this arm has really produced.
    Sparse,
    /// The encoder's output for the dense residual, as edited at earlier sites.
    Encoder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Write {
    /// Into the dense input of the same sublayer, after its norm.
    Sublayer,
    /// Into the dense residual stream at the feature's site, reaching every later layer.
    Residual,
}
