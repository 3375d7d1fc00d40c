//! A whole transformer: the loss's change along a random direction in each of its tensors.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Result, Tensor, Var};
use causeway::models::config::{
    Activation, Norm, Positions, ResidualActivation, TransformerConfig,
};
use causeway::models::layers::Purpose;
use causeway::models::tap::NoTap;
use causeway::models::tensor_names::tensor_shapes;
use causeway::models::token_rows::TokenRows;
use causeway::models::transformer::Transformer;
use causeway::numerics::loss::{cross_entropy, mean};

use super::noise;

/// Three shapes that between them have every switch of the configuration but AbsTopK, whose jumps a difference
/// quotient of a whole model would step over.
fn configurations() -> [TransformerConfig; 3] {
    let plain = TransformerConfig {
        n_layers: 2,
        d_model: 12,
        n_heads: 3,
        d_head: 4,
        d_mlp: 20,
        vocab_size: 11,
        context_length: 6,
        norm: Norm::Rms,
        bias: true,
        activation: Activation::Gelu,
        residual_activation: ResidualActivation::Identity,
        positions: Positions::Concatenated { channels: 5 },
        active_fraction: None,
        active_locations: BTreeSet::new(),
        tied_unembedding: false,
        bigram_table: true,
        attention_sinks: true,
        variant: Default::default(),
    };
    let tied = TransformerConfig {
        norm: Norm::Layer,
        positions: Positions::Added,
        activation: Activation::GeluTanh,
        tied_unembedding: true,
        bigram_table: false,
        attention_sinks: false,
        variant: Default::default(),
        ..plain.clone()
    };
    let bare = TransformerConfig {
        norm: Norm::LayerNoBias,
        positions: Positions::None,
        bias: false,
        ..tied.clone()
    };
    [plain, tied, bare]
}

/// The mean cross-entropy of fixed tokens, in float64 over the rows: float32 would drown the small changes.
fn loss_at(config: &TransformerConfig, tensors: &BTreeMap<String, Tensor>) -> Result<f64> {
    let (logits, targets) = forward(config, tensors)?;
    let losses = cross_entropy(&logits, &targets)?.to_vec1::<f32>()?;
    Ok(losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64)
}

fn forward(
    config: &TransformerConfig,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<(Tensor, Tensor)> {
    let model = Transformer::new(config.clone(), tensors, Purpose::Training)?;
    let ids = [3u32, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8];
    let mut rows = TokenRows::sequences(&ids, 6, &Device::Cpu)?;
    let logits = model.forward(&mut rows, &mut NoTap)?;
    Ok((
        logits,
        Tensor::new(&[1u32, 4, 1, 5, 9, 10, 6, 5, 3, 5, 8, 0], &Device::Cpu)?,
    ))
}

#[test]
fn every_tensor_of_a_transformer_has_its_gradient() -> Result<()> {
    for config in configurations() {
        let mut vars = BTreeMap::new();
        for (seed, (name, shape)) in tensor_shapes(&config).into_iter().enumerate() {
            let values = noise(shape.iter().product(), 30 + seed as u64);
            let values: Vec<f32> = values.iter().map(|x| 0.7 * x).collect();
            vars.insert(name, Var::from_vec(values, shape, &Device::Cpu)?);
        }
        let tensors: BTreeMap<String, Tensor> = vars
            .iter()
            .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
            .collect();
        let (logits, targets) = forward(&config, &tensors)?;
        let gradients = mean(&cross_entropy(&logits, &targets)?)?.backward()?;
        for (name, var) in &vars {
            let gradient = gradients
                .get(var)
                .unwrap_or_else(|| panic!("{name} has no gradient"));
            let direction =
                Tensor::from_vec(noise(var.elem_count(), 77), var.dims(), &Device::Cpu)?;
            let slope = f64::from((gradient * &direction)?.sum_all()?.to_scalar::<f32>()?);
            const STEP: f64 = 2e-3;
            let moved = |by: f64| -> Result<f64> {
                let mut tensors = tensors.clone();
                tensors.insert(name.clone(), (var.as_tensor() + (&direction * by)?)?);
                loss_at(&config, &tensors)
            };
            let measured = (moved(STEP)? - moved(-STEP)?) / (2.0 * STEP);
            assert!(
                (slope - measured).abs() <= 1e-3 + 5e-3 * measured.abs(),
                "{name}: the gradient says {slope}, the loss changes by {measured}"
            );
            assert!(slope != 0.0, "{name} does not reach the loss");
        }
    }
    Ok(())
}
