//! From a trained mask to a circuit: the smallest set of nodes that reaches the target.
//!
//! Nodes are sorted by their mask parameters; bisection finds the fewest of the first ones whose task loss, with scale and
//! shift fitted anew to each size, is at most the target. Then nodes are taken away as long as the target is reached without
//! them ([`super::trimming`]).

use candle_core::Result;

use super::answers::{LogitDiffs, Rescaling};
use super::evaluator::without_each_node;
use super::subject::{PreparedPairs, PrunedModel};
use super::trimming::{COARSE, THOROUGH, Trimmable, TrimmingPairs, trim};
use crate::circuits::circuit::LossAtSize;

/// Circuits have no more nodes: nobody can read a larger one, and each node costs passes.
const MOST_NODES: usize = 4096;
/// Sizes beyond this are not trimmed node by node.
const MOST_TRIMMED: usize = 4096;

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

/// Takes nodes away from those that the mask keeps where they reach the target, else from those that were chosen.
pub fn trimmed(
    subject: &PrunedModel,
    pairs: &TrimmingPairs,
    parameters: &[f32],
    mut choice: NodeChoice,
    target: f64,
) -> Result<NodeChoice> {
    let of_mask: Vec<bool> = parameters.iter().map(|value| *value > 0.0).collect();
    let count = of_mask.iter().filter(|kept| **kept).count();
    if !choice.reaches_target || choice.nodes.max(count) > MOST_TRIMMED {
        return Ok(choice);
    }
    let mut one_by_one = Nodes {
        subject,
        pairs,
        judge: each_alone,
    };
    let (_, loss) = one_by_one.loss(&of_mask)?;
    let mut kept = match loss <= target {
        true => of_mask,
        false => choice.kept,
    };
    let liked: Vec<f64> = parameters.iter().map(|value| f64::from(*value)).collect();
    if kept.iter().filter(|kept| **kept).count() > FEW {
        let mut by_gradient = Nodes {
            subject,
            pairs,
            judge: by_gradients,
        };
        let (_, loss) = by_gradient.loss(&kept)?;
        let half_way = 0.5 * (loss + target);
        kept = trim(&mut by_gradient, kept, &liked, half_way, COARSE)?.kept;
    }
    let found = trim(&mut one_by_one, kept, &liked, target, THOROUGH)?;
    (choice.rescaling, choice.task_loss) = (found.rescaling, found.task_loss);
    choice.nodes = found.kept.iter().filter(|kept| **kept).count();
    choice.kept = found.kept;
    Ok(choice)
}

/// More nodes than this are judged by gradients at first, up to half of the way to the target.
const FEW: usize = 96;

/// How much the loss rises on some pairs without each kept node, by the best scale and shift; any number for the others.
type Judge = fn(&PrunedModel, &PreparedPairs, &[bool]) -> Result<Vec<f64>>;

/// Nodes that are taken away.
struct Nodes<'a> {
    subject: &'a PrunedModel,
    pairs: &'a TrimmingPairs,
    judge: Judge,
}

impl Trimmable for Nodes<'_> {
    fn loss(&mut self, kept: &[bool]) -> Result<(Rescaling, f64)> {
        let answers = self.subject.answers(&self.pairs.deciding, kept)?;
        Ok(fitted_loss(&answers))
    }

    fn rises(&mut self, kept: &[bool], round: usize) -> Result<Vec<f64>> {
        (self.judge)(self.subject, self.pairs.judging(round), kept)
    }
}

/// By how steep the loss is in every node's mask, whichever way: as cheap as a few passes. A mask that the loss hardly depends
/// on can go; what becomes of the loss without one that it does depend on, a gradient does not tell.
fn by_gradients(subject: &PrunedModel, pairs: &PreparedPairs, kept: &[bool]) -> Result<Vec<f64>> {
    let (rescaling, _) = fitted_loss(&subject.answers(pairs, kept)?);
    let (_, gradient) = subject.loss_gradient(pairs, kept, rescaling)?;
    Ok(gradient
        .iter()
        .map(|value| f64::from(value.abs()))
        .collect())
}

/// By holding each.
fn each_alone(subject: &PrunedModel, pairs: &PreparedPairs, kept: &[bool]) -> Result<Vec<f64>> {
    let tried: Vec<usize> = (0..kept.len()).filter(|&node| kept[node]).collect();
    let nodes = (kept, tried.as_slice());
    let of_tried = without_each_node(subject, &subject.passes, pairs, nodes, |answers| {
        fitted_loss(answers).1
    })?;
    let mut rises = vec![0.0; kept.len()];
    for (node, rise) in tried.into_iter().zip(of_tried) {
        rises[node] = rise;
    }
    Ok(rises)
}
