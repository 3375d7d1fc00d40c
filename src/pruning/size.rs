//! From a trained mask to a circuit: the smallest set of nodes that reaches the target.
//!
//! Nodes are sorted by their mask parameters; bisection finds the fewest of the first ones whose task loss, with scale and
//! shift fitted anew to each size, is at most the target. Then nodes are taken away for good as long as the target is reached without them: those
//! that cost nothing in a first round, then those that cost a little, and at last every one that is left is tried. In a round
//! those of the last sublayer go first, so that nodes that only they read go next.

use candle_core::Result;

use super::answers::{LogitDiffs, Rescaling};
use super::evaluator::{Evaluator, sublayer_of_nodes};
use super::subject::{PreparedPairs, PrunedModel};
use crate::circuits::circuit::LossAtSize;

/// Circuits have no more nodes: nobody can read a larger one, and each node costs passes.
const MOST_NODES: usize = 4096;
/// Sizes beyond this are not trimmed node by node.
const MOST_TRIMMED: usize = 1024;

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

/// The smallest number of nodes, those with the largest parameters first, that reaches the target; where none does, those
/// whose parameter is above zero.
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
    let above = above.min(MOST_NODES);
    let (mut low, mut high) = (0, parameters.len().min(MOST_NODES));
    let mut mask = None;
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
                    mask = Some(found);
                    None
                }
            }
        }
    };
    if best.is_none() {
        let found = try_size(high)?;
        if found.1 > target {
            let (nodes, found) = mask.map_or((high, found), |mask| (above, mask));
            sizes.sort_by_key(|size| size.nodes);
            return Ok(NodeChoice {
                kept: first(nodes),
                nodes,
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

/// Takes away every node that the target is reached without: from those that the mask keeps where they reach it, else from
/// those that were chosen.
pub fn trimmed(
    subject: &PrunedModel,
    pairs: &PreparedPairs,
    parameters: &[f32],
    mut choice: NodeChoice,
    target: f64,
) -> Result<NodeChoice> {
    let mut evaluator = Evaluator::new(subject, pairs);
    let of_mask: Vec<bool> = parameters.iter().map(|value| *value > 0.0).collect();
    let count = of_mask.iter().filter(|kept| **kept).count();
    if !choice.reaches_target || choice.nodes.max(count) > MOST_TRIMMED {
        return Ok(choice);
    }
    let mut tried = evaluator.try_nodes(&of_mask)?;
    let mut kept = of_mask;
    if fitted_loss(&tried.answers).1 > target {
        kept = choice.kept;
        tried = evaluator.try_nodes(&kept)?;
    }
    (choice.rescaling, choice.task_loss) = fitted_loss(&tried.answers);
    evaluator.keep(tried);
    let sublayers = sublayer_of_nodes(subject);
    let slack = target - choice.task_loss;
    for share in RISES {
        let rise = share * slack.max(f64::MIN_POSITIVE);
        let mut order: Vec<usize> = (0..kept.len()).filter(|&node| kept[node]).collect();
        order.sort_by(|&one, &other| {
            let last_first = sublayers[other].cmp(&sublayers[one]);
            let by_parameter = parameters[one].total_cmp(&parameters[other]);
            last_first.then(by_parameter).then(one.cmp(&other))
        });
        let mut is_enough = |kept: &[bool], taken: usize| -> Result<bool> {
            let tried = evaluator.try_nodes(kept)?;
            let (rescaling, loss) = fitted_loss(&tried.answers);
            let is_enough = loss <= target.min(choice.task_loss + rise * taken as f64);
            if is_enough {
                (choice.rescaling, choice.task_loss) = (rescaling, loss);
                evaluator.keep(tried);
            }
            Ok(is_enough)
        };
        for of_sublayer in order.chunk_by(|&one, &other| sublayers[one] == sublayers[other]) {
            take_away(&mut kept, of_sublayer, &mut is_enough)?;
        }
    }
    choice.nodes = kept.iter().filter(|kept| **kept).count();
    choice.kept = kept;
    Ok(choice)
}

/// How much the task loss may rise for each part that is taken away, in one round after another, as a share of what there
/// is to the target at first: parts that cost nothing go first, so that dear ones do not use up what many cheap ones cost.
pub const RISES: [f64; 2] = [0.02, f64::INFINITY];

/// Parts that are taken away together at first.
const TOGETHER: usize = 16;

/// Takes parts away, in the given order, as long as what is left `is_enough`, given how many were taken: some together, and
/// where that is too much each half of them by itself, down to single parts. No single part is left that was not tried.
pub fn take_away(
    kept: &mut [bool],
    order: &[usize],
    is_enough: &mut dyn FnMut(&[bool], usize) -> Result<bool>,
) -> Result<()> {
    for parts in order.chunks(TOGETHER) {
        take_away_together(kept, parts, is_enough)?;
    }
    Ok(())
}

fn take_away_together(
    kept: &mut [bool],
    parts: &[usize],
    is_enough: &mut dyn FnMut(&[bool], usize) -> Result<bool>,
) -> Result<()> {
    parts.iter().for_each(|&part| kept[part] = false);
    if is_enough(kept, parts.len())? {
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
        take_away(&mut kept, &order, &mut |kept, _| {
            tries += 1;
            Ok(needed.iter().all(|&part| kept[part]))
        })
        .expect("no failure");
        let left: Vec<usize> = (0..100).filter(|&part| kept[part]).collect();
        assert_eq!(left, needed);
        assert!(tries < 50, "{tries}");
    }
}
