//! Numbers for kernels to work on, in float32 and bfloat16, and how results are compared.

use std::fmt::Debug;

use bytemuck::Pod;
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// What kernels come in two versions for.
pub trait Element: Pod + Debug {
    /// Of the kernels' names.
    const SUFFIX: &'static str;
    /// How far rounding moves a number at most, as a share of it.
    const ROUNDING: f32;

    fn of(x: f32) -> Self;
    fn value(self) -> f32;

    fn all(values: &[f32]) -> Vec<Self> {
        values.iter().map(|&x| Self::of(x)).collect()
    }

    fn values(all: &[Self]) -> Vec<f32> {
        all.iter().map(|x| x.value()).collect()
    }
}

impl Element for f32 {
    const SUFFIX: &'static str = "f32";
    const ROUNDING: f32 = 0.0;

    fn of(x: f32) -> Self {
        x
    }

    fn value(self) -> f32 {
        self
    }
}

/// The bits of a bfloat16.
impl Element for u16 {
    const SUFFIX: &'static str = "bf16";
    const ROUNDING: f32 = 1.0 / 256.0;

    fn of(x: f32) -> Self {
        half::bf16::from_f32(x).to_bits()
    }

    fn value(self) -> f32 {
        half::bf16::from_bits(self).to_f32()
    }
}

pub struct Noise(SmallRng);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Noise(SmallRng::seed_from_u64(seed))
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0.random_range(0..bound)
    }

    pub fn one(&mut self) -> f32 {
        self.0.random_range(-1.0..1.0)
    }

    pub fn many(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.one()).collect()
    }

    /// Rows of five kinds in turn: any numbers, few different ones, many zeros, some that are not finite, NaN alone.
    pub fn rows(&mut self, rows: usize, width: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(rows * width);
        for row in 0..rows {
            for _ in 0..width {
                let x = self.one();
                values.push(match row % 5 {
                    0 => x,
                    1 => (x * 3.0).round(),
                    2 => x.max(0.0),
                    3 => match self.below(8) {
                        0 => f32::NAN,
                        1 => f32::INFINITY.copysign(x),
                        2 => -0.0,
                        _ => x,
                    },
                    _ => f32::NAN,
                });
            }
        }
        values
    }

    /// The same without those that are not finite.
    pub fn finite_rows(&mut self, rows: usize, width: usize) -> Vec<f32> {
        let rows = self.rows(rows, width).into_iter();
        rows.map(|x| if x.is_finite() { x } else { 0.25 }).collect()
    }
}

/// Equal to the bit, NaN and zeros too.
pub fn assert_same<T: Pod + Debug>(found: &[T], expected: &[T], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(
            bytemuck::bytes_of(found),
            bytemuck::bytes_of(expected),
            "{what}, number {index}: {found:?} for {expected:?}"
        );
    }
}

/// Equal to the bit, but one NaN is as good as another.
pub fn assert_same_numbers<E: Element>(found: &[E], expected: &[E], what: &str) {
    let one_nan = |all: &[E]| -> Vec<f32> {
        let values = E::values(all).into_iter();
        values
            .map(|x| if x.is_nan() { f32::NAN } else { x })
            .collect()
    };
    assert_same(&one_nan(found), &one_nan(expected), what);
}

/// Equal up to `tolerance` (relative, absolute below one) and the element's rounding; NaN where NaN is expected.
pub fn assert_near<E: Element>(found: &[E], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, &expected)) in found.iter().zip(expected).enumerate() {
        let found = found.value();
        let room = tolerance * expected.abs().max(1.0) + E::ROUNDING * expected.abs();
        assert!(
            (found - expected).abs() <= room
                || found == expected
                || (found.is_nan() && expected.is_nan()),
            "{what}, number {index}: {found} for {expected}"
        );
    }
}

/// That rows have the same bits alone as in a batch of `rows`. `run` is given which rows to take and returns each's bytes.
pub fn assert_alone_as_in_batch(
    rows: usize,
    what: &str,
    mut run: impl FnMut(&[usize]) -> Vec<Vec<u8>>,
) {
    let all: Vec<usize> = (0..rows).collect();
    let batch = run(&all);
    for row in [0, rows / 3, rows - 1] {
        assert_eq!(run(&[row])[0], batch[row], "{what}: row {row} alone");
    }
}

/// These rows one after another.
pub fn picked<T: Pod>(values: &[T], width: usize, rows: &[usize]) -> Vec<T> {
    rows.iter()
        .flat_map(|row| values[row * width..(row + 1) * width].iter().copied())
        .collect()
}

/// Each row's bytes.
pub fn bytes_of_rows<T: Pod>(values: &[T], width: usize) -> Vec<Vec<u8>> {
    let rows = values.chunks_exact(width);
    rows.map(|row| bytemuck::cast_slice(row).to_vec()).collect()
}
