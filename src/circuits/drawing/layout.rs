//! Where the parts of a drawn circuit are: layers are columns, and down each column come the attention's input, its queries,
//! keys and values, what it adds to the stream, the MLP's input, its neurons, and what it adds.
//!
//! Nodes of a row are ordered so that edges cross little: each goes where the mean of its neighbours is. A row that is too
//! long goes on in another line.

use std::collections::BTreeMap;

use super::drawn::DrawnCircuit;
use crate::models::location::NodeKind;

/// What the rows of a column are called, those of the attention first.
pub const ROWS: [&str; 6] = ["reads", "q, k, v", "adds", "reads", "neurons", "adds"];
/// Rows of the attention.
pub const ATTENTION_ROWS: usize = 3;
const NODE_HEIGHT: f64 = 24.0;
const NODE_GAP: f64 = 10.0;
const LINE_GAP: f64 = 16.0;
/// Between a row and the next, where edges run.
const ROW_GAP: f64 = 58.0;
const COLUMN_GAP: f64 = 72.0;
const COLUMN_PADDING: f64 = 22.0;
const LEAST_COLUMN: f64 = 120.0;
/// A line of nodes is not wider.
const WIDEST_LINE: f64 = 560.0;
/// Around the nodes of a head, and below them for its name.
const GROUP_PADDING: f64 = 7.0;
const GROUP_CAPTION: f64 = 15.0;
const CHARACTER: f64 = 6.8;
const SWEEPS: usize = 6;

/// A rectangle in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rectangle {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

impl Rectangle {
    pub fn middle(self) -> (f64, f64) {
        (self.x + self.width / 2.0, self.y + self.height / 2.0)
    }

    pub fn bottom(self) -> f64 {
        self.y + self.height
    }

    pub fn right(self) -> f64 {
        self.x + self.width
    }
}

/// Where everything is, from the upper left corner of the first column.
#[derive(Debug, Default)]
pub struct CircuitLayout {
    /// Of each node, in the circuit's order.
    pub nodes: Vec<Rectangle>,
    /// What stands in each node.
    pub labels: Vec<String>,
    /// The heads, where they are known, with their names.
    pub heads: Vec<(Rectangle, String)>,
    /// Layers, each with where its column begins and its width.
    pub columns: Vec<(usize, f64, f64)>,
    /// Rows that have nodes, each with where it begins and its height.
    pub rows: Vec<(usize, f64, f64)>,
    pub width: f64,
    pub height: f64,
}

/// The row of a kind of node.
pub fn row(kind: NodeKind) -> usize {
    match kind {
        NodeKind::AttnIn => 0,
        NodeKind::Q | NodeKind::K | NodeKind::V | NodeKind::AttnY => 1,
        NodeKind::AttnOut => 2,
        NodeKind::MlpIn => 3,
        NodeKind::PostAct => 4,
        NodeKind::MlpOut => 5,
    }
}

/// A line of a cell: its nodes with the gap before each, and the head that they are of.
struct Line {
    parts: Vec<LinePart>,
    width: f64,
}

struct LinePart {
    head: Option<usize>,
    nodes: Vec<usize>,
    width: f64,
}

impl CircuitLayout {
    pub fn new(drawn: &DrawnCircuit) -> Self {
        let labels: Vec<String> = drawn.nodes.iter().map(label).collect();
        let widths: Vec<f64> = labels.iter().map(|label| node_width(label)).collect();
        let cells = ordered(drawn);
        let heads_known = drawn.nodes.iter().any(|node| node.head.is_some());
        let lines: BTreeMap<(usize, usize), Vec<Line>> = (cells.iter())
            .map(|(&cell, nodes)| (cell, lines(drawn, nodes, &widths)))
            .collect();
        let mut layout = CircuitLayout {
            nodes: vec![
                Rectangle {
                    x: 0.0,
                    y: 0.0,
                    width: 0.0,
                    height: NODE_HEIGHT
                };
                drawn.nodes.len()
            ],
            labels,
            ..CircuitLayout::default()
        };
        let mut x = 0.0;
        for layer in drawn.layers() {
            let own = lines.iter().filter(|((of, _), _)| *of == layer);
            let widest = own.flat_map(|(_, lines)| lines).map(|line| line.width);
            let width = widest.fold(LEAST_COLUMN, f64::max) + 2.0 * COLUMN_PADDING;
            layout.columns.push((layer, x, width));
            x += width + COLUMN_GAP;
        }
        layout.width = (x - COLUMN_GAP).max(LEAST_COLUMN);
        let mut y = COLUMN_PADDING;
        for row in 0..ROWS.len() {
            let own = lines.iter().filter(|((_, of), _)| *of == row);
            let Some(most) = own.map(|(_, lines)| lines.len()).max() else {
                continue;
            };
            let line = line_height(row == 1 && heads_known);
            let height = most as f64 * (line + LINE_GAP) - LINE_GAP;
            layout.rows.push((row, y, height));
            y += height + ROW_GAP;
        }
        layout.height = (y - ROW_GAP + COLUMN_PADDING).max(NODE_HEIGHT);
        for ((layer, row), lines) in &lines {
            layout.place(*layer, *row, lines, &widths, row == &1 && heads_known);
        }
        layout
    }

    /// Places the nodes of one cell.
    fn place(&mut self, layer: usize, row: usize, lines: &[Line], widths: &[f64], heads: bool) {
        let column = self.columns.iter().find(|(of, ..)| *of == layer);
        let place = self.rows.iter().find(|(of, ..)| *of == row);
        let (Some(&(_, left, width)), Some(&(_, top, height))) = (column, place) else {
            return;
        };
        let line_height = line_height(heads);
        let used = lines.len() as f64 * (line_height + LINE_GAP) - LINE_GAP;
        let mut y = top + (height - used) / 2.0;
        for line in lines {
            let mut x = left + (width - line.width) / 2.0;
            for part in &line.parts {
                let padding = part.head.map_or(0.0, |_| GROUP_PADDING);
                if let Some(head) = part.head {
                    let around = Rectangle {
                        x,
                        y,
                        width: part.width,
                        height: line_height,
                    };
                    self.heads.push((around, format!("head {head}")));
                }
                let mut at = x + padding;
                for &node in &part.nodes {
                    self.nodes[node] = Rectangle {
                        x: at,
                        y: if heads { y + GROUP_PADDING } else { y },
                        width: widths[node],
                        height: NODE_HEIGHT,
                    };
                    at += widths[node] + NODE_GAP;
                }
                x += part.width + NODE_GAP;
            }
            y += line_height + LINE_GAP;
        }
    }
}

fn line_height(heads: bool) -> f64 {
    match heads {
        true => NODE_HEIGHT + GROUP_CAPTION + 1.5 * GROUP_PADDING,
        false => NODE_HEIGHT,
    }
}

/// What stands in a node: its channel, and of which of three kinds it is where a row holds three.
fn label(node: &super::drawn::DrawnNode) -> String {
    let channel = node.record.channel;
    match node.at.kind {
        NodeKind::Q => format!("q {channel}"),
        NodeKind::K => format!("k {channel}"),
        NodeKind::V => format!("v {channel}"),
        _ => channel.to_string(),
    }
}

fn node_width(label: &str) -> f64 {
    (label.chars().count() as f64 * CHARACTER + 14.0).max(30.0)
}

/// The nodes of every layer and row, from left to right.
fn ordered(drawn: &DrawnCircuit) -> BTreeMap<(usize, usize), Vec<usize>> {
    let mut cells: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (index, node) in drawn.nodes.iter().enumerate() {
        let cell = cells.entry((node.at.layer, row(node.at.kind)));
        cell.or_default().push(index);
    }
    let mut neighbours = vec![Vec::new(); drawn.nodes.len()];
    let in_layer = |&(a, b): &(usize, usize)| drawn.nodes[a].at.layer == drawn.nodes[b].at.layer;
    let links = drawn.links.iter().copied().filter(in_layer);
    let edges = drawn.edges.iter().map(|edge| (edge.from, edge.to));
    for (a, b) in edges.chain(links) {
        neighbours[a].push(b);
        neighbours[b].push(a);
    }
    let mut place = vec![0.0; drawn.nodes.len()];
    let settle = |nodes: &[usize], place: &mut [f64]| {
        for (rank, &node) in nodes.iter().enumerate() {
            place[node] = (rank as f64 + 0.5) / nodes.len() as f64 - 0.5;
        }
    };
    for nodes in cells.values() {
        settle(nodes, &mut place);
    }
    for sweep in 0..SWEEPS {
        let mut order: Vec<(usize, usize)> = cells.keys().copied().collect();
        if sweep % 2 == 1 {
            order.reverse();
        }
        for cell in order {
            let Some(nodes) = cells.get_mut(&cell) else {
                continue;
            };
            let wanted: BTreeMap<usize, f64> = (nodes.iter())
                .map(|&node| (node, mean(&neighbours[node], &place).unwrap_or(place[node])))
                .collect();
            // The nodes of a head stay together, where the middle of all of them is.
            let mut heads: BTreeMap<Option<usize>, Vec<f64>> = BTreeMap::new();
            for &node in nodes.iter() {
                let of_head = heads.entry(drawn.nodes[node].head).or_default();
                of_head.push(wanted[&node]);
            }
            let key = |node: &usize| {
                let head = drawn.nodes[*node].head;
                let all = &heads[&head];
                let group = all.iter().sum::<f64>() / all.len() as f64;
                match head {
                    Some(head) => (group, head, drawn.nodes[*node].at.kind, wanted[node]),
                    None => {
                        let kind = match cell.1 {
                            1 => drawn.nodes[*node].at.kind,
                            _ => NodeKind::AttnIn,
                        };
                        (0.0, 0, kind, wanted[node])
                    }
                }
            };
            nodes.sort_by(|a, b| {
                let (a, b) = (key(a), key(b));
                let groups = a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2)));
                groups.then(a.3.total_cmp(&b.3))
            });
            settle(nodes, &mut place);
        }
    }
    cells
}

fn mean(neighbours: &[usize], place: &[f64]) -> Option<f64> {
    let sum: f64 = neighbours.iter().map(|&node| place[node]).sum();
    (!neighbours.is_empty()).then(|| sum / neighbours.len() as f64)
}

/// The nodes of a cell in lines that are not too wide.
fn lines(drawn: &DrawnCircuit, nodes: &[usize], widths: &[f64]) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for &node in nodes {
        let head = drawn.nodes[node].head;
        let padding = head.map_or(0.0, |_| 2.0 * GROUP_PADDING);
        let joins = |part: &LinePart| head.is_some() && part.head == head;
        let last = lines.last_mut();
        let last =
            last.filter(|line| line.width + NODE_GAP + widths[node] + padding <= WIDEST_LINE);
        match last {
            Some(line) => match line.parts.last_mut().filter(|part| joins(part)) {
                Some(part) => {
                    part.nodes.push(node);
                    part.width += NODE_GAP + widths[node];
                    line.width += NODE_GAP + widths[node];
                }
                None => {
                    line.width += NODE_GAP + widths[node] + padding;
                    line.parts.push(LinePart {
                        head,
                        nodes: vec![node],
                        width: widths[node] + padding,
                    });
                }
            },
            None => lines.push(Line {
                width: widths[node] + padding,
                parts: vec![LinePart {
                    head,
                    nodes: vec![node],
                    width: widths[node] + padding,
                }],
            }),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuits::drawing::test_circuit::{large, quotes};
    use crate::features::test_pair::random_pair;

    fn overlap(a: Rectangle, b: Rectangle) -> bool {
        a.x < b.right() && b.x < a.right() && a.y < b.bottom() && b.y < a.bottom()
    }

    #[test]
    fn nodes_stand_apart_inside_of_their_columns() {
        let config = random_pair(1).sparse.config;
        let (small, big) = (quotes(), large(390, 3_000));
        for drawn in [
            DrawnCircuit::new(&small, None),
            DrawnCircuit::new(&small, Some(&config)),
            DrawnCircuit::new(&big, None),
        ] {
            let layout = CircuitLayout::new(&drawn);
            for (index, node) in layout.nodes.iter().enumerate() {
                assert!(
                    layout.nodes[..index]
                        .iter()
                        .all(|other| !overlap(*node, *other))
                );
                let layer = drawn.nodes[index].at.layer;
                let column = layout.columns.iter().find(|(of, ..)| *of == layer);
                let &(_, left, width) = column.unwrap();
                assert!(node.x >= left && node.right() <= left + width);
                assert!(node.y >= 0.0 && node.bottom() <= layout.height);
            }
            for (head, _) in &layout.heads {
                assert!(layout.nodes.iter().any(|node| overlap(*head, *node)));
            }
        }
    }

    #[test]
    fn edges_lead_down_and_the_heads_are_told() {
        let config = random_pair(1).sparse.config;
        let circuit = quotes();
        let drawn = DrawnCircuit::new(&circuit, Some(&config));
        let layout = CircuitLayout::new(&drawn);
        for edge in &drawn.edges {
            assert!(layout.nodes[edge.from].bottom() < layout.nodes[edge.to].y);
        }
        let names: Vec<&str> = layout.heads.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["head 1"]);
        assert!(layout.columns[0].1 < layout.columns[1].1);
    }
}
