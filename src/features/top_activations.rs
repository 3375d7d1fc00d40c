//! Where in a text a feature is strongest, weakest, and in between.

use serde::Serialize;

/// Tokens shown before the one that counts.
const BEFORE: usize = 16;
/// Tokens shown after it.
const AFTER: usize = 4;

/// A window of text and the feature's value at one of its tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Example {
    pub tokens: Vec<u32>,
    /// The index in `tokens` of the token that counts.
    pub at: usize,
    pub activation: f32,
    /// The feature's value at each of `tokens`.
    pub values: Vec<f32>,
}

/// Examples from one pass over a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopActivations {
    /// Largest values first, at most one a sequence.
    pub top: Vec<Example>,
    /// Smallest values first, at most one a sequence.
    pub bottom: Vec<Example>,
    /// The values at evenly spaced quantiles of the nonzero ones, ascending.
    pub quantiles: Vec<Example>,
}

/// Picks examples given a feature's `activations` at each of `tokens`, sequences of `length`.
pub fn top_activations(
    tokens: &[u32],
    length: usize,
    activations: &[f32],
    count: usize,
) -> TopActivations {
    let mut order: Vec<usize> = (0..activations.len().min(tokens.len()))
        .filter(|&at| activations[at] != 0.0)
        .collect();
    order.sort_by(|&one, &other| activations[one].total_cmp(&activations[other]));
    let show = |at: usize| window(tokens, length, activations, at);
    let spread = |from: &mut dyn Iterator<Item = usize>| -> Vec<Example> {
        let mut seen = Vec::new();
        let mut chosen = Vec::new();
        for at in from {
            let sequence = at / length.max(1);
            if chosen.len() == count {
                break;
            }
            if !seen.contains(&sequence) {
                seen.push(sequence);
                chosen.push(show(at));
            }
        }
        chosen
    };
    let quantile = |index: usize| order[(order.len() - 1) * (index + 1) / (count + 1)];
    TopActivations {
        top: spread(&mut order.iter().rev().copied()),
        bottom: spread(&mut order.iter().copied()),
        quantiles: match order.is_empty() {
            true => Vec::new(),
            false => (0..count).map(|index| show(quantile(index))).collect(),
        },
    }
}

fn window(tokens: &[u32], length: usize, activations: &[f32], at: usize) -> Example {
    let sequence = at - at % length.max(1);
    let from = at.saturating_sub(BEFORE).max(sequence);
    let to = (at + 1 + AFTER).min(sequence + length).min(tokens.len());
    Example {
        tokens: tokens[from..to].to_vec(),
        at: at - from,
        activation: activations[at],
        values: activations[from..to.min(activations.len())].to_vec(),
    }
}
