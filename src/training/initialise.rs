//! Random weights to start from.
//!
//! Linear weights are normal with variance `1 / inputs`, those that write to the residual stream divided by
//! the root of the number of sublayers so that the stream does not grow with depth; gains start at one, biases
//! and sink logits at zero. Everything follows from the seed and the tensors' names.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use crate::models::config::TransformerConfig;
use crate::models::tensor_names::{FINAL_LOGITS_BIAS, tensor_shapes};

/// Standard deviation of embeddings and of added positions.
const EMBEDDING_DEVIATION: f64 = 0.1;
/// The unembedding starts this much smaller than a linear layer, so that training starts near the uniform
/// distribution.
const UNEMBEDDING_SCALE: f64 = 0.3;

/// The tensors of a model of this shape. The logits' bias is left out: it stays zero.
pub fn model(
    config: &TransformerConfig,
    seed: u64,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>> {
    tensor_shapes(config)
        .into_iter()
        .filter(|(name, _)| name != FINAL_LOGITS_BIAS)
        .enumerate()
        .map(|(index, (name, shape))| {
            let deviation = model_deviation(config, &name, &shape);
            let tensor = tensor(&name, &shape, deviation, seed, index as u64, device)?;
            Ok((name, tensor))
        })
        .collect()
}

fn model_deviation(config: &TransformerConfig, name: &str, shape: &[usize]) -> f64 {
    let inputs = shape.last().copied().unwrap_or(1) as f64;
    match name {
        name if name.ends_with("c_proj.weight") => {
            (inputs * 2.0 * config.n_layers as f64).sqrt().recip()
        }
        "transformer.wte.weight" | "transformer.wpe.weight" => EMBEDDING_DEVIATION,
        "lm_head.weight" => UNEMBEDDING_SCALE / inputs.sqrt(),
        "bigram_table" => 0.0,
        _ if shape.len() == 2 => inputs.sqrt().recip(),
        _ => 0.0,
    }
}

/// Normal values of this deviation; a vector that is a norm's gain is all ones instead.
pub fn tensor(
    name: &str,
    shape: &[usize],
    deviation: f64,
    seed: u64,
    stream: u64,
    device: &Device,
) -> Result<Tensor> {
    let gain = shape.len() == 1 && name.contains(".ln_") && name.ends_with(".weight");
    if gain {
        return Tensor::ones(shape, candle_core::DType::F32, device);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let normal = Normal::new(0.0, deviation).map_err(candle_core::Error::wrap)?;
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|_| normal.sample(&mut rng) as f32).collect();
    Tensor::from_vec(values, shape, device)
}
