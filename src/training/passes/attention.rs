//! The attention sublayer of a pass: `h -> h + attention(h)`, rows in, rows out.

use std::ops::Range;

use super::gradients::WeightGradients;
use super::layer::{
    Context, LinearLayer, NormGradient, Reading, RestrictedProjection, SublayerRead, WeightValues,
    add_to,
};
use super::node_masks::{ATTENTION_IN, ATTENTION_OUT, KEYS, NodeMasks, PlaceMask, QUERIES, VALUES};
use super::sequences::SequenceWise;
use crate::numerics::tiles::attention::{Head, HeadGradients, Outcome, Room};
use crate::numerics::tiles::buffers::Buffer;
use crate::numerics::tiles::layout::to_rows;
use crate::numerics::tiles::processor::Processor;
use crate::numerics::tiles::{attention, elementwise};

/// The weights of an attention sublayer at one step.
#[derive(Debug)]
pub struct AttentionWeights {
    pub reading: Reading,
    /// Queries, keys and values, one after another.
    pub joint: LinearLayer,
    pub project: LinearLayer,
    /// `[heads]`; none where the model has no sinks.
    pub sinks: Option<WeightValues>,
    pub heads: usize,
    pub d_head: usize,
    /// How many channels of queries, keys, values and of the output stay; none: all.
    pub active: [Option<usize>; 4],
}

/// What a sequence keeps for its backward pass.
pub struct Saved {
    read: SublayerRead,
    /// Queries, keys and values: `[3 * heads * d_head][width]`, as they go on.
    qkv: Buffer,
    /// What they would have been without a mask; empty where there is none, and where no backward pass may come.
    unmasked: Buffer,
    /// `[heads * d_head][width]`.
    y: Buffer,
    /// `[heads][width]`: see [`attention::forward`].
    totals: Buffer,
    /// `[d_model][width]`; empty where nothing of it is dropped or held.
    delta: Buffer,
}

/// What the weights' gradients are made of, of one sequence.
pub struct Parts {
    grad_delta: Buffer,
    grad_qkv: Buffer,
    norm: NormGradient,
    sinks: Vec<f32>,
    /// Of what was read, of queries, keys and values, and of the output; empty without masks.
    masks: [Vec<f32>; 5],
}

impl AttentionWeights {
    fn sink_of(&self, head: usize) -> f32 {
        let sinks = self.sinks.as_ref();
        sinks.map_or(f32::NEG_INFINITY, |sinks| sinks.values[head])
    }

    /// Whether all queries, keys and values of a head are held.
    fn is_head_held(&self, masks: &NodeMasks, layer: usize, head: usize) -> bool {
        let is_held = |mask: &PlaceMask| !mask.kept[self.channels_of(head)].contains(&true);
        (QUERIES..ATTENTION_OUT).all(|place| is_held(masks.place(layer, place)))
    }

    /// A head's channels of queries, of keys or of values.
    fn channels_of(&self, head: usize) -> Range<usize> {
        head * self.d_head..(head + 1) * self.d_head
    }

    /// The output layer without the heads whose queries, keys and values are held: such a head gives the same at every
    /// token of any sequence, its values times what the sink leaves of the attention to as many tokens. None where there
    /// is no such head.
    pub fn restricted_projection(
        &self,
        cpu: Processor,
        masks: &NodeMasks,
        layer: usize,
        (length, width): (usize, usize),
    ) -> Option<RestrictedProjection> {
        let d_attention = self.heads * self.d_head;
        let mut is_kept = vec![true; d_attention];
        let mut y = Buffer::zeros(d_attention * width);
        for head in (0..self.heads).filter(|head| self.is_head_held(masks, layer, *head)) {
            let channels = self.channels_of(head);
            is_kept[channels.clone()].fill(false);
            let held = |place: usize| &masks.place(layer, place).held[channels.clone()];
            let products = held(QUERIES).iter().zip(held(KEYS)).map(|(q, k)| q * k);
            let score = products.sum::<f32>() / (self.d_head as f32).sqrt();
            let sink = (self.sink_of(head) - score).exp();
            let rows = y[channels.start * width..channels.end * width].chunks_exact_mut(width);
            for (row, value) in rows.zip(held(VALUES)) {
                for (token, y) in row[..length].iter_mut().enumerate() {
                    let seen = (token + 1) as f32;
                    *y = value * (seen / (seen + sink));
                }
            }
        }
        let none_held = vec![0.0; d_attention];
        let all = vec![true; self.project.weights.outputs];
        let (weights, _) = self
            .project
            .weights
            .restricted(&is_kept, &none_held, &all)?;
        let added = self.project.forward(cpu, &y, width);
        Some(RestrictedProjection { weights, added })
    }

    /// One head's queries, keys and values.
    fn head<'a>(&self, context: &Context, qkv: &'a [f32], head: usize) -> Head<'a> {
        let (width, d_head) = (context.width(), self.d_head);
        let size = d_head * width;
        let part = |index: usize| &qkv[(index * self.heads + head) * size..][..size];
        Head {
            q: part(0),
            k: part(1),
            v: part(2),
            sink: self.sink_of(head),
            d_head,
            width,
            length: context.length,
        }
    }
}

impl SequenceWise for AttentionWeights {
    const NAME: &'static str = "attention-pass";
    type Kept = Saved;
    type Parts = Parts;

    fn forward(&self, context: &Context, sequence: usize, h: &[f32], out: &mut [f32]) -> Saved {
        let (cpu, width) = (context.cpu, context.width());
        let d_model = self.reading.gain.values.len();
        let tile = context.tile(h, d_model);
        let read = self
            .reading
            .forward(context, (sequence, ATTENTION_IN), &tile);
        let mut qkv = match &context.restricted.joint {
            Some(joint) => joint.forward(cpu, &read.x, width),
            None => self.joint.forward(cpu, &read.x, width),
        };
        let size = self.d_head * width;
        let parts = qkv.chunks_exact_mut(self.heads * size);
        for (place, (part, active)) in (QUERIES..).zip(parts.zip(self.active)) {
            if let Some(k) = active {
                context.keep_largest(place, part, k);
            }
        }
        let mut unmasked = Buffer::default();
        if context.masks.is_some() {
            if context.keeps {
                unmasked = Buffer::copy(&qkv);
            }
            let parts = qkv.chunks_exact_mut(self.heads * size);
            for (place, part) in (QUERIES..).zip(parts) {
                if let Some(mask) = context.mask(place) {
                    mask.hold(part, width);
                }
            }
        }
        let mut y = Buffer::of(self.heads * size);
        let mut totals = Buffer::of(self.heads * width);
        let mut room = Room::default();
        let outputs = y.chunks_exact_mut(size).zip(totals.chunks_exact_mut(width));
        for (head, (y, totals)) in outputs.enumerate() {
            // Heads that are the same in every sequence are in the restricted projection.
            if context.masks.as_ref().is_some_and(|(masks, layer)| {
                !context.keeps && self.is_head_held(masks, *layer, head)
            }) {
                y.fill(0.0);
                continue;
            }
            attention::forward(cpu, self.head(context, &qkv, head), &mut room, y, totals);
        }
        let mut delta = match &context.restricted.project {
            Some(project) => project.forward(cpu, &y, width),
            None => self.project.forward(cpu, &y, width),
        };
        if let Some(k) = self.active[3] {
            context.keep_largest(ATTENTION_OUT, &mut delta, k);
        }
        context.add_output(ATTENTION_OUT, &delta, h, out);
        if self.active[3].is_none() && context.masks.is_none() {
            delta = Buffer::default();
        }
        Saved {
            read,
            qkv,
            unmasked,
            y,
            totals,
            delta,
        }
    }

    fn backward(
        &self,
        context: &Context,
        saved: &Saved,
        h: &[f32],
        grad: &[f32],
        grad_h: &mut [f32],
    ) -> Parts {
        let (cpu, width) = (context.cpu, context.width());
        let d_model = self.reading.gain.values.len();
        let grad_out = context.tile(grad, d_model);
        let mut grad_delta = Buffer::copy(&grad_out);
        let length = context.length;
        let masked = |place: usize, x: &[f32], grad: &mut [f32]| match context.mask(place) {
            Some(mask) => mask.backward(x, grad, width, length),
            None => Vec::new(),
        };
        let of_output = masked(ATTENTION_OUT, &saved.delta, &mut grad_delta);
        if self.active[3].is_some() {
            elementwise::mask(&mut grad_delta, &saved.delta);
        }
        let grad_y = self.project.backward(cpu, &grad_delta, width);
        let mut grad_qkv = Buffer::of(saved.qkv.len());
        let mut sinks = vec![0f32; self.heads];
        let size = self.d_head * width;
        let (queries, rest) = grad_qkv.split_at_mut(self.heads * size);
        let (keys, values) = rest.split_at_mut(self.heads * size);
        let gradients = queries
            .chunks_exact_mut(size)
            .zip(keys.chunks_exact_mut(size))
            .zip(values.chunks_exact_mut(size));
        let mut room = Room::default();
        for (head, ((q, k), v)) in gradients.enumerate() {
            let outcome = Outcome {
                y: &saved.y[head * size..][..size],
                totals: &saved.totals[head * width..][..width],
                grad: &grad_y[head * size..][..size],
            };
            let into = HeadGradients { q, k, v };
            sinks[head] = attention::backward(
                cpu,
                self.head(context, &saved.qkv, head),
                &mut room,
                outcome,
                into,
            );
        }
        let unmasked = match saved.unmasked.is_empty() {
            true => &saved.qkv,
            false => &saved.unmasked,
        };
        let mut of_parts = [const { Vec::new() }; 3];
        for (index, part) in grad_qkv.chunks_exact_mut(self.heads * size).enumerate() {
            let values = &unmasked[index * self.heads * size..][..self.heads * size];
            of_parts[index] = masked(QUERIES + index, values, part);
            if self.active[index].is_some() {
                elementwise::mask(part, values);
            }
        }
        let mut grad_x = match &context.restricted.joint {
            Some(joint) => joint.backward(cpu, &grad_qkv, width),
            None => self.joint.backward(cpu, &grad_qkv, width),
        };
        let of_input = masked(ATTENTION_IN, &saved.read.x, &mut grad_x);
        let mut into = grad_out;
        let norm = self.reading.backward(
            &context.tile(h, d_model),
            width,
            &saved.read,
            &mut grad_x,
            &mut into,
            context.sink.is_none(),
        );
        to_rows(cpu, &into, d_model, width, grad_h);
        Parts {
            grad_delta,
            grad_qkv,
            norm,
            sinks,
            masks: {
                let [q, k, v] = of_parts;
                [of_input, q, k, v, of_output]
            },
        }
    }

    fn add_mask_gradients(&self, context: &Context, sequences: &[(Saved, Parts)]) {
        for place in ATTENTION_IN..=ATTENTION_OUT {
            if let Some(mask) = context.mask(place) {
                for (_, parts) in sequences {
                    mask.add(&parts.masks[place]);
                }
            }
        }
    }

    fn add_gradients(
        &self,
        context: &Context,
        sink: &WeightGradients,
        sequences: &[(Saved, Parts)],
    ) {
        let of = |grad: fn(&Parts) -> &[f32], x: fn(&Saved) -> &[f32]| {
            let pairs = sequences
                .iter()
                .map(|(saved, parts)| (grad(parts), x(saved)));
            pairs.collect::<Vec<_>>()
        };
        let joint = of(|parts| &parts.grad_qkv, |saved| &saved.read.x);
        self.joint.add_gradients(context, sink, &joint);
        let project = of(|parts| &parts.grad_delta, |saved| &saved.y);
        self.project.add_gradients(context, sink, &project);
        for (_, part) in sequences {
            part.norm.add_to(sink, &self.reading);
            if let Some(sinks) = &self.sinks {
                add_to(sink, &sinks.name, &part.sinks);
            }
        }
    }
}
