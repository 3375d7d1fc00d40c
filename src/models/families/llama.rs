//! Llama, and what most later families take over from it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::family::Family;
use super::names::{Names, StoredAt};
use super::rope;
use crate::models::config::{
    Activation, ConfigError, Norm, Positions, ResidualActivation, TransformerConfig,
};
use crate::models::fields::{Fields, wrong};
use crate::models::variant::{ModelVariant, Window};

pub const FAMILY: Family = Family {
    model_type: "llama",
    config,
    names: &NAMES,
};

/// The names of a Llama's tensors.
pub const NAMES: Names = Names {
    prefixes: &["model."],
    unembedding: "lm_head.weight",
    embedding: "embed_tokens",
    final_norm: "norm",
    layers: "layers",
    layer: &[
        ("ln_1", StoredAt::One("input_layernorm")),
        ("ln_2", StoredAt::One("post_attention_layernorm")),
        ATTENTION,
        PROJECTION,
        ("attn.q_norm", StoredAt::One("self_attn.q_norm")),
        ("attn.k_norm", StoredAt::One("self_attn.k_norm")),
        GATE,
        UP,
        DOWN,
    ],
    gains_less_one: false,
};

/// A line of a layer's names.
pub type Line = (&'static str, StoredAt);

pub const ATTENTION: Line = (
    "attn.c_attn",
    StoredAt::Stacked(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
);
pub const PROJECTION: Line = ("attn.c_proj", StoredAt::One("self_attn.o_proj"));
pub const GATE: Line = ("mlp.c_gate", StoredAt::One("mlp.gate_proj"));
pub const UP: Line = ("mlp.c_fc", StoredAt::One("mlp.up_proj"));
pub const DOWN: Line = ("mlp.c_proj", StoredAt::One("mlp.down_proj"));

fn config(fields: &Fields) -> Result<TransformerConfig, ConfigError> {
    let config = TransformerConfig {
        bias: fields.boolean("attention_bias", false)? || fields.boolean("mlp_bias", false)?,
        ..base(fields, Defaults::LLAMA)?
    };
    config.validate()?;
    Ok(config)
}

/// What a family takes where its file does not say.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    pub rope_base: f64,
    pub rotated_part: f64,
    pub norm_epsilon: f64,
    pub tied: bool,
}

impl Defaults {
    pub const LLAMA: Self = Defaults {
        rope_base: 10_000.0,
        rotated_part: 1.0,
        norm_epsilon: 1e-6,
        tied: false,
    };
}

/// A Llama's configuration, not yet checked.
pub fn base(fields: &Fields, defaults: Defaults) -> Result<TransformerConfig, ConfigError> {
    let d_model = fields.size("hidden_size")?;
    let n_heads = fields.size("num_attention_heads")?;
    let d_head = match fields.optional_size("head_dim")? {
        Some(d_head) => d_head,
        None if n_heads > 0 && d_model.is_multiple_of(n_heads) => d_model / n_heads,
        None => {
            let problem =
                format!("is {n_heads}; without head_dim it must divide hidden_size, {d_model}");
            return Err(wrong("num_attention_heads", problem));
        }
    };
    let context_length = fields.size("max_position_embeddings")?;
    let activation = fields.text("hidden_act", "silu")?;
    let epsilon = fields.optional_number("rms_norm_eps")?;
    let kv_heads = fields.optional_size("num_key_value_heads")?;
    let (base, part) = (defaults.rope_base, defaults.rotated_part);
    Ok(TransformerConfig {
        n_layers: fields.size("num_hidden_layers")?,
        d_model,
        n_heads,
        d_head,
        d_mlp: fields.size("intermediate_size")?,
        vocab_size: fields.size("vocab_size")?,
        context_length,
        norm: Norm::Rms,
        bias: false,
        activation: activation_called("hidden_act", activation)?,
        residual_activation: ResidualActivation::Identity,
        positions: Positions::None,
        active_fraction: None,
        active_locations: Default::default(),
        tied_unembedding: fields.boolean("tie_word_embeddings", defaults.tied)?,
        bigram_table: false,
        attention_sinks: false,
        variant: ModelVariant {
            n_kv_heads: kv_heads.filter(|count| *count != n_heads),
            norm_epsilon: Some(epsilon.unwrap_or(defaults.norm_epsilon) as f32),
            gated_mlp: true,
            rotary: Some(rope::rotary(fields, d_head, context_length, base, part)?),
            ..ModelVariant::default()
        },
    })
}

/// The nonlinearity of that name.
pub fn activation_called(field: &'static str, name: &str) -> Result<Activation, ConfigError> {
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::Gelu),
        "relu" => Ok(Activation::Relu),
        other => {
            let problem = format!(
                "is {other:?}; silu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast and relu are supported"
            );
            Err(wrong(field, problem))
        }
    }
}

/// The window of the layers that `layer_types` calls sliding, or, where there is no such list, of those that `otherwise`
/// names.
pub fn window(
    fields: &Fields,
    n_layers: usize,
    otherwise: impl Fn(usize) -> bool,
) -> Result<Option<Window>, ConfigError> {
    let Some(size) = fields.optional_size("sliding_window")? else {
        return Ok(None);
    };
    let layers: BTreeSet<usize> = match fields.list("layer_types")? {
        Some(types) => {
            let sliding = |kind: &Value| kind == "sliding_attention";
            if let Some(kind) = types
                .iter()
                .find(|kind| !sliding(kind) && *kind != "full_attention")
            {
                let problem =
                    format!("has {kind}; full_attention and sliding_attention are supported");
                return Err(wrong("layer_types", problem));
            }
            let numbered = types.iter().enumerate();
            numbered
                .filter(|(_, kind)| sliding(kind))
                .map(|(layer, _)| layer)
                .collect()
        }
        // The number of layers is checked later.
        None => (0..n_layers.min(1024))
            .filter(|layer| otherwise(*layer))
            .collect(),
    };
    Ok((!layers.is_empty()).then_some(Window { size, layers }))
}
