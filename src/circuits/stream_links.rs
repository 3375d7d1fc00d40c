//! What joins nodes through the residual stream: a channel that a sublayer adds to the stream is read as the same channel by
//! every later sublayer. These links have no weight of their own, and are no edges.

use std::collections::BTreeMap;

use crate::models::location::{Node, NodeKind};

/// The site from which on the stream holds what a node adds to it; none for nodes that add nothing.
pub fn written_at(node: Node) -> Option<usize> {
    match node.kind {
        NodeKind::AttnOut => Some(2 * node.layer + 1),
        NodeKind::MlpOut => Some(2 * node.layer + 2),
        _ => None,
    }
}

/// The site whose stream a node reads; none for nodes that read no stream. `parallel` where the attention and the MLP of a
/// layer read the same.
pub fn read_at(node: Node, parallel: bool) -> Option<usize> {
    match node.kind {
        NodeKind::AttnIn => Some(2 * node.layer),
        NodeKind::MlpIn => Some(2 * node.layer + usize::from(!parallel)),
        _ => None,
    }
}

/// The pairs of nodes, by their places in `nodes`, of which the first is what a sublayer adds to a channel and the second what
/// a later one reads of it, in the order of the second.
pub fn stream_links(nodes: &[(Node, usize)], parallel: bool) -> Vec<(usize, usize)> {
    let mut writers: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
    for (index, (node, channel)) in nodes.iter().enumerate() {
        if let Some(site) = written_at(*node) {
            writers.entry(*channel).or_default().push((site, index));
        }
    }
    let mut links = Vec::new();
    for (index, (node, channel)) in nodes.iter().enumerate() {
        let (Some(site), Some(writers)) = (read_at(*node, parallel), writers.get(channel)) else {
            continue;
        };
        let earlier = writers.iter().filter(|(written, _)| *written <= site);
        links.extend(earlier.map(|(_, writer)| (*writer, index)));
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_read_by_the_sublayers_that_come_later() {
        let at = |layer, kind| Node { layer, kind };
        let nodes = [
            (at(0, NodeKind::AttnIn), 5),
            (at(0, NodeKind::AttnOut), 5),
            (at(0, NodeKind::MlpIn), 5),
            (at(0, NodeKind::MlpIn), 6),
            (at(0, NodeKind::MlpOut), 5),
            (at(1, NodeKind::AttnIn), 5),
            (at(1, NodeKind::V), 5),
        ];
        let links = stream_links(&nodes, false);
        assert_eq!(links, [(1, 2), (1, 5), (4, 5)]);
        // Where both sublayers of a layer read the same stream, the MLP sees nothing of the attention's.
        assert_eq!(stream_links(&nodes, true), [(1, 5), (4, 5)]);
    }
}
