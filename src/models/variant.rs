//! What families of dense models have beyond GPT-2: fields of [`TransformerConfig`](super::config::TransformerConfig).
//!
//! A family is a choice of these, not a forward pass of its own. Every field's default is GPT-2's way, so a configuration
//! without any of them is what it was before they existed.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::config_error::ConfigError;

/// The switches of Llama-like and other dense models.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelVariant {
    /// Heads of keys and values, each shared by as many query heads; null: as many as query heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_kv_heads: Option<usize>,
    /// Added to the mean square (or the variance) before a norm's root; null: the norm's usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_epsilon: Option<f32>,
    /// Where the norms stand around a sublayer.
    #[serde(skip_serializing_if = "is_default")]
    pub norm_placement: NormPlacement,
    /// RMSNorm of the queries and keys before they are rotated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qk_norm: Option<QkNorm>,
    /// The MLP's neurons are `activation(gate) * up`.
    #[serde(skip_serializing_if = "is_default")]
    pub gated_mlp: bool,
    /// Attention and MLP of a layer read the same stream.
    #[serde(skip_serializing_if = "is_default")]
    pub parallel_sublayers: bool,
    /// Queries and keys are rotated by their positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotary: Option<Rotary>,
    /// Scores are multiplied by this; null: by `1 / sqrt(d_head)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_scale: Option<f32>,
    /// Scores become `cap * tanh(score / cap)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_soft_cap: Option<f32>,
    /// Logits become `cap * tanh(logit / cap)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_soft_cap: Option<f32>,
    /// Some layers see only the last tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Embeddings are multiplied by this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_scale: Option<f32>,
}

/// Where the norms stand around a sublayer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormPlacement {
    /// Before it: it reads a normalised stream.
    #[default]
    Before,
    /// After it: it reads the stream as it is, and what it adds is normalised (OLMo 2).
    After,
    /// Both (Gemma 2).
    Both,
}

/// What the norm of queries and keys runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// Each head by itself (Qwen 3).
    PerHead,
    /// All heads together (OLMo 2).
    WholeWidth,
}

/// Rotary positions: pairs of channels of each head are turned by an angle that grows with the position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotary {
    /// Pair `i` of `n` turns by `base^(-i/n)` a token.
    pub base: f64,
    /// Channels of each head that are turned, the first ones; an even number.
    pub channels: usize,
    #[serde(default, skip_serializing_if = "is_default")]
    pub pairs: RotaryPairs,
    #[serde(default, skip_serializing_if = "is_default")]
    pub scaling: RotaryScaling,
    /// Layers that are not rotated (SmolLM3).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub layers_without: BTreeSet<usize>,
}

/// Which channels are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RotaryPairs {
    /// Channel `i` with channel `i + n` of `2n`: the form of Hugging Face's checkpoints.
    #[default]
    Halves,
    /// Channel `2i` with `2i + 1`: the form of some GGUF files.
    Neighbours,
}

/// How angles are changed so that a model reads longer texts than it was first trained on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "kind")]
pub enum RotaryScaling {
    #[default]
    None,
    /// All angles divided by `factor`.
    Linear { factor: f64 },
    /// Slow pairs divided by `factor`, fast ones left, those between mixed (Llama 3.1).
    Llama3 {
        factor: f64,
        low_frequency_factor: f64,
        high_frequency_factor: f64,
        /// Tokens of the first training's context.
        first_context: usize,
    },
    /// The same by how often a pair turns within the first context; queries and keys grow by a factor too (YaRN).
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        first_context: usize,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
        /// Whether the bounds between fast and slow pairs are rounded to whole pairs.
        truncate: bool,
    },
    /// Every pair divided by a factor of its own: one list up to the first context, one beyond (Phi 3).
    Longrope {
        short: Vec<f64>,
        long: Vec<f64>,
        first_context: usize,
        attention_factor: f64,
    },
    /// Every pair divided by a factor of its own, as a GGUF file lists them.
    Listed { factors: Vec<f64> },
}

/// Attention to the last tokens only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Tokens seen, the token itself among them.
    pub size: usize,
    /// The layers that have it.
    pub layers: BTreeSet<usize>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl ModelVariant {
    /// Whether nothing of this is used: GPT-2's way.
    pub fn is_plain(&self) -> bool {
        is_default(self)
    }

    /// Checks the fields against each other and the sizes of the model.
    pub fn validate(
        &self,
        n_layers: usize,
        n_heads: usize,
        d_head: usize,
    ) -> Result<(), ConfigError> {
        let wrong = |field, problem: String| Err(ConfigError { field, problem });
        if let Some(kv) = self.n_kv_heads
            && (kv == 0 || kv > n_heads || !n_heads.is_multiple_of(kv))
        {
            return wrong(
                "n_kv_heads",
                format!("is {kv}; it must divide n_heads, {n_heads}"),
            );
        }
        let positive = [
            ("norm_epsilon", self.norm_epsilon, true),
            ("attention_scale", self.attention_scale, false),
            ("attention_soft_cap", self.attention_soft_cap, false),
            ("logit_soft_cap", self.logit_soft_cap, false),
            ("embedding_scale", self.embedding_scale, false),
        ];
        for (field, value, zero) in positive {
            if let Some(value) = value
                && !(value.is_finite() && (value > 0.0 || zero && value == 0.0))
            {
                return wrong(field, format!("is {value}; it must be above 0 and finite"));
            }
        }
        if let Some(window) = &self.window {
            if window.size == 0 {
                return wrong(
                    "window",
                    "has size 0; a token sees at least itself".to_owned(),
                );
            }
            if window.layers.last().is_some_and(|last| *last >= n_layers) {
                return wrong("window", format!("names a layer beyond the {n_layers}"));
            }
        }
        match &self.rotary {
            Some(rotary) => rotary.validate(n_layers, d_head),
            None => Ok(()),
        }
    }
}

impl Rotary {
    fn validate(&self, n_layers: usize, d_head: usize) -> Result<(), ConfigError> {
        let wrong = |problem: String| {
            Err(ConfigError {
                field: "rotary",
                problem,
            })
        };
        let channels = self.channels;
        if channels == 0 || channels > d_head || !channels.is_multiple_of(2) {
            return wrong(format!(
                "turns {channels} channels; it must be even, above 0 and at most d_head, {d_head}"
            ));
        }
        if !(self.base.is_finite() && self.base > 1.0) {
            return wrong(format!("has base {}; it must be above 1", self.base));
        }
        if self
            .layers_without
            .last()
            .is_some_and(|last| *last >= n_layers)
        {
            return wrong(format!("names a layer beyond the {n_layers}"));
        }
        let numbers: Vec<f64> = match &self.scaling {
            RotaryScaling::None => Vec::new(),
            RotaryScaling::Linear { factor } => vec![*factor],
            RotaryScaling::Llama3 {
                factor,
                low_frequency_factor,
                high_frequency_factor,
                first_context,
            } => {
                if low_frequency_factor >= high_frequency_factor {
                    return wrong(
                        "has a low frequency factor that is not below the high one".to_owned(),
                    );
                }
                vec![
                    *factor,
                    *low_frequency_factor,
                    *high_frequency_factor,
                    *first_context as f64,
                ]
            }
            RotaryScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                first_context,
                attention_factor,
                truncate: _,
            } => vec![
                *factor,
                *beta_fast,
                *beta_slow,
                *first_context as f64,
                *attention_factor,
            ],
            RotaryScaling::Longrope {
                short,
                long,
                first_context,
                attention_factor,
            } => {
                if short.len() != channels / 2 || long.len() != channels / 2 {
                    return wrong(format!(
                        "has lists of {} and {} factors for {} pairs",
                        short.len(),
                        long.len(),
                        channels / 2
                    ));
                }
                let lists = short.iter().chain(long).copied();
                lists
                    .chain([*first_context as f64, *attention_factor])
                    .collect()
            }
            RotaryScaling::Listed { factors } => {
                if factors.len() != channels / 2 {
                    return wrong(format!(
                        "lists {} factors for {} pairs",
                        factors.len(),
                        channels / 2
                    ));
                }
                factors.clone()
            }
        };
        match numbers
            .iter()
            .find(|number| !(number.is_finite() && **number > 0.0))
        {
            Some(number) => wrong(format!(
                "has a scaling of {number}; its numbers must be above 0 and finite"
            )),
            None => Ok(()),
        }
    }
}
