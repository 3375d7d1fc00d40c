//! From activations to a direction: `[prompts][d_model]` of either kind `-> [d_model]`.
//!
//! The principal component is that of the differences of pairs about zero: about their mean, what all pairs have in
//! common, which is what is looked for, would be taken away first. It is found among the pairs, for there are fewer of
//! them than channels: with the Gram matrix `G = D D'` of the differences `D [pairs, d_model]` squared again and again, only
//! its first eigenvector is left.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use serde::Serialize;
use utoipa::ToSchema;

use crate::features::direction::DirectionMethod;

/// Times that a Gram matrix is squared: the second eigenvector is gone where its eigenvalue is a millionth smaller.
const SQUARINGS: usize = 25;

/// Activations of prompts of both kinds at one site.
#[derive(Debug, Clone, Copy)]
pub struct Kinds<'a> {
    pub positive: &'a [Vec<f32>],
    pub negative: &'a [Vec<f32>],
}

/// A direction.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    pub vector: Vec<f32>,
    /// Of a principal component, its share of the differences' squared lengths.
    pub explained: Option<f64>,
}

/// How well held-out prompts are told apart by their projections on the direction, scaled to length one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Separation {
    /// The share of held-out prompts on their kind's side of `threshold`.
    #[schema(minimum = 0, maximum = 1)]
    pub accuracy: f64,
    /// The share of pairs of a positive and a negative one in which the positive one projects higher, ties counting half.
    #[schema(minimum = 0, maximum = 1)]
    pub auc: f64,
    /// Half way between the mean projections of the prompts that the direction was made of.
    pub threshold: f64,
    /// The mean projection of held-out positive prompts.
    pub positive_mean: f64,
    pub negative_mean: f64,
    /// The mean accuracy of ten random directions, each with the sign and the threshold that suit it.
    #[schema(minimum = 0, maximum = 1)]
    pub random_accuracy: f64,
}

/// The direction from negative to positive activations; none where they do not differ. For a principal component there
/// are as many of one kind as of the other.
pub fn fit(kinds: Kinds, method: DirectionMethod) -> Option<Fit> {
    let difference: Vec<f64> = mean(kinds.positive)?
        .iter()
        .zip(mean(kinds.negative)?)
        .map(|(positive, negative)| positive - negative)
        .collect();
    let (vector, explained) = match method {
        DirectionMethod::DifferenceOfMeans => (difference, None),
        DirectionMethod::Pca => {
            let (mut component, explained) = principal_component(kinds)?;
            if dot(&component, &difference) < 0.0 {
                component.iter_mut().for_each(|value| *value = -*value);
            }
            (component, Some(explained))
        }
    };
    let vector: Vec<f32> = vector.into_iter().map(|value| value as f32).collect();
    let is_direction =
        vector.iter().all(|value| value.is_finite()) && vector.iter().any(|&value| value != 0.0);
    is_direction.then_some(Fit { vector, explained })
}

/// The first principal component of the pairs' differences about zero, as long as their root mean square along it, and
/// its share of their squared lengths; none where no pair differs.
fn principal_component(kinds: Kinds) -> Option<(Vec<f64>, f64)> {
    let pairs = kinds.positive.iter().zip(kinds.negative);
    let differences: Vec<Vec<f64>> = pairs
        .map(|(positive, negative)| {
            let values = positive.iter().zip(negative);
            values
                .map(|(&one, &other)| f64::from(one) - f64::from(other))
                .collect()
        })
        .collect();
    let count = differences.len();
    let gram: Vec<f64> = differences
        .iter()
        .flat_map(|one| differences.iter().map(|other| dot(one, other)))
        .collect();
    let total: f64 = (0..count).map(|index| gram[index * count + index]).sum();
    if !(total > 0.0 && total.is_finite()) {
        return None;
    }
    let weights = first_eigenvector(gram, count);
    let mut component = vec![0f64; differences[0].len()];
    for (weight, difference) in weights.iter().zip(&differences) {
        for (sum, value) in component.iter_mut().zip(difference) {
            *sum += weight * value;
        }
    }
    let length = dot(&component, &component).sqrt();
    if length <= 0.0 {
        return None;
    }
    component.iter_mut().for_each(|value| *value /= length);
    let along: f64 = differences
        .iter()
        .map(|one| dot(one, &component).powi(2))
        .sum();
    let root_mean_square = (along / count as f64).sqrt();
    component
        .iter_mut()
        .for_each(|value| *value *= root_mean_square);
    Some((component, (along / total).min(1.0)))
}

/// The eigenvector of the largest eigenvalue of a symmetric matrix `[size, size]` without negative ones, of no certain
/// length.
fn first_eigenvector(mut matrix: Vec<f64>, size: usize) -> Vec<f64> {
    for _ in 0..SQUARINGS {
        let largest = matrix
            .iter()
            .fold(0f64, |most, value| most.max(value.abs()));
        if largest > 0.0 {
            matrix.iter_mut().for_each(|value| *value /= largest);
        }
        let rows: Vec<&[f64]> = matrix.chunks_exact(size).collect();
        // Its rows are its columns.
        matrix = rows
            .iter()
            .flat_map(|one| rows.iter().map(|other| dot(one, other)))
            .collect();
    }
    // Every column is a multiple of it now; the longest has lost the least.
    let rows = matrix.chunks_exact(size);
    let longest = rows.max_by(|one, other| dot(one, one).total_cmp(&dot(other, other)));
    longest.map(<[f64]>::to_vec).unwrap_or_default()
}

/// How well a direction tells held-out activations apart, by what it was made of.
pub fn separation(
    made_of: Kinds,
    held_out: Kinds,
    vector: &[f32],
    random: &[Vec<f32>],
) -> Separation {
    let unit = unit(vector);
    let positive: Vec<f64> = projections(held_out.positive, &unit);
    let negative: Vec<f64> = projections(held_out.negative, &unit);
    let (threshold, _) = middle(made_of, &unit);
    let mut higher = 0.0;
    for one in &positive {
        for other in &negative {
            higher += match one.total_cmp(other) {
                std::cmp::Ordering::Greater => 1.0,
                std::cmp::Ordering::Equal => 0.5,
                std::cmp::Ordering::Less => 0.0,
            };
        }
    }
    let of_random = random.iter().map(|vector| {
        let unit = self::unit(vector);
        let (threshold, is_up) = middle(made_of, &unit);
        let sense = if is_up { 1.0 } else { -1.0 };
        accuracy(
            projections(held_out.positive, &unit)
                .into_iter()
                .map(|value| sense * value),
            projections(held_out.negative, &unit)
                .into_iter()
                .map(|value| sense * value),
            sense * threshold,
        )
    });
    Separation {
        accuracy: accuracy(
            positive.iter().copied(),
            negative.iter().copied(),
            threshold,
        ),
        auc: higher / (positive.len() * negative.len()).max(1) as f64,
        threshold,
        positive_mean: positive.iter().sum::<f64>() / positive.len().max(1) as f64,
        negative_mean: negative.iter().sum::<f64>() / negative.len().max(1) as f64,
        random_accuracy: of_random.sum::<f64>() / random.len().max(1) as f64,
    }
}

/// The share of projections on their kind's side of a threshold.
fn accuracy(
    positive: impl ExactSizeIterator<Item = f64>,
    negative: impl ExactSizeIterator<Item = f64>,
    threshold: f64,
) -> f64 {
    let count = (positive.len() + negative.len()).max(1) as f64;
    let right = positive.filter(|value| *value > threshold).count()
        + negative.filter(|value| *value <= threshold).count();
    right as f64 / count
}

/// Half way between the mean projections of both kinds, and whether positive ones are higher.
fn middle(kinds: Kinds, unit: &[f64]) -> (f64, bool) {
    let mean = |rows: &[Vec<f32>]| {
        let values = projections(rows, unit);
        values.iter().sum::<f64>() / values.len().max(1) as f64
    };
    let (positive, negative) = (mean(kinds.positive), mean(kinds.negative));
    ((positive + negative) / 2.0, positive >= negative)
}

fn projections(rows: &[Vec<f32>], unit: &[f64]) -> Vec<f64> {
    let project = |row: &Vec<f32>| -> f64 {
        let values = row.iter().zip(unit);
        values.map(|(&value, unit)| f64::from(value) * unit).sum()
    };
    rows.iter().map(project).collect()
}

/// Directions drawn from a Gaussian, of length one; each `stream` of a seed has its own.
pub fn random_directions(count: usize, width: usize, seed: u64, stream: u64) -> Vec<Vec<f32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let mut draw = || {
        let values: Vec<f64> = (0..width)
            .map(|_| StandardNormal.sample(&mut rng))
            .collect();
        let length = dot(&values, &values).sqrt();
        values.iter().map(|value| (value / length) as f32).collect()
    };
    (0..count).map(|_| draw()).collect()
}

fn unit(vector: &[f32]) -> Vec<f64> {
    let wide: Vec<f64> = vector.iter().map(|&value| f64::from(value)).collect();
    let length = dot(&wide, &wide).sqrt();
    wide.into_iter().map(|value| value / length).collect()
}

/// The mean row; none of no rows.
fn mean(rows: &[Vec<f32>]) -> Option<Vec<f64>> {
    let mut sums = vec![0f64; rows.first()?.len()];
    for row in rows {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += f64::from(value);
        }
    }
    let count = rows.len() as f64;
    Some(sums.into_iter().map(|sum| sum / count).collect())
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (one, other) in found.iter().zip(expected) {
            assert!((one - other).abs() < 1e-5, "{found:?} is not {expected:?}");
        }
    }

    #[test]
    fn means_differ_by_the_difference_of_means() {
        let positive = [vec![3.0, 1.0], vec![5.0, 1.0]];
        let negative = [vec![1.0, 0.0], vec![1.0, 0.0], vec![1.0, 3.0]];
        let kinds = Kinds {
            positive: &positive,
            negative: &negative,
        };
        let found = fit(kinds, DirectionMethod::DifferenceOfMeans).expect("a direction");
        close(&found.vector, &[3.0, 0.0]);
        assert_eq!(found.explained, None);
        let same = Kinds {
            positive: &positive,
            negative: &positive,
        };
        for method in [DirectionMethod::DifferenceOfMeans, DirectionMethod::Pca] {
            assert_eq!(fit(same, method), None);
        }
    }

    #[test]
    fn the_principal_component_is_the_one_found_by_hand() {
        // The differences are (3, 4) and (4, 3): about zero, their squares are [[25, 24], [24, 25]] with the eigenvalues
        // 49 along (1, 1) and 1 along (1, -1). Half of 49 is the mean square along the first.
        let (positive, negative) = (
            [vec![3.0, 5.0], vec![4.0, 2.0]],
            [vec![0.0, 1.0], vec![0.0, -1.0]],
        );
        let kinds = Kinds {
            positive: &positive,
            negative: &negative,
        };
        let found = fit(kinds, DirectionMethod::Pca).expect("a direction");
        close(&found.vector, &[3.5, 3.5]);
        assert!(
            found
                .explained
                .is_some_and(|share| (share - 0.98).abs() < 1e-9),
            "{found:?}"
        );
        // The other way round its sign turns with that of the means.
        let turned = Kinds {
            positive: &negative,
            negative: &positive,
        };
        close(
            &fit(turned, DirectionMethod::Pca)
                .expect("a direction")
                .vector,
            &[-3.5, -3.5],
        );
    }

    #[test]
    fn the_principal_component_need_not_be_near_the_mean() {
        // Along the first channel the differences cancel in the mean, and are largest.
        let positive = [vec![3.0, 1.0, 0.0], vec![-3.0, 1.0, 0.0]];
        let negative = [vec![0.0; 3], vec![0.0; 3]];
        let kinds = Kinds {
            positive: &positive,
            negative: &negative,
        };
        let found = fit(kinds, DirectionMethod::Pca).expect("a direction");
        close(
            &[found.vector[0].abs(), found.vector[1], found.vector[2]],
            &[3.0, 0.0, 0.0],
        );
        let means = fit(kinds, DirectionMethod::DifferenceOfMeans).expect("a direction");
        close(&means.vector, &[0.0, 1.0, 0.0]);
    }

    #[test]
    fn held_out_prompts_are_counted_on_their_side() {
        let (positive, negative) = ([vec![2.0, 0.0]], [vec![0.0, 0.0]]);
        let held_positive = [vec![1.5, 9.0], vec![0.5, -9.0]];
        let held_negative = [vec![0.0, 9.0], vec![0.5, 0.0]];
        let (made_of, held_out) = (
            Kinds {
                positive: &positive,
                negative: &negative,
            },
            Kinds {
                positive: &held_positive,
                negative: &held_negative,
            },
        );
        // Whatever the vector's length.
        let found = separation(
            made_of,
            held_out,
            &[4.0, 0.0],
            &[vec![-1.0, 0.0], vec![0.0, 1.0]],
        );
        assert_eq!((found.threshold, found.accuracy), (1.0, 0.75));
        assert_eq!(found.auc, 3.5 / 4.0);
        assert_eq!((found.positive_mean, found.negative_mean), (1.0, 0.25));
        // The first random one is the direction turned round, the second sees 9, -9 against 9 and 0.
        assert_eq!(found.random_accuracy, (0.75 + 0.5) / 2.0);
    }

    #[test]
    fn random_directions_have_length_one_and_follow_from_the_seed() {
        let drawn = random_directions(10, 64, 3, 1);
        for one in &drawn {
            let length: f32 = one.iter().map(|value| value * value).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
        assert_eq!(random_directions(10, 64, 3, 1), drawn);
        assert_ne!(random_directions(10, 64, 3, 2), drawn);
        assert_ne!(random_directions(10, 64, 4, 1), drawn);
        assert_ne!(drawn[0], drawn[1]);
    }
}
