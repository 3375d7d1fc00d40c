//! What the sublayers have in common: how they read the stream, multiply by their weights, and give gradients back.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::gradients::WeightGradients;
use super::node_masks::{NodeMasks, PlaceMask};
use crate::models::config::{Norm, TransformerConfig};
use crate::numerics::parts::Part;
use crate::numerics::rows;
use crate::numerics::tiles::buffers::Buffer;
use crate::numerics::tiles::outer::{self, Listed, PANEL};
use crate::numerics::tiles::processor::Processor;
use crate::numerics::tiles::transpose::transpose;
use crate::numerics::tiles::{attention, elementwise, layout, norm, product, top_k};

/// Where a weight comes from and its gradient goes to: its name, and the values of this step.
#[derive(Debug)]
pub struct WeightValues {
    pub name: String,
    pub values: Vec<f32>,
}

impl WeightValues {
    pub fn read(name: String, tensor: &Tensor) -> Result<Self> {
        let values = rows::to_vec(tensor)?;
        Ok(WeightValues { name, values })
    }
}

/// A norm before a sublayer or the unembedding, and the AbsTopK behind it.
#[derive(Debug)]
pub struct Reading {
    pub kind: Norm,
    pub gain: WeightValues,
    pub bias: Option<WeightValues>,
    /// How many channels stay; none: all.
    pub active: Option<usize>,
}

/// What a sublayer read, `[channels][width]`.
#[derive(Debug)]
pub struct SublayerRead {
    pub statistics: norm::TokenStatistics,
    pub x: Buffer,
}

impl Reading {
    /// What the norm finds of every token of `h [channels][width]`.
    pub fn statistics(&self, h: &[f32], width: usize) -> norm::TokenStatistics {
        let centred = matches!(self.kind, Norm::Layer | Norm::LayerNoBias);
        norm::statistics(h, width, self.kind.epsilon(), centred)
    }

    /// `h [channels][width]`, the stream of a sequence; its nodes are those of the given place.
    pub fn forward(
        &self,
        context: &Context,
        (sequence, place): (usize, usize),
        h: &[f32],
    ) -> SublayerRead {
        let (width, scale) = (context.width(), context.scale(sequence));
        let timed = Part::Norms.begin();
        let mut statistics = self.statistics(h, width);
        if let Some(scale) = scale {
            statistics.inverse.copy_from_slice(scale);
            statistics.is_scale_fixed = true;
        }
        let mut x = Buffer::of(h.len());
        let bias = self.bias.as_ref().map(|bias| bias.values.as_slice());
        norm::apply(h, width, &statistics, &self.gain.values, bias, &mut x);
        drop(timed);
        if let Some(k) = self.active {
            context.keep_largest(place, &mut x, k);
        }
        SublayerRead { statistics, x }
    }

    /// Adds the gradient of the stream to `grad_h`; `grad_x` is used up.
    pub fn backward(
        &self,
        h: &[f32],
        width: usize,
        read: &SublayerRead,
        grad_x: &mut [f32],
        grad_h: &mut [f32],
        is_frozen: bool,
    ) -> NormGradient {
        if self.active.is_some() {
            elementwise::mask(grad_x, &read.x);
        }
        let channels = if is_frozen { 0 } else { self.gain.values.len() };
        let mut gradient = NormGradient {
            gain: vec![0.0; channels],
            bias: vec![0.0; if self.bias.is_some() { channels } else { 0 }],
        };
        let into = norm::NormGradients {
            h: grad_h,
            gain: (!is_frozen).then_some(gradient.gain.as_mut_slice()),
            bias: (!gradient.bias.is_empty()).then_some(gradient.bias.as_mut_slice()),
        };
        let _timed = Part::Norms.begin();
        norm::gradient(h, width, &read.statistics, &self.gain.values, grad_x, into);
        gradient
    }
}

/// The gradients of a norm's weights by one sequence.
#[derive(Debug)]
pub struct NormGradient {
    gain: Vec<f32>,
    bias: Vec<f32>,
}

impl NormGradient {
    pub fn add_to(&self, sink: &WeightGradients, reading: &Reading) {
        add_to(sink, &reading.gain.name, &self.gain);
        if let Some(bias) = &reading.bias {
            add_to(sink, &bias.name, &self.bias);
        }
    }
}

/// Adds a small gradient to the buffer of a weight.
pub fn add_to(sink: &WeightGradients, name: &str, values: &[f32]) {
    if let Some(mut buffer) = sink.get(name) {
        elementwise::add(&mut buffer, values);
    }
}

/// A linear layer with the names of its weights.
#[derive(Debug)]
pub struct LinearLayer {
    pub name: String,
    pub weights: product::WeightMatrix,
    pub bias: Option<WeightValues>,
}

impl LinearLayer {
    pub fn read(name: String, weight: &Tensor, bias: Option<(String, &Tensor)>) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let weights = rows::with_values(weight, |values| {
            product::WeightMatrix::new(values, outputs, inputs)
        })?;
        let bias = bias
            .map(|(name, tensor)| WeightValues::read(name, tensor))
            .transpose()?;
        Ok(LinearLayer {
            name,
            weights,
            bias,
        })
    }

    /// `x [inputs][width] -> [outputs][width]`.
    pub fn forward(&self, cpu: Processor, x: &[f32], width: usize) -> Buffer {
        let mut y = Buffer::of(self.weights.outputs * width);
        let bias = self.bias.as_ref().map(|bias| bias.values.as_slice());
        self.weights.forward(cpu, x, width, bias, &mut y);
        y
    }

    /// `grad_y [outputs][width] -> [inputs][width]`.
    pub fn backward(&self, cpu: Processor, grad_y: &[f32], width: usize) -> Buffer {
        let mut grad_x = Buffer::of(self.weights.inputs * width);
        self.weights.backward(cpu, grad_y, width, &mut grad_x);
        grad_x
    }

    /// The layer as a masked pass has it: see [`product::WeightMatrix::restricted`]. The bias has what held inputs add.
    pub fn restricted(
        &self,
        inputs: &PlaceMask,
        kept_outputs: &[bool],
    ) -> Option<RestrictedLinear> {
        let (weights, mut bias) =
            self.weights
                .restricted(&inputs.kept, &inputs.held, kept_outputs)?;
        if let Some(own) = &self.bias {
            elementwise::add(&mut bias, &own.values);
        }
        Some(RestrictedLinear { weights, bias })
    }

    /// Adds the gradients of weights and bias by all sequences, each its `grad_y` and `x`, in their order.
    pub fn add_gradients(
        &self,
        context: &Context,
        sink: &WeightGradients,
        sequences: &[(&[f32], &[f32])],
    ) {
        let _timed = Part::WeightGradients.begin();
        let width = context.width();
        if let Some(mut buffer) = sink.get(&self.name)
            && let Some((grad_y, x)) = sequences.first()
        {
            let (of_grad, of_x) = (outer::density(grad_y), outer::density(x));
            match of_grad.min(of_x) < outer::LISTED_BELOW {
                true if of_grad <= of_x => {
                    let products = self.listed_products(context, sequences.iter().copied());
                    products.add_to(&mut buffer);
                }
                true => {
                    let swapped = sequences.iter().map(|&(grad_y, x)| (x, grad_y));
                    let products = self.listed_products(context, swapped);
                    products.add_transposed_to(context.cpu, &mut buffer);
                }
                false => self.add_whole_products(sequences, width, &mut buffer),
            }
        }
        if let Some(bias) = &self.bias
            && let Some(mut buffer) = sink.get(&bias.name)
        {
            for (grad_y, _) in sequences {
                product::add_bias_gradient(&mut buffer, grad_y, width);
            }
        }
    }

    fn add_whole_products(&self, sequences: &[(&[f32], &[f32])], width: usize, buffer: &mut [f32]) {
        let (outputs, inputs) = (self.weights.outputs, self.weights.inputs);
        // Several parts a thread: one that is held up leaves its parts to the others.
        let lines = outputs.div_ceil(match rayon::current_num_threads() {
            1 => 1,
            threads => 4 * threads,
        });
        let parts = buffer.par_chunks_mut(lines * inputs).enumerate();
        parts.for_each(|(part, buffer)| {
            let first = part * lines * width;
            for (grad_y, x) in sequences {
                let grad_y = &grad_y[first..][..buffer.len() / inputs * width];
                product::add_weight_gradient(buffer, grad_y, x, width);
            }
        });
    }

    /// The products of the few values of one side with all of the other, over all sequences.
    fn listed_products<'a>(
        &self,
        context: &Context,
        sequences: impl Iterator<Item = (&'a [f32], &'a [f32])>,
    ) -> PanelSums {
        let (cpu, width) = (context.cpu, context.width());
        let sequences: Vec<(&[f32], &[f32])> = sequences.collect();
        let listed: Vec<Listed> = sequences
            .par_iter()
            .map(|(few, _)| Listed::new(cpu, few, width))
            .collect();
        let lines = listed.first().map_or(0, Listed::channels);
        let columns = sequences
            .first()
            .map_or(0, |(_, other)| other.len() / width);
        let mut sums = Buffer::zeros(columns.div_ceil(PANEL) * lines * PANEL);
        let panels = sums.par_chunks_mut(lines * PANEL).enumerate();
        panels.for_each_with(Vec::new(), |room, (panel, sums)| {
            for (listed, (_, other)) in listed.iter().zip(&sequences) {
                outer::add_products(cpu, listed, other, width, panel * PANEL, room, sums);
            }
        });
        PanelSums {
            sums,
            lines,
            columns,
        }
    }
}

/// A linear layer whose inputs and outputs are masked.
#[derive(Debug)]
pub struct RestrictedLinear {
    weights: product::WeightMatrix,
    bias: Vec<f32>,
}

/// The linear layers of a transformer's layer that are restricted by masks; none of those that are not.
#[derive(Debug, Default)]
pub struct RestrictedLayer {
    /// Into queries, keys and values; into neurons; out of them.
    pub joint: Option<RestrictedLinear>,
    pub expand: Option<RestrictedLinear>,
    pub contract: Option<RestrictedLinear>,
    /// Out of the heads.
    pub project: Option<RestrictedProjection>,
}

/// The heads' output layer where some heads are the same in every sequence.
#[derive(Debug)]
pub struct RestrictedProjection {
    /// From the other heads alone.
    pub weights: product::WeightMatrix,
    /// What the heads that are the same add, with the bias: `[d_model][width]`.
    pub added: Buffer,
}

impl RestrictedProjection {
    /// `y [heads * d_head][width] -> [d_model][width]`, whatever `y` is of the heads that are the same.
    pub fn forward(&self, cpu: Processor, y: &[f32], width: usize) -> Buffer {
        let mut delta = Buffer::of(self.weights.outputs * width);
        self.weights.forward(cpu, y, width, None, &mut delta);
        elementwise::add(&mut delta, &self.added);
        delta
    }
}

impl RestrictedLinear {
    /// `x [inputs][width] -> [outputs][width]`, whatever the inputs are that are not kept.
    pub fn forward(&self, cpu: Processor, x: &[f32], width: usize) -> Buffer {
        let mut y = Buffer::of(self.weights.outputs * width);
        self.weights
            .forward(cpu, x, width, Some(&self.bias), &mut y);
        y
    }

    /// `grad_y [outputs][width] -> [inputs][width]`, of all inputs.
    pub fn backward(&self, cpu: Processor, grad_y: &[f32], width: usize) -> Buffer {
        let mut grad_x = Buffer::of(self.weights.inputs * width);
        self.weights.backward(cpu, grad_y, width, &mut grad_x);
        grad_x
    }
}

/// A matrix `[lines, columns]` in panels: `[panels][lines][PANEL]`.
struct PanelSums {
    sums: Buffer,
    lines: usize,
    columns: usize,
}

impl PanelSums {
    /// The panels, each with its first column and the number of its columns.
    fn panels(&self) -> impl Iterator<Item = (usize, usize, &[f32])> {
        let panels = self.sums.chunks_exact(self.lines * PANEL).enumerate();
        panels.map(|(index, panel)| {
            let first = index * PANEL;
            (first, (self.columns - first).min(PANEL), panel)
        })
    }

    /// `matrix [lines, columns] += self`.
    fn add_to(&self, matrix: &mut [f32]) {
        let lines = matrix.par_chunks_mut(self.columns).enumerate();
        lines.with_min_len(64).for_each(|(index, line)| {
            for (first, count, panel) in self.panels() {
                let sums = &panel[index * PANEL..][..count];
                elementwise::add(&mut line[first..first + count], sums);
            }
        });
    }

    /// `matrix [columns, lines] += self^T`.
    fn add_transposed_to(&self, cpu: Processor, matrix: &mut [f32]) {
        let parts = matrix.par_chunks_mut(PANEL * self.lines);
        let panels = self.sums.par_chunks_exact(PANEL * self.lines);
        parts.zip(panels).for_each(|(part, panel)| {
            let mut turned = Buffer::of(PANEL * self.lines);
            let count = part.len() / self.lines;
            let size = (self.lines, count);
            transpose(cpu, panel, size, PANEL, &mut turned, self.lines);
            elementwise::add(part, &turned);
        });
    }
}

/// What every operation of a pass needs to know.
#[derive(Debug, Clone)]
pub struct Context {
    pub cpu: Processor,
    /// Where gradients of weights go; none for a frozen model.
    pub sink: Option<Arc<WeightGradients>>,
    /// Tokens of a sequence.
    pub length: usize,
    /// Whether a backward pass may come.
    pub keeps: bool,
    /// Which nodes go on and what the others are held at, with the layer that this is a sublayer of.
    pub masks: Option<(Arc<NodeMasks>, usize)>,
    /// The linear layers as the masks leave them.
    pub restricted: Arc<RestrictedLayer>,
    /// For each sequence, what its norm multiplies each token by, `[width]`; none: what the norm finds.
    pub scales: Option<Arc<Vec<Vec<f32>>>>,
}

impl Context {
    pub fn width(&self) -> usize {
        layout::width_of(self.length)
    }

    /// The mask of one place of this sublayer.
    pub fn mask(&self, place: usize) -> Option<&PlaceMask> {
        let (masks, layer) = self.masks.as_ref()?;
        Some(masks.place(*layer, place))
    }

    /// AbsTopK of a place's values `x [channels][width]`. Where no gradients of masks are wanted nobody looks at nodes that
    /// are held, and only those that are kept are right.
    pub fn keep_largest(&self, place: usize, x: &mut [f32], k: usize) {
        let width = self.width();
        match self.mask(place) {
            Some(mask) if !self.keeps => {
                top_k::keep_largest_among(self.cpu, x, width, k, &mask.kept_channels)
            }
            _ => top_k::keep_largest(self.cpu, x, width, k),
        }
    }

    /// The stream after a sublayer, `out [length, channels]`: `h`, of the same shape, and what goes on of the sublayer's output
    /// `delta [channels][width]`, whose nodes are those of the given place.
    pub fn add_output(&self, place: usize, delta: &[f32], h: &[f32], out: &mut [f32]) {
        let (width, channels) = (self.width(), delta.len() / self.width());
        match self.mask(place) {
            Some(mask) => mask.add_held(delta, width, h, out),
            None => {
                layout::to_rows(self.cpu, delta, channels, width, out);
                elementwise::add(out, h);
            }
        }
    }

    /// What the norm of a sequence multiplies each token by, where that is given.
    pub fn scale(&self, sequence: usize) -> Option<&[f32]> {
        Some(&self.scales.as_ref()?[sequence])
    }

    /// One sequence's rows `[length, channels]` as a tile.
    pub fn tile(&self, rows: &[f32], channels: usize) -> Buffer {
        let width = self.width();
        let mut tile = Buffer::of(channels * width);
        layout::from_rows(self.cpu, rows, channels, width, &mut tile);
        tile
    }
}

/// Whether the sublayers of such a model are all known here.
pub fn is_known(config: &TransformerConfig) -> bool {
    use crate::models::config::{Activation, ActiveLocation, Positions, ResidualActivation};
    let after = [ActiveLocation::ResidPostAttn, ActiveLocation::ResidPostMlp];
    let is_plain =
        |location: ActiveLocation| config.active_count(location, config.d_model).is_none();
    config.variant.is_plain()
        && config.residual_activation == ResidualActivation::Identity
        && config.activation == Activation::Gelu
        && !config.tied_unembedding
        && attention::SIZES.contains(&config.d_head)
        && !matches!(config.positions, Positions::Concatenated { .. })
        && after.into_iter().all(is_plain)
}
