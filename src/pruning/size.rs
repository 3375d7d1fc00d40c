//! From a trained mask to a circuit: the smallest set of nodes that reaches the target.
//!
//! Nodes are sorted by their mask parameters; bisection finds the fewest of the first ones whose task loss, with scale and
//! shift fitted anew to each size, is at most the target. Then every node left is tried once: without it, is the target
//! still reached? It is taken away for good where it is.

use candle_core::Result;

use super::answers::{LogitDiffs, Rescaling};
use super::subject::{PreparedPairs, PrunedModel};
use crate::circuits::circuit::LossAtSize;

/// Sizes beyond this are not trimmed node by node.
const MOST_TRIMMED: usize = 600;

/// A set of nodes and what it does on the pairs that it was chosen on.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeChoice {
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
    subject: &PrunedModel,
    pairs: &PreparedPairs,
    parameters: &[f32],
    target: f64,
) -> Result<NodeChoice> {
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
            return Ok(NodeChoice {
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
    Ok(NodeChoice {
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
    subject: &PrunedModel,
    pairs: &PreparedPairs,
    parameters: &[f32],
    mut choice: NodeChoice,
    target: f64,
) -> Result<NodeChoice> {
    if !choice.reaches_target || choice.nodes > MOST_TRIMMED {
        return Ok(choice);
    }
    let mut order: Vec<usize> = (0..parameters.len())
        .filter(|&node| choice.kept[node])
        .collect();
    order.sort_by(|&one, &other| {
        let by_parameter = parameters[one].total_cmp(&parameters[other]);
        by_parameter.then(one.cmp(&other))
    });
    let mut kept = std::mem::take(&mut choice.kept);
    take_away(&mut kept, &order, &mut |kept| {
        let (rescaling, loss) = fitted_loss(&subject.answers(pairs, kept)?);
        if loss <= target {
            choice.rescaling = rescaling;
            choice.task_loss = loss;
        }
        Ok(loss <= target)
    })?;
    choice.nodes = kept.iter().filter(|kept| **kept).count();
    choice.kept = kept;
    Ok(choice)
}

/// Parts that are taken away together at first.
const TOGETHER: usize = 16;

/// Takes parts away, in the given order, as long as `is_enough` without them: some together, and where that is too much
/// each half of them by itself, down to single parts. No single part is left that was not tried.
pub fn take_away(
    kept: &mut [bool],
    order: &[usize],
    is_enough: &mut dyn FnMut(&[bool]) -> Result<bool>,
) -> Result<()> {
    for parts in order.chunks(TOGETHER) {
        take_away_together(kept, parts, is_enough)?;
    }
    Ok(())
}

fn take_away_together(
    kept: &mut [bool],
    parts: &[usize],
    is_enough: &mut dyn FnMut(&[bool]) -> Result<bool>,
) -> Result<()> {
    parts.iter().for_each(|&part| kept[part] = false);
    if is_enough(kept)? {
        return Ok(());
    }
    parts.iter().for_each(|&part| kept[part] = true);
    if parts.len() > 1 {
        let (first, second) = parts.split_at(parts.len().div_ceil(2));
        take_away_together(kept, first, is_enough)?;
        take_away_together(kept, second, is_enough)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_stays_and_nothing_else() {
        let mut kept = vec![true; 100];
        let needed = [3, 40, 41, 99];
        let order: Vec<usize> = (0..100).rev().collect();
        let mut tries = 0;
        take_away(&mut kept, &order, &mut |kept| {
            tries += 1;
            Ok(needed.iter().all(|&part| kept[part]))
        })
        .expect("no failure");
        let left: Vec<usize> = (0..100).filter(|&part| kept[part]).collect();
        assert_eq!(left, needed);
        assert!(tries < 50, "{tries}");
    }
}
