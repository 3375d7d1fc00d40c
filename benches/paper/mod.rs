//! A random model of the paper's shape: 8 layers, `d_model` 2048, `d_mlp` 8192, AbsTopK that keeps a quarter at every node.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};
use causeway::models::config::{
    Activation, ActiveLocation, Norm, Positions, ResidualActivation, TransformerConfig,
};
use causeway::models::tensor_names::tensor_shapes;
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// One weight of so many is not zero.
pub const ONE_IN: usize = 64;

pub fn config() -> TransformerConfig {
    let without = [ActiveLocation::ResidPostAttn, ActiveLocation::ResidPostMlp];
    TransformerConfig {
        n_layers: 8,
        d_model: 2048,
        n_heads: 128,
        d_head: 16,
        d_mlp: 8192,
        vocab_size: 2048,
        context_length: 256,
        norm: Norm::Rms,
        bias: true,
        activation: Activation::Gelu,
        residual_activation: ResidualActivation::Identity,
        positions: Positions::None,
        active_fraction: Some(0.25),
        active_locations: ActiveLocation::NAMES
            .iter()
            .map(|&(_, location)| location)
            .filter(|location| !without.contains(location))
            .collect(),
        tied_unembedding: false,
        bigram_table: false,
        attention_sinks: false,
        variant: Default::default(),
    }
}

/// Random tensors; in every 64 weights that follow one another one is not zero. A norm's gain is one.
pub fn tensors(config: &TransformerConfig) -> Result<BTreeMap<String, Tensor>> {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut tensor = |(name, shape): (String, Vec<usize>)| {
        if name.contains(".ln_") {
            return Ok((name, Tensor::ones(shape, DType::F32, &Device::Cpu)?));
        }
        let mut values = vec![0f32; shape.iter().product()];
        let inputs = shape[shape.len() - 1] as f32;
        let size = (3.0 * ONE_IN as f32 / inputs).sqrt();
        for block in values.chunks_mut(ONE_IN) {
            let place = rng.random_range(0..block.len());
            block[place] = rng.random_range(-size..size);
        }
        Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
    };
    tensor_shapes(config).into_iter().map(&mut tensor).collect()
}
