//! What is pruned: a model, what its nodes are held at, and the pairs that it is pruned on.
//!
//! Answers are logit differences, the log odds of the counterfactual's answer (`discovery::question`): one a prompt,
//! first of all presented prompts, then of all counterfactual ones.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use super::answers::{LogitDiffs, Rescaling};
use crate::circuits::nodes::{NodeSet, node_locations};
use crate::discovery::question::PromptPair;
use crate::models::config::TransformerConfig;
use crate::models::layers::Purpose;
use crate::numerics::rows;
use crate::training::passes::Passes;
use crate::training::passes::masked::{NormScales, PaddedPrompts};
use crate::training::passes::node_masks::NodeMasks;

/// Pairs whose prompts go through the model together. Prompts are padded to the longest of them.
const PAIRS_A_PASS: usize = 32;

/// A frozen model and what its nodes are held at.
pub struct PrunedModel {
    pub passes: Passes,
    pub tensors: BTreeMap<String, Tensor>,
    /// Of every node, in the order of [`node_locations`].
    pub held: Vec<f32>,
    /// Whether norms multiply by what they found in the whole model.
    pub frozen_norms: bool,
}

/// Some pairs, ready to be run again and again.
pub struct PreparedPairs {
    parts: Vec<PreparedPart>,
}

impl PreparedPairs {
    /// The parts that go through the model one after another.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The prompts of one of them.
    pub fn prompts(&self, part: usize) -> &PaddedPrompts {
        &self.parts[part].prompts
    }

    /// Rows of all prompts together, padding among them.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.prompts.ids.len()).sum()
    }
}

struct PreparedPart {
    pairs: Vec<PromptPair>,
    prompts: PaddedPrompts,
    scales: Option<NormScales>,
}

impl PrunedModel {
    pub fn new(
        config: TransformerConfig,
        tensors: BTreeMap<String, Tensor>,
        held: Vec<f32>,
        frozen_norms: bool,
    ) -> Result<Self> {
        Ok(PrunedModel {
            passes: Passes::new(config, &tensors, Purpose::Frozen)?,
            tensors,
            held,
            frozen_norms,
        })
    }

    pub fn config(&self) -> &TransformerConfig {
        self.passes.config()
    }

    /// How many nodes the model has.
    pub fn nodes(&self) -> usize {
        self.held.len()
    }

    /// Pairs with their norms' scales, where those are frozen. Answers are in the order of their prompts' lengths, so that
    /// little of a pass is padding.
    pub fn prepare(&self, pairs: &[PromptPair]) -> Result<PreparedPairs> {
        let mut pairs = pairs.to_vec();
        pairs.sort_by_key(|pair| pair.presented.len().max(pair.counterfactual.len()));
        let parts = pairs.chunks(PAIRS_A_PASS).map(|pairs| {
            let presented = pairs.iter().map(|pair| pair.presented.as_slice());
            let counterfactual = pairs.iter().map(|pair| pair.counterfactual.as_slice());
            let prompts: Vec<&[u32]> = presented.chain(counterfactual).collect();
            let prompts = PaddedPrompts::padded(&prompts);
            let scales = self
                .frozen_norms
                .then(|| self.passes.norm_scales(&prompts))
                .transpose()?;
            Ok(PreparedPart {
                pairs: pairs.to_vec(),
                prompts,
                scales,
            })
        });
        Ok(PreparedPairs {
            parts: parts.collect::<Result<_>>()?,
        })
    }

    /// The answers when only the kept nodes have their own values.
    pub fn answers(&self, pairs: &PreparedPairs, kept: &[bool]) -> Result<LogitDiffs> {
        self.answers_of(&self.passes, pairs, kept)
    }

    /// The same by a model of the same shape, such as this one with some weights taken away.
    pub fn answers_of(
        &self,
        passes: &Passes,
        pairs: &PreparedPairs,
        kept: &[bool],
    ) -> Result<LogitDiffs> {
        let mut all = LogitDiffs::default();
        for part in 0..pairs.parts.len() {
            let known = vec![passes.embedded(&pairs.parts[part].prompts)?];
            all.append(self.resumed(passes, pairs, part, kept, known)?.0);
        }
        Ok(all)
    }

    /// The answers of one part of the pairs, and the streams that lead to them, of which the first ones are known: those
    /// before every sublayer, and the last.
    pub fn resumed(
        &self,
        passes: &Passes,
        pairs: &PreparedPairs,
        part: usize,
        kept: &[bool],
        known: Vec<Tensor>,
    ) -> Result<(LogitDiffs, Vec<Tensor>)> {
        let (part, masks) = (
            &pairs.parts[part],
            NodeMasks::new(self.config(), kept, &self.held),
        );
        let (prompts, scales) = (&part.prompts, part.scales.as_ref());
        let streams = passes.masked_streams(prompts, &masks, scales, known)?;
        let logits = passes.masked_logits(prompts, &streams, scales)?;
        Ok((part.read(&logits)?, streams))
    }

    /// The answers, and the gradient of the task loss of the rescaled answers with respect to every node's mask.
    pub fn loss_gradient(
        &self,
        pairs: &PreparedPairs,
        kept: &[bool],
        rescaling: Rescaling,
    ) -> Result<(LogitDiffs, Vec<f32>)> {
        let prompts: usize = pairs.parts.iter().map(|part| 2 * part.pairs.len()).sum();
        let mut all = LogitDiffs::default();
        let mut sum = vec![0f32; self.nodes()];
        for part in &pairs.parts {
            // Anew for each part: masks add up their gradients.
            let masks = NodeMasks::new(self.config(), kept, &self.held);
            let scales = part.scales.as_ref();
            let answers = self.passes.masked(&part.prompts, &masks, scales, true)?;
            let diffs = part.read(&answers.logits)?;
            let direction = part.direction(&answers.logits, diffs.slopes(rescaling), prompts)?;
            for (sum, value) in sum.iter_mut().zip(answers.gradients(direction)?) {
                *sum += value;
            }
            all.append(diffs);
        }
        Ok((all, sum))
    }
}

impl PreparedPart {
    /// `logits [prompts, vocabulary]`.
    fn read(&self, logits: &Tensor) -> Result<LogitDiffs> {
        let vocabulary = logits.dim(1)?;
        rows::with_values(logits, |values| {
            let questions = self.pairs.iter().chain(&self.pairs);
            let diffs = questions
                .zip(values.chunks_exact(vocabulary))
                .map(|(pair, logits)| pair.question.logit_diff(logits));
            let mut presented: Vec<f32> = diffs.collect();
            let counterfactual = presented.split_off(self.pairs.len());
            LogitDiffs {
                presented,
                counterfactual,
            }
        })
    }

    /// The gradient of the task loss over `prompts` prompts with respect to these logits.
    fn direction(
        &self,
        logits: &Tensor,
        slopes: impl Iterator<Item = f32>,
        prompts: usize,
    ) -> Result<Vec<f32>> {
        let vocabulary = logits.dim(1)?;
        let slopes = slopes.map(|slope| slope / prompts as f32);
        rows::with_values(logits, |values| {
            let mut direction = vec![0f32; values.len()];
            let rows = values
                .chunks_exact(vocabulary)
                .zip(direction.chunks_exact_mut(vocabulary));
            let questions = self.pairs.iter().chain(&self.pairs);
            for ((pair, slope), (logits, direction)) in questions.zip(slopes).zip(rows) {
                pair.question.add_gradient(logits, slope, direction);
            }
            direction
        })
    }
}

/// A set of nodes as one truth a node, in the order of [`node_locations`].
pub fn as_mask(config: &TransformerConfig, nodes: &NodeSet) -> Vec<bool> {
    let places = node_locations(config).into_iter();
    let kept = places
        .flat_map(|(node, width)| (0..width).map(move |channel| nodes.contains(node, channel)));
    kept.collect()
}

/// The other way round.
pub fn as_nodes(config: &TransformerConfig, kept: &[bool]) -> NodeSet {
    let places = node_locations(config).into_iter();
    let nodes = places.flat_map(|(node, width)| (0..width).map(move |channel| (node, channel)));
    let kept = nodes.zip(kept).filter(|(_, kept)| **kept);
    NodeSet::new(kept.map(|(node, _)| node))
}
