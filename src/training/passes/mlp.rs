//! The MLP sublayer of a pass, `h -> h + mlp(h)`, and the unembedding, `h -> logits`; rows in, rows out.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::layer::{Context, LinearLayer, NormGradient, Reading, SublayerRead};
use crate::numerics::rows;
use crate::numerics::tiles::buffers::Buffer;
use crate::numerics::tiles::layout::to_rows;
use crate::numerics::tiles::{elementwise, top_k};

/// The weights of an MLP at one step.
#[derive(Debug)]
pub struct MlpWeights {
    pub reading: Reading,
    pub expand: LinearLayer,
    pub project: LinearLayer,
    /// How many neurons and how many channels of the output stay; none: all.
    pub active: [Option<usize>; 2],
}

/// The sublayer as one operation on the stream.
pub struct MlpPass {
    pub context: Context,
    pub weights: Arc<MlpWeights>,
    saved: Mutex<Vec<SavedMlp>>,
}

struct SavedMlp {
    read: SublayerRead,
    /// Before and after the nonlinearity, `[d_mlp][width]`.
    hidden: Buffer,
    neurons: Buffer,
    /// `[d_model][width]`; empty where nothing of it is dropped.
    delta: Buffer,
}

struct MlpParts {
    grad_delta: Buffer,
    grad_hidden: Buffer,
    norm: NormGradient,
}

impl MlpPass {
    pub fn new(context: Context, weights: Arc<MlpWeights>) -> Self {
        MlpPass {
            context,
            weights,
            saved: Mutex::default(),
        }
    }

    fn forward_one(&self, h: &[f32], out: &mut [f32]) -> SavedMlp {
        let (weights, cpu, width) = (&*self.weights, self.context.cpu, self.context.width());
        let d_model = weights.reading.gain.values.len();
        let read = weights
            .reading
            .forward(cpu, &self.context.tile(h, d_model), width);
        let hidden = weights.expand.forward(cpu, &read.x, width);
        let mut neurons = Buffer::of(hidden.len());
        elementwise::gelu(&hidden, &mut neurons);
        if let Some(k) = weights.active[0] {
            top_k::keep_largest(cpu, &mut neurons, width, k);
        }
        let mut delta = weights.project.forward(cpu, &neurons, width);
        if let Some(k) = weights.active[1] {
            top_k::keep_largest(cpu, &mut delta, width, k);
        }
        to_rows(cpu, &delta, d_model, width, out);
        elementwise::add(out, h);
        if weights.active[1].is_none() {
            delta = Buffer::default();
        }
        SavedMlp {
            read,
            hidden,
            neurons,
            delta,
        }
    }

    fn backward_one(
        &self,
        h: &[f32],
        saved: &SavedMlp,
        grad: &[f32],
        grad_h: &mut [f32],
    ) -> MlpParts {
        let (weights, cpu, width) = (&*self.weights, self.context.cpu, self.context.width());
        let d_model = weights.reading.gain.values.len();
        let grad_out = self.context.tile(grad, d_model);
        let mut grad_delta = Buffer::copy(&grad_out);
        if !saved.delta.is_empty() {
            elementwise::mask(&mut grad_delta, &saved.delta);
        }
        let mut grad_hidden = weights.project.backward(cpu, &grad_delta, width);
        if weights.active[0].is_some() {
            elementwise::mask(&mut grad_hidden, &saved.neurons);
        }
        elementwise::gelu_gradient(&saved.hidden, &mut grad_hidden);
        let mut grad_x = weights.expand.backward(cpu, &grad_hidden, width);
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
        MlpParts {
            grad_delta,
            grad_hidden,
            norm,
        }
    }
}

impl CustomOp1 for MlpPass {
    fn name(&self) -> &'static str {
        "mlp-pass"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let h = rows::values(storage, layout)?;
        let block = self.context.length * rows::width(layout)?;
        let mut out = vec![0f32; h.len()];
        let saved: Vec<Option<SavedMlp>> = out
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
        let parts: Vec<MlpParts> = rows::with_two(h, grad, |h, grad| {
            grad_h
                .par_chunks_mut(block)
                .zip(h.par_chunks(block).zip(grad.par_chunks(block)))
                .zip(&saved)
                .map(|((grad_h, (h, grad)), saved)| self.backward_one(h, saved, grad, grad_h))
                .collect()
        })?;
        if let Some(sink) = &self.context.sink {
            let of = |grad: fn(&MlpParts) -> &[f32], x: fn(&SavedMlp) -> &[f32]| {
                let pairs = parts.iter().zip(&saved);
                let pairs = pairs.map(|(parts, saved)| (grad(parts), x(saved)));
                pairs.collect::<Vec<_>>()
            };
            let expand = of(|parts| &parts.grad_hidden, |saved| &saved.read.x);
            self.weights
                .expand
                .add_gradients(&self.context, sink, &expand);
            let project = of(|parts| &parts.grad_delta, |saved| &saved.neurons);
            self.weights
                .project
                .add_gradients(&self.context, sink, &project);
            for part in &parts {
                part.norm.add_to(sink, &self.weights.reading);
            }
        }
        Ok(Some(Tensor::from_vec(grad_h, h.shape(), h.device())?))
    }
}
