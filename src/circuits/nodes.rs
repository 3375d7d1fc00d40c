//! Sets of nodes, and where nodes are.
//!
//! Eight places of a layer have nodes: what a sublayer reads, queries, keys and values, neurons, and what a sublayer adds
//! to the stream. The heads' outputs (`attn.y`) are none: a channel of them is that channel of the values, moved between
//! tokens.

use std::collections::BTreeMap;

use crate::models::config::TransformerConfig;
use crate::models::location::{Node, NodeKind};

/// The kinds of places that have nodes, in the order of the pass.
pub const KINDS: [NodeKind; 8] = [
    NodeKind::AttnIn,
    NodeKind::Q,
    NodeKind::K,
    NodeKind::V,
    NodeKind::AttnOut,
    NodeKind::MlpIn,
    NodeKind::PostAct,
    NodeKind::MlpOut,
];

/// Every place of a model that has nodes, in the order of the pass, with the number of its channels.
pub fn node_locations(config: &TransformerConfig) -> Vec<(Node, usize)> {
    let layers = 0..config.n_layers;
    let places = layers.flat_map(|layer| KINDS.map(|kind| Node { layer, kind }));
    places
        .map(|node| {
            let width = crate::models::location::Location::Node(node).width(config);
            (node, width)
        })
        .collect()
}

/// Some nodes of a model: the channels of each place, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSet {
    channels: BTreeMap<Node, Vec<usize>>,
}

impl NodeSet {
    /// Of nodes in any order; one that is given twice is there once.
    pub fn new(nodes: impl IntoIterator<Item = (Node, usize)>) -> Self {
        let mut channels: BTreeMap<Node, Vec<usize>> = BTreeMap::new();
        for (node, channel) in nodes {
            channels.entry(node).or_default().push(channel);
        }
        for channels in channels.values_mut() {
            channels.sort_unstable();
            channels.dedup();
        }
        NodeSet { channels }
    }

    /// All nodes of a model.
    pub fn all(config: &TransformerConfig) -> Self {
        let places = node_locations(config).into_iter();
        NodeSet {
            channels: places
                .map(|(node, width)| (node, (0..width).collect()))
                .collect(),
        }
    }

    /// Those of the model's nodes that are not in this set.
    pub fn complement(&self, config: &TransformerConfig) -> Self {
        let places = node_locations(config).into_iter();
        let outside = places.map(|(node, width)| {
            let inside = self.of(node);
            let channels = (0..width).filter(|channel| inside.binary_search(channel).is_err());
            (node, channels.collect::<Vec<_>>())
        });
        NodeSet {
            channels: outside
                .filter(|(_, channels)| !channels.is_empty())
                .collect(),
        }
    }

    /// The channels of one place, ascending; none where it has no node of the set.
    pub fn of(&self, node: Node) -> &[usize] {
        self.channels.get(&node).map_or(&[], Vec::as_slice)
    }

    pub fn contains(&self, node: Node, channel: usize) -> bool {
        self.of(node).binary_search(&channel).is_ok()
    }

    /// The places that have nodes of the set, in the order of the pass, with their channels.
    pub fn places(&self) -> impl Iterator<Item = (Node, &[usize])> {
        self.channels
            .iter()
            .map(|(node, channels)| (*node, channels.as_slice()))
    }

    /// Every node, place after place.
    pub fn iter(&self) -> impl Iterator<Item = (Node, usize)> + '_ {
        self.places()
            .flat_map(|(node, channels)| channels.iter().map(move |&channel| (node, channel)))
    }

    pub fn len(&self) -> usize {
        self.channels.values().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::test_pair::random_pair;

    #[test]
    fn a_set_and_its_complement_are_all_nodes() {
        let config = random_pair(1).sparse.config.clone();
        let all = NodeSet::all(&config);
        let (_, width) = node_locations(&config)[0];
        assert_eq!(
            all.len(),
            node_locations(&config).iter().map(|at| at.1).sum::<usize>()
        );
        let node = Node {
            layer: 1,
            kind: NodeKind::PostAct,
        };
        let some = NodeSet::new([
            (node, 3),
            (node, 1),
            (node, 3),
            (node_locations(&config)[0].0, width - 1),
        ]);
        assert_eq!((some.len(), some.of(node)), (3, &[1, 3][..]));
        let rest = some.complement(&config);
        assert_eq!(rest.len() + some.len(), all.len());
        assert!(
            some.iter()
                .all(|(node, channel)| !rest.contains(node, channel))
        );
        assert_eq!(NodeSet::new(rest.iter().chain(some.iter())), all);
        assert!(all.complement(&config).is_empty());
    }
}
