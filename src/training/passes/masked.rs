//! Prompts through a frozen model whose nodes are masked: the answers at their last tokens, and the gradient of every
//! node's mask.
//!
//! `prompts -> logits [prompts, vocabulary]`. Prompts are padded on the right to one length; attention is causal, so that
//! padding reaches no answer. With *frozen norms*, norms multiply by what they found in another pass, which has no
//! gradient, instead of by what they find.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};

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
        let device = self.device()?;
        let mut rows = prompts.rows(&device)?;
        let mut stream = self.transformer.embed(&rows)?.detach();
        let last = Tensor::new(prompts.last.as_slice(), &device)?;
        let ids = rows.ids.index_select(&last, 0)?;
        if let Some(fused) = &self.fused {
            if keeps_gradients {
                // A variable, so that candle asks the operations for their gradients.
                stream = Var::from_tensor(&stream)?.into_inner();
            }
            let stream = fused.masked_stream(stream, prompts, masks, scales)?;
            let stream = stream.index_select(&last, 0)?;
            let logits = fused.masked_logits(stream, scales)?;
            return Ok(MaskedAnswers {
                logits: self.transformer.add_bigrams(logits, &ids)?,
                masks: masks.clone(),
                mask_vars: Vec::new(),
            });
        }
        let mut tap = MaskTap::new(self, masks, scales, keeps_gradients)?;
        let first = Site::before_attention(0, self.config().n_layers);
        let stream = self.transformer.run(first, stream, &mut rows, &mut tap)?;
        let stream = stream.index_select(&last, 0)?;
        let scale = scales.map(|scales| &scales.last);
        Ok(MaskedAnswers {
            logits: self.transformer.unembed_scaled(&stream, &ids, scale)?,
            masks: masks.clone(),
            mask_vars: tap.vars,
        })
    }

    fn device(&self) -> Result<Device> {
        Ok(self.transformer.device().clone())
    }
}

impl Fused {
    /// The stream at the last site.
    fn masked_stream(
        &self,
        stream: Tensor,
        prompts: &PaddedPrompts,
        masks: &Arc<NodeMasks>,
        scales: Option<&NormScales>,
    ) -> Result<Tensor> {
        let mut h = stream.contiguous()?;
        for (layer, (attention, mlp)) in self.weights.layers.iter().enumerate() {
            let restricted = Arc::new(restricted(attention, mlp, masks, layer));
            let context = |h: &Tensor, sublayer: usize| -> Result<Context> {
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
                    let scales = rows::to_vec(&scales.sublayers[2 * layer + sublayer])?;
                    context.scales = Some(widened(&scales, &context));
                }
                Ok(context)
            };
            h = match held_output(&h, masks.place(layer, ATTENTION_OUT))? {
                Some(h) => h,
                None => h.apply_op1(Pass::new(context(&h, 0)?, attention.clone()))?,
            };
            h = match held_output(&h, masks.place(layer, MLP_OUT))? {
                Some(h) => h,
                None => h.apply_op1(Pass::new(context(&h, 1)?, mlp.clone()))?,
            };
        }
        Ok(h)
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
    let held = Tensor::from_slice(&output.held, (1, output.held.len()), h.device())?;
    h.broadcast_add(&held).map(Some)
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
    n_layers: usize,
}

impl<'a> MaskTap<'a> {
    fn new(
        passes: &Passes,
        masks: &NodeMasks,
        scales: Option<&'a NormScales>,
        keeps_gradients: bool,
    ) -> Result<Self> {
        let device = passes.device()?;
        let mut tap = MaskTap {
            masks: Vec::new(),
            vars: Vec::new(),
            places: Vec::new(),
            held: Vec::new(),
            scales,
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
        Ok(tap)
    }
}

impl ResidualTap for MaskTap<'_> {
    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        let index = match place {
            Location::Node(node) => self.places.iter().position(|known| *known == node),
            Location::Site(_) => None,
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
