//! Each differentiable operation of `numerics`, at widths that fill vector registers and at ones that do not.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use causeway::numerics::activation::{gelu, gelu_tanh, relu};
use causeway::numerics::attention::causal_attention;
use causeway::numerics::attention::kernel::Heads;
use causeway::numerics::columns::Columns;
use causeway::numerics::{abs_top_k, linear, loss, norm};

use super::{Argument, check, noise, reference};

#[test]
fn abs_top_k_passes_the_gradient_of_what_it_keeps() -> Result<()> {
    for (width, k) in [(37, 9), (64, 16), (5, 1), (6, 6), (7, 0)] {
        check(
            &format!("AbsTopK {k} of {width}"),
            &[Argument::noise(&[3, width], 1)],
            &[],
            |x| abs_top_k::abs_top_k(&x[0], k),
            &|x| reference::abs_top_k(&x[0], width, k),
        )?;
    }
    Ok(())
}

#[test]
fn norms_and_their_gains() -> Result<()> {
    for width in [5, 37, 64] {
        let rows = || {
            [
                Argument::noise(&[3, width], 2),
                Argument::noise(&[width], 3),
            ]
        };
        check(
            &format!("RMSNorm of {width}"),
            &rows(),
            &[],
            |a| norm::rms_norm(&a[0], &a[1], f32::EPSILON),
            &|a| reference::norm(&a[0], &a[1], None, f64::from(f32::EPSILON), false),
        )?;
        check(
            &format!("LayerNorm of {width} without bias"),
            &rows(),
            &[],
            |a| norm::layer_norm(&a[0], &a[1], None, 1e-5),
            &|a| reference::norm(&a[0], &a[1], None, f64::from(1e-5f32), true),
        )?;
        let [x, gain] = rows();
        check(
            &format!("LayerNorm of {width}"),
            &[x, gain, Argument::noise(&[width], 4)],
            &[],
            |a| norm::layer_norm(&a[0], &a[1], Some(&a[2]), 1e-5),
            &|a| reference::norm(&a[0], &a[1], Some(&a[2]), f64::from(1e-5f32), true),
        )?;
    }
    Ok(())
}

#[test]
fn an_epsilon_that_matters_is_differentiated_too() -> Result<()> {
    check(
        "RMSNorm with a large epsilon",
        &[Argument::noise(&[2, 19], 5), Argument::noise(&[19], 6)],
        &[],
        |a| norm::rms_norm(&a[0], &a[1], 0.5),
        &|a| reference::norm(&a[0], &a[1], None, 0.5, false),
    )
}

#[test]
fn activations() -> Result<()> {
    let x = || {
        let mut values: Vec<f32> = noise(60, 7).iter().map(|x| 5.0 * x).collect();
        values.extend([0.001, -0.001, 4.9]);
        [Argument::new(&[3, 21], values)]
    };
    let each = |f: fn(f64) -> f64| {
        move |x: &[Vec<f64>]| -> Vec<f64> { x[0].iter().map(|&x| f(x)).collect() }
    };
    check("GELU", &x(), &[], |x| gelu(&x[0]), &each(reference::gelu))?;
    check(
        "GELU by tanh",
        &x(),
        &[],
        |x| gelu_tanh(&x[0]),
        &each(reference::gelu_tanh),
    )?;
    check("ReLU", &x(), &[], |x| relu(&x[0]), &each(|x| x.max(0.0)))
}

#[test]
fn linear_layers() -> Result<()> {
    for (rows, inputs, outputs) in [(1, 5, 3), (7, 33, 18), (4, 16, 32)] {
        let arguments = || {
            [
                Argument::noise(&[rows, inputs], 8),
                Argument::noise(&[outputs, inputs], 9),
                Argument::noise(&[outputs], 10),
            ]
        };
        let expected = |a: &[Vec<f64>]| reference::linear(&a[0], &a[1], Some(&a[2]), inputs);
        let what = format!("linear {inputs} to {outputs}");
        check(
            &what,
            &arguments(),
            &[],
            |a| linear::linear(&a[0], &a[1], Some(&a[2]), false),
            &expected,
        )?;
        // A frozen layer passes the gradient on and has none itself.
        let what = format!("frozen {what}");
        check(
            &what,
            &arguments(),
            &[1, 2],
            |a| linear::linear(&a[0], &a[1], Some(&a[2]), true),
            &expected,
        )?;
        let [x, weight, _] = arguments();
        check(
            &format!("{what} without bias"),
            &[x, weight],
            &[],
            |a| linear::linear(&a[0], &a[1], None, false),
            &|a| reference::linear(&a[0], &a[1], None, inputs),
        )?;
    }
    Ok(())
}

/// What inference runs on passes gradients on as well, whether its zeros are stored or not, and lists its weights.
#[test]
fn linear_layers_stored_by_columns() -> Result<()> {
    for (rows, inputs, outputs) in [(1, 5, 3), (7, 33, 70), (4, 16, 64)] {
        for sparse in [false, true] {
            let mut weight = Argument::noise(&[outputs, inputs], 9);
            if sparse {
                let thin = |(index, value): (usize, &mut f32)| {
                    if index % 7 != 0 {
                        *value = 0.0;
                    }
                };
                weight.values.iter_mut().enumerate().for_each(thin);
            }
            let tensor =
                |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu);
            let bias = noise(outputs, 10);
            let columns = Arc::new(Columns::new(
                &tensor(&weight.values, &[outputs, inputs])?,
                Some(&tensor(&bias, &[outputs])?),
            )?);
            assert_eq!(columns.is_sparse(), sparse);
            let exact = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect();
            let (exact_weight, exact_bias): (Vec<f64>, Vec<f64>) =
                (exact(&weight.values), exact(&bias));
            check(
                &format!("columns {inputs} to {outputs}, sparse: {sparse}"),
                &[Argument::noise(&[rows, inputs], 8)],
                &[],
                |a| columns.forward(&a[0]),
                &|a| reference::linear(&a[0], &exact_weight, Some(&exact_bias), inputs),
            )?;
            let (mut by_input, mut by_output) =
                (vec![0f32; inputs * outputs], vec![0f32; inputs * outputs]);
            for input in 0..inputs {
                for (output, weight) in columns.weights_of_input(input) {
                    by_input[output * inputs + input] = weight;
                }
            }
            for output in 0..outputs {
                for (input, weight) in columns.weights_of_output(output) {
                    by_output[output * inputs + input] = weight;
                }
            }
            assert_eq!((&by_input, &by_output), (&weight.values, &weight.values));
        }
    }
    Ok(())
}

#[test]
fn attention_with_sinks() -> Result<()> {
    for (count, d_head, length) in [(2, 4, 5), (1, 16, 19), (2, 20, 6)] {
        let heads = Heads::plain(count, d_head);
        let shape = [2 * length, count * d_head];
        let spread = |seed| {
            Argument::new(
                &shape,
                noise(shape[0] * shape[1], seed)
                    .iter()
                    .map(|x| 2.0 * x)
                    .collect(),
            )
        };
        check(
            &format!("attention, {count} heads of {d_head}, {length} tokens"),
            &[
                spread(11),
                spread(12),
                spread(13),
                Argument::new(&[count], vec![0.7, -1.3][..count].to_vec()),
            ],
            &[],
            |a| causal_attention(&a[0], &a[1], &a[2], &a[3], heads, length),
            &|a| reference::attention(&a[0], &a[1], &a[2], &a[3], heads, length),
        )?;
        // No sink is a sink logit of minus infinity, which must take no part and get no gradient.
        check(
            &format!("attention without sinks, {count} heads of {d_head}"),
            &[
                spread(11),
                spread(12),
                spread(13),
                Argument::new(&[count], vec![f32::NEG_INFINITY; count]),
            ],
            &[3],
            |a| causal_attention(&a[0], &a[1], &a[2], &a[3], heads, length),
            &|a| reference::attention(&a[0], &a[1], &a[2], &a[3], heads, length),
        )?;
    }
    Ok(())
}

#[test]
fn cross_entropy() -> Result<()> {
    for width in [3, 37, 64] {
        let targets = [0u32, width as u32 - 1, 1];
        let logits = noise(3 * width, 14).iter().map(|x| 6.0 * x).collect();
        check(
            &format!("cross-entropy over {width}"),
            &[Argument::new(&[3, width], logits)],
            &[],
            |a| loss::cross_entropy(&a[0], &Tensor::new(&targets, &Device::Cpu)?),
            &|a| reference::cross_entropy(&a[0], &targets),
        )?;
    }
    Ok(())
}

#[test]
fn logits_far_from_zero_overflow_nowhere() -> Result<()> {
    let logits = [
        [200f32, -200.0, 199.0],
        [-3000.0, -3001.0, -3002.0],
        [3e4, 0.0, -3e4],
    ];
    let logits = Var::new(&logits, &Device::Cpu)?;
    let losses = loss::cross_entropy(&logits, &Tensor::new(&[2u32, 0, 2], &Device::Cpu)?)?;
    // float32 near 3000 is worth 2e-4.
    for (loss, expected) in losses
        .to_vec1::<f32>()?
        .into_iter()
        .zip([1.313_26, 0.407_61, 6e4])
    {
        assert!(
            (loss - expected).abs() < 1e-3,
            "{loss}, expected {expected}"
        );
    }
    let gradients = losses.sum_all()?.backward()?;
    let gradient = gradients
        .get(&logits)
        .expect("a gradient")
        .to_vec2::<f32>()?;
    assert_eq!(gradient[2], [1.0, 0.0, -1.0]);
    assert!(
        gradient.iter().flatten().all(|g| g.abs() <= 1.0),
        "{gradient:?}"
    );
    Ok(())
}

#[test]
fn targets_outside_the_vocabulary_are_refused() -> Result<()> {
    let logits = Tensor::zeros((2, 5), candle_core::DType::F32, &Device::Cpu)?;
    let refused = |targets: &[u32]| -> Result<bool> {
        Ok(loss::cross_entropy(&logits, &Tensor::new(targets, &Device::Cpu)?).is_err())
    };
    assert!(!refused(&[4, 0])? && refused(&[5, 0])? && refused(&[1])?);
    Ok(())
}

#[test]
fn kl_divergence_moves_the_student_only() -> Result<()> {
    for width in [3, 37, 64] {
        let spread = |seed| {
            Argument::new(
                &[3, width],
                noise(3 * width, seed).iter().map(|x| 4.0 * x).collect(),
            )
        };
        check(
            &format!("KL over {width}"),
            &[spread(15), spread(16)],
            &[0],
            |a| loss::kl_divergence(&a[0], &a[1]),
            &|a| reference::kl_divergence(&a[0], &a[1], width),
        )?;
    }
    let same = Var::new(&[[1f32, -2.0, 30.0]], &Device::Cpu)?;
    let none = loss::kl_divergence(&same, &same)?.to_vec1::<f32>()?;
    assert!(
        none[0].abs() < 1e-6,
        "KL of a distribution from itself is {none:?}"
    );
    Ok(())
}

#[test]
fn normalised_mean_squared_error_holds_its_denominator_constant() -> Result<()> {
    let (rows, width) = (6, 7);
    let target = Argument::noise(&[rows, width], 17);
    let exact: Vec<f64> = target.values.iter().map(|&x| f64::from(x)).collect();
    let denominator = reference::deviation(&exact, width);
    check(
        "NMSE",
        &[Argument::noise(&[rows, width], 18), target],
        &[],
        |a| loss::normalised_mean_squared_error(&a[0], &a[1]),
        &|a| {
            vec![
                a[0].iter()
                    .zip(&a[1])
                    .map(|(p, t)| (p - t).powi(2))
                    .sum::<f64>()
                    / denominator,
            ]
        },
    )?;
    // The mean over the rows explains nothing: an error of exactly one.
    let target = Tensor::from_vec(noise(rows * width, 17), (rows, width), &Device::Cpu)?;
    let mean = target.mean_keepdim(0)?.broadcast_as((rows, width))?;
    let one = loss::normalised_mean_squared_error(&mean, &target)?.to_scalar::<f32>()?;
    assert!((one - 1.0).abs() < 1e-5, "{one}");
    Ok(())
}
