//! RMSNorm and LayerNorm of tiles, with their gradients.
//!
//! `x = (h - mean) * inverse * gain + bias`; `h`, `x` `[channels][width]`, `mean`, `inverse` `[width]`. An RMSNorm has no
//! mean. The formulas are those of [`crate::numerics::norm`]. Where the scale is fixed, `inverse` is given and has no
//! gradient.

use multiversion::multiversion;

/// What a norm found of every token.
#[derive(Debug, Clone, Default)]
pub struct TokenStatistics {
    /// `[width]`; empty for an RMSNorm.
    pub mean: Vec<f32>,
    /// `[width]`.
    pub inverse: Vec<f32>,
    /// Whether `inverse` was given, not found.
    pub is_scale_fixed: bool,
}

/// The statistics of every token of `h [channels][width]`.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn statistics(h: &[f32], width: usize, epsilon: f32, centred: bool) -> TokenStatistics {
    let channels = (h.len() / width) as f32;
    let mut mean = vec![0f32; if centred { width } else { 0 }];
    if centred {
        for row in h.chunks_exact(width) {
            for (sum, value) in mean.iter_mut().zip(row) {
                *sum += value;
            }
        }
        mean.iter_mut().for_each(|sum| *sum /= channels);
    }
    let mut inverse = vec![0f32; width];
    for row in h.chunks_exact(width) {
        match centred {
            true => {
                for ((sum, value), mean) in inverse.iter_mut().zip(row).zip(&mean) {
                    *sum += (value - mean) * (value - mean);
                }
            }
            false => {
                for (sum, value) in inverse.iter_mut().zip(row) {
                    *sum += value * value;
                }
            }
        }
    }
    for sum in &mut inverse {
        let square = *sum / channels;
        *sum = match square.is_infinite() {
            true => f32::NAN,
            false => 1.0 / (square + epsilon).sqrt(),
        };
    }
    TokenStatistics {
        mean,
        inverse,
        is_scale_fixed: false,
    }
}

/// `x` from `h` and its statistics.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn apply(
    h: &[f32],
    width: usize,
    statistics: &TokenStatistics,
    gain: &[f32],
    bias: Option<&[f32]>,
    x: &mut [f32],
) {
    let rows = h.chunks_exact(width).zip(x.chunks_exact_mut(width));
    for (channel, (h, x)) in rows.enumerate() {
        let (gain, bias) = (gain[channel], bias.map_or(0.0, |bias| bias[channel]));
        let values = x.iter_mut().zip(h).zip(&statistics.inverse);
        match statistics.mean.is_empty() {
            true => {
                for ((x, h), inverse) in values {
                    *x = h * inverse * gain + bias;
                }
            }
            false => {
                for (((x, h), inverse), mean) in values.zip(&statistics.mean) {
                    *x = (h - mean) * inverse * gain + bias;
                }
            }
        }
    }
}

/// Adds the gradient with respect to `h` to `grad_h`, those of gain and bias to theirs. `grad_x` is used up.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
pub fn gradient(
    h: &[f32],
    width: usize,
    statistics: &TokenStatistics,
    gain: &[f32],
    grad_x: &mut [f32],
    gradients: NormGradients,
) {
    let NormGradients {
        h: grad_h,
        gain: mut grad_gain,
        bias: mut grad_bias,
    } = gradients;
    let channels = (h.len() / width) as f32;
    let is_centred = !statistics.mean.is_empty();
    let zero = vec![0f32; width];
    let mean = if is_centred { &statistics.mean } else { &zero };
    // The sums over channels of `u n` and of `u`, where `u = x' gain` and `n = (h - mean) inverse`.
    let (mut products, mut sums) = (vec![0f32; width], vec![0f32; width]);
    for (channel, (grad, h)) in grad_x
        .chunks_exact_mut(width)
        .zip(h.chunks_exact(width))
        .enumerate()
    {
        let mut lanes = [0f32; super::processor::LANES];
        let mut bias_lanes = [0f32; super::processor::LANES];
        let gain = gain[channel];
        for first in (0..width).step_by(super::processor::LANES) {
            for lane in 0..super::processor::LANES {
                let at = first + lane;
                let normal = (h[at] - mean[at]) * statistics.inverse[at];
                lanes[lane] += grad[at] * normal;
                bias_lanes[lane] += grad[at];
                let u = grad[at] * gain;
                products[at] += u * normal;
                sums[at] += u;
                grad[at] = u;
            }
        }
        if let Some(grad_gain) = &mut grad_gain {
            grad_gain[channel] += lanes.iter().sum::<f32>();
        }
        if let Some(grad_bias) = &mut grad_bias {
            grad_bias[channel] += bias_lanes.iter().sum::<f32>();
        }
    }
    for at in 0..width {
        products[at] = match statistics.is_scale_fixed {
            true => 0.0,
            false => products[at] * (statistics.inverse[at] / channels),
        };
        sums[at] = if is_centred { sums[at] / channels } else { 0.0 };
    }
    let rows = grad_x.chunks_exact(width).zip(h.chunks_exact(width));
    for ((u, h), out) in rows.zip(grad_h.chunks_exact_mut(width)) {
        for at in 0..width {
            let centred = h[at] - mean[at];
            out[at] += statistics.inverse[at] * (u[at] - sums[at] - centred * products[at]);
        }
    }
}

/// Where a norm's gradients are added up.
pub struct NormGradients<'a> {
    /// `[channels][width]`.
    pub h: &'a mut [f32],
    /// `[channels]`; none for a frozen norm.
    pub gain: Option<&'a mut [f32]>,
    /// `[channels]`; none for a frozen norm, or one without bias.
    pub bias: Option<&'a mut [f32]>,
}
