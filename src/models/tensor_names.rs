//! The tensors a transformer is made of: their names and shapes, given its configuration.
//!
//! The names are those of the released sparse checkpoints and are also the canonical ones of Causeway's own
//! layout, for both models of a pair. Linear weights are `[out, in]`; the rows of `c_attn` are q, then k,
//! then v. What dense families have beyond these has names of the same kind: `attn.q_norm`, `attn.k_norm`, `mlp.c_gate`,
//! and `ln_1_after`, `ln_2_after` for norms of what a sublayer adds.

use std::collections::BTreeMap;

use super::config::{Norm, Positions, TransformerConfig};
use super::variant::{NormPlacement, QkNorm};

/// `[vocab, d_model]`
pub const EMBEDDING: &str = "transformer.wte.weight";
/// `[context, d_model]` or `[context, channels]`; absent in a model without positions.
pub const POSITIONS: &str = "transformer.wpe.weight";
/// `[vocab, d_model]`; absent where the embedding takes its place.
pub const UNEMBEDDING: &str = "lm_head.weight";
/// `[vocab]`
pub const FINAL_LOGITS_BIAS: &str = "final_logits_bias";
/// `[vocab, vocab]`
pub const BIGRAM_TABLE: &str = "bigram_table";

/// Whether a checkpoint's tensor is a buffer that its model computes anew, such as a causal mask, and no parameter.
/// Hugging Face's checkpoints carry them, in whatever type the model had them.
pub fn is_buffer(name: &str) -> bool {
    const BUFFERS: [&str; 6] = [
        "attn.bias",
        "attn.masked_bias",
        "attn.mask",
        "attn.causal_mask",
        "rotary_emb.inv_freq",
        "position_ids",
    ];
    BUFFERS.iter().any(|buffer| {
        let before = name.strip_suffix(buffer);
        before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
    })
}

/// Every tensor of a model of this configuration, with its shape. The number of entries grows with
/// `n_layers`, so a configuration from a stranger must be compared with its file first.
pub fn tensor_shapes(config: &TransformerConfig) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = Shapes {
        norm: config.norm,
        bias: config.bias,
        shapes: BTreeMap::new(),
    };
    let (d_model, d_mlp, vocab) = (config.d_model, config.d_mlp, config.vocab_size);
    shapes.add(EMBEDDING.to_owned(), vec![vocab, d_model]);
    match config.positions {
        Positions::None => {}
        Positions::Added => {
            shapes.add(POSITIONS.to_owned(), vec![config.context_length, d_model]);
        }
        Positions::Concatenated { channels } => {
            shapes.add(POSITIONS.to_owned(), vec![config.context_length, channels]);
        }
    }
    for layer in 0..config.n_layers {
        let layer = format!("transformer.h.{layer}");
        let placement = config.variant.norm_placement;
        if placement != NormPlacement::After {
            shapes.add_norm(&format!("{layer}.ln_1"), d_model);
            shapes.add_norm(&format!("{layer}.ln_2"), d_model);
        }
        if placement != NormPlacement::Before {
            shapes.add_norm(&format!("{layer}.ln_1_after"), d_model);
            shapes.add_norm(&format!("{layer}.ln_2_after"), d_model);
        }
        if let Positions::Concatenated { channels } = config.positions {
            shapes.add_norm(&format!("{layer}.ln_p1"), channels);
            shapes.add_norm(&format!("{layer}.ln_p2"), channels);
        }
        let (d_read, d_attention) = (config.d_read(), config.d_attention());
        let d_key_value = config.d_key_value();
        let d_joint = d_attention.saturating_add(d_key_value.saturating_mul(2));
        shapes.add_linear(&format!("{layer}.attn.c_attn"), d_joint, d_read);
        shapes.add_linear(&format!("{layer}.attn.c_proj"), d_model, d_attention);
        if config.attention_sinks {
            let name = format!("{layer}.attn.attn_imp.sink_logit");
            shapes.add(name, vec![config.n_heads]);
        }
        if let Some(over) = config.variant.qk_norm {
            let width = |whole| match over {
                QkNorm::PerHead => config.d_head,
                QkNorm::WholeWidth => whole,
            };
            shapes.add_norm(&format!("{layer}.attn.q_norm"), width(d_attention));
            shapes.add_norm(&format!("{layer}.attn.k_norm"), width(d_key_value));
        }
        shapes.add_linear(&format!("{layer}.mlp.c_fc"), d_mlp, d_read);
        if config.variant.gated_mlp {
            shapes.add_linear(&format!("{layer}.mlp.c_gate"), d_mlp, d_read);
        }
        shapes.add_linear(&format!("{layer}.mlp.c_proj"), d_model, d_mlp);
    }
    shapes.add_norm("transformer.ln_f", d_model);
    if !config.tied_unembedding {
        shapes.add(UNEMBEDDING.to_owned(), vec![vocab, d_model]);
    }
    shapes.add(FINAL_LOGITS_BIAS.to_owned(), vec![vocab]);
    if config.bigram_table {
        shapes.add(BIGRAM_TABLE.to_owned(), vec![vocab, vocab]);
    }
    shapes.shapes
}

struct Shapes {
    norm: Norm,
    bias: bool,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Shapes {
    fn add(&mut self, name: String, shape: Vec<usize>) {
        self.shapes.insert(name, shape);
    }

    fn add_norm(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.weight"), vec![width]);
        if self.norm == Norm::Layer {
            self.add(format!("{name}.bias"), vec![width]);
        }
    }

    fn add_linear(&mut self, name: &str, d_out: usize, d_in: usize) {
        self.add(format!("{name}.weight"), vec![d_out, d_in]);
        if self.bias {
            self.add(format!("{name}.bias"), vec![d_out]);
        }
    }
}
