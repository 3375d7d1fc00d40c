//! Masked passes held against whole ones, against candle's own, and their gradients against differences.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::masked::PaddedPrompts;
use super::node_masks::NodeMasks;
use super::tests::{Case, config, tensors};
use super::{Passes, layer};
use crate::circuits::nodes::node_locations;
use crate::models::config::{Norm, TransformerConfig};
use crate::models::layers::Purpose;
use crate::models::token_rows::TokenRows;
use crate::numerics::rows;
use crate::numerics::tiles::processor::Processor;

/// Shapes with and without sinks, AbsTopK, biases and means of norms.
fn cases() -> Vec<Case> {
    [(Norm::Rms, true), (Norm::Layer, false), (Norm::Rms, false)]
        .into_iter()
        .map(|(norm, is_sparse)| Case {
            norm,
            d_model: 24,
            n_heads: 2,
            d_head: 16,
            is_sparse,
            length: 9,
        })
        .collect()
}

struct Made {
    config: TransformerConfig,
    tensors: BTreeMap<String, Tensor>,
    prompts: PaddedPrompts,
    held: Vec<f32>,
    rng: SmallRng,
}

fn made(case: &Case) -> Made {
    let config = config(case);
    let tensors = tensors(&config, case.is_sparse)
        .into_iter()
        .map(|(name, var)| (name, var.as_tensor().detach()))
        .collect();
    let mut rng = SmallRng::seed_from_u64(3);
    let prompts: Vec<Vec<u32>> = [9, 5, 7, 1]
        .into_iter()
        .map(|length| (0..length).map(|_| rng.random_range(0..37)).collect())
        .collect();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let nodes: usize = node_locations(&config).iter().map(|at| at.1).sum();
    Made {
        prompts: PaddedPrompts::padded(&prompts),
        held: (0..nodes).map(|_| rng.random_range(-0.5..0.5)).collect(),
        config,
        tensors,
        rng,
    }
}

/// Our own passes, where the processor has them, and candle's.
fn both(made: &Made) -> Vec<Passes> {
    let candles = Passes::composed(made.config.clone(), &made.tensors, Purpose::Frozen);
    let mut both = vec![candles.expect("a model")];
    assert!(layer::is_known(&made.config));
    for cpu in Processor::all() {
        let ours = Passes::on(
            Some(cpu),
            made.config.clone(),
            &made.tensors,
            Purpose::Frozen,
        );
        both.push(ours.expect("a model"));
    }
    both
}

fn logits(passes: &Passes, made: &Made, kept: &[bool]) -> Vec<f32> {
    let masks = NodeMasks::new(&made.config, kept, &made.held);
    let answers = passes.masked(&made.prompts, &masks, None, false);
    rows::to_vec(&answers.expect("answers").logits).expect("logits")
}

#[test]
fn with_every_node_kept_the_answers_are_the_model_s_to_the_bit() {
    for case in cases() {
        let made = made(&case);
        for passes in both(&made) {
            let kept = vec![true; made.held.len()];
            let mut rows = TokenRows::sequences(
                &made.prompts.ids,
                made.prompts.length,
                &candle_core::Device::Cpu,
            )
            .expect("rows");
            let (_, sites) = passes.forward(&mut rows).expect("a pass");
            let last = Tensor::new(made.prompts.last.as_slice(), rows.ids.device()).expect("rows");
            let stream = sites.last().expect("the last site").index_select(&last, 0);
            let ids = rows.ids.index_select(&last, 0).expect("ids");
            let whole = own_logits(&passes, &stream.expect("rows"), &ids);
            assert_eq!(logits(&passes, &made, &kept), whole);
        }
    }
}

#[test]
fn a_pass_that_begins_late_gives_the_same_to_the_bit() {
    for case in cases() {
        let mut made = made(&case);
        let mut kept: Vec<bool> = (0..made.held.len())
            .map(|_| made.rng.random_bool(0.4))
            .collect();
        // A head that is held, and a sublayer of which nothing is kept.
        let mut first = 0;
        for (node, width) in node_locations(&made.config) {
            use crate::models::location::NodeKind;
            let range = match node.kind {
                NodeKind::Q | NodeKind::K | NodeKind::V => 0..16,
                NodeKind::MlpOut if node.layer == 0 => 0..width,
                _ => 0..0,
            };
            kept[first + range.start..first + range.end].fill(false);
            first += width;
        }
        for passes in both(&made) {
            let masks = NodeMasks::new(&made.config, &kept, &made.held);
            let embedded = passes.embedded(&made.prompts).expect("a stream");
            let whole = passes
                .masked_streams(&made.prompts, &masks, None, vec![embedded])
                .expect("streams");
            assert_eq!(whole.len(), 2 * made.config.n_layers + 1);
            let values = |streams: &[Tensor]| -> Vec<Vec<f32>> {
                let streams = streams.iter();
                streams
                    .map(|stream| rows::to_vec(stream).expect("values"))
                    .collect()
            };
            for known in 1..=whole.len() {
                let resumed = passes
                    .masked_streams(&made.prompts, &masks, None, whole[..known].to_vec())
                    .expect("streams");
                assert_eq!(values(&resumed), values(&whole), "{known} known");
            }
            // With gradients nothing is left out, and the streams are the same but for rounding.
            let answers = passes
                .masked(&made.prompts, &masks, None, true)
                .expect("answers");
            let with_gradients = rows::to_vec(&answers.logits).expect("logits");
            for (one, other) in with_gradients.iter().zip(logits(&passes, &made, &kept)) {
                assert!((one - other).abs() < 1e-4, "{one} {other}");
            }
        }
    }
}

/// The answers of a stream at the last site, without any masks.
fn own_logits(passes: &Passes, stream: &Tensor, ids: &Tensor) -> Vec<f32> {
    let logits = match &passes.fused {
        Some(fused) => fused
            .masked_logits(stream.clone(), None)
            .and_then(|logits| passes.transformer.add_bigrams(logits, ids)),
        None => passes.transformer.unembed(stream, ids),
    };
    rows::to_vec(&logits.expect("logits")).expect("logits")
}

#[test]
fn with_no_node_kept_only_the_first_stream_and_the_held_values_speak() {
    for case in cases() {
        let made = made(&case);
        for passes in both(&made) {
            let none = vec![false; made.held.len()];
            let found = logits(&passes, &made, &none);
            // By hand: the embedding, and what every sublayer is held at.
            let rows = TokenRows::sequences(
                &made.prompts.ids,
                made.prompts.length,
                &candle_core::Device::Cpu,
            )
            .expect("rows");
            let mut stream = passes.transformer.embed(&rows).expect("a stream");
            let mut first = 0;
            for (node, width) in node_locations(&made.config) {
                use crate::models::location::NodeKind;
                if matches!(node.kind, NodeKind::AttnOut | NodeKind::MlpOut) {
                    let held = &made.held[first..first + width];
                    let held = Tensor::from_slice(held, (1, width), stream.device());
                    stream = stream
                        .broadcast_add(&held.expect("held"))
                        .expect("a stream");
                }
                first += width;
            }
            let logits = passes
                .transformer
                .unembed(&stream, &rows.ids)
                .expect("logits");
            let last = Tensor::new(made.prompts.last.as_slice(), logits.device()).expect("rows");
            let expected = rows::to_vec(&logits.index_select(&last, 0).expect("rows"));
            for (found, expected) in found.iter().zip(expected.expect("logits")) {
                assert!((found - expected).abs() < 1e-4, "{found} {expected}");
            }
        }
    }
}

#[test]
fn our_passes_and_candle_s_agree_in_answers_and_gradients() {
    for case in cases() {
        let mut made = made(&case);
        let kept: Vec<bool> = (0..made.held.len())
            .map(|_| made.rng.random_bool(0.7))
            .collect();
        let outcomes: Vec<(Vec<f32>, Vec<f32>)> = [false, true]
            .into_iter()
            .flat_map(|frozen| both(&made).into_iter().map(move |passes| (frozen, passes)))
            .map(|(frozen, passes)| outcome(&passes, &made, &kept, frozen))
            .collect();
        for of_norms in outcomes.chunks(outcomes.len() / 2) {
            for other in &of_norms[1..] {
                for (what, one, other) in [
                    ("logits", &of_norms[0].0, &other.0),
                    ("gradients", &of_norms[0].1, &other.1),
                ] {
                    let largest = one
                        .iter()
                        .fold(1e-3f32, |most, value| most.max(value.abs()));
                    for (at, (one, other)) in one.iter().zip(other).enumerate() {
                        assert!(
                            (one - other).abs() < 2e-4 * largest,
                            "{what} {at}: {one} {other}, the largest is {largest}"
                        );
                    }
                }
            }
        }
        // Frozen norms are something else where nodes are held.
        let (free, frozen) = (&outcomes[0].0, &outcomes[outcomes.len() / 2].0);
        assert!(
            free.iter()
                .zip(frozen)
                .any(|(one, other)| (one - other).abs() > 1e-3)
        );
    }
}

/// Logits, and the gradients of a weighted sum of them.
fn outcome(passes: &Passes, made: &Made, kept: &[bool], frozen: bool) -> (Vec<f32>, Vec<f32>) {
    let masks = NodeMasks::new(&made.config, kept, &made.held);
    let scales = frozen.then(|| passes.norm_scales(&made.prompts).expect("scales"));
    let answers = passes
        .masked(&made.prompts, &masks, scales.as_ref(), true)
        .expect("answers");
    let logits = rows::to_vec(&answers.logits).expect("logits");
    let gradients = answers
        .gradients(direction(logits.len()))
        .expect("gradients");
    (logits, gradients)
}

fn direction(length: usize) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(5);
    (0..length).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A mask between 0 and 1 is a mixture of a node's value and what it is held at. The passes run only 0 and 1; a tap runs
/// what lies between, so that differences can be taken.
#[test]
fn gradients_of_masks_are_those_of_the_relaxed_mask() {
    for case in cases() {
        let mut made = made(&case);
        // Without AbsTopK the answers are smooth in every node's value.
        made.config.active_fraction = None;
        made.config.active_locations = Default::default();
        let kept: Vec<bool> = (0..made.held.len())
            .map(|_| made.rng.random_bool(0.8))
            .collect();
        for passes in both(&made) {
            let (logits, gradients) = outcome(&passes, &made, &kept, false);
            let direction = direction(logits.len());
            let objective = |mask: &[f32]| relaxed(&passes, &made, mask, &direction);
            let base: Vec<f32> = kept.iter().map(|kept| f32::from(u8::from(*kept))).collect();
            let mut rng = SmallRng::seed_from_u64(6);
            for _ in 0..40 {
                let node = rng.random_range(0..kept.len());
                let moved = |by: f32| {
                    let mut mask = base.clone();
                    mask[node] += by;
                    objective(&mask)
                };
                let step = 1e-2;
                let difference = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
                let gradient = f64::from(gradients[node]);
                assert!(
                    (difference - gradient).abs() < 2e-2 * (1.0 + gradient.abs()),
                    "node {node}: {difference} {gradient}"
                );
            }
        }
    }
}

/// The weighted sum of the logits with every node at `held + mask (value - held)`, by a tap of its own.
fn relaxed(passes: &Passes, made: &Made, mask: &[f32], direction: &[f32]) -> f64 {
    use crate::models::location::{Location, Site};
    use crate::models::tap::ResidualTap;
    struct Relaxed<'a>(&'a Made, &'a [f32]);
    impl ResidualTap for Relaxed<'_> {
        fn visit(&mut self, place: Location, value: Tensor) -> candle_core::Result<Tensor> {
            let mut first = 0;
            for (node, width) in node_locations(&self.0.config) {
                if Location::Node(node) == place {
                    let of = |values: &[f32]| {
                        Tensor::from_slice(
                            &values[first..first + width],
                            (1, width),
                            value.device(),
                        )
                    };
                    let (mask, held) = (of(self.1)?, of(&self.0.held)?);
                    let away = value.broadcast_sub(&held)?;
                    return away.broadcast_mul(&mask)?.broadcast_add(&held);
                }
                first += width;
            }
            Ok(value)
        }
    }
    let model = &passes.transformer;
    let mut rows = TokenRows::sequences(
        &made.prompts.ids,
        made.prompts.length,
        &candle_core::Device::Cpu,
    )
    .expect("rows");
    let stream = model.embed(&rows).expect("a stream");
    let first = Site::before_attention(0, made.config.n_layers);
    let stream = model.run(first, stream, &mut rows, &mut Relaxed(made, mask));
    let last = Tensor::new(made.prompts.last.as_slice(), &candle_core::Device::Cpu).expect("rows");
    let stream = stream
        .expect("a pass")
        .index_select(&last, 0)
        .expect("rows");
    let ids = rows.ids.index_select(&last, 0).expect("ids");
    let logits = model.unembed(&stream, &ids).expect("logits");
    let logits = rows::to_vec(&logits).expect("logits");
    let products = logits.iter().zip(direction);
    products
        .map(|(logit, weight)| f64::from(logit * weight))
        .sum()
}

#[test]
fn padding_reaches_no_answer() {
    let made = made(&cases()[0]);
    let passes = both(&made).pop().expect("passes");
    let kept: Vec<bool> = (0..made.held.len()).map(|node| node % 3 != 0).collect();
    let together = logits(&passes, &made, &kept);
    let vocabulary = made.config.vocab_size;
    for (index, last) in made.prompts.last.iter().enumerate() {
        let first = index * made.prompts.length;
        let alone = PaddedPrompts::padded(&[&made.prompts.ids[first..=*last as usize]]);
        let masks: Arc<NodeMasks> = NodeMasks::new(&made.config, &kept, &made.held);
        let answers = passes.masked(&alone, &masks, None, false).expect("answers");
        let alone = rows::to_vec(&answers.logits).expect("logits");
        for (one, other) in alone.iter().zip(&together[index * vocabulary..]) {
            assert!((one - other).abs() < 1e-4, "{one} {other}");
        }
    }
}
