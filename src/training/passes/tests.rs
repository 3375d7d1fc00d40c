//! The passes here held against candle's own, in every value and every gradient.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, Var};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::Passes;
use crate::models::config::{Norm, TransformerConfig};
use crate::models::layers::Purpose;
use crate::models::location::Site;
use crate::models::tensor_names::tensor_shapes;
use crate::models::token_rows::TokenRows;
use crate::numerics::loss::{cross_entropy, mean};
use crate::numerics::tiles::processor::Processor;

const VOCABULARY: usize = 37;
const SEQUENCES: usize = 3;

/// A model's shape, and how much of its weights and activations is there.
pub(super) struct Case {
    pub norm: Norm,
    pub d_model: usize,
    pub n_heads: usize,
    pub d_head: usize,
    pub is_sparse: bool,
    pub length: usize,
}

pub(super) fn config(case: &Case) -> TransformerConfig {
    let locations = [
        "attn_in",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_out",
        "mlp_in",
        "mlp_neuron",
        "mlp_out",
    ];
    let norm = match case.norm {
        Norm::Rms => "rms",
        Norm::Layer => "layer",
        Norm::LayerNoBias => "layer_no_bias",
    };
    serde_json::from_value(serde_json::json!({
        "n_layers": 2, "d_model": case.d_model, "n_heads": case.n_heads, "d_head": case.d_head,
        "d_mlp": 3 * case.d_model, "vocab_size": VOCABULARY, "context_length": 64, "norm": norm,
        "bias": case.is_sparse, "activation": "gelu", "positions": "added", "bigram_table": case.is_sparse,
        "attention_sinks": case.is_sparse,
        "active_fraction": if case.is_sparse { Some(0.4) } else { None },
        "active_locations": if case.is_sparse { locations.to_vec() } else { Vec::new() },
    }))
    .expect("a configuration")
}

pub(super) fn tensors(config: &TransformerConfig, is_sparse: bool) -> BTreeMap<String, Var> {
    let mut rng = SmallRng::seed_from_u64(8);
    let mut random = |shape: &[usize]| {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|_| match is_sparse && rng.random_bool(0.85) {
                true => 0.0,
                false => rng.random_range(-0.7..0.7f32),
            })
            .collect();
        Var::from_vec(values, shape, &Device::Cpu).expect("a tensor")
    };
    tensor_shapes(config)
        .into_iter()
        .map(|(name, shape)| (name, random(&shape)))
        .collect()
}

/// A pass's logits and streams, and the gradients of its loss by weight and of the stream it began with.
struct Outcome {
    values: Vec<Tensor>,
    gradients: BTreeMap<String, Vec<f32>>,
}

fn outcome(
    passes: &mut Passes,
    weights: &BTreeMap<String, Var>,
    case: &Case,
    from: Option<Site>,
) -> Result<Outcome> {
    let mut rng = SmallRng::seed_from_u64(9);
    let count = SEQUENCES * case.length;
    let mut tokens = || -> Vec<u32> {
        (0..count)
            .map(|_| rng.random_range(0..VOCABULARY as u32))
            .collect()
    };
    let (ids, targets) = (tokens(), Tensor::new(tokens(), &Device::Cpu)?);
    let values: Vec<f32> = (0..count * case.d_model)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    let stream = Var::from_vec(values, (count, case.d_model), &Device::Cpu)?;
    let mut rows = TokenRows::sequences(&ids, case.length, &Device::Cpu)?;
    passes.begin_step()?;
    let values = match from {
        Some(site) => vec![passes.tail(site, stream.as_tensor().clone(), &mut rows)?],
        None => {
            let (logits, sites) = passes.forward(&mut rows)?;
            [vec![logits], sites].concat()
        }
    };
    let mut loss = mean(&cross_entropy(&values[0], &targets)?)?;
    // Streams have a loss of their own, as the bridge's terms are.
    for (index, site) in values[1..].iter().enumerate() {
        let weight = 0.01 * (index + 1) as f64;
        loss = (loss + (site.sqr()?.sum_all()? * weight)?)?;
    }
    let store = loss.backward()?;
    let mut gradients = BTreeMap::new();
    for (name, var) in weights {
        let added = passes
            .gradients()
            .and_then(|gradients| Some(gradients.get(name)?.clone()));
        let by_candle = store
            .get(var)
            .map(crate::numerics::rows::to_vec)
            .transpose()?;
        if let Some(gradient) = added.or(by_candle) {
            gradients.insert(name.clone(), gradient);
        }
    }
    if from.is_some() {
        let gradient = store.get(&stream).expect("the stream's gradient");
        gradients.insert(
            "stream".to_owned(),
            crate::numerics::rows::to_vec(gradient)?,
        );
    }
    Ok(Outcome { values, gradients })
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected
        .iter()
        .fold(0f32, |size, value| size.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = 2e-5 + 2e-4 * size;
        assert!(
            (found - expected).abs() <= bound,
            "{what}[{index}]: {found} for {expected}"
        );
    }
}

fn compare(case: &Case, cpu: Processor) -> Result<()> {
    let config = config(case);
    let weights = tensors(&config, case.is_sparse);
    let named: BTreeMap<String, Tensor> = weights
        .iter()
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect();
    let sites = [
        None,
        Some(Site::before_attention(1, 2)),
        Some(Site::before_mlp(0, 2)),
    ];
    for purpose in [Purpose::Training, Purpose::Frozen] {
        for from in sites {
            if purpose == Purpose::Frozen && from.is_none() {
                continue;
            }
            let mut fast = Passes::on(Some(cpu), config.clone(), &named, purpose)?;
            assert!(fast.fused.is_some());
            let mut plain = Passes::composed(config.clone(), &named, purpose)?;
            let found = outcome(&mut fast, &weights, case, from)?;
            let expected = outcome(&mut plain, &weights, case, from)?;
            assert_eq!(found.values.len(), expected.values.len());
            for (index, (found, expected)) in found.values.iter().zip(&expected.values).enumerate()
            {
                let to_vec = crate::numerics::rows::to_vec;
                assert_close(
                    &format!("value {index}"),
                    &to_vec(found)?,
                    &to_vec(expected)?,
                );
            }
            for (name, expected) in &expected.gradients {
                let zeros = vec![0.0; expected.len()];
                let found = found.gradients.get(name).unwrap_or(&zeros);
                assert_close(name, found, expected);
            }
            assert!(
                expected
                    .gradients
                    .values()
                    .flatten()
                    .any(|&gradient| gradient != 0.0)
            );
        }
    }
    Ok(())
}

#[test]
fn sparse_models_have_candle_s_values_and_gradients() -> Result<()> {
    for (norm, length) in [(Norm::Rms, 33), (Norm::Layer, 16), (Norm::LayerNoBias, 5)] {
        let case = Case {
            norm,
            d_model: 40,
            n_heads: 3,
            d_head: 16,
            is_sparse: true,
            length,
        };
        for cpu in Processor::all() {
            compare(&case, cpu)?;
        }
    }
    Ok(())
}

#[test]
fn dense_models_have_candle_s_values_and_gradients() -> Result<()> {
    for (norm, d_head, length) in [(Norm::Rms, 32, 48), (Norm::Layer, 64, 21)] {
        let case = Case {
            norm,
            d_model: 24,
            n_heads: 2,
            d_head,
            is_sparse: false,
            length,
        };
        for cpu in Processor::all() {
            compare(&case, cpu)?;
        }
    }
    Ok(())
}
