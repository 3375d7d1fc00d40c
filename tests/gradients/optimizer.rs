//! The masked AdamW step against a plain float64 one: clipping, decay, bias correction, the two groups' rates,
//! the magnitude mask with its protected weights, and the optimizer's state.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, backprop::GradStore};
use causeway::training::optimizer::{AdamW, StepGradients, StepRates};
use causeway::training::parameters::{ParameterGroup, Parameters};
use causeway::training::recipe::{Clip, Optimizer};

use super::{near, noise};

/// A weight matrix of each kind the mask tells apart, and tensors it leaves alone.
const MODEL: [(&str, &[usize]); 8] = [
    ("transformer.wte.weight", &[9, 6]),
    ("transformer.wpe.weight", &[5, 6]),
    ("transformer.h.0.ln_1.weight", &[6]),
    ("transformer.h.0.attn.c_attn.weight", &[12, 6]),
    ("transformer.h.0.mlp.c_fc.weight", &[10, 6]),
    ("transformer.h.0.mlp.c_fc.bias", &[10]),
    ("transformer.h.0.mlp.c_proj.weight", &[6, 10]),
    ("bigram_table", &[9, 9]),
];
const BRIDGE: (&str, &[usize]) = ("encoder.0.weight", &[4, 6]);
/// A parameter that never gets a gradient: its moments and values rest, its mask still applies.
const IDLE: &str = "transformer.h.0.mlp.c_proj.weight";
const PROTECTED: usize = 2;

fn recipe(clip: Clip) -> Optimizer {
    Optimizer {
        learning_rate: 1.0,
        warmup_steps: 1,
        final_fraction: 0.0,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-3,
        weight_decay: 0.3,
        clip,
    }
}

fn parameters() -> Result<Parameters> {
    let start = |index: usize, (name, shape): (&str, &[usize])| -> Result<(String, Tensor)> {
        let values = noise(shape.iter().product(), 200 + index as u64);
        Ok((
            name.to_string(),
            Tensor::from_vec(values, shape, &Device::Cpu)?,
        ))
    };
    let model = MODEL
        .iter()
        .enumerate()
        .map(|(i, &entry)| start(i, entry))
        .collect::<Result<BTreeMap<_, _>>>()?;
    let mut parameters = Parameters::of_model(model, Some(PROTECTED))?;
    parameters.add_bridge(BTreeMap::from([start(50, BRIDGE)?]))?;
    Ok(parameters)
}

/// The gradient of parameter `index` at `step`: made up, so that both optimizers can be given the same.
fn gradient(index: usize, step: usize, count: usize) -> Vec<f32> {
    noise(count, 1000 + 100 * step as u64 + index as u64)
        .iter()
        .map(|g| 3.0 * g)
        .collect()
}

fn gradients(parameters: &Parameters, step: usize) -> Result<GradStore> {
    let mut total = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu)?;
    for (index, parameter) in parameters
        .iter()
        .enumerate()
        .filter(|(_, p)| p.name != IDLE)
    {
        let values = gradient(index, step, parameter.var.elem_count());
        let gradient = Tensor::from_vec(values, parameter.var.dims(), &Device::Cpu)?;
        total = (total + (parameter.var.as_tensor() * gradient)?.sum_all()?)?;
    }
    total.backward()
}

fn by_candle(gradients: &GradStore) -> StepGradients<'_> {
    StepGradients {
        by_candle: gradients,
        by_passes: None,
    }
}

fn rates(step: usize) -> StepRates {
    StepRates {
        model: 0.02 / (step + 1) as f64,
        bridge: 0.005,
        kept_fraction: Some([0.83, 0.61, 0.47, 0.47][step.min(3)]),
    }
}

/// One parameter of the plain optimizer.
struct Plain {
    name: String,
    dims: Vec<usize>,
    weights: Vec<f64>,
    mean: Vec<f64>,
    square: Vec<f64>,
}

fn plain(parameters: &Parameters) -> Result<Vec<Plain>> {
    let one = |name: &str, tensor: &Tensor| {
        let weights: Vec<f64> = tensor
            .flatten_all()?
            .to_vec1::<f32>()?
            .into_iter()
            .map(f64::from)
            .collect();
        let zeros = vec![0.0; weights.len()];
        Ok(Plain {
            name: name.into(),
            dims: tensor.dims().to_vec(),
            mean: zeros.clone(),
            square: zeros,
            weights,
        })
    };
    parameters.iter().map(|p| one(&p.name, &p.var)).collect()
}

fn plain_step(all: &mut [Plain], recipe: &Optimizer, rates: &StepRates, step: usize) -> f64 {
    let gradients: Vec<Option<Vec<f64>>> = all
        .iter()
        .enumerate()
        .map(|(index, p)| {
            let given = gradient(index, step, p.weights.len());
            (p.name != IDLE).then(|| given.into_iter().map(f64::from).collect())
        })
        .collect();
    let norm = gradients
        .iter()
        .flatten()
        .flatten()
        .map(|g| g * g)
        .sum::<f64>()
        .sqrt();
    let count: usize = all.iter().map(|p| p.weights.len()).sum();
    let root_mean_square = norm / (count as f64).sqrt();
    let scale = match recipe.clip {
        Clip::Norm { at } => {
            if norm > at {
                at / norm
            } else {
                1.0
            }
        }
        Clip::Rms { at } => {
            if root_mean_square > at {
                at / root_mean_square
            } else {
                1.0
            }
        }
        Clip::NormaliseRms { to } => to / root_mean_square,
    };
    let t = (step + 1) as i32;
    for (p, gradient) in all.iter_mut().zip(gradients) {
        let bridge = p.name == BRIDGE.0;
        let rate = if bridge { rates.bridge } else { rates.model };
        let decay = if p.dims.len() == 2 {
            recipe.weight_decay
        } else {
            0.0
        };
        for (i, gradient) in gradient.into_iter().flatten().enumerate() {
            let gradient = gradient * scale;
            p.mean[i] = recipe.beta1 * p.mean[i] + (1.0 - recipe.beta1) * gradient;
            p.square[i] = recipe.beta2 * p.square[i] + (1.0 - recipe.beta2) * gradient * gradient;
            let mean = p.mean[i] / (1.0 - recipe.beta1.powi(t));
            let square = p.square[i] / (1.0 - recipe.beta2.powi(t));
            p.weights[i] -= rate * (mean / (square.sqrt() + recipe.epsilon) + decay * p.weights[i]);
        }
        let dense = bridge || ["ln_1", "bigram"].iter().any(|part| p.name.contains(part));
        if let (false, Some(fraction)) = (dense, rates.kept_fraction) {
            plain_mask(p, fraction);
        }
    }
    norm
}

/// Sorts the weights, protected ones first, then by magnitude; keeps the first `fraction` of them.
fn plain_mask(p: &mut Plain, fraction: f64) {
    let columns = *p.dims.last().expect("a dimension");
    let line: Option<fn(usize, usize) -> usize> = match p.name.as_str() {
        name if name.contains("c_attn.weight") || name.contains("c_fc.weight") => {
            Some(|i, columns| i / columns)
        }
        name if name.contains("c_proj.weight") => Some(|i, columns| i % columns),
        _ => None,
    };
    let mut order: Vec<usize> = (0..p.weights.len()).collect();
    order.sort_by(|&a, &b| p.weights[b].abs().total_cmp(&p.weights[a].abs()));
    if let Some(line) = line {
        let mut seen: BTreeMap<usize, usize> = BTreeMap::new();
        let (mut first, mut rest) = (Vec::new(), Vec::new());
        for index in order {
            let count = seen.entry(line(index, columns)).or_default();
            *count += 1;
            if *count <= PROTECTED {
                first.push(index)
            } else {
                rest.push(index)
            }
        }
        first.extend(rest);
        order = first;
    }
    for &index in &order[(fraction * p.weights.len() as f64).floor() as usize..] {
        p.weights[index] = 0.0;
    }
}

fn compare(parameters: &Parameters, plain: &[Plain], what: &str) -> Result<()> {
    for (parameter, plain) in parameters.iter().zip(plain) {
        let weights = parameter.var.flatten_all()?.to_vec1::<f32>()?;
        for (index, (&weight, &expected)) in weights.iter().zip(&plain.weights).enumerate() {
            let what = format!("{what}, {} {index}", parameter.name);
            assert_eq!(
                weight == 0.0,
                expected == 0.0,
                "{what}: {weight}, expected {expected}"
            );
            near(weight, expected, 2e-6, &what);
        }
    }
    Ok(())
}

#[test]
fn steps_agree_with_a_plain_optimizer() -> Result<()> {
    let clips = [
        Clip::Norm { at: 1.0 },
        Clip::Norm { at: 1e6 },
        Clip::Rms { at: 0.5 },
        Clip::Rms { at: 1e6 },
        Clip::NormaliseRms { to: 10.0 },
    ];
    for clip in clips {
        let parameters = parameters()?;
        let mut plain = plain(&parameters)?;
        let mut optimizer = AdamW::new(recipe(clip), &parameters)?;
        for step in 0..5 {
            let norm = optimizer.step(
                &parameters,
                &by_candle(&gradients(&parameters, step)?),
                &rates(step),
            )?;
            let norm = norm.value()?;
            let expected = plain_step(&mut plain, &recipe(clip), &rates(step), step);
            assert!(
                (norm - expected).abs() < 1e-5 * expected,
                "{clip:?}: norm {norm}, expected {expected}"
            );
            compare(&parameters, &plain, &format!("{clip:?}, step {step}"))?;
        }
    }
    Ok(())
}

#[test]
fn the_mask_keeps_its_fraction_and_a_lost_weight_can_come_back() -> Result<()> {
    let parameters = parameters()?;
    let mut optimizer = AdamW::new(recipe(Clip::Norm { at: 1.0 }), &parameters)?;
    let mut came_back = 0;
    let mut lost: BTreeMap<String, Vec<bool>> = BTreeMap::new();
    for step in 0..12 {
        let rates = StepRates {
            model: 0.1,
            bridge: 0.1,
            kept_fraction: Some(0.4),
        };
        optimizer.step(
            &parameters,
            &by_candle(&gradients(&parameters, step)?),
            &rates,
        )?;
        for parameter in parameters.iter() {
            let zero: Vec<bool> = parameter
                .var
                .flatten_all()?
                .to_vec1::<f32>()?
                .iter()
                .map(|&w| w == 0.0)
                .collect();
            let kept = zero.iter().filter(|zero| !**zero).count();
            let expected = match parameter.masked {
                Some(_) => zero.len() * 4 / 10,
                None => zero.len(),
            };
            assert_eq!(kept, expected, "{} after step {step}", parameter.name);
            if let Some(before) = lost.insert(parameter.name.clone(), zero.clone()) {
                came_back += before
                    .iter()
                    .zip(&zero)
                    .filter(|(before, now)| **before && !**now)
                    .count();
            }
        }
    }
    assert!(
        came_back > 0,
        "no weight came back: gradients or moments are masked"
    );
    Ok(())
}

#[test]
fn a_restored_optimizer_goes_on_bit_for_bit() -> Result<()> {
    let clip = Clip::Norm { at: 1.0 };
    let (parameters, other) = (parameters()?, parameters()?);
    let mut optimizer = AdamW::new(recipe(clip), &parameters)?;
    for step in 0..3 {
        optimizer.step(
            &parameters,
            &by_candle(&gradients(&parameters, step)?),
            &rates(step),
        )?;
    }
    for (from, to) in parameters.iter().zip(other.iter()) {
        to.var.set(&from.var.copy()?)?;
    }
    let mut restored = AdamW::new(recipe(clip), &other)?;
    restored.restore(&other, &optimizer.state(&parameters)?, 3)?;
    for step in 3..6 {
        optimizer.step(
            &parameters,
            &by_candle(&gradients(&parameters, step)?),
            &rates(step),
        )?;
        restored.step(&other, &by_candle(&gradients(&other, step)?), &rates(step))?;
    }
    for (a, b) in parameters.iter().zip(other.iter()) {
        let bits = |p: &causeway::training::parameters::Parameter| -> Result<Vec<u32>> {
            Ok(p.var
                .flatten_all()?
                .to_vec1::<f32>()?
                .into_iter()
                .map(f32::to_bits)
                .collect())
        };
        assert_eq!(bits(a)?, bits(b)?, "{}", a.name);
    }
    let mut incomplete = optimizer.state(&parameters)?;
    incomplete.remove("mean.bigram_table");
    let error = restored
        .restore(&other, &incomplete, 6)
        .expect_err("a moment is missing");
    assert!(error.to_string().contains("bigram_table"), "{error}");
    assert_eq!(parameters.tensors(ParameterGroup::Bridge).len(), 1);
    Ok(())
}
