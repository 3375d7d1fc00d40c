//! What nodes are inside the whole model: after a task's prompts, over reference text, and token by token.

use candle_core::{Device, Result};

use super::node_tap::{NodeValues, PAIRS_A_PASS, own_rows, prompts_of, run, watching};
use crate::circuits::circuit::{ReferenceActivations, TokenActivations};
use crate::circuits::nodes::NodeSet;
use crate::discovery::question::PromptPair;
use crate::models::location::Site;
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;

/// Tokens of reference text that go through the model together.
const TOKENS_A_PASS: usize = 4096;
/// Pairs whose prompts are shown as examples.
const EXAMPLE_PAIRS: usize = 2;

/// A node's mean at the last token of each side's prompts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SideMeans {
    pub presented: f32,
    pub counterfactual: f32,
}

/// Of every node of the set, in the order of the pass.
pub fn side_means(
    model: &Transformer,
    pairs: &[PromptPair],
    nodes: &NodeSet,
) -> Result<Vec<SideMeans>> {
    let mut sums = vec![[0f64; 2]; nodes.len()];
    for pairs in pairs.chunks(PAIRS_A_PASS) {
        let prompts = prompts_of(pairs);
        let mut tap = watching(nodes);
        run(model, &prompts, &mut tap)?;
        let last: Vec<usize> = prompts.last.iter().map(|&row| row as usize).collect();
        let columns = columns(nodes, &tap.into_values(), &last);
        for (sums, values) in sums.iter_mut().zip(columns) {
            for (prompt, value) in values.into_iter().enumerate() {
                sums[usize::from(prompt >= pairs.len())] += f64::from(value);
            }
        }
    }
    let count = pairs.len().max(1) as f64;
    let means = sums
        .into_iter()
        .map(|[presented, counterfactual]| SideMeans {
            presented: (presented / count) as f32,
            counterfactual: (counterfactual / count) as f32,
        });
    Ok(means.collect())
}

/// Of every node over all tokens of `ids`, whole sequences of `length` one after another.
pub fn over_reference(
    model: &Transformer,
    nodes: &NodeSet,
    ids: &[u32],
    length: usize,
) -> Result<Vec<ReferenceActivations>> {
    let mut spreads = vec![Spread::default(); nodes.len()];
    let sequences = (TOKENS_A_PASS / length.max(1)).max(1);
    for part in ids.chunks(sequences * length.max(1)) {
        let mut rows = TokenRows::sequences(part, length, &Device::Cpu)?;
        let mut tap = watching(nodes);
        let stream = model.embed(&rows)?;
        let first = Site::before_attention(0, model.config.n_layers);
        model.run(first, stream, &mut rows, &mut tap)?;
        let all: Vec<usize> = (0..part.len()).collect();
        let columns = columns(nodes, &tap.into_values(), &all);
        for (spread, values) in spreads.iter_mut().zip(columns) {
            values.into_iter().for_each(|value| spread.add(value));
        }
    }
    Ok(spreads.iter().map(Spread::activations).collect())
}

/// Both prompts of the first pairs, token by token, of every node.
pub fn examples(
    model: &Transformer,
    pairs: &[PromptPair],
    nodes: &NodeSet,
    token_text: &dyn Fn(u32) -> String,
) -> Result<Vec<Vec<TokenActivations>>> {
    let mut examples = vec![Vec::new(); nodes.len()];
    for pair in &pairs[..EXAMPLE_PAIRS.min(pairs.len())] {
        let prompts = prompts_of(std::slice::from_ref(pair));
        let mut tap = watching(nodes);
        run(model, &prompts, &mut tap)?;
        let values = tap.into_values();
        for (side, prompt) in [&pair.presented, &pair.counterfactual]
            .into_iter()
            .enumerate()
        {
            let first = side * prompts.length;
            let rows: Vec<usize> = own_rows(&prompts)
                .filter(|row| (first..first + prompts.length).contains(row))
                .collect();
            let tokens: Vec<String> = prompt.iter().map(|&id| token_text(id)).collect();
            let columns = columns(nodes, &values, &rows);
            for (examples, values) in examples.iter_mut().zip(columns) {
                examples.push(TokenActivations {
                    tokens: tokens.clone(),
                    values: values.into_iter().map(rounded).collect(),
                });
            }
        }
    }
    Ok(examples)
}

/// Every node's values at some rows.
fn columns(nodes: &NodeSet, values: &NodeValues, rows: &[usize]) -> Vec<Vec<f32>> {
    let places = nodes.places().flat_map(|(node, channels)| {
        let values = values.get(&node).map_or(&[][..], Vec::as_slice);
        let width = channels.len();
        (0..width).map(move |at| {
            let rows = rows
                .iter()
                .filter_map(move |row| values.get(row * width + at));
            rows.copied().collect()
        })
    });
    places.collect()
}

/// To four significant digits: records hold one number a node and token.
pub fn rounded(value: f32) -> f32 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

#[derive(Debug, Clone, Copy, Default)]
struct Spread {
    count: f64,
    mean: f64,
    /// Squared distances from the mean.
    squares: f64,
    range: Option<(f32, f32)>,
    nonzero: f64,
}

impl Spread {
    /// By Welford's method.
    fn add(&mut self, value: f32) {
        let (least, most) = self.range.unwrap_or((value, value));
        self.range = Some((least.min(value), most.max(value)));
        self.nonzero += f64::from(u8::from(value != 0.0));
        let value = f64::from(value);
        self.count += 1.0;
        let away = value - self.mean;
        self.mean += away / self.count;
        self.squares += away * (value - self.mean);
    }

    fn activations(&self) -> ReferenceActivations {
        let (min, max) = self.range.unwrap_or_default();
        let count = self.count.max(1.0);
        ReferenceActivations {
            mean: self.mean as f32,
            std: (self.squares / count).sqrt() as f32,
            min,
            max,
            density: (self.nonzero / count) as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_over_every_value() {
        let mut spread = Spread::default();
        [0.0, 2.0, 0.0, -6.0]
            .into_iter()
            .for_each(|value| spread.add(value));
        let found = spread.activations();
        assert_eq!(
            (found.mean, found.min, found.max, found.density),
            (-1.0, -6.0, 2.0, 0.5)
        );
        assert!((found.std - 9f32.sqrt()).abs() < 1e-6, "{}", found.std);
    }

    #[test]
    fn four_digits_are_kept() {
        assert_eq!(rounded(0.123456), 0.1235);
        assert_eq!(rounded(-98766.0), -98770.0);
        assert_eq!(rounded(0.0), 0.0);
    }
}
