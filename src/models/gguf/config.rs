//! The configuration of a GGUF file's model: keys that begin with its architecture's name.

use std::collections::BTreeSet;

use super::metadata::Metadata;
use crate::models::config::{Activation, Norm, Positions, ResidualActivation, TransformerConfig};
use crate::models::families::names::{Names, StoredAt};
use crate::models::variant::{
    ModelVariant, NormPlacement, QkNorm, Rotary, RotaryPairs, RotaryScaling, Window,
};

/// The architectures that are read, as `general.architecture` calls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama and Mistral; their files pair neighbouring channels.
    Llama,
    Qwen2,
    Qwen3,
    Gemma2,
    Phi3,
    Olmo2,
    SmolLm3,
}

/// What a file's tensors say of its model beside its header.
#[derive(Debug, Default)]
pub struct FromTensors {
    /// Whether the unembedding is the embedding.
    pub tied: bool,
    /// Whether linear layers have biases.
    pub biases: bool,
    /// What `rope_freqs.weight` divides each pair's frequency by.
    pub factors: Option<Vec<f32>>,
    /// The same of `rope_factors_short.weight` up to a first context, of `rope_factors_long.weight` beyond.
    pub short_and_long: Option<(Vec<f32>, Vec<f32>)>,
}

const NAMES: [(&str, Architecture); 7] = [
    ("llama", Architecture::Llama),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("gemma2", Architecture::Gemma2),
    ("phi3", Architecture::Phi3),
    ("olmo2", Architecture::Olmo2),
    ("smollm3", Architecture::SmolLm3),
];

const ATTENTION: (&str, StoredAt) = (
    "attn.c_attn",
    StoredAt::Stacked(&["attn_q", "attn_k", "attn_v"]),
);
const PROJECTION: (&str, StoredAt) = ("attn.c_proj", StoredAt::One("attn_output"));
const Q_NORM: (&str, StoredAt) = ("attn.q_norm", StoredAt::One("attn_q_norm"));
const K_NORM: (&str, StoredAt) = ("attn.k_norm", StoredAt::One("attn_k_norm"));
const GATE: (&str, StoredAt) = ("mlp.c_gate", StoredAt::One("ffn_gate"));
const UP: (&str, StoredAt) = ("mlp.c_fc", StoredAt::One("ffn_up"));
const DOWN: (&str, StoredAt) = ("mlp.c_proj", StoredAt::One("ffn_down"));

const PLAIN: Names = Names {
    prefixes: &[],
    unembedding: "output.weight",
    embedding: "token_embd",
    final_norm: "output_norm",
    layers: "blk",
    layer: &[
        ("ln_1", StoredAt::One("attn_norm")),
        ("ln_2", StoredAt::One("ffn_norm")),
        ATTENTION,
        PROJECTION,
        Q_NORM,
        K_NORM,
        GATE,
        UP,
        DOWN,
    ],
    // Converters add the one that some families leave out.
    gains_less_one: false,
};
const NORMS_AFTER: Names = Names {
    layer: &[
        ("ln_1_after", StoredAt::One("post_attention_norm")),
        ("ln_2_after", StoredAt::One("post_ffw_norm")),
        ATTENTION,
        PROJECTION,
        Q_NORM,
        K_NORM,
        GATE,
        UP,
        DOWN,
    ],
    ..PLAIN
};
const NORMS_AROUND: Names = Names {
    layer: &[
        ("ln_1", StoredAt::One("attn_norm")),
        ("ln_1_after", StoredAt::One("post_attention_norm")),
        ("ln_2", StoredAt::One("ffn_norm")),
        ("ln_2_after", StoredAt::One("post_ffw_norm")),
        ATTENTION,
        PROJECTION,
        GATE,
        UP,
        DOWN,
    ],
    ..PLAIN
};
const PACKED: Names = Names {
    layer: &[
        ("ln_1", StoredAt::One("attn_norm")),
        ("ln_2", StoredAt::One("ffn_norm")),
        ("attn.c_attn", StoredAt::One("attn_qkv")),
        PROJECTION,
        ("mlp.c_gate", StoredAt::Half("ffn_up", 0)),
        ("mlp.c_fc", StoredAt::Half("ffn_up", 1)),
        DOWN,
    ],
    ..PLAIN
};

impl Architecture {
    pub fn of(metadata: &Metadata) -> Result<Self, String> {
        let name = metadata
            .text("general.architecture")?
            .ok_or("general.architecture is absent")?;
        let known = NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, architecture)| *architecture).ok_or_else(|| {
            let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            let name: String = name.chars().take(60).collect();
            format!(
                "general.architecture is {name:?}; {} are supported",
                known.join(", ")
            )
        })
    }

    fn name(self) -> &'static str {
        NAMES
            .iter()
            .find(|(_, architecture)| *architecture == self)
            .map_or("", |(name, _)| name)
    }

    /// Where the file has each tensor.
    pub fn names(self) -> &'static Names {
        match self {
            Architecture::Llama
            | Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::SmolLm3 => &PLAIN,
            Architecture::Olmo2 => &NORMS_AFTER,
            Architecture::Gemma2 => &NORMS_AROUND,
            Architecture::Phi3 => &PACKED,
        }
    }

    /// The model's configuration. `vocabulary` is the number of tokens in the file.
    pub fn config(
        self,
        metadata: &Metadata,
        vocabulary: Option<usize>,
        tensors: &FromTensors,
    ) -> Result<TransformerConfig, String> {
        let key = |name: &str| format!("{}.{name}", self.name());
        let size = |name: &str| metadata.size(&key(name));
        let needed = |name: &str| {
            size(name)?.ok_or_else(|| format!("{} is absent; it must be a whole number", key(name)))
        };
        let number = |name: &str| metadata.number(&key(name));
        let (d_model, n_heads) = (needed("embedding_length")?, needed("attention.head_count")?);
        let n_layers = needed("block_count")?;
        let context_length = needed("context_length")?;
        let d_head = match size("attention.key_length")? {
            Some(d_head) => d_head,
            None if n_heads > 0 && d_model.is_multiple_of(n_heads) => d_model / n_heads,
            None => {
                return Err(format!(
                    "{} does not divide {d_model}",
                    key("attention.head_count")
                ));
            }
        };
        if size("attention.value_length")?.is_some_and(|width| width != d_head) {
            let problem = "values of another width than keys are not supported";
            return Err(format!("{}: {problem}", key("attention.value_length")));
        }
        let layers = 0..n_layers.min(1024);
        let is_gemma = self == Architecture::Gemma2;
        // Early files of Gemma 2 leave out what all of its sizes have in common.
        let usual = |value| is_gemma.then_some(value);
        let window = size("attention.sliding_window")?.or(usual(4096));
        let window = window.filter(|&window| window > 0).map(|window| {
            let every_other = |layer: &usize| !is_gemma || layer.is_multiple_of(2);
            let layers: BTreeSet<usize> = layers.clone().filter(every_other).collect();
            (window, layers)
        });
        // Of its sizes, one scales by the width of the stream a head, and no key says so.
        let scaled_width = match n_layers {
            46 => d_model / n_heads.max(1),
            _ => d_head,
        };
        let single = |name: &str| -> Result<Option<f32>, String> {
            Ok(number(name)?.map(|number| number as f32))
        };
        let config = TransformerConfig {
            n_layers,
            d_model,
            n_heads,
            d_head,
            d_mlp: needed("feed_forward_length")?,
            vocab_size: match vocabulary {
                Some(vocabulary) => vocabulary,
                None => needed("vocab_size")?,
            },
            context_length,
            norm: Norm::Rms,
            bias: tensors.biases,
            activation: match is_gemma {
                true => Activation::GeluTanh,
                false => Activation::Silu,
            },
            residual_activation: ResidualActivation::Identity,
            positions: Positions::None,
            active_fraction: None,
            active_locations: Default::default(),
            tied_unembedding: tensors.tied,
            bigram_table: false,
            attention_sinks: false,
            variant: ModelVariant {
                n_kv_heads: size("attention.head_count_kv")?.filter(|count| *count != n_heads),
                norm_epsilon: single("attention.layer_norm_rms_epsilon")?.or(Some(1e-6)),
                norm_placement: match self {
                    Architecture::Olmo2 => NormPlacement::After,
                    Architecture::Gemma2 => NormPlacement::Both,
                    _ => NormPlacement::Before,
                },
                qk_norm: match self {
                    Architecture::Qwen3 => Some(QkNorm::PerHead),
                    Architecture::Olmo2 => Some(QkNorm::WholeWidth),
                    _ => None,
                },
                gated_mlp: true,
                parallel_sublayers: false,
                rotary: Some(Rotary {
                    base: number("rope.freq_base")?.unwrap_or(10_000.0),
                    channels: size("rope.dimension_count")?.unwrap_or(d_head),
                    pairs: match self {
                        Architecture::Llama | Architecture::SmolLm3 => RotaryPairs::Neighbours,
                        _ => RotaryPairs::Halves,
                    },
                    scaling: self.scaling(metadata, context_length, tensors)?,
                    layers_without: match self {
                        Architecture::SmolLm3 => layers
                            .filter(|layer| (layer + 1).is_multiple_of(4))
                            .collect(),
                        _ => BTreeSet::new(),
                    },
                }),
                attention_scale: is_gemma.then(|| (scaled_width as f32).powf(-0.5)),
                attention_soft_cap: single("attn_logit_softcapping")?.or(is_gemma.then_some(50.0)),
                logit_soft_cap: single("final_logit_softcapping")?.or(is_gemma.then_some(30.0)),
                window: window.map(|(size, layers)| Window { size, layers }),
                embedding_scale: is_gemma.then(|| (d_model as f64).sqrt() as f32),
            },
        };
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }

    fn scaling(
        self,
        metadata: &Metadata,
        context_length: usize,
        tensors: &FromTensors,
    ) -> Result<RotaryScaling, String> {
        let key = |name: &str| format!("{}.rope.scaling.{name}", self.name());
        let kind = metadata.text(&key("type"))?.unwrap_or("none");
        let factor = metadata.number(&key("factor"))?;
        let first_context = metadata.size(&key("original_context_length"))?;
        let first_context = first_context.unwrap_or(context_length);
        let double =
            |factors: &[f32]| -> Vec<f64> { factors.iter().copied().map(f64::from).collect() };
        if let Some((short, long)) = &tensors.short_and_long {
            let growth = context_length as f64 / first_context.max(1) as f64;
            let usual = match growth > 1.0 {
                true => (1.0 + growth.ln() / (first_context as f64).ln()).sqrt(),
                false => 1.0,
            };
            return Ok(RotaryScaling::Longrope {
                short: double(short),
                long: double(long),
                first_context,
                attention_factor: metadata.number(&key("attn_factor"))?.unwrap_or(usual),
            });
        }
        match (kind, factor, &tensors.factors) {
            (_, _, Some(factors)) => Ok(RotaryScaling::Listed {
                factors: double(factors),
            }),
            ("none", _, None) => Ok(RotaryScaling::None),
            ("linear", Some(factor), None) => Ok(RotaryScaling::Linear { factor }),
            ("yarn", Some(factor), None) => Ok(RotaryScaling::Yarn {
                factor,
                beta_fast: 32.0,
                beta_slow: 1.0,
                first_context,
                attention_factor: 0.1 * factor.ln() + 1.0,
                truncate: true,
            }),
            (kind, ..) => {
                let kind: String = kind.chars().take(60).collect();
                Err(format!(
                    "{} is {kind:?}; none, linear and yarn with a factor are supported",
                    key("type")
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::artifacts::gguf::HeaderValue;

    fn gemma2(layers: u32) -> TransformerConfig {
        let sizes = [
            ("embedding_length", 24),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("attention.key_length", 16),
            ("block_count", layers),
            ("context_length", 8192),
            ("feed_forward_length", 32),
        ];
        let header: HashMap<String, HeaderValue> = sizes
            .map(|(name, size)| (format!("gemma2.{name}"), HeaderValue::U32(size)))
            .into();
        let tied = FromTensors {
            tied: true,
            ..FromTensors::default()
        };
        let config = Architecture::Gemma2.config(&Metadata(&header), Some(48), &tied);
        config.expect("a configuration")
    }

    #[test]
    fn what_early_files_of_gemma_2_leave_out_is_known() {
        let family = gemma2(26).variant;
        assert_eq!(family.attention_soft_cap, Some(50.0));
        assert_eq!(family.logit_soft_cap, Some(30.0));
        let window = family.window.expect("a window");
        assert_eq!(window.size, 4096);
        assert_eq!(window.layers.len(), 13);
        assert!(window.layers.contains(&0) && !window.layers.contains(&1));
    }

    #[test]
    fn the_largest_gemma_2_scales_by_another_width() {
        assert_eq!(gemma2(42).variant.attention_scale, Some(0.25));
        assert_eq!(gemma2(46).variant.attention_scale, Some(6f32.powf(-0.5)));
    }
}
