//! Interchange: whether the answer follows a circuit's nodes.
//!
//! Both prompts of a pair are run through the whole model, and each again with some nodes' values, at every token, taken
//! from the other. Counted are the prompts that the whole model answers rightly: how many of them get the other's answer?
//! The control exchanges as many nodes of the same places, drawn at random from those outside the circuit.

use std::collections::BTreeMap;

use candle_core::{Result, bail};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::node_tap::{
    NodeValues, PAIRS_A_PASS, ReplacingTap, answers, own_rows, prompts_of, run, watching,
};
use crate::circuits::nodes::NodeSet;
use crate::discovery::question::PromptPair;
use crate::models::location::Node;
use crate::models::transformer::Transformer;
use crate::pruning::answers::LogitDiffs;
use crate::training::passes::masked::PaddedPrompts;

/// The share of rightly answered prompts whose answer becomes the other's; none where no prompt is answered rightly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FlippedShares {
    pub circuit: Option<f64>,
    pub random_nodes: Option<f64>,
}

/// What an interchange of the circuit's nodes does, and of nodes drawn by `seed`.
pub fn interchange(
    model: &Transformer,
    pairs: &[PromptPair],
    circuit: &NodeSet,
    seed: u64,
) -> Result<FlippedShares> {
    if let Some(pair) = pairs
        .iter()
        .find(|pair| pair.presented.len() != pair.counterfactual.len())
    {
        bail!(
            "the prompts of a pair have {} and {} tokens; an interchange needs them equally long",
            pair.presented.len(),
            pair.counterfactual.len()
        )
    }
    let others = circuit.complement(&model.config);
    let places: Vec<Node> = circuit.places().map(|(node, _)| node).collect();
    let others = NodeSet::new(others.iter().filter(|(node, _)| places.contains(node)));
    let mut alive = NodeSet::default();
    for pairs in pairs.chunks(PAIRS_A_PASS) {
        let prompts = prompts_of(pairs);
        let mut tap = watching(&others);
        run(model, &prompts, &mut tap)?;
        let differing = differing(&others, &tap.into_values(), &prompts);
        alive = NodeSet::new(alive.iter().chain(differing.iter()));
    }
    let random = drawn(circuit, &others, &alive, seed);
    let mut counts = [Flips::default(); 2];
    for pairs in pairs.chunks(PAIRS_A_PASS) {
        let prompts = prompts_of(pairs);
        let both = NodeSet::new(circuit.iter().chain(random.iter()));
        let mut tap = watching(&both);
        let whole = answers(model, pairs, &prompts, &mut tap)?;
        let values = exchanged(tap.into_values());
        for (nodes, count) in [circuit, &random].into_iter().zip(&mut counts) {
            let values = of_subset(&both, nodes, &values);
            let mut tap = ReplacingTap {
                nodes,
                values: &values,
            };
            count.add(&whole, &answers(model, pairs, &prompts, &mut tap)?);
        }
    }
    Ok(FlippedShares {
        circuit: counts[0].share(),
        random_nodes: counts[1].share().filter(|_| !random.is_empty()),
    })
}

/// Nodes whose value differs somewhere between the prompts of a pair.
fn differing(nodes: &NodeSet, values: &NodeValues, prompts: &PaddedPrompts) -> NodeSet {
    let half = prompts.ids.len() / 2;
    let own: Vec<usize> = own_rows(prompts).filter(|row| *row < half).collect();
    let places = nodes.places().flat_map(|(node, channels)| {
        let values = values.get(&node).map_or(&[][..], Vec::as_slice);
        let width = channels.len();
        let differs = |index: usize| {
            own.iter().any(|row| {
                let here = values.get(row * width + index);
                here != values.get((row + half) * width + index)
            })
        };
        let differing = channels.iter().enumerate().filter(|(at, _)| differs(*at));
        let differing: Vec<(Node, usize)> =
            differing.map(|(_, &channel)| (node, channel)).collect();
        differing
    });
    NodeSet::new(places)
}

/// As many of `others` as the circuit has at each place, those that are alive first; fewer where a place has no more.
fn drawn(circuit: &NodeSet, others: &NodeSet, alive: &NodeSet, seed: u64) -> NodeSet {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut nodes = Vec::new();
    for (node, channels) in circuit.places() {
        let mut candidates = others.of(node).to_vec();
        candidates.shuffle(&mut rng);
        // The order among those that are alike stays as it was drawn.
        candidates.sort_by_key(|&channel| !alive.contains(node, channel));
        let drawn = candidates.into_iter().take(channels.len());
        nodes.extend(drawn.map(|channel| (node, channel)));
    }
    NodeSet::new(nodes)
}

/// Every prompt's values in the place of the other's.
fn exchanged(mut values: NodeValues) -> NodeValues {
    for values in values.values_mut() {
        let half = values.len() / 2;
        values.rotate_left(half);
    }
    values
}

/// The values of some of the nodes that `values` are of.
fn of_subset(all: &NodeSet, nodes: &NodeSet, values: &NodeValues) -> NodeValues {
    let places = nodes.places().filter_map(|(node, channels)| {
        let (known, values) = (all.of(node), values.get(&node)?);
        let columns: BTreeMap<usize, usize> = known
            .iter()
            .enumerate()
            .map(|(column, &channel)| (channel, column))
            .collect();
        let rows = values.chunks_exact(known.len());
        let taken = rows.flat_map(|row| {
            let columns = channels.iter().filter_map(|channel| columns.get(channel));
            columns.map(|&column| row[column])
        });
        Some((node, taken.collect()))
    });
    places.collect()
}

#[derive(Debug, Clone, Copy, Default)]
struct Flips {
    right: usize,
    flipped: usize,
}

impl Flips {
    fn add(&mut self, whole: &LogitDiffs, exchanged: &LogitDiffs) {
        let presented = whole.presented.iter().zip(&exchanged.presented);
        let counterfactual = whole.counterfactual.iter().zip(&exchanged.counterfactual);
        // Below zero is the presented answer.
        let presented = presented.map(|(whole, now)| (*whole < 0.0, *now > 0.0));
        let counterfactual = counterfactual.map(|(whole, now)| (*whole > 0.0, *now < 0.0));
        for (is_right, is_other) in presented.chain(counterfactual) {
            self.right += usize::from(is_right);
            self.flipped += usize::from(is_right && is_other);
        }
    }

    fn share(self) -> Option<f64> {
        (self.right > 0).then(|| self.flipped as f64 / self.right as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::test_pair::random_pair;
    use crate::models::location::{Location, NodeKind};

    #[test]
    fn as_many_nodes_are_drawn_from_the_same_places_living_ones_first() {
        let config = random_pair(1).sparse.config.clone();
        let place = |kind| Node { layer: 1, kind };
        let (neurons, queries) = (place(NodeKind::PostAct), place(NodeKind::Q));
        let circuit = NodeSet::new([(neurons, 1), (neurons, 4), (neurons, 5), (queries, 0)]);
        let others = circuit.complement(&config);
        let alive = NodeSet::new([(neurons, 7), (neurons, 9)]);
        let one = drawn(&circuit, &others, &alive, 3);
        assert_eq!((one.of(neurons).len(), one.of(queries).len()), (3, 1));
        assert!(one.contains(neurons, 7) && one.contains(neurons, 9));
        assert!(
            one.iter()
                .all(|(node, channel)| !circuit.contains(node, channel))
        );
        assert_eq!(one, drawn(&circuit, &others, &alive, 3));
        assert!((4..20).any(|seed| drawn(&circuit, &others, &alive, seed) != one));
        // A place whose every node is in the circuit has none to be drawn.
        let width = Location::Node(queries).width(&config);
        let full = NodeSet::new((0..width).map(|channel| (queries, channel)));
        assert!(drawn(&full, &full.complement(&config), &alive, 3).is_empty());
    }
}
