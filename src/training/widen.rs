//! A trained model as the start of a wider one.
//!
//! A narrow model learns a language's common part in a fraction of a wide one's time. What it has learnt is kept: the wide
//! model's new channels, heads and neurons read random weights and write zeros, so that it computes what the narrow one
//! computes, and the training goes on from there. RMSNorm divides by the root of the mean over all channels; the gains of
//! the old channels shrink by `sqrt(old width / new width)` to make up for new channels that are zero. The start is exact
//! for a model without AbsTopK; one with it keeps the same *share* of more channels, so more of the old ones stay.
//!
//! A wide model may have a bigram table where the narrow one has none; it starts at zero.
//!
//! Shapes: every tensor is [`tensor_shapes`](crate::models::tensor_names::tensor_shapes) of the two configurations; the old one lies in the upper left corner of the
//! new one, except in `c_attn`, whose q, k and v have a corner each.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};

use super::initialise;
use crate::models::config::{Norm, TransformerConfig};
use crate::models::tensor_names::{BIGRAM_TABLE, EMBEDDING, POSITIONS};

/// Whether a model of configuration `from` can become one of `to` this way: the same but for more channels, heads or
/// neurons, or a bigram table, under RMSNorm.
pub fn can_widen(from: &TransformerConfig, to: &TransformerConfig) -> bool {
    let widened = TransformerConfig {
        d_model: to.d_model,
        n_heads: to.n_heads,
        d_mlp: to.d_mlp,
        bigram_table: to.bigram_table,
        ..from.clone()
    };
    let grows = from.d_model <= to.d_model
        && from.n_heads <= to.n_heads
        && from.d_mlp <= to.d_mlp
        && from.bigram_table <= to.bigram_table;
    widened == *to && grows && from.norm == Norm::Rms
}

/// The wide model's tensors, with the narrow one's in them. `narrow` has no logits' bias, which is always zero.
pub fn widened(
    narrow: &BTreeMap<String, Tensor>,
    from: &TransformerConfig,
    to: &TransformerConfig,
    seed: u64,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>> {
    let mut wide = initialise::model(to, seed, device)?;
    for (name, tensor) in &mut wide {
        let Some(old) = narrow.get(name) else {
            if name == BIGRAM_TABLE {
                continue;
            }
            candle_core::bail!("{name} is missing from the model to widen");
        };
        // What writes to the stream writes nothing new at first.
        let writes = name == EMBEDDING || name == POSITIONS || name.ends_with("c_proj.weight");
        let start = match writes {
            true => tensor.zeros_like()?,
            false => tensor.clone(),
        };
        let scale = match name.contains(".ln_") {
            true => (from.d_model as f64 / to.d_model as f64).sqrt(),
            false => 1.0,
        };
        // q, k and v are stacked in one matrix.
        let blocks = if name.contains("c_attn") { 3 } else { 1 };
        *tensor = in_the_corner(&start, &old.affine(scale, 0.0)?, blocks)?;
    }
    Ok(wide)
}

/// `start` with `old` in its upper left corner, block by block along the rows.
fn in_the_corner(start: &Tensor, old: &Tensor, blocks: usize) -> Result<Tensor> {
    let rows = (start.dim(0)? / blocks, old.dim(0)? / blocks);
    let mut parts = Vec::with_capacity(blocks);
    for block in 0..blocks {
        let new = start.narrow(0, block * rows.0, rows.0)?;
        let old = old.narrow(0, block * rows.1, rows.1)?;
        let old = match old.rank() {
            2 => {
                let beside = new.narrow(0, 0, rows.1)?;
                let columns = old.dim(1)?;
                let beside = beside.narrow(1, columns, start.dim(1)? - columns)?;
                Tensor::cat(&[&old, &beside.contiguous()?], 1)?
            }
            _ => old,
        };
        let below = new.narrow(0, rows.1, rows.0 - rows.1)?;
        parts.push(Tensor::cat(&[&old, &below], 0)?);
    }
    Tensor::cat(&parts, 0)?.contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::layers::Purpose;
    use crate::models::tap::NoTap;
    use crate::models::tensor_names::tensor_shapes;
    use crate::models::token_rows::TokenRows;
    use crate::models::transformer::Transformer;

    fn config(widths: [usize; 3]) -> TransformerConfig {
        let text = format!(
            r#"{{"n_layers": 2, "d_model": {}, "n_heads": {}, "d_head": 16, "d_mlp": {}, "vocab_size": 50,
                "context_length": 12, "norm": "rms", "bias": true, "activation": "gelu", "positions": "added",
                "attention_sinks": true}}"#,
            widths[0], widths[1], widths[2]
        );
        serde_json::from_str(&text).unwrap()
    }

    fn logits(config: &TransformerConfig, tensors: &BTreeMap<String, Tensor>) -> Vec<f32> {
        let model = Transformer::new(config.clone(), tensors, Purpose::Frozen).unwrap();
        let tokens: Vec<u32> = (0..24).map(|i| (i * 17 + 3) % 50).collect();
        let mut rows = TokenRows::sequences(&tokens, 12, &Device::Cpu).unwrap();
        let logits = model.forward(&mut rows, &mut NoTap).unwrap();
        logits.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_widened_model_computes_what_the_narrow_one_does() {
        let from = config([24, 2, 40]);
        let to = TransformerConfig {
            bigram_table: true,
            ..config([40, 3, 72])
        };
        let mut narrow = initialise::model(&from, 7, &Device::Cpu).unwrap();
        // Biases, sinks and gains are not trivial in a trained model.
        for tensor in narrow.values_mut() {
            let noise = Tensor::randn(0f32, 0.3, tensor.shape(), &Device::Cpu).unwrap();
            *tensor = (&*tensor + noise).unwrap();
        }
        assert!(can_widen(&from, &to));
        let wide = widened(&narrow, &from, &to, 8, &Device::Cpu).unwrap();
        for (name, shape) in tensor_shapes(&to) {
            if let Some(tensor) = wide.get(&name) {
                assert_eq!(tensor.dims(), shape, "{name}");
            }
        }
        let (before, after) = (logits(&from, &narrow), logits(&to, &wide));
        assert!(before.iter().any(|logit| logit.abs() > 0.5));
        for (before, after) in before.iter().zip(&after) {
            assert!((before - after).abs() < 1e-4, "{before} and {after}");
        }
    }

    #[test]
    fn only_a_wider_model_of_the_same_kind_can_be_started() {
        let from = config([24, 2, 40]);
        assert!(can_widen(&from, &from));
        assert!(!can_widen(&from, &config([16, 2, 40])));
        assert!(!can_widen(&from, &config([24, 2, 39])));
        let deeper = TransformerConfig {
            n_layers: 3,
            ..from.clone()
        };
        assert!(!can_widen(&from, &deeper));
        let layer_norm = TransformerConfig {
            norm: Norm::Layer,
            ..from.clone()
        };
        let wider = TransformerConfig {
            d_model: 32,
            ..layer_norm.clone()
        };
        assert!(!can_widen(&layer_norm, &wider));
    }
}
