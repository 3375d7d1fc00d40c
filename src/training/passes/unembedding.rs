//! The final norm and the unembedding of a pass: `h [rows, d_model] -> logits [rows, vocabulary]`.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::layer::{Context, LinearLayer, NormGradient, Reading, SublayerRead};
use crate::numerics::rows;
use crate::numerics::tiles::buffers::Buffer;
use crate::numerics::tiles::layout::to_rows;

/// The weights of the final norm and the unembedding at one step.
#[derive(Debug)]
pub struct UnembeddingWeights {
    pub reading: Reading,
    pub unembed: LinearLayer,
}

/// Both as one operation on the stream.
pub struct UnembeddingPass {
    pub context: Context,
    pub weights: Arc<UnembeddingWeights>,
    saved: Mutex<Vec<SublayerRead>>,
}

impl UnembeddingPass {
    pub fn new(context: Context, weights: Arc<UnembeddingWeights>) -> Self {
        UnembeddingPass {
            context,
            weights,
            saved: Mutex::default(),
        }
    }

    fn forward_one(&self, h: &[f32], logits: &mut [f32]) -> SublayerRead {
        let (weights, cpu, width) = (&*self.weights, self.context.cpu, self.context.width());
        let d_model = weights.reading.gain.values.len();
        let read = weights
            .reading
            .forward(cpu, &self.context.tile(h, d_model), width);
        let tile = weights.unembed.forward(cpu, &read.x, width);
        to_rows(cpu, &tile, weights.unembed.weights.outputs, width, logits);
        read
    }

    fn backward_one(
        &self,
        h: &[f32],
        read: &SublayerRead,
        grad: &[f32],
        grad_h: &mut [f32],
    ) -> (Buffer, NormGradient) {
        let (weights, cpu, width) = (&*self.weights, self.context.cpu, self.context.width());
        let d_model = weights.reading.gain.values.len();
        let grad_logits = self.context.tile(grad, weights.unembed.weights.outputs);
        let mut grad_x = weights.unembed.backward(cpu, &grad_logits, width);
        let mut into = Buffer::zeros(grad_x.len());
        let norm = weights.reading.backward(
            &self.context.tile(h, d_model),
            width,
            read,
            &mut grad_x,
            &mut into,
            self.context.sink.is_none(),
        );
        to_rows(cpu, &into, d_model, width, grad_h);
        (grad_logits, norm)
    }
}

impl CustomOp1 for UnembeddingPass {
    fn name(&self) -> &'static str {
        "unembedding-pass"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let h = rows::values(storage, layout)?;
        let d_model = rows::width(layout)?;
        let vocabulary = self.weights.unembed.weights.outputs;
        let n_rows = h.len() / d_model;
        let mut logits = vec![0f32; n_rows * vocabulary];
        let length = self.context.length;
        let saved: Vec<Option<SublayerRead>> = logits
            .par_chunks_mut(length * vocabulary)
            .zip(h.par_chunks(length * d_model))
            .map(|(logits, h)| {
                let read = self.forward_one(h, logits);
                self.context.keeps.then_some(read)
            })
            .collect();
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) =
            saved.into_iter().flatten().collect();
        Ok((CpuStorage::F32(logits), Shape::from((n_rows, vocabulary))))
    }

    fn bwd(&self, h: &Tensor, _result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let saved = std::mem::take(&mut *self.saved.lock().unwrap_or_else(PoisonError::into_inner));
        let (length, d_model) = (self.context.length, h.dim(1)?);
        let vocabulary = self.weights.unembed.weights.outputs;
        let mut grad_h = vec![0f32; h.elem_count()];
        let parts: Vec<(Buffer, NormGradient)> = rows::with_two(h, grad, |h, grad| {
            let grads = grad.par_chunks(length * vocabulary);
            grad_h
                .par_chunks_mut(length * d_model)
                .zip(h.par_chunks(length * d_model).zip(grads))
                .zip(&saved)
                .map(|((grad_h, (h, grad)), saved)| self.backward_one(h, saved, grad, grad_h))
                .collect()
        })?;
        if let Some(sink) = &self.context.sink {
            let pairs = parts.iter().zip(&saved);
            let pairs: Vec<(&[f32], &[f32])> =
                pairs.map(|((grad, _), read)| (&**grad, &*read.x)).collect();
            self.weights
                .unembed
                .add_gradients(&self.context, sink, &pairs);
            for (_, norm) in &parts {
                norm.add_to(sink, &self.weights.reading);
            }
        }
        Ok(Some(Tensor::from_vec(grad_h, h.shape(), h.device())?))
    }
}
