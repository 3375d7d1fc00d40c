//! The final norm and the unembedding of a pass: `h [rows, d_model] -> logits [rows, vocabulary]`.

use super::gradients::WeightGradients;
use super::layer::{Context, LinearLayer, NormGradient, Reading, SublayerRead};
use super::sequences::SequenceWise;
use crate::numerics::tiles::buffers::Buffer;
use crate::numerics::tiles::layout::to_rows;

/// The weights of the final norm and the unembedding at one step.
#[derive(Debug)]
pub struct UnembeddingWeights {
    pub reading: Reading,
    pub unembed: LinearLayer,
}

impl SequenceWise for UnembeddingWeights {
    const NAME: &'static str = "unembedding-pass";
    type Kept = SublayerRead;
    /// The gradient of the logits `[vocabulary][width]`, and the norm's.
    type Parts = (Buffer, NormGradient);

    fn outputs(&self, _d_model: usize) -> usize {
        self.unembed.weights.outputs
    }

    fn forward(
        &self,
        context: &Context,
        sequence: usize,
        h: &[f32],
        logits: &mut [f32],
    ) -> SublayerRead {
        let (cpu, width) = (context.cpu, context.width());
        let d_model = self.reading.gain.values.len();
        let tile = context.tile(h, d_model);
        // Its norm has no AbsTopK behind it, and no place of nodes.
        let read = self.reading.forward(context, (sequence, 0), &tile);
        let tile = self.unembed.forward(cpu, &read.x, width);
        to_rows(cpu, &tile, self.unembed.weights.outputs, width, logits);
        read
    }

    fn backward(
        &self,
        context: &Context,
        read: &SublayerRead,
        h: &[f32],
        grad: &[f32],
        grad_h: &mut [f32],
    ) -> (Buffer, NormGradient) {
        let (cpu, width) = (context.cpu, context.width());
        let d_model = self.reading.gain.values.len();
        let grad_logits = context.tile(grad, self.unembed.weights.outputs);
        let mut grad_x = self.unembed.backward(cpu, &grad_logits, width);
        let mut into = Buffer::zeros(grad_x.len());
        let norm = self.reading.backward(
            &context.tile(h, d_model),
            width,
            read,
            &mut grad_x,
            &mut into,
            context.sink.is_none(),
        );
        to_rows(cpu, &into, d_model, width, grad_h);
        (grad_logits, norm)
    }

    fn add_gradients(
        &self,
        context: &Context,
        sink: &WeightGradients,
        sequences: &[(SublayerRead, (Buffer, NormGradient))],
    ) {
        let pairs = sequences.iter();
        let pairs: Vec<(&[f32], &[f32])> =
            pairs.map(|(read, (grad, _))| (&**grad, &*read.x)).collect();
        self.unembed.add_gradients(context, sink, &pairs);
        for (_, (_, norm)) in sequences {
            norm.add_to(sink, &self.reading);
        }
    }
}
