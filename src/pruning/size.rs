//! From a trained mask to a circuit: the smallest set of nodes that reaches the target.
//!
//! Nodes are sorted by their mask parameters; bisection finds the fewest of the first ones whose task loss, with scale and
//! shift fitted anew to each size, is at most the target. Then every node left is tried once: without it, is the target
//! still reached? It is taken away for good where it is.

use candle_core::Result;

use super::answers::{LogitDiffs, Rescaling};
use super::subject::{PreparedPairs, Subject};
use crate::circuits::circuit::LossAtSize;

/// Sizes beyond this are not trimmed node by node.
const MOST_TRIMMED: usize = 600;

/// A set of nodes and what it does on the pairs that it was chosen on.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// One a node.
    pub kept: Vec<bool>,
    pub nodes: usize,
    pub task_loss: f64,
    pub rescaling: Rescaling,
    pub reaches_target: bool,
    /// Every size that was looked at, ascending.
    pub sizes: Vec<LossAtSize>,
}

/// The fitted scale and shift of some answers, and their task loss.
pub fn fitted_loss(answers: &LogitDiffs) -> (Rescaling, f64) {
    let rescaling = Rescaling::fitted(answers);
    (rescaling, answers.loss(rescaling))
}

/// The smallest number of nodes, those with the largest parameters first, that reaches the target; all nodes where none
/// does.
pub fn bisected(
    subject: &Subject,
    pairs: &PreparedPairs,
    parameters: &[f32],
    target: f64,
) -> Result<Choice> {
    let mut order: Vec<usize> = (0..parameters.len()).collect();
    order.sort_by(|&one, &other| {
        parameters[other]
            .total_cmp(&parameters[one])
            .then(one.cmp(&other))
    });
    let first = |count: usize| {
        let mut kept = vec![false; parameters.len()];
        order[..count].iter().for_each(|&node| kept[node] = true);
        kept
    };
    let mut sizes = Vec::new();
    let mut try_size = |count: usize| -> Result<(Rescaling, f64)> {
        let found = fitted_loss(&subject.answers(pairs, &first(count))?);
        sizes.push(LossAtSize {
            nodes: count,
            task_loss: found.1,
        });
        Ok(found)
    };
    let above = parameters.iter().filter(|value| **value > 0.0).count();
    let (mut low, mut high) = (0, parameters.len());
    // Where the mask is already enough, nobody needs to look at larger sizes.
    let mut best = match above {
        0 => None,
        above => {
            let found = try_size(above)?;
            match found.1 <= target {
                true => {
                    high = above;
                    Some((above, found))
                }
                false => {
                    low = above;
                    None
                }
            }
        }
    };
    if best.is_none() {
        let found = try_size(high)?;
        if found.1 > target {
            sizes.sort_by_key(|size| size.nodes);
            return Ok(Choice {
                kept: first(high),
                nodes: high,
                task_loss: found.1,
                rescaling: found.0,
                reaches_target: false,
                sizes,
            });
        }
        best = Some((high, found));
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let found = try_size(middle)?;
        match found.1 <= target {
            true => {
                high = middle;
                best = Some((middle, found));
            }
            false => low = middle,
        }
    }
    sizes.sort_by_key(|size| size.nodes);
    let (nodes, (rescaling, task_loss)) = best.unwrap_or((high, (Rescaling::NONE, f64::INFINITY)));
    Ok(Choice {
        kept: first(nodes),
        nodes,
        task_loss,
        rescaling,
        reaches_target: task_loss <= target,
        sizes,
    })
}

/// Takes away every node that the target is reached without, those with the smallest parameters first.
pub fn trimmed(
    subject: &Subject,
    pairs: &PreparedPairs,
    parameters: &[f32],
    mut choice: Choice,
    target: f64,
) -> Result<Choice> {
    if !choice.reaches_target || choice.nodes > MOST_TRIMMED {
        return Ok(choice);
    }
    let mut order: Vec<usize> = (0..parameters.len())
        .filter(|&node| choice.kept[node])
        .collect();
    order.sort_by(|&one, &other| {
        parameters[one]
            .total_cmp(&parameters[other])
            .then(one.cmp(&other))
    });
    for node in order {
        choice.kept[node] = false;
        let (rescaling, loss) = fitted_loss(&subject.answers(pairs, &choice.kept)?);
        match loss <= target {
            true => {
                choice.nodes -= 1;
                choice.rescaling = rescaling;
                choice.task_loss = loss;
            }
            false => choice.kept[node] = true,
        }
    }
    Ok(choice)
}
