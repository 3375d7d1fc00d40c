//! Taps that hold, exchange and look at the nodes of a pass, and prompts run past them.
//!
//! Truths and held values are one a node, in the order of [`node_locations`]. Recorded values are `[rows, nodes]` a
//! place, of the watched nodes alone.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, bail};

use crate::circuits::nodes::{NodeSet, node_locations};
use crate::discovery::question::PromptPair;
use crate::models::config::TransformerConfig;
use crate::models::location::{Location, Node, NodeKind, Site};
use crate::models::tap::{Recorder, ResidualTap};
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::numerics::rows;
use crate::pruning::answers::LogitDiffs;
use crate::training::passes::masked::PaddedPrompts;

/// Pairs whose prompts go through a model together.
pub const PAIRS_A_PASS: usize = 64;

/// Of each place, `[rows, nodes]`.
pub type NodeValues = BTreeMap<Node, Vec<f32>>;

/// Holds every node that is not kept, and keeps the values of those that are watched as they go on.
pub struct AblationTap<'a> {
    /// Every place with nodes, with the index of its first node and its width.
    places: BTreeMap<Node, (usize, usize)>,
    /// Truths and held values; none where nothing is held.
    masks: Option<(&'a [bool], &'a [f32])>,
    watched: Option<&'a NodeSet>,
    scales: BTreeMap<Node, Tensor>,
    values: NodeValues,
}

/// A tap that holds every node that is not kept, at every token. Where all are kept, nothing changes by a bit.
pub fn ablated<'a>(
    config: &TransformerConfig,
    kept: &'a [bool],
    held: &'a [f32],
) -> AblationTap<'a> {
    let mut first = 0;
    let places = node_locations(config).into_iter().map(|(node, width)| {
        let place = (node, (first, width));
        first += width;
        place
    });
    AblationTap {
        places: places.collect(),
        masks: Some((kept, held)),
        watched: None,
        scales: BTreeMap::new(),
        values: NodeValues::new(),
    }
}

/// A tap that looks at some nodes and changes nothing.
pub fn watching(nodes: &NodeSet) -> AblationTap<'_> {
    AblationTap {
        places: BTreeMap::new(),
        masks: None,
        watched: Some(nodes),
        scales: BTreeMap::new(),
        values: NodeValues::new(),
    }
}

impl<'a> AblationTap<'a> {
    /// Looks at some nodes, too.
    pub fn watch(mut self, nodes: &'a NodeSet) -> Self {
        self.watched = Some(nodes);
        self
    }

    /// Norms before sublayers multiply by these.
    pub fn with_norm_scales(mut self, scales: BTreeMap<Node, Tensor>) -> Self {
        self.scales = scales;
        self
    }

    /// What it has looked at.
    pub fn into_values(self) -> NodeValues {
        self.values
    }

    fn hold(&self, node: Node, value: Tensor) -> Result<Tensor> {
        let (Some((kept, held)), Some(&(first, width))) = (self.masks, self.places.get(&node))
        else {
            return Ok(value);
        };
        let (kept, held) = (&kept[first..first + width], &held[first..first + width]);
        if kept.iter().all(|kept| *kept) {
            return Ok(value);
        }
        let mut values = rows::to_vec(&value)?;
        for row in values.chunks_exact_mut(width) {
            for ((value, kept), held) in row.iter_mut().zip(kept).zip(held) {
                *value = if *kept { *value } else { *held };
            }
        }
        Tensor::from_vec(values, value.shape(), value.device())
    }
}

impl ResidualTap for AblationTap<'_> {
    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        let Location::Node(node) = place else {
            return Ok(value);
        };
        let value = self.hold(node, value)?;
        let channels = self.watched.map_or(&[][..], |nodes| nodes.of(node));
        if !channels.is_empty() {
            let width = value.dim(1)?;
            let values = rows::to_vec(&value)?;
            let values = values.chunks_exact(width);
            let seen = values.flat_map(|row| channels.iter().map(|&channel| row[channel]));
            self.values.insert(node, seen.collect());
        }
        Ok(value)
    }

    fn norm_scale(&mut self, input: Node) -> Option<Tensor> {
        self.scales.get(&input).cloned()
    }
}

/// Puts given values in the place of some nodes'.
pub struct ReplacingTap<'a> {
    pub nodes: &'a NodeSet,
    pub values: &'a NodeValues,
}

impl ResidualTap for ReplacingTap<'_> {
    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        let Location::Node(node) = place else {
            return Ok(value);
        };
        let channels = self.nodes.of(node);
        let Some(given) = self.values.get(&node).filter(|_| !channels.is_empty()) else {
            return Ok(value);
        };
        let width = value.dim(1)?;
        let mut values = rows::to_vec(&value)?;
        let given = given.chunks_exact(channels.len());
        for (row, given) in values.chunks_exact_mut(width).zip(given) {
            for (&channel, given) in channels.iter().zip(given) {
                row[channel] = *given;
            }
        }
        Tensor::from_vec(values, value.shape(), value.device())
    }
}

/// The prompts of pairs: first all presented ones, then all counterfactual ones.
pub fn prompts_of(pairs: &[PromptPair]) -> PaddedPrompts {
    let presented = pairs.iter().map(|pair| pair.presented.as_slice());
    let counterfactual = pairs.iter().map(|pair| pair.counterfactual.as_slice());
    let prompts: Vec<&[u32]> = presented.chain(counterfactual).collect();
    PaddedPrompts::padded(&prompts)
}

/// The rows of prompts that are theirs, not what they are padded with.
pub fn own_rows(prompts: &PaddedPrompts) -> impl Iterator<Item = usize> + '_ {
    let last = prompts.last.iter().enumerate();
    last.flat_map(|(prompt, &last)| prompt * prompts.length..last as usize + 1)
}

/// The stream at the last site, `[rows, d_model]`.
pub fn run(
    model: &Transformer,
    prompts: &PaddedPrompts,
    tap: &mut dyn ResidualTap,
) -> Result<Tensor> {
    let mut rows = TokenRows::sequences(&prompts.ids, prompts.length, &Device::Cpu)?;
    let stream = model.embed(&rows)?;
    let first = Site::before_attention(0, model.config.n_layers);
    model.run(first, stream, &mut rows, tap)
}

/// The answers of pairs whose prompts are run past a tap.
pub fn answers(
    model: &Transformer,
    pairs: &[PromptPair],
    prompts: &PaddedPrompts,
    tap: &mut dyn ResidualTap,
) -> Result<LogitDiffs> {
    let stream = run(model, prompts, tap)?;
    let last = Tensor::new(prompts.last.as_slice(), &Device::Cpu)?;
    let ids = Tensor::new(prompts.ids.as_slice(), &Device::Cpu)?;
    let logits = model.unembed(
        &stream.index_select(&last, 0)?,
        &ids.index_select(&last, 0)?,
    )?;
    let vocabulary = logits.dim(1)?;
    rows::with_values(&logits, |values| {
        let questions = pairs.iter().chain(pairs);
        let diffs = questions
            .zip(values.chunks_exact(vocabulary))
            .map(|(pair, logits)| pair.question.logit_diff(logits));
        let mut presented: Vec<f32> = diffs.collect();
        let counterfactual = presented.split_off(pairs.len());
        LogitDiffs {
            presented,
            counterfactual,
        }
    })
}

/// What the norm before each sublayer multiplies the prompts' tokens by in the whole model, `[rows, 1]` each.
pub fn whole_norm_scales(
    model: &Transformer,
    prompts: &PaddedPrompts,
) -> Result<BTreeMap<Node, Tensor>> {
    let n_layers = model.config.n_layers;
    let mut recorder = Recorder::of_sites(n_layers);
    run(model, prompts, &mut recorder)?;
    let mut scales = BTreeMap::new();
    for layer in 0..n_layers {
        let sublayers = [
            (NodeKind::AttnIn, Site::before_attention(layer, n_layers)),
            (NodeKind::MlpIn, Site::before_mlp(layer, n_layers)),
        ];
        for (kind, site) in sublayers {
            let read = Location::Site(site.pass_start(&model.config));
            let (Some(input), Some(stream)) = (model.sublayer_input(site), recorder.get(read))
            else {
                bail!("the pass has not come by {site}")
            };
            scales.insert(Node { layer, kind }, input.norm.scale(stream)?);
        }
    }
    Ok(scales)
}
