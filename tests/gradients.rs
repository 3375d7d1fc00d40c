//! Every operation of training against a plain float64 version of it: the value, and each entry of each
//! gradient against the float64 version's central difference. Then the transformer they make up, along random
//! directions, and the optimizer's step.

#[path = "gradients/operations.rs"]
mod operations;
#[path = "gradients/optimizer.rs"]
mod optimizer;
#[path = "gradients/reference.rs"]
mod reference;
#[path = "gradients/transformer.rs"]
mod transformer;

use candle_core::{Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Reproducible float32 values in `-1..1`.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0f32)).collect()
}

/// One argument of an operation: its shape and values.
struct Argument {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Argument {
    fn new(shape: &[usize], values: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        Argument {
            shape: shape.to_vec(),
            values,
        }
    }

    fn noise(shape: &[usize], seed: u64) -> Self {
        Self::new(shape, noise(shape.iter().product(), seed))
    }
}

/// What an operation is in float64: all arguments' values in, the result's values out.
type Reference<'a> = &'a dyn Fn(&[Vec<f64>]) -> Vec<f64>;

/// Holds `operation` and its gradients against `reference`. The arguments whose indices are in `constant` must
/// have no gradient at all, or one of zeros.
fn check(
    what: &str,
    arguments: &[Argument],
    constant: &[usize],
    operation: impl Fn(&[Tensor]) -> Result<Tensor>,
    reference: Reference,
) -> Result<()> {
    let vars = arguments
        .iter()
        .map(|a| {
            Var::from_tensor(&Tensor::from_slice(
                &a.values,
                a.shape.as_slice(),
                &Device::Cpu,
            )?)
        })
        .collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let result = operation(&tensors)?;
    let exact: Vec<Vec<f64>> = arguments
        .iter()
        .map(|a| a.values.iter().map(|&v| f64::from(v)).collect())
        .collect();
    let values = result.flatten_all()?.to_vec1::<f32>()?;
    let expected = reference(&exact);
    assert_eq!(values.len(), expected.len(), "{what}");
    for (index, (&value, &expected)) in values.iter().zip(&expected).enumerate() {
        near(value, expected, 2e-6, &format!("{what}, value {index}"));
    }

    // A different weight for every value of the result makes each of them show in the gradients.
    let weights = noise(values.len(), 99);
    let weighted = (&result * Tensor::from_slice(&weights, result.shape(), &Device::Cpu)?)?;
    let gradients = weighted.sum_all()?.backward()?;
    let total = |arguments: &[Vec<f64>]| -> f64 {
        reference(arguments)
            .iter()
            .zip(&weights)
            .map(|(value, &weight)| value * f64::from(weight))
            .sum()
    };
    for (argument, var) in vars.iter().enumerate() {
        let what = format!("{what}, gradient of argument {argument}");
        let gradient = gradients
            .get(var)
            .map(|g| g.flatten_all()?.to_vec1::<f32>())
            .transpose()?;
        if constant.contains(&argument) {
            assert!(
                gradient.is_none_or(|gradient| gradient.iter().all(|&g| g == 0.0)),
                "{what}"
            );
            continue;
        }
        let gradient = gradient.expect(&what);
        assert_eq!(gradient.len(), exact[argument].len(), "{what}");
        let mut moved = exact.clone();
        for (index, &value) in gradient.iter().enumerate() {
            const STEP: f64 = 1e-6;
            let mut at = |offset: f64| {
                moved[argument][index] = exact[argument][index] + offset;
                total(&moved)
            };
            let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            at(0.0);
            near(value, slope, 1e-5, &format!("{what}, entry {index}"));
        }
    }
    Ok(())
}

/// Equal to a relative error, or to an absolute one where the expected value is below one.
fn near(value: f32, expected: f64, tolerance: f64, what: &str) {
    let error = (f64::from(value) - expected).abs();
    assert!(
        error <= tolerance * expected.abs().max(1.0),
        "{what}: {value}, expected {expected}"
    );
}
