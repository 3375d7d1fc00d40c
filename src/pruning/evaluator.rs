//! Trying one change of a circuit after another, each from the sublayer on that it is made in.
//!
//! A search keeps a circuit and tries it with a little less: without a node, without an edge. What stands before the first
//! sublayer that is changed stays as it is, so the streams of the circuit that is kept are remembered, `[rows, d_model]`
//! before every sublayer and after the last, and a pass begins at the last one that still holds. Where they would take too
//! much memory nothing is remembered and every pass is whole; the answers are the same.

use candle_core::{Result, Tensor};

use super::answers::LogitDiffs;
use super::subject::{PreparedPairs, PrunedModel};
use crate::circuits::nodes::node_locations;
use crate::models::location::{Node, NodeKind};
use crate::training::passes::Passes;

/// Bytes of streams that are remembered at most: of the circuit that is kept, and as many of the one that is tried.
const MOST_BYTES: usize = 1 << 30;

/// Some pairs, and the circuit that was kept last.
pub struct Evaluator<'a> {
    subject: &'a PrunedModel,
    pairs: &'a PreparedPairs,
    remembers: bool,
    kept: Option<Remembered>,
}

struct Remembered {
    nodes: Vec<bool>,
    /// Of each part of the pairs.
    streams: Vec<Vec<Tensor>>,
}

/// What a set of nodes answered.
pub struct TriedNodes {
    pub answers: LogitDiffs,
    remembered: Option<Remembered>,
}

impl<'a> Evaluator<'a> {
    pub fn new(subject: &'a PrunedModel, pairs: &'a PreparedPairs) -> Self {
        let config = subject.config();
        let streams = 2 * config.n_layers + 1;
        let bytes = pairs.rows() * config.d_model * streams * size_of::<f32>();
        Evaluator {
            subject,
            pairs,
            remembers: bytes <= MOST_BYTES,
            kept: None,
        }
    }

    /// The answers of some nodes of the model as it is.
    pub fn try_nodes(&self, nodes: &[bool]) -> Result<TriedNodes> {
        self.try_changed(&self.subject.passes, nodes, usize::MAX)
    }

    /// The answers of some nodes of any model of this shape.
    pub fn try_nodes_of(&self, passes: &Passes, nodes: &[bool]) -> Result<TriedNodes> {
        self.try_changed(passes, nodes, 0)
    }

    /// The answers of some nodes of a model that has the weights of the one that was kept last in all sublayers before
    /// `changed`.
    pub fn try_changed(
        &self,
        passes: &Passes,
        nodes: &[bool],
        changed: usize,
    ) -> Result<TriedNodes> {
        let mut answers = LogitDiffs::default();
        let mut streams = Vec::new();
        let first = self.first_changed(nodes).min(changed);
        for part in 0..self.pairs.parts() {
            let known = match &self.kept {
                Some(kept) => kept.streams[part]
                    .iter()
                    .take(first.saturating_add(1))
                    .cloned()
                    .collect(),
                None => vec![passes.embedded(self.pairs.prompts(part))?],
            };
            let (of_part, of_streams) = self
                .subject
                .resumed(passes, self.pairs, part, nodes, known)?;
            answers.append(of_part);
            streams.extend(self.remembers.then_some(of_streams));
        }
        Ok(TriedNodes {
            answers,
            remembered: self.remembers.then(|| Remembered {
                nodes: nodes.to_vec(),
                streams,
            }),
        })
    }

    /// What was tried is what is kept from now on.
    pub fn keep(&mut self, tried: TriedNodes) {
        self.kept = tried.remembered;
    }

    /// The first sublayer with nodes that are masked otherwise than in the circuit that was kept last.
    fn first_changed(&self, nodes: &[bool]) -> usize {
        let Some(kept) = &self.kept else {
            return 0;
        };
        let differs = |(one, other)| one != other;
        let first = kept.nodes.iter().zip(nodes).position(differs);
        first.map_or(usize::MAX, |first| sublayer_of_nodes(self.subject)[first])
    }
}

/// How much a loss of the answers rises without each of the nodes `tried` alone; `kept` are the nodes that are there.
/// `passes` is the model, or one of its shape.
pub fn without_each_node(
    subject: &PrunedModel,
    passes: &Passes,
    pairs: &PreparedPairs,
    (kept, tried): (&[bool], &[usize]),
    loss: impl Fn(&LogitDiffs) -> f64,
) -> Result<Vec<f64>> {
    let mut evaluator = Evaluator::new(subject, pairs);
    let before = evaluator.try_nodes_of(passes, kept)?;
    let loss_before = loss(&before.answers);
    evaluator.keep(before);
    let mut others = kept.to_vec();
    let rises = tried.iter().map(|&node| {
        others[node] = false;
        let without = evaluator.try_changed(passes, &others, usize::MAX);
        others[node] = kept[node];
        Ok(loss(&without?.answers) - loss_before)
    });
    rises.collect()
}

/// The sublayer that each node is in, counted from the first layer's attention.
pub fn sublayer_of_nodes(subject: &PrunedModel) -> Vec<usize> {
    let places = node_locations(subject.config()).into_iter();
    let sublayers = places.flat_map(|(node, width)| std::iter::repeat_n(sublayer_of(node), width));
    sublayers.collect()
}

/// The same of one place.
pub fn sublayer_of(place: Node) -> usize {
    let is_of_mlp = matches!(
        place.kind,
        NodeKind::MlpIn | NodeKind::PostAct | NodeKind::MlpOut
    );
    2 * place.layer + usize::from(is_of_mlp)
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::circuits::edges::{WeightedEdge, edges};
    use crate::discovery::question::{PromptPair, Question};
    use crate::features::test_pair::random_pair;
    use crate::pruning::edge_pruning::EdgelessModel;
    use crate::pruning::subject::as_nodes;

    fn subject() -> (PrunedModel, Vec<PromptPair>) {
        let files = random_pair(5).sparse;
        let count: usize = node_locations(&files.config).iter().map(|at| at.1).sum();
        let held = (0..count).map(|node| (node % 7) as f32 * 0.05).collect();
        let pairs = (0..6u32)
            .map(|at| PromptPair {
                presented: vec![at, 3 + at, 7],
                counterfactual: vec![at, 5 + at, 7],
                question: Question::Between {
                    presented: 1,
                    counterfactual: 2,
                },
            })
            .collect();
        let subject = PrunedModel::new(files.config, files.tensors, held, false);
        (subject.expect("a model"), pairs)
    }

    #[test]
    fn whatever_was_kept_before_answers_are_those_of_a_whole_pass() {
        let (subject, pairs) = subject();
        let pairs = subject.prepare(&pairs).expect("pairs");
        let mut evaluator = Evaluator::new(&subject, &pairs);
        let mut rng = SmallRng::seed_from_u64(1);
        let mut nodes = vec![true; subject.nodes()];
        for step in 0..40 {
            let at = rng.random_range(0..nodes.len());
            nodes[at] = !nodes[at];
            let tried = evaluator.try_nodes(&nodes).expect("answers");
            assert_eq!(
                tried.answers,
                subject.answers(&pairs, &nodes).expect("answers")
            );
            if step % 3 != 0 {
                evaluator.keep(tried);
            }
        }
        // What would not fit is not remembered, and nothing else changes.
        evaluator.remembers = false;
        let tried = evaluator.try_nodes(&nodes).expect("answers");
        assert!(tried.remembered.is_none());
        evaluator.keep(tried);
        let tried = evaluator.try_nodes(&nodes).expect("answers");
        assert_eq!(
            tried.answers,
            subject.answers(&pairs, &nodes).expect("answers")
        );
    }

    #[test]
    fn edges_taken_away_layer_by_layer_are_those_taken_away_at_once() {
        let (subject, pairs) = subject();
        let pairs = subject.prepare(&pairs).expect("pairs");
        let nodes: Vec<bool> = (0..subject.nodes()).map(|node| node % 5 > 0).collect();
        let set = as_nodes(subject.config(), &nodes);
        let all = edges(&subject.passes.transformer, &set).expect("edges");
        let model = EdgelessModel::new(&subject).expect("a model");
        let mut evaluator = Evaluator::new(&subject, &pairs);
        let mut passes = model.without(&[]).expect("a model");
        let mut removed: Vec<WeightedEdge> = Vec::new();
        evaluator.keep(evaluator.try_nodes_of(&passes, &nodes).expect("answers"));
        let late_first = all.iter().rev().step_by(all.len() / 12);
        for edge in late_first {
            removed.push(*edge);
            let sublayer = sublayer_of(edge.to.0);
            passes = model
                .changed(&passes, sublayer / 2, &removed)
                .expect("a model");
            let tried = evaluator
                .try_changed(&passes, &nodes, sublayer)
                .expect("answers");
            let at_once = model.without(&removed).expect("a model");
            let expected = subject
                .answers_of(&at_once, &pairs, &nodes)
                .expect("answers");
            assert_eq!(tried.answers, expected);
            evaluator.keep(tried);
        }
    }
}
