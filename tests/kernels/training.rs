//! The optimiser, the weight mask, and the divergence of two models.

use causeway::numerics::kernels::{GRADIENT_CHUNK, MASK_BUCKETS, MASK_CHUNK, MASK_LEVELS, THREADS};
use causeway::numerics::loss::{divergence, log_sum_exp};
use causeway::training::weight_mask::{Protect, keep_fraction};

use super::emulation::{Emulation, Launch};
use super::values::{
    Element, Noise, assert_alone_as_in_batch, assert_near, assert_same, bytes_of_rows, picked,
};

pub fn clipping(emulation: &mut Emulation) {
    let mut noise = Noise::new(10);
    let parameters: Vec<Vec<f32>> = [1, 4096, 9000].map(|count| noise.many(count)).into();
    let mut squares: Vec<f64> = Vec::new();
    for gradient in &parameters {
        let chunks = gradient.len().div_ceil(GRADIENT_CHUNK as usize);
        let launch = Launch::new("gradient_squares", [chunks, 1, 1])
            .input(gradient)
            .output::<f64>(chunks)
            .number(gradient.len() as u64);
        let found = emulation.run(&launch).take::<f64>();
        for (found, chunk) in found.iter().zip(gradient.chunks(GRADIENT_CHUNK as usize)) {
            let expected: f64 = chunk.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
            assert!(
                (found - expected).abs() <= 1e-12 * expected,
                "{found} {expected}"
            );
        }
        squares.extend(found);
    }
    let all = parameters.concat();
    let square: f64 = all.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
    let (norm, rms) = (square.sqrt(), (square / all.len() as f64).sqrt());
    for (mode, limit, expected) in [
        (0, 1.0, 1.0 / norm),
        (0, 1e9, 1.0),
        (1, 0.1, 0.1 / rms),
        (1, 10.0, 1.0),
        (2, 10.0, 10.0 / rms),
    ] {
        let launch = Launch::new("clip_scale", [1, 1, 1])
            .input(&squares)
            .output::<f32>(1)
            .output::<f64>(1)
            .count(squares.len())
            .number(all.len() as u64)
            .count(mode)
            .number(limit);
        let mut left = emulation.run(&launch);
        assert_near(&left.take::<f32>(), &[expected as f32], 1e-6, "clipping");
        assert!((left.take::<f64>()[0] - norm).abs() <= 1e-12 * norm);
    }
}

/// What `adamw_f32` left, and the levels' first counts.
pub fn adamw(emulation: &mut Emulation) {
    let mut noise = Noise::new(6);
    let (beta1, beta2, step, square_scale, epsilon, shrink) =
        (0.9f32, 0.95f32, 0.01f32, 3.0f32, 0.1f32, 0.999f32);
    for (count, blocks) in [(1, 1), (257, 1), (5000, 3)] {
        let (mut weights, gradient) = (noise.many(count), noise.many(count));
        let (mut mean, squares) = (noise.many(count), noise.many(count));
        let mut square: Vec<f32> = squares.iter().map(|x| x * x).collect();
        let scale = 0.37f32;
        for counted in [false, true] {
            let launch = Launch::new("adamw_f32", [blocks, 1, 1])
                .changed(&weights)
                .input(&gradient)
                .changed(&mean)
                .changed(&square)
                .input(&[scale]);
            let launch = match counted {
                true => launch.changed(&[0u32; MASK_BUCKETS as usize]),
                false => launch.null(),
            };
            let mut left = emulation.run(
                &launch
                    .number(count as u64)
                    .number(beta1)
                    .number(beta2)
                    .number(step)
                    .number(square_scale)
                    .number(epsilon)
                    .number(shrink),
            );
            for n in 0..count {
                let g = gradient[n] * scale;
                mean[n] = beta1 * mean[n] + (1.0 - beta1) * g;
                square[n] = beta2 * square[n] + (1.0 - beta2) * g * g;
                let denominator = (square[n] * square_scale).sqrt() + epsilon;
                weights[n] = weights[n] * shrink - step * mean[n] / denominator;
            }
            let what = format!("AdamW of {count}");
            assert_same(&left.take::<f32>(), &weights, &what);
            assert_same(&left.take::<f32>(), &mean, &what);
            assert_same(&left.take::<f32>(), &square, &what);
            if counted {
                let mut counts = vec![0u32; MASK_BUCKETS as usize];
                for weight in &weights {
                    counts[(weight.abs().to_bits() >> 20) as usize] += 1;
                }
                assert_same(&left.take::<u32>(), &counts, &what);
            }
        }
    }
}

/// All launches of a mask, as `weight_mask.cu` lists them: the weights and their copy in bfloat16.
fn masked(
    emulation: &mut Emulation,
    weights: &[f32],
    columns: usize,
    keep: usize,
    protect: Protect,
) -> (Vec<f32>, Vec<u16>) {
    let count = weights.len() as u64;
    let begin = Launch::new("mask_begin", [1, 1, 1])
        .output::<u32>(4)
        .output::<u32>(MASK_BUCKETS as usize)
        .number(keep as u64);
    let mut left = emulation.run(&begin);
    let (mut search, mut counts) = (left.take::<u32>(), left.take::<u32>());
    let rows = weights.len() / columns;
    let lines = match protect {
        Protect::None => None,
        Protect::Rows(each) => Some((rows, columns, columns, 1, each)),
        Protect::Columns(each) => Some((columns, rows, 1, columns, each)),
    };
    let protected = lines.map(|(lines, length, line_stride, stride, each)| {
        let launch = Launch::new("mask_protect", [lines, 1, 1])
            .input(weights)
            .changed(&vec![0u32; weights.len().div_ceil(32)])
            .count(length)
            .number(line_stride as u64)
            .number(stride as u64)
            .count(each);
        emulation.run(&launch).take::<u32>()
    });
    let protected = protected.as_deref();
    for _ in 0..MASK_LEVELS {
        let launch = Launch::new("mask_count", [3, 1, 1])
            .input(weights)
            .optional(protected)
            .input(&search)
            .changed(&counts)
            .number(count);
        counts = emulation.run(&launch).take();
        let launch = Launch::new("mask_narrow", [1, 1, 1])
            .changed(&search)
            .changed(&counts);
        let mut left = emulation.run(&launch);
        (search, counts) = (left.take(), left.take());
    }
    let chunks = weights.len().div_ceil(MASK_CHUNK as usize);
    let launch = Launch::new("mask_equals", [chunks, 1, 1])
        .input(weights)
        .optional(protected)
        .input(&search)
        .output::<u32>(chunks)
        .number(count);
    let equals = emulation.run(&launch).take::<u32>();
    let launch = Launch::new("mask_offsets", [1, 1, 1])
        .changed(&equals)
        .count(chunks);
    let offsets = emulation.run(&launch).take::<u32>();
    let launch = Launch::new("mask_apply", [chunks, 1, 1])
        .changed(weights)
        .optional(protected)
        .input(&search)
        .input(&offsets)
        .output::<u16>(weights.len())
        .number(count);
    let mut left = emulation.run(&launch);
    (left.take(), left.take())
}

pub fn weight_mask(emulation: &mut Emulation) {
    let mut noise = Noise::new(7);
    for (rows, columns) in [(1, 7), (33, 65), (257, 8), (32, 257)] {
        for ties in [false, true] {
            let mut weights = noise.finite_rows(rows, columns);
            if ties {
                weights
                    .iter_mut()
                    .for_each(|weight| *weight = (*weight * 2.0).round() / 2.0);
            }
            for protect in [Protect::None, Protect::Rows(4), Protect::Columns(1)] {
                let fractions: &[f64] = match (protect, ties) {
                    (Protect::None, _) => &[0.0, 1.5 / weights.len() as f64, 0.3, 0.99],
                    (_, false) if rows == 33 => &[0.3],
                    (_, false) => &[],
                    (_, true) => &[0.5],
                };
                for &fraction in fractions {
                    let keep = (fraction * weights.len() as f64).floor() as usize;
                    let mut expected = weights.clone();
                    keep_fraction(&mut expected, columns, fraction, protect);
                    if keep >= weights.len() {
                        continue;
                    }
                    let what = format!("{rows} x {columns}, keeping {fraction}, {protect:?}");
                    let (found, copy) = masked(emulation, &weights, columns, keep, protect);
                    assert_same(&found, &expected, &what);
                    assert_same(&copy, &u16::all(&expected), &what);
                }
            }
        }
    }
    // A NaN ranks above everything.
    let mut weights = noise.many(5000);
    weights[4321] = f32::NAN;
    let mut expected = weights.clone();
    keep_fraction(&mut expected, 50, 0.01, Protect::None);
    let (found, _) = masked(emulation, &weights, 50, 50, Protect::None);
    assert_same(&found, &expected, "a mask with NaN");
}

/// Losses and totals of rows `[rows, vocabulary]` that are taken in in chunks.
fn divergences<E: Element>(
    emulation: &mut Emulation,
    (teacher, student): (&[E], &[E]),
    vocabulary: usize,
    chunk: usize,
) -> (Vec<f32>, Vec<f32>) {
    let rows = teacher.len() / vocabulary;
    let blocks = rows.div_ceil(THREADS as usize);
    let launch = Launch::new("kl_begin", [blocks, 1, 1])
        .output::<f64>(5 * rows)
        .count(rows);
    let mut state = emulation.run(&launch).take::<f64>();
    for first in (0..vocabulary).step_by(chunk) {
        let width = chunk.min(vocabulary - first);
        let part = |logits: &[E]| -> Vec<E> {
            let rows = logits.chunks_exact(vocabulary);
            rows.flat_map(|row| row[first..first + width].to_vec())
                .collect()
        };
        let launch = Launch::new(format!("kl_take_in_{}", E::SUFFIX), [rows, 1, 1])
            .input(&part(teacher))
            .input(&part(student))
            .changed(&state)
            .count(width);
        state = emulation.run(&launch).take();
    }
    let launch = Launch::new("kl_end", [blocks, 1, 1])
        .input(&state)
        .output::<f32>(rows)
        .output::<f32>(2 * rows)
        .count(rows);
    let mut left = emulation.run(&launch);
    (left.take(), left.take())
}

pub fn kl_divergence<E: Element>(emulation: &mut Emulation) {
    let mut noise = Noise::new(8);
    for (rows, vocabulary, chunk) in [
        (1, 1, 1),
        (5, 50, 50),
        (257, 33, 20),
        (3, 2048, 1000),
        (2, 8192, 8192),
    ] {
        let teacher: Vec<f32> = noise
            .many(rows * vocabulary)
            .iter()
            .map(|x| 9.0 * x)
            .collect();
        // From the same to very different.
        let student: Vec<f32> = teacher
            .iter()
            .enumerate()
            .map(|(n, t)| t + noise.one() * 3.0 * (n / vocabulary) as f32)
            .collect();
        let (mut teacher, student) = (E::all(&teacher), E::all(&student));
        if rows == 5 {
            teacher[4 * vocabulary + 7] = E::of(f32::NAN);
        }
        let what = format!("divergence of {rows} x {vocabulary}");
        let (losses, totals) = divergences(emulation, (&teacher, &student), vocabulary, chunk);
        let scales = noise.many(rows);
        let (mut expected, mut expected_totals, mut expected_gradient) = (vec![], vec![], vec![]);
        let (t, s) = (E::values(&teacher), E::values(&student));
        let both = t.chunks_exact(vocabulary).zip(s.chunks_exact(vocabulary));
        for ((t, s), scale) in both.zip(&scales) {
            expected.push(divergence(t, s));
            let (total_t, total_s) = (log_sum_exp(t), log_sum_exp(s));
            expected_totals.extend([total_t, total_s]);
            let difference = t
                .iter()
                .zip(s)
                .map(|(t, s)| (s - total_s).exp() - (t - total_t).exp());
            expected_gradient.extend(difference.map(|difference| scale * difference));
        }
        assert_near(&losses, &expected, 1e-5, &what);
        assert_near(&totals, &expected_totals, 2e-6, &what);
        // From the kernel's own totals, whole rows at once.
        let launch = Launch::new(format!("kl_gradient_{}", E::SUFFIX), [rows, 1, 1])
            .input(&teacher)
            .input(&student)
            .input(&totals)
            .input(&scales)
            .output::<E>(rows * vocabulary)
            .count(vocabulary);
        let gradient = emulation.run(&launch).take::<E>();
        assert_near(
            &gradient,
            &expected_gradient,
            2e-6,
            &format!("gradient of {what}"),
        );
    }
    let (teacher, student) = (E::all(&noise.many(64 * 100)), E::all(&noise.many(64 * 100)));
    assert_alone_as_in_batch(64, "divergence", |rows| {
        let (teacher, student) = (picked(&teacher, 100, rows), picked(&student, 100, rows));
        let (losses, _) = divergences(emulation, (&teacher, &student), 100, 30);
        bytes_of_rows(&losses, 1)
    });
}
