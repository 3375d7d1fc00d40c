//! The MLP sublayer of a pass, `h -> h + mlp(h)`, and the unembedding, `h -> logits`; rows in, rows out.

use super::gradients::WeightGradients;
use super::layer::{Context, LinearLayer, NormGradient, Reading, SublayerRead};
use super::node_masks::{MLP_IN, MLP_OUT, NEURONS};
use super::sequences::SequenceWise;
use crate::numerics::tiles::buffers::Buffer;
use crate::numerics::tiles::elementwise;
use crate::numerics::tiles::layout::to_rows;

/// The weights of an MLP at one step.
#[derive(Debug)]
pub struct MlpWeights {
    pub reading: Reading,
    pub expand: LinearLayer,
    pub project: LinearLayer,
    /// How many neurons and how many channels of the output stay; none: all.
    pub active: [Option<usize>; 2],
}

/// What a sequence keeps for its backward pass.
pub struct SavedMlp {
    read: SublayerRead,
    /// Before and after the nonlinearity, `[d_mlp][width]`.
    hidden: Buffer,
    neurons: Buffer,
    /// `[d_model][width]`; empty where nothing of it is dropped or held.
    delta: Buffer,
}

/// What the weights' gradients are made of, of one sequence.
pub struct MlpParts {
    grad_delta: Buffer,
    grad_hidden: Buffer,
    norm: NormGradient,
    /// Of what was read, of neurons and of the output; empty without masks.
    masks: [Vec<f32>; 3],
}

impl SequenceWise for MlpWeights {
    const NAME: &'static str = "mlp-pass";
    type Kept = SavedMlp;
    type Parts = MlpParts;

    fn forward(&self, context: &Context, sequence: usize, h: &[f32], out: &mut [f32]) -> SavedMlp {
        let (cpu, width) = (context.cpu, context.width());
        let d_model = self.reading.gain.values.len();
        let tile = context.tile(h, d_model);
        let read = self.reading.forward(context, (sequence, MLP_IN), &tile);
        let restricted = &context.restricted;
        let hidden = match &restricted.expand {
            Some(expand) => expand.forward(cpu, &read.x, width),
            None => self.expand.forward(cpu, &read.x, width),
        };
        let mut neurons = Buffer::of(hidden.len());
        elementwise::gelu(&hidden, &mut neurons);
        if let Some(k) = self.active[0] {
            context.keep_largest(NEURONS, &mut neurons, k);
        }
        let mut delta = match &restricted.contract {
            Some(contract) => contract.forward(cpu, &neurons, width),
            None => self.project.forward(cpu, &neurons, width),
        };
        if let Some(k) = self.active[1] {
            context.keep_largest(MLP_OUT, &mut delta, k);
        }
        context.add_output(MLP_OUT, &delta, h, out);
        if self.active[1].is_none() && context.masks.is_none() {
            delta = Buffer::default();
        }
        SavedMlp {
            read,
            hidden,
            neurons,
            delta,
        }
    }

    fn backward(
        &self,
        context: &Context,
        saved: &SavedMlp,
        h: &[f32],
        grad: &[f32],
        grad_h: &mut [f32],
    ) -> MlpParts {
        let (cpu, width) = (context.cpu, context.width());
        let d_model = self.reading.gain.values.len();
        let grad_out = context.tile(grad, d_model);
        let mut grad_delta = Buffer::copy(&grad_out);
        let length = context.length;
        let masked = |place: usize, x: &[f32], grad: &mut [f32]| match context.mask(place) {
            Some(mask) => mask.backward(x, grad, width, length),
            None => Vec::new(),
        };
        let of_output = masked(MLP_OUT, &saved.delta, &mut grad_delta);
        if self.active[1].is_some() {
            elementwise::mask(&mut grad_delta, &saved.delta);
        }
        let mut grad_hidden = match &context.restricted.contract {
            Some(contract) => contract.backward(cpu, &grad_delta, width),
            None => self.project.backward(cpu, &grad_delta, width),
        };
        let of_neurons = masked(NEURONS, &saved.neurons, &mut grad_hidden);
        if self.active[0].is_some() {
            elementwise::mask(&mut grad_hidden, &saved.neurons);
        }
        elementwise::gelu_gradient(&saved.hidden, &mut grad_hidden);
        let mut grad_x = match &context.restricted.expand {
            Some(expand) => expand.backward(cpu, &grad_hidden, width),
            None => self.expand.backward(cpu, &grad_hidden, width),
        };
        let of_input = masked(MLP_IN, &saved.read.x, &mut grad_x);
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
        MlpParts {
            grad_delta,
            grad_hidden,
            norm,
            masks: [of_input, of_neurons, of_output],
        }
    }

    fn add_mask_gradients(&self, context: &Context, sequences: &[(SavedMlp, MlpParts)]) {
        for (index, place) in [MLP_IN, NEURONS, MLP_OUT].into_iter().enumerate() {
            if let Some(mask) = context.mask(place) {
                for (_, parts) in sequences {
                    mask.add(&parts.masks[index]);
                }
            }
        }
    }

    fn add_gradients(
        &self,
        context: &Context,
        sink: &WeightGradients,
        sequences: &[(SavedMlp, MlpParts)],
    ) {
        let of = |grad: fn(&MlpParts) -> &[f32], x: fn(&SavedMlp) -> &[f32]| {
            let pairs = sequences
                .iter()
                .map(|(saved, parts)| (grad(parts), x(saved)));
            pairs.collect::<Vec<_>>()
        };
        let expand = of(|parts| &parts.grad_hidden, |saved| &saved.read.x);
        self.expand.add_gradients(context, sink, &expand);
        let project = of(|parts| &parts.grad_delta, |saved| &saved.neurons);
        self.project.add_gradients(context, sink, &project);
        for (_, part) in sequences {
            part.norm.add_to(sink, &self.reading);
        }
    }
}
