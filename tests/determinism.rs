//! The bits of inference on the CPU: a token's logits depend on its sequence and on nothing else. Not on the
//! rows beside it, on how the sequence was cut into passes, on how weights are stored, on the number of
//! threads, or on what else the cache holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use causeway::models::config::{
    Activation, ActiveLocation, Norm, Positions, ResidualActivation, TransformerConfig,
};
use causeway::models::kv_cache::{CacheRow, KvCache};
use causeway::models::layers::Purpose;
use causeway::models::tap::NoTap;
use causeway::models::tensor_names::tensor_shapes;
use causeway::models::token_rows::TokenRows;
use causeway::models::transformer::Transformer;
use causeway::numerics::columns::Columns;
use rand::{Rng, SeedableRng, rngs::SmallRng};

const LENGTH: usize = 19;
const SEQUENCES: usize = 5;
const VOCABULARY: usize = 67;

/// A model whose layers are wide enough for every kernel: threads within one row, rows in fours, remainders.
fn config(active: Option<f64>) -> TransformerConfig {
    TransformerConfig {
        n_layers: 2,
        d_model: 260,
        n_heads: 5,
        d_head: 24,
        d_mlp: 1040,
        vocab_size: VOCABULARY,
        context_length: 40,
        norm: if active.is_some() {
            Norm::Rms
        } else {
            Norm::Layer
        },
        bias: true,
        activation: Activation::Gelu,
        residual_activation: ResidualActivation::Identity,
        positions: Positions::Added,
        active_fraction: active,
        active_locations: ActiveLocation::NAMES
            .iter()
            .map(|&(_, location)| location)
            .collect::<BTreeSet<_>>(),
        tied_unembedding: false,
        bigram_table: true,
        attention_sinks: true,
        variant: Default::default(),
    }
}

/// `kept` of the weights nonzero; a norm's gain never is zero.
fn weights(count: usize, kept: f64, seed: u64) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut draw = || match rng.random_bool(kept) {
        true => rng.random_range(-0.3..0.3f32),
        false => 0.0,
    };
    (0..count).map(|_| draw()).collect()
}

/// A random model with its linear layers stored densely or by their nonzero weights.
fn model(sparse: bool) -> Result<Transformer> {
    let config = config(sparse.then_some(0.25));
    let mut tensors = BTreeMap::new();
    for (seed, (name, shape)) in tensor_shapes(&config).into_iter().enumerate() {
        let kept = if sparse && shape.len() == 2 {
            1.0 / 16.0
        } else {
            1.0
        };
        let values = weights(shape.iter().product(), kept, seed as u64);
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
    }
    let model = Transformer::new(config, &tensors, Purpose::Inference)?;
    let stored_sparse =
        |linear: &causeway::models::layers::Linear| linear.columns().map(Columns::is_sparse);
    assert!(
        model
            .linears()
            .all(|linear| stored_sparse(linear) == Some(sparse)),
        "stored otherwise"
    );
    Ok(model)
}

fn models() -> Result<[(&'static str, Transformer); 2]> {
    Ok([("dense", model(false)?), ("sparse", model(true)?)])
}

fn sequence(index: usize) -> Vec<u32> {
    (0..LENGTH)
        .map(|t| ((t * t * 7 + 13 * t * index + 31 * index) % VOCABULARY) as u32)
        .collect()
}

/// The bits of a tensor's rows.
fn bits(tensor: &Tensor) -> Result<Vec<Vec<u32>>> {
    let rows = tensor.to_vec2::<f32>()?;
    Ok(rows
        .into_iter()
        .map(|row| row.into_iter().map(f32::to_bits).collect())
        .collect())
}

/// The logits' bits of whole sequences in one pass without a cache.
fn whole(model: &Transformer, sequences: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
    let mut rows = TokenRows::sequences(&sequences.concat(), sequences[0].len(), &Device::Cpu)?;
    bits(&model.forward(&mut rows, &mut NoTap)?)
}

/// One pass over rows of a cache, each `(slot, position, token)`.
fn pass(
    model: &Transformer,
    cache: &mut KvCache,
    rows: &[(usize, usize, u32)],
) -> Result<Vec<Vec<u32>>> {
    let ids: Vec<u32> = rows.iter().map(|row| row.2).collect();
    let at = rows
        .iter()
        .map(|&(slot, position, _)| CacheRow { slot, position })
        .collect();
    bits(&model.forward(&mut TokenRows::cached(&ids, at, cache)?, &mut NoTap)?)
}

/// The rows that feed the tokens `from..to` of a sequence to a slot.
fn rows_of(slot: usize, tokens: &[u32], from: usize, to: usize) -> Vec<(usize, usize, u32)> {
    (from..to)
        .map(|position| (slot, position, tokens[position]))
        .collect()
}

#[test]
fn a_sequence_alone_is_the_sequence_in_a_batch() -> Result<()> {
    for (kind, model) in models()? {
        let sequences: Vec<Vec<u32>> = (0..SEQUENCES).map(sequence).collect();
        let together = whole(&model, &sequences)?;
        for (index, tokens) in sequences.iter().enumerate() {
            let alone = whole(&model, std::slice::from_ref(tokens))?;
            assert_eq!(
                alone,
                together[index * LENGTH..][..LENGTH],
                "{kind}, sequence {index}"
            );
            // A shorter sequence is the beginning of a longer one.
            for length in [1, 2, 3, 4, 7] {
                let beginning = whole(&model, &[tokens[..length].to_vec()])?;
                assert_eq!(
                    beginning,
                    alone[..length],
                    "{kind}, the first {length} of {index}"
                );
            }
        }
        assert_ne!(
            together[..LENGTH],
            together[LENGTH..2 * LENGTH],
            "the sequences differ"
        );
    }
    Ok(())
}

#[test]
fn every_way_to_cut_a_sequence_into_passes_gives_the_same_bits() -> Result<()> {
    for (kind, model) in models()? {
        let tokens = sequence(1);
        let expected = whole(&model, std::slice::from_ref(&tokens))?;
        // Token by token, two at a time, everything at once, a prompt and then tokens, and caches of other sizes.
        for (step, capacity) in [(1, LENGTH), (1, 40), (2, 24), (3, LENGTH), (LENGTH, 33)] {
            let mut cache = KvCache::new(&model.config, 1, capacity, &Device::Cpu).unwrap();
            let mut seen = Vec::new();
            for from in (0..LENGTH).step_by(step) {
                let rows = rows_of(0, &tokens, from, (from + step).min(LENGTH));
                seen.extend(pass(&model, &mut cache, &rows)?);
            }
            assert_eq!(
                seen, expected,
                "{kind}, {step} at a time, room for {capacity}"
            );
        }
        let mut cache = KvCache::new(&model.config, 1, LENGTH, &Device::Cpu).unwrap();
        let mut seen = pass(&model, &mut cache, &rows_of(0, &tokens, 0, 11))?;
        for position in 11..LENGTH {
            seen.extend(pass(
                &model,
                &mut cache,
                &rows_of(0, &tokens, position, position + 1),
            )?);
        }
        assert_eq!(seen, expected, "{kind}, a prompt of 11, then one by one");
    }
    Ok(())
}

#[test]
fn a_batch_of_unequal_progress_gives_each_row_its_own_bits() -> Result<()> {
    for (kind, model) in models()? {
        let sequences: Vec<Vec<u32>> = (0..SEQUENCES).map(sequence).collect();
        let expected: Vec<_> = sequences
            .iter()
            .map(|s| whole(&model, std::slice::from_ref(s)))
            .collect::<Result<_>>()?;
        let mut cache = KvCache::new(&model.config, SEQUENCES, LENGTH, &Device::Cpu).unwrap();
        // Sequence `s` joins at pass `2 s`; its first pass brings three tokens, every other one.
        for time in 0..LENGTH + 2 * SEQUENCES {
            let mut rows = Vec::new();
            for (slot, tokens) in sequences.iter().enumerate() {
                match time.checked_sub(2 * slot) {
                    Some(0) => rows.extend(rows_of(slot, tokens, 0, 3)),
                    Some(age) if age + 3 <= LENGTH => {
                        rows.extend(rows_of(slot, tokens, age + 2, age + 3))
                    }
                    _ => {}
                }
            }
            if rows.is_empty() {
                continue;
            }
            for (row, seen) in rows.iter().zip(pass(&model, &mut cache, &rows)?) {
                assert_eq!(
                    seen, expected[row.0][row.1],
                    "{kind}, pass {time}, slot {}, position {}",
                    row.0, row.1
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_slot_knows_nothing_of_its_neighbours_or_of_what_it_held_before() -> Result<()> {
    for (kind, model) in models()? {
        let (first, second) = (sequence(2), sequence(3));
        let expected = whole(&model, std::slice::from_ref(&second))?;
        let mut cache = KvCache::new(&model.config, 3, LENGTH, &Device::Cpu).unwrap();
        for slot in 0..3 {
            pass(&model, &mut cache, &rows_of(slot, &first, 0, LENGTH))?;
        }
        // A new sequence in the middle slot, over the old one's keys and between its copies.
        for (position, expected) in expected.iter().enumerate().take(LENGTH) {
            let seen = pass(
                &model,
                &mut cache,
                &rows_of(1, &second, position, position + 1),
            )?;
            assert_eq!(&seen[0], expected, "{kind}, position {position}");
        }
        // And its neighbours go on as if nothing had been.
        let before = whole(&model, std::slice::from_ref(&first))?;
        for slot in [0, 2] {
            let seen = pass(
                &model,
                &mut cache,
                &rows_of(slot, &first, LENGTH - 1, LENGTH),
            )?;
            assert_eq!(seen[0], before[LENGTH - 1], "{kind}, slot {slot}");
        }
    }
    Ok(())
}

#[test]
fn a_copied_block_is_what_the_rows_would_have_left() -> Result<()> {
    for (kind, model) in models()? {
        let tokens = sequence(0);
        let expected = whole(&model, std::slice::from_ref(&tokens))?;
        let mut cache = KvCache::new(&model.config, 2, LENGTH, &Device::Cpu).unwrap();
        pass(&model, &mut cache, &rows_of(0, &tokens, 0, LENGTH))?;
        // What stands there is not to be seen.
        pass(&model, &mut cache, &rows_of(1, &sequence(1), 0, LENGTH))?;
        let (half, all) = (LENGTH / 2, LENGTH - 1);
        let first = cache.read_block(0, 0..half)?.expect("room");
        let second = cache.read_block(0, half..LENGTH)?.expect("room");
        assert_eq!(
            first.len() + second.len(),
            cache.values_of(LENGTH),
            "{kind}"
        );
        cache.write_block(1, 0..half, &first)?;
        cache.write_block(1, half..all, &second)?;
        let seen = pass(&model, &mut cache, &rows_of(1, &tokens, all, LENGTH))?;
        assert_eq!(seen[0], expected[all], "{kind}");
        let beyond = cache.capacity();
        assert!(cache.read_block(0, beyond..beyond + 1).is_err());
        assert!(cache.write_block(0, beyond..beyond + 1, &first).is_err());
        assert!(cache.write_block(0, 0..half + 1, &first).is_err());
        assert!(cache.read_block(2, 0..1).is_err() && cache.write_block(2, 0..1, &first).is_err());
    }
    Ok(())
}

#[test]
fn rows_outside_the_cache_are_refused() -> Result<()> {
    let model = model(true)?;
    let mut cache = KvCache::new(&model.config, 2, LENGTH, &Device::Cpu).unwrap();
    let beyond = cache.capacity();
    assert!(pass(&model, &mut cache, &[(2, 0, 1)]).is_err());
    assert!(pass(&model, &mut cache, &[(0, beyond, 1)]).is_err());
    assert!(pass(&model, &mut cache, &[(0, 0, VOCABULARY as u32)]).is_err());
    assert!(pass(&model, &mut cache, &[(1, 0, 1)]).is_ok());
    Ok(())
}

#[test]
fn the_number_of_threads_changes_no_bit() -> Result<()> {
    let with_threads = |threads: usize| -> Result<Vec<Vec<u32>>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a thread pool").install(|| {
            let mut seen = Vec::new();
            for (_, model) in models()? {
                let sequences: Vec<Vec<u32>> = (0..SEQUENCES).map(sequence).collect();
                seen.extend(whole(&model, &sequences)?);
                let mut cache = KvCache::new(&model.config, 2, LENGTH, &Device::Cpu).unwrap();
                for position in 0..6 {
                    seen.extend(pass(
                        &model,
                        &mut cache,
                        &rows_of(0, &sequences[0], position, position + 1),
                    )?);
                }
                seen.extend(pass(
                    &model,
                    &mut cache,
                    &rows_of(1, &sequences[1], 0, LENGTH),
                )?);
            }
            Ok(seen)
        })
    };
    let one = with_threads(1)?;
    for threads in [2, 3] {
        assert!(
            one == with_threads(threads)?,
            "{threads} threads give other bits than one"
        );
    }
    Ok(())
}

#[test]
fn sparse_storage_gives_the_bits_of_dense_storage() -> Result<()> {
    for (inputs, outputs, rows) in [
        (33, 70, 1),
        (33, 70, 6),
        (520, 650, 1),
        (520, 650, 3),
        (520, 650, 9),
        (1, 1, 4),
    ] {
        let few = weights(outputs * inputs, 0.1, 5);
        // The same layer with as many dense outputs after its own is stored densely.
        let mut many = few.clone();
        many.extend(weights(outputs * inputs, 1.0, 6));
        let mut bias = weights(outputs, 0.5, 7);
        bias[0] = -0.0;
        let double_bias = [bias.clone(), weights(outputs, 1.0, 8)].concat();
        let sparse = columns(few, outputs, inputs, bias)?;
        let dense = columns(many, 2 * outputs, inputs, double_bias)?;
        assert!(inputs == 1 || sparse.is_sparse());
        assert!(!dense.is_sparse());
        // Rows as AbsTopK leaves them, rows without a zero, and rows of nothing else.
        for kept in [0.25, 1.0, 0.0] {
            let x = Tensor::from_vec(
                weights(rows * inputs, kept, 9),
                (rows, inputs),
                &Device::Cpu,
            )?;
            let seen = bits(&sparse.forward(&x)?)?;
            let expected = bits(&dense.forward(&x)?.narrow(1, 0, outputs)?)?;
            assert_eq!(
                seen, expected,
                "{inputs} to {outputs}, {rows} rows, {kept} of them active"
            );
        }
    }
    Ok(())
}

fn columns(
    weight: Vec<f32>,
    outputs: usize,
    inputs: usize,
    bias: Vec<f32>,
) -> Result<Arc<Columns>> {
    let weight = Tensor::from_vec(weight, (outputs, inputs), &Device::Cpu)?;
    let bias = Tensor::from_vec(bias, outputs, &Device::Cpu)?;
    Ok(Arc::new(Columns::new(&weight, Some(&bias))?))
}
