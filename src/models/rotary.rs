//! A model's rotary positions: how fast each pair of channels turns, and the angles of the rows of a pass.
//!
//! Angles are `position * frequency` in float32, as the models were trained. The scaled forms follow the published
//! formulas of Llama 3.1, YaRN (Peng et al. 2023) and LongRoPE (Ding et al. 2024).

use std::f64::consts::PI;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::variant::{Rotary, RotaryPairs, RotaryScaling};
use crate::numerics::rotary::{Pairing, Turns};

/// The frequencies of one model.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    /// Radians a token, of each pair.
    frequencies: Vec<f32>,
    /// Those of positions from a first context on, where they differ.
    beyond: Option<(u32, Vec<f32>)>,
    /// What cosines and sines are multiplied by.
    factor: f32,
}

impl Rotary {
    /// How the channels of a head are turned together.
    pub fn pairing(&self, d_head: usize) -> Pairing {
        Pairing {
            d_head,
            neighbours: self.pairs == RotaryPairs::Neighbours,
        }
    }
}

impl RotaryTable {
    pub fn new(rotary: &Rotary) -> Self {
        let pairs = rotary.channels / 2;
        let plain: Vec<f64> = (0..pairs)
            .map(|pair| rotary.base.powf(-(pair as f64) / pairs as f64))
            .collect();
        let divided = |factors: &[f64]| -> Vec<f64> {
            plain
                .iter()
                .zip(factors)
                .map(|(frequency, factor)| frequency / factor)
                .collect()
        };
        let (mut beyond, mut attention_factor) = (None, 1.0);
        let frequencies = match &rotary.scaling {
            RotaryScaling::None => plain.clone(),
            RotaryScaling::Linear { factor } => divided(&vec![*factor; pairs]),
            RotaryScaling::Listed { factors } => divided(factors),
            RotaryScaling::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                first_context,
            } => {
                let scaled = plain.iter().map(|&frequency| {
                    // How often the pair turns within the first context.
                    let turns = *first_context as f64 * frequency / (2.0 * PI);
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - kept) * frequency / factor + kept * frequency
                });
                scaled.collect()
            }
            RotaryScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                first_context,
                attention_factor: grown,
                truncate,
            } => {
                attention_factor = *grown;
                let channels = rotary.channels as f64;
                // The pair that turns so often within the first context, counted in channels.
                let turning = |turns: f64| {
                    channels * (*first_context as f64 / (turns * 2.0 * PI)).ln()
                        / (2.0 * rotary.base.ln())
                };
                let (mut low, mut high) = (turning(*beta_fast), turning(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(channels - 1.0));
                if low == high {
                    high += 0.001;
                }
                let scaled = plain.iter().enumerate().map(|(pair, frequency)| {
                    let slow = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor * slow + frequency * (1.0 - slow)
                });
                scaled.collect()
            }
            RotaryScaling::Longrope {
                short,
                long,
                first_context,
                attention_factor: grown,
            } => {
                attention_factor = *grown;
                beyond = Some((*first_context as u32, single(&divided(long))));
                divided(short)
            }
        };
        RotaryTable {
            frequencies: single(&frequencies),
            beyond,
            factor: attention_factor as f32,
        }
    }

    /// The angles of rows at these positions, `[rows]` u32.
    pub fn turns(&self, positions: &Tensor) -> Result<Arc<Turns>> {
        let positions = positions.to_vec1::<u32>()?;
        let pairs = self.frequencies.len();
        let mut turns = Turns {
            pairs,
            cosines: Vec::with_capacity(positions.len() * pairs),
            sines: Vec::with_capacity(positions.len() * pairs),
        };
        for position in positions {
            let frequencies = match &self.beyond {
                Some((first, frequencies)) if position >= *first => frequencies,
                _ => &self.frequencies,
            };
            for frequency in frequencies {
                let (sine, cosine) = (position as f32 * frequency).sin_cos();
                turns.cosines.push(cosine * self.factor);
                turns.sines.push(sine * self.factor);
            }
        }
        Ok(Arc::new(turns))
    }
}

fn single(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}
