//! Prompts through a frozen model whose nodes are masked: the answers at their last tokens, and the gradient of every
//! node's mask.
//!
//! `prompts -> logits [prompts, vocabulary]`. Prompts are padded on the right to one length; attention is causal, so that
//! padding reaches no answer. With *frozen norms*, norms multiply by what they found in another pass, which has no
//! gradient, instead of by what they find.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use rayon::prelude::*;

use super::attention::AttentionWeights;
use super::layer::{Context, RestrictedLayer};
use super::mlp::MlpWeights;
use super::node_masks::{
    ATTENTION_IN, ATTENTION_OUT, MLP_IN, MLP_OUT, NEURONS, NodeMasks, PlaceMask, QUERIES,
};
use super::sequences::Pass;
use super::{Fused, Passes};
use crate::circuits::nodes::node_locations;
use crate::models::location::{Location, Node, NodeKind, Site};
use crate::models::tap::ResidualTap;
use crate::models::token_rows::TokenRows;
use crate::numerics::rows;
use crate::numerics::tiles::{elementwise, layout};

/// Rows that the unembedding takes at a time.
const HEAD_ROWS: usize = 32;

/// Prompts padded to one length.
#[derive(Debug, Clone)]
pub struct PaddedPrompts {
    pub ids: Vec<u32>,
    pub length: usize,
    /// The row of each prompt's last token.
    pub last: Vec<u32>,
}

impl PaddedPrompts {
    /// Of at least one prompt, none of them empty. What stands behind a prompt's end is not read; its first token is sure
    /// to be one.
    pub fn padded(prompts: &[&[u32]]) -> Self {
        let length = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(1);
        let mut padded = PaddedPrompts {
            ids: Vec::with_capacity(prompts.len() * length),
            length,
            last: Vec::with_capacity(prompts.len()),
        };
        for prompt in prompts {
            padded
                .last
                .push((padded.ids.len() + prompt.len() - 1) as u32);
            padded.ids.extend_from_slice(prompt);
            let end = padded.last.len() * length;
            padded.ids.resize(end, prompt[0]);
        }
        padded
    }

    fn rows(&self, device: &Device) -> Result<TokenRows<'static>> {
        TokenRows::sequences(&self.ids, self.length, device)
    }
}

/// What the norms of a model multiplied some prompts' tokens by.
#[derive(Debug, Clone)]
pub struct NormScales {
    /// Of the norm before each sublayer, `[rows, 1]`, and of the last norm, for each prompt's last token.
    sublayers: Vec<Tensor>,
    last: Tensor,
}

/// The answers of a masked pass, ready for its backward pass.
pub struct MaskedAnswers {
    /// `[prompts, vocabulary]`.
    pub logits: Tensor,
    masks: Arc<NodeMasks>,
    /// The masks as candle's own passes have them, place after place; empty where the operations here add their gradients
    /// up.
    mask_vars: Vec<Var>,
}

impl MaskedAnswers {
    /// The gradients of all nodes' masks, in the order of [`node_locations`], of `sum(logits * direction)`;
    /// `direction [prompts, vocabulary]`.
    pub fn gradients(self, direction: Vec<f32>) -> Result<Vec<f32>> {
        let direction = Tensor::from_vec(direction, self.logits.shape(), self.logits.device())?;
        let store = (&self.logits * direction)?.sum_all()?.backward()?;
        if self.mask_vars.is_empty() {
            return Ok(self.masks.gradients());
        }
        let mut gradients = Vec::new();
        for var in &self.mask_vars {
            match store.get(var) {
                Some(gradient) => gradients.extend(rows::to_vec(&gradient.flatten_all()?)?),
                None => gradients.resize(gradients.len() + var.elem_count(), 0.0),
            }
        }
        Ok(gradients)
    }
}

impl Passes {
    /// What the norms of the whole model multiply the prompts' tokens by.
    pub fn norm_scales(&self, prompts: &PaddedPrompts) -> Result<NormScales> {
        let device = self.device()?;
        let (_, sites) = self.forward(&mut prompts.rows(&device)?)?;
        let model = &self.transformer;
        let read = |site: usize| match site % 2 == 1 && model.config.variant.parallel_sublayers {
            true => site - 1,
            false => site,
        };
        let sublayers = Site::all(model.config.n_layers)
            .filter_map(|site| Some((site, model.sublayer_input(site)?)))
            .map(|(site, input)| input.norm.scale(&sites[read(site.index())]))
            .collect::<Result<_>>()?;
        let last = Tensor::new(prompts.last.as_slice(), &device)?;
        let stream = sites[2 * model.config.n_layers].index_select(&last, 0)?;
        Ok(NormScales {
            sublayers,
            last: model.final_norm_scale(&stream)?,
        })
    }

    /// The answers when the nodes are masked; gradients can be asked for where `keeps_gradients`.
    pub fn masked(
        &self,
        prompts: &PaddedPrompts,
        masks: &Arc<NodeMasks>,
        scales: Option<&NormScales>,
        keeps_gradients: bool,
    ) -> Result<MaskedAnswers> {
        let mut tap = MaskTap::new(self, masks, scales, keeps_gradients)?;
        let mut stream = self.embedded(prompts)?;
        if keeps_gradients && self.fused.is_some() {
            // A variable, so that candle asks the operations for their gradients.
            stream = Var::from_tensor(&stream)?.into_inner();
        }
        let streams = self.masked_streams_by(&mut tap, prompts, masks, scales, vec![stream])?;
        Ok(MaskedAnswers {
            logits: self.masked_logits(prompts, &streams, scales)?,
            masks: masks.clone(),
            mask_vars: tap.map_or(Vec::new(), |tap| tap.vars),
        })
    }

    /// The stream of masked prompts before every sublayer and after the last, `[rows, d_model]` each; the first ones, at
    /// least that before the first sublayer, are known.
    pub fn masked_streams(
        &self,
        prompts: &PaddedPrompts,
        masks: &Arc<NodeMasks>,
        scales: Option<&NormScales>,
        known: Vec<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let mut tap = MaskTap::new(self, masks, scales, false)?;
        self.masked_streams_by(&mut tap, prompts, masks, scales, known)
    }

    /// The stream before the first sublayer, which no mask changes.
    pub fn embedded(&self, prompts: &PaddedPrompts) -> Result<Tensor> {
        let device = self.device()?;
        Ok(self.transformer.embed(&prompts.rows(&device)?)?.detach())
    }

    fn masked_streams_by(
        &self,
        tap: &mut Option<MaskTap>,
        prompts: &PaddedPrompts,
        masks: &Arc<NodeMasks>,
        scales: Option<&NormScales>,
        mut known: Vec<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let n_layers = self.config().n_layers;
        let Some(from) = Site::all(n_layers).nth(known.len().saturating_sub(1)) else {
            candle_core::bail!(
                "a pass has {} streams, not {}",
                2 * n_layers + 1,
                known.len()
            )
        };
        // Where attention and MLP read the same stream, a pass begins at a layer's first.
        known.truncate(from.pass_start(self.config()).index() + 1);
        let Some(stream) = known.pop() else {
            candle_core::bail!("the stream before the first sublayer is not known")
        };
        match (&self.fused, tap) {
            (Some(fused), _) => {
                known.push(stream);
                fused.masked_streams(known, prompts, masks, scales)
            }
            (None, Some(tap)) => {
                let first = from.pass_start(self.config());
                tap.streams = known;
                let mut rows = prompts.rows(&self.device()?)?;
                self.transformer.run(first, stream, &mut rows, tap)?;
                Ok(std::mem::take(&mut tap.streams))
            }
            (None, None) => candle_core::bail!("a pass of candle's needs a tap"),
        }
    }

    /// The logits after each prompt's last token, `[prompts, vocabulary]`.
    pub fn masked_logits(
        &self,
        prompts: &PaddedPrompts,
        streams: &[Tensor],
        scales: Option<&NormScales>,
    ) -> Result<Tensor> {
        let Some(stream) = streams.last() else {
            candle_core::bail!("there is no stream to read logits from")
        };
        let device = self.device()?;
        let last = Tensor::new(prompts.last.as_slice(), &device)?;
        let ids = prompts.rows(&device)?.ids.index_select(&last, 0)?;
        let stream = stream.index_select(&last, 0)?;
        match &self.fused {
            Some(fused) => {
                let logits = fused.masked_logits(stream, scales)?;
                self.transformer.add_bigrams(logits, &ids)
            }
            None => {
                let scale = scales.map(|scales| &scales.last);
                self.transformer.unembed_scaled(&stream, &ids, scale)
            }
        }
    }

    fn device(&self) -> Result<Device> {
        Ok(self.transformer.device().clone())
    }
}

impl Fused {
    /// The streams from the last known one on.
    fn masked_streams(
        &self,
        mut streams: Vec<Tensor>,
        prompts: &PaddedPrompts,
        masks: &Arc<NodeMasks>,
        scales: Option<&NormScales>,
    ) -> Result<Vec<Tensor>> {
        let first = streams.len() - 1;
        for (layer, (attention, mlp)) in self.weights.layers.iter().enumerate() {
            if 2 * layer + 1 < first {
                continue;
            }
            let mut restricted = restricted(attention, mlp, masks, layer);
            // Gradients of masks are of all heads.
            if !streams[first].track_op() && first <= 2 * layer {
                let width = layout::width_of(prompts.length);
                let size = (prompts.length, width);
                restricted.project = attention.restricted_projection(self.cpu, masks, layer, size);
            }
            let restricted = Arc::new(restricted);
            for sublayer in (2 * layer..2 * layer + 2).filter(|sublayer| *sublayer >= first) {
                let h = streams[sublayer].contiguous()?;
                let mut context = Context {
                    cpu: self.cpu,
                    sink: None,
                    length: prompts.length,
                    keeps: h.track_op(),
                    masks: Some((masks.clone(), layer)),
                    restricted: restricted.clone(),
                    scales: None,
                };
                if let Some(scales) = scales {
                    let scales = rows::to_vec(&scales.sublayers[sublayer])?;
                    context.scales = Some(widened(&scales, &context));
                }
                let output = [ATTENTION_OUT, MLP_OUT][sublayer % 2];
                streams.push(match held_output(&h, masks.place(layer, output))? {
                    Some(h) => h,
                    None if sublayer % 2 == 0 => {
                        h.apply_op1(Pass::new(context, attention.clone()))?
                    }
                    None => h.apply_op1(Pass::new(context, mlp.clone()))?,
                });
            }
        }
        Ok(streams)
    }

    /// Of rows that have nothing to do with one another.
    pub(super) fn masked_logits(
        &self,
        stream: Tensor,
        scales: Option<&NormScales>,
    ) -> Result<Tensor> {
        let count = stream.dim(0)?;
        let length = (1..=HEAD_ROWS.min(count))
            .rev()
            .find(|length| count.is_multiple_of(*length))
            .unwrap_or(1);
        let mut context = Context {
            cpu: self.cpu,
            sink: None,
            length,
            keeps: stream.track_op(),
            masks: None,
            restricted: Arc::default(),
            scales: None,
        };
        if let Some(scales) = scales {
            context.scales = Some(widened(&rows::to_vec(&scales.last)?, &context));
        }
        stream
            .contiguous()?
            .apply_op1(Pass::new(context, self.weights.unembedding.clone()))
    }
}

/// The stream after a sublayer none of whose outputs is kept, where nobody wants the gradients of their masks: there is
/// nothing to be computed.
fn held_output(h: &Tensor, output: &PlaceMask) -> Result<Option<Tensor>> {
    if h.track_op() || output.kept.contains(&true) {
        return Ok(None);
    }
    let mut after = rows::to_vec(h)?;
    after
        .par_chunks_exact_mut(output.held.len())
        .for_each(|row| elementwise::add(row, &output.held));
    Tensor::from_vec(after, h.shape(), h.device()).map(Some)
}

/// A layer's linear layers as the masks leave them.
fn restricted(
    attention: &AttentionWeights,
    mlp: &MlpWeights,
    masks: &NodeMasks,
    layer: usize,
) -> RestrictedLayer {
    let place = |place: usize| masks.place(layer, place);
    let kept_parts = (QUERIES..ATTENTION_OUT).flat_map(|part| place(part).kept.iter().copied());
    let kept_parts: Vec<bool> = kept_parts.collect();
    let (neurons, output) = (place(NEURONS), place(MLP_OUT));
    RestrictedLayer {
        joint: attention.joint.restricted(place(ATTENTION_IN), &kept_parts),
        expand: mlp.expand.restricted(place(MLP_IN), &neurons.kept),
        contract: mlp.project.restricted(neurons, &output.kept),
        project: None,
    }
}

/// One number a row, as the sequences of a pass need them: `[width]` each.
fn widened(scales: &[f32], context: &Context) -> Arc<Vec<Vec<f32>>> {
    let sequences = scales.chunks_exact(context.length).map(|scales| {
        let mut scales = scales.to_vec();
        scales.resize(context.width(), 1.0);
        scales
    });
    Arc::new(sequences.collect())
}

/// The same masks in candle's own operations: `value * mask + held * (1 - mask)`.
struct MaskTap<'a> {
    /// Of each place, `[1, channels]`: the mask, and the held values of the nodes that are held, zero for the others.
    masks: Vec<(Tensor, Tensor)>,
    vars: Vec<Var>,
    places: Vec<Node>,
    held: Vec<Tensor>,
    scales: Option<&'a NormScales>,
    /// Those at the sites that were come by.
    streams: Vec<Tensor>,
    n_layers: usize,
}

impl<'a> MaskTap<'a> {
    /// None for passes that are operations of their own.
    fn new(
        passes: &Passes,
        masks: &NodeMasks,
        scales: Option<&'a NormScales>,
        keeps_gradients: bool,
    ) -> Result<Option<Self>> {
        if passes.fused.is_some() {
            return Ok(None);
        }
        let device = passes.device()?;
        let mut tap = MaskTap {
            masks: Vec::new(),
            vars: Vec::new(),
            places: Vec::new(),
            held: Vec::new(),
            scales,
            streams: Vec::new(),
            n_layers: passes.config().n_layers,
        };
        for ((place, width), mask) in node_locations(passes.config())
            .into_iter()
            .zip(masks.places())
        {
            let of = |value: &dyn Fn(usize) -> f32| {
                let values: Vec<f32> = (0..width).map(value).collect();
                Tensor::from_vec(values, (1, width), &device)
            };
            let kept = of(&|channel| f32::from(u8::from(mask.kept[channel])))?;
            let outside = of(&|channel| match mask.kept[channel] {
                true => 0.0,
                false => mask.held[channel],
            })?;
            tap.places.push(place);
            tap.held.push(of(&|channel| mask.held[channel])?);
            if keeps_gradients {
                let var = Var::from_tensor(&kept)?;
                tap.masks.push((var.as_tensor().clone(), outside));
                tap.vars.push(var);
            } else {
                tap.masks.push((kept, outside));
            }
        }
        Ok(Some(tap))
    }
}

impl ResidualTap for MaskTap<'_> {
    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        let index = match place {
            Location::Node(node) => self.places.iter().position(|known| *known == node),
            Location::Site(_) => {
                self.streams.push(value.clone());
                None
            }
        };
        let Some(index) = index else {
            return Ok(value);
        };
        let (mask, outside) = &self.masks[index];
        let kept = mask.detach();
        // Kept values exactly as they are: `x * 1 + 0`.
        let masked = value.broadcast_mul(&kept)?.broadcast_add(outside)?;
        if self.vars.is_empty() {
            return Ok(masked);
        }
        // Zero, with the gradient of the mask: `(x - held) * (mask - mask)`.
        let away = value.detach().broadcast_sub(&self.held[index])?;
        masked + away.broadcast_mul(&(mask - kept)?)?
    }

    fn norm_scale(&mut self, node: Node) -> Option<Tensor> {
        let site = match node.kind {
            NodeKind::AttnIn => Site::before_attention(node.layer, self.n_layers),
            _ => Site::before_mlp(node.layer, self.n_layers),
        };
        let scales = self.scales?;
        scales.sublayers.get(site.index()).cloned()
    }
}
