//! A part of a model as one operation on rows, sequence by sequence.
//!
//! Sequences do not see one another, so that each goes through the part by itself, forward and backward, on whatever
//! thread is free. Gradients of weights are added up afterwards, over all sequences in their order.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::gradients::WeightGradients;
use super::layer::Context;
use crate::numerics::rows;

/// A part of a model with its weights of one step. `h` is one sequence's stream, `[length, d_model]`.
pub trait SequenceWise: Send + Sync {
    const NAME: &'static str;
    /// What a sequence's backward pass needs of its forward pass.
    type Kept: Send + Sync;
    /// What the gradients of weights are made of, of one sequence.
    type Parts: Send + Sync;

    /// Channels of a row of the result; those of the stream unless said.
    fn outputs(&self, d_model: usize) -> usize {
        d_model
    }

    /// Fills `out [length, outputs]` of the sequence with that index.
    fn forward(&self, context: &Context, sequence: usize, h: &[f32], out: &mut [f32])
    -> Self::Kept;

    /// Fills `grad_h`, the gradient of the stream, from that of the result.
    fn backward(
        &self,
        context: &Context,
        kept: &Self::Kept,
        h: &[f32],
        grad: &[f32],
        grad_h: &mut [f32],
    ) -> Self::Parts;

    /// Adds the gradients of the nodes' masks by all sequences, where there are masks.
    fn add_mask_gradients(&self, _context: &Context, _sequences: &[(Self::Kept, Self::Parts)]) {}

    /// Adds the gradients of weights by all sequences.
    fn add_gradients(
        &self,
        context: &Context,
        sink: &WeightGradients,
        sequences: &[(Self::Kept, Self::Parts)],
    );
}

/// The operation.
pub struct Pass<P: SequenceWise> {
    context: Context,
    part: Arc<P>,
    /// Of every sequence, from the forward pass to the backward pass.
    kept: Mutex<Vec<P::Kept>>,
}

impl<P: SequenceWise> Pass<P> {
    pub fn new(context: Context, part: Arc<P>) -> Self {
        Pass {
            context,
            part,
            kept: Mutex::new(Vec::new()),
        }
    }
}

impl<P: SequenceWise> CustomOp1 for Pass<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let h = rows::values(storage, layout)?;
        let (length, d_model) = (self.context.length, rows::width(layout)?);
        let (n_rows, outputs) = (h.len() / d_model, self.part.outputs(d_model));
        let mut out = vec![0f32; n_rows * outputs];
        let kept: Vec<Option<P::Kept>> = out
            .par_chunks_mut(length * outputs)
            .zip(h.par_chunks(length * d_model))
            .enumerate()
            .map(|(sequence, (out, h))| {
                let kept = self.part.forward(&self.context, sequence, h, out);
                self.context.keeps.then_some(kept)
            })
            .collect();
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) =
            kept.into_iter().flatten().collect();
        Ok((CpuStorage::F32(out), Shape::from((n_rows, outputs))))
    }

    fn bwd(&self, h: &Tensor, _result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        let (length, d_model) = (self.context.length, h.dim(1)?);
        let outputs = self.part.outputs(d_model);
        let mut grad_h = vec![0f32; h.elem_count()];
        let sequences: Vec<(P::Kept, P::Parts)> = rows::with_two(h, grad, |h, grad| {
            let grads = grad.par_chunks(length * outputs);
            grad_h
                .par_chunks_mut(length * d_model)
                .zip(h.par_chunks(length * d_model).zip(grads))
                .zip(kept)
                .map(|((grad_h, (h, grad)), kept)| {
                    let parts = self.part.backward(&self.context, &kept, h, grad, grad_h);
                    (kept, parts)
                })
                .collect()
        })?;
        self.part.add_mask_gradients(&self.context, &sequences);
        if let Some(sink) = &self.context.sink {
            self.part.add_gradients(&self.context, sink, &sequences);
        }
        Ok(Some(Tensor::from_vec(grad_h, h.shape(), h.device())?))
    }
}
