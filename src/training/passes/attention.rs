//! The attention sublayer of a pass: `h -> h + attention(h)`, rows in, rows out.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::layer::{
    Context, LinearLayer, NormGradient, Reading, SublayerRead, WeightValues, add_to,
};
use crate::numerics::rows;
use crate::numerics::tiles::attention::{Head, HeadGradients, Outcome, Room};
use crate::numerics::tiles::buffers::Buffer;
use crate::numerics::tiles::layout::to_rows;
use crate::numerics::tiles::{attention, elementwise, top_k};

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

/// The sublayer as one operation on the stream.
pub struct AttentionPass {
    pub context: Context,
    pub weights: Arc<AttentionWeights>,
    /// Of every sequence, from the forward pass to the backward pass.
    saved: Mutex<Vec<Saved>>,
}

struct Saved {
    read: SublayerRead,
    /// Queries, keys and values: `[3 * heads * d_head][width]`.
    qkv: Buffer,
    /// `[heads * d_head][width]`.
    y: Buffer,
    /// `[heads][width]`: see [`attention::forward`].
    totals: Buffer,
    /// `[d_model][width]`; empty where nothing of it is dropped.
    delta: Buffer,
}

/// What the weights' gradients are made of, of one sequence.
struct Parts {
    grad_delta: Buffer,
    grad_qkv: Buffer,
    norm: NormGradient,
    sinks: Vec<f32>,
}

impl AttentionPass {
    pub fn new(context: Context, weights: Arc<AttentionWeights>) -> Self {
        AttentionPass {
            context,
            weights,
            saved: Mutex::default(),
        }
    }

    fn sink_of(&self, head: usize) -> f32 {
        let sinks = self.weights.sinks.as_ref();
        sinks.map_or(f32::NEG_INFINITY, |sinks| sinks.values[head])
    }

    /// One head's queries, keys and values.
    fn head<'a>(&self, qkv: &'a [f32], head: usize) -> Head<'a> {
        let (width, d_head) = (self.context.width(), self.weights.d_head);
        let size = d_head * width;
        let part = |index: usize| &qkv[(index * self.weights.heads + head) * size..][..size];
        Head {
            q: part(0),
            k: part(1),
            v: part(2),
            sink: self.sink_of(head),
            d_head,
            width,
            length: self.context.length,
        }
    }

    fn forward_one(&self, h: &[f32], out: &mut [f32]) -> Saved {
        let (weights, cpu, width) = (&*self.weights, self.context.cpu, self.context.width());
        let d_model = weights.reading.gain.values.len();
        let read = weights
            .reading
            .forward(cpu, &self.context.tile(h, d_model), width);
        let mut qkv = weights.joint.forward(cpu, &read.x, width);
        let size = weights.d_head * width;
        let parts = qkv.chunks_exact_mut(weights.heads * size);
        for (part, active) in parts.zip(weights.active) {
            if let Some(k) = active {
                top_k::keep_largest(cpu, part, width, k);
            }
        }
        let mut y = Buffer::of(weights.heads * size);
        let mut totals = Buffer::of(weights.heads * width);
        let mut room = Room::default();
        let outputs = y.chunks_exact_mut(size).zip(totals.chunks_exact_mut(width));
        for (head, (y, totals)) in outputs.enumerate() {
            attention::forward(cpu, self.head(&qkv, head), &mut room, y, totals);
        }
        let mut delta = weights.project.forward(cpu, &y, width);
        if let Some(k) = weights.active[3] {
            top_k::keep_largest(cpu, &mut delta, width, k);
        }
        to_rows(cpu, &delta, d_model, width, out);
        elementwise::add(out, h);
        if weights.active[3].is_none() {
            delta = Buffer::default();
        }
        Saved {
            read,
            qkv,
            y,
            totals,
            delta,
        }
    }

    fn backward_one(&self, h: &[f32], saved: &Saved, grad: &[f32], grad_h: &mut [f32]) -> Parts {
        let (weights, cpu, width) = (&*self.weights, self.context.cpu, self.context.width());
        let d_model = weights.reading.gain.values.len();
        let grad_out = self.context.tile(grad, d_model);
        let mut grad_delta = Buffer::copy(&grad_out);
        if !saved.delta.is_empty() {
            elementwise::mask(&mut grad_delta, &saved.delta);
        }
        let grad_y = weights.project.backward(cpu, &grad_delta, width);
        let mut grad_qkv = Buffer::of(saved.qkv.len());
        let mut sinks = vec![0f32; weights.heads];
        let size = weights.d_head * width;
        let (queries, rest) = grad_qkv.split_at_mut(weights.heads * size);
        let (keys, values) = rest.split_at_mut(weights.heads * size);
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
            sinks[head] =
                attention::backward(cpu, self.head(&saved.qkv, head), &mut room, outcome, into);
        }
        let length = weights.heads * size;
        let kept = saved.qkv.chunks_exact(length);
        for ((part, kept), active) in grad_qkv
            .chunks_exact_mut(length)
            .zip(kept)
            .zip(weights.active)
        {
            if active.is_some() {
                elementwise::mask(part, kept);
            }
        }
        let mut grad_x = weights.joint.backward(cpu, &grad_qkv, width);
        let mut into = grad_out;
        let norm = weights.reading.backward(
            &self.context.tile(h, d_model),
            width,
            &saved.read,
            &mut grad_x,
            &mut into,
            self.context.sink.is_none(),
        );
        to_rows(cpu, &into, d_model, width, grad_h);
        Parts {
            grad_delta,
            grad_qkv,
            norm,
            sinks,
        }
    }
}

impl CustomOp1 for AttentionPass {
    fn name(&self) -> &'static str {
        "attention-pass"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let h = rows::values(storage, layout)?;
        let block = self.context.length * rows::width(layout)?;
        let mut out = vec![0f32; h.len()];
        let saved: Vec<Option<Saved>> = out
            .par_chunks_mut(block)
            .zip(h.par_chunks(block))
            .map(|(out, h)| {
                let saved = self.forward_one(h, out);
                self.context.keeps.then_some(saved)
            })
            .collect();
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) =
            saved.into_iter().flatten().collect();
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, h: &Tensor, _result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let saved = std::mem::take(&mut *self.saved.lock().unwrap_or_else(PoisonError::into_inner));
        let block = self.context.length * h.dim(1)?;
        let mut grad_h = vec![0f32; h.elem_count()];
        let parts: Vec<Parts> = rows::with_two(h, grad, |h, grad| {
            grad_h
                .par_chunks_mut(block)
                .zip(h.par_chunks(block).zip(grad.par_chunks(block)))
                .zip(&saved)
                .map(|((grad_h, (h, grad)), saved)| self.backward_one(h, saved, grad, grad_h))
                .collect()
        })?;
        if let Some(sink) = &self.context.sink {
            let of = |grad: fn(&Parts) -> &[f32], x: fn(&Saved) -> &[f32]| {
                let pairs = parts.iter().zip(&saved);
                let pairs = pairs.map(|(parts, saved)| (grad(parts), x(saved)));
                pairs.collect::<Vec<_>>()
            };
            let joint = of(|parts| &parts.grad_qkv, |saved| &saved.read.x);
            self.weights
                .joint
                .add_gradients(&self.context, sink, &joint);
            let project = of(|parts| &parts.grad_delta, |saved| &saved.y);
            self.weights
                .project
                .add_gradients(&self.context, sink, &project);
            for part in &parts {
                part.norm.add_to(sink, &self.weights.reading);
                if let Some(sinks) = &self.weights.sinks {
                    add_to(sink, &sinks.name, &part.sinks);
                }
            }
        }
        Ok(Some(Tensor::from_vec(grad_h, h.shape(), h.device())?))
    }
}
