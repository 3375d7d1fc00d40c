//! What a transformer is made of, read from its `config.json`.
//!
//! One configuration describes both kinds of model Causeway joins: the weight-sparse transformer and the
//! GPT-2-like dense one differ only in these fields and in how their linear layers store their weights.
//! The fields follow the released sparse checkpoints; [`super::released`] and [`super::gpt2`] translate the
//! configurations of other forms.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use super::config_error::ConfigError;
use super::variant::ModelVariant;

/// The shape and the switches of one transformer. Widths are in channels, the context in tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    pub n_layers: usize,
    pub d_model: usize,
    pub n_heads: usize,
    pub d_head: usize,
    pub d_mlp: usize,
    pub vocab_size: usize,
    /// The longest sequence, in tokens.
    pub context_length: usize,
    pub norm: Norm,
    /// Linear layers carry a bias (the unembedding never does; see `final_logits_bias`).
    pub bias: bool,
    pub activation: Activation,
    /// Applied to the residual stream after each sublayer has been added.
    #[serde(default)]
    pub residual_activation: ResidualActivation,
    pub positions: Positions,
    /// The fraction of entries an AbsTopK keeps at each of `active_locations`; none keeps all.
    #[serde(default)]
    pub active_fraction: Option<f64>,
    #[serde(default)]
    pub active_locations: BTreeSet<ActiveLocation>,
    /// The unembedding is the embedding matrix.
    #[serde(default)]
    pub tied_unembedding: bool,
    /// A dense `[vocab, vocab]` table whose row for the current token is added to the logits.
    #[serde(default)]
    pub bigram_table: bool,
    /// One learned logit per head that enters only the softmax's denominator.
    #[serde(default)]
    pub attention_sinks: bool,
    /// What Llama-like and other dense models have beyond GPT-2. Models are read with it; jobs train none that need it.
    #[serde(
        default,
        rename = "family",
        skip_serializing_if = "ModelVariant::is_plain"
    )]
    #[schema(ignore)]
    pub variant: ModelVariant,
}

/// How the residual stream is normalised before each sublayer reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// `x / rms(x) * gain`: a zero stays a zero.
    Rms,
    /// `(x - mean) / std * gain + bias`.
    Layer,
    /// A LayerNorm without its bias.
    LayerNoBias,
}

impl Norm {
    /// Added to the mean square (or the variance) before the root; the values of the released code.
    pub fn epsilon(self) -> f32 {
        match self {
            Norm::Rms => f32::EPSILON,
            Norm::Layer | Norm::LayerNoBias => 1e-5,
        }
    }
}

/// The MLP's nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * Phi(x)` with the exact error function.
    Gelu,
    /// The tanh approximation that GPT-2 was trained with.
    GeluTanh,
    Relu,
    /// `x / (1 + exp(-x))`.
    Silu,
}

/// What happens to the residual stream after a sublayer's output has been added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResidualActivation {
    #[default]
    Identity,
    Relu,
}

/// Where positions enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// The model sees order only through the causal mask.
    None,
    /// A learned embedding added to the residual stream, `[context, d_model]`.
    Added,
    /// Read-only positional channels joined to every sublayer's input, `[context, channels]`.
    Concatenated { channels: usize },
}

/// The places where the released checkpoints may apply an AbsTopK, by the names they use.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ActiveLocation {
    AttnIn,
    AttnQ,
    AttnK,
    AttnV,
    AttnOut,
    ResidPostAttn,
    MlpIn,
    MlpNeuron,
    MlpOut,
    ResidPostMlp,
}

impl ActiveLocation {
    /// Every location with the name used in `afrac_loctypes`.
    pub const NAMES: [(&'static str, ActiveLocation); 10] = [
        ("attn_in", ActiveLocation::AttnIn),
        ("attn_q", ActiveLocation::AttnQ),
        ("attn_k", ActiveLocation::AttnK),
        ("attn_v", ActiveLocation::AttnV),
        ("attn_out", ActiveLocation::AttnOut),
        ("resid_post_attn", ActiveLocation::ResidPostAttn),
        ("mlp_in", ActiveLocation::MlpIn),
        ("mlp_neuron", ActiveLocation::MlpNeuron),
        ("mlp_out", ActiveLocation::MlpOut),
        ("resid_post_mlp", ActiveLocation::ResidPostMlp),
    ];
}

/// No field may exceed this; a larger one is a damaged file, not a model. Products of any two of them, times a
/// few, are far from the integers' limit.
const LARGEST_SIZE: usize = 1 << 24;
/// Several times what the deepest models have; names are made for every layer.
const MOST_LAYERS: usize = 1024;

impl TransformerConfig {
    /// The width of what a sublayer reads: `d_model`, plus the positional channels where there are any.
    pub fn d_read(&self) -> usize {
        match self.positions {
            Positions::Concatenated { channels } => self.d_model.saturating_add(channels),
            _ => self.d_model,
        }
    }

    /// `n_heads * d_head`, the width of q, k, v and of the attention's output before `c_proj`.
    pub fn d_attention(&self) -> usize {
        self.n_heads.saturating_mul(self.d_head)
    }

    /// Heads of keys and values.
    pub fn n_kv_heads(&self) -> usize {
        self.variant.n_kv_heads.unwrap_or(self.n_heads)
    }

    /// `n_kv_heads * d_head`, the width of k and of v.
    pub fn d_key_value(&self) -> usize {
        self.n_kv_heads().saturating_mul(self.d_head)
    }

    /// What every norm adds before its root.
    pub fn norm_epsilon(&self) -> f32 {
        let own = self.variant.norm_epsilon;
        own.unwrap_or_else(|| self.norm.epsilon())
    }

    /// Residual sites: one before each sublayer and the last layer's output.
    pub fn n_sites(&self) -> usize {
        2 * self.n_layers + 1
    }

    /// `k` of the AbsTopK at `location` for a last dimension of `width`; none means "keep all".
    pub fn active_count(&self, location: ActiveLocation, width: usize) -> Option<usize> {
        let fraction = self.active_fraction?;
        self.active_locations
            .contains(&location)
            .then(|| (fraction * width as f64).floor() as usize)
    }

    /// Checks that the sizes are usable before anything is allocated.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("n_layers", self.n_layers, MOST_LAYERS),
            ("d_model", self.d_model, LARGEST_SIZE),
            ("n_heads", self.n_heads, LARGEST_SIZE),
            ("d_head", self.d_head, LARGEST_SIZE),
            ("d_mlp", self.d_mlp, LARGEST_SIZE),
            ("vocab_size", self.vocab_size, LARGEST_SIZE),
            ("context_length", self.context_length, LARGEST_SIZE),
        ];
        for (field, size, largest) in sizes {
            if size == 0 || size > largest {
                let problem = format!("is {size}; it must be between 1 and {largest}");
                return Err(ConfigError { field, problem });
            }
        }
        if self.d_attention() > LARGEST_SIZE {
            let problem = format!(
                "is {} and d_head {}; their product must be at most {LARGEST_SIZE}",
                self.n_heads, self.d_head
            );
            return Err(ConfigError {
                field: "n_heads",
                problem,
            });
        }
        if let Positions::Concatenated { channels } = self.positions
            && (channels == 0 || channels > LARGEST_SIZE)
        {
            let problem =
                format!("has {channels} channels; it must have between 1 and {LARGEST_SIZE}");
            return Err(ConfigError {
                field: "positions",
                problem,
            });
        }
        self.variant
            .validate(self.n_layers, self.n_heads, self.d_head)?;
        if let Some(fraction) = self.active_fraction
            && !(fraction > 0.0 && fraction <= 1.0)
        {
            let problem = format!("is {fraction}; it must be above 0 and at most 1");
            return Err(ConfigError {
                field: "active_fraction",
                problem,
            });
        }
        Ok(())
    }
}
