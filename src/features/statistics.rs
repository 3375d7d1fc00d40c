//! Channels over reference text, measured: mean, standard deviation, extremes and how often they are not zero.
//!
//! A group of channels has statistics of its own, which do not follow from its channels': they take a pass.

use std::collections::BTreeMap;

use super::FeatureError;
use super::group::Group;
use super::group::WeightedChannel;
use super::measured::MeasuredGroup;
use super::reference::{LocationStatistics, ReferenceStatistics, ReferenceText};
use super::registry::FeatureStatistics;
use crate::models::location::{Location, Site};
use crate::models::tap::Recorder;
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::numerics::rows;

/// Tokens run at once, in whole sequences.
const CHUNK: usize = 1024;
/// An unnamed group is measured over no more tokens of the reference text.
const MOST_TOKENS: usize = 1 << 15;

/// Running moments of one value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    count: u64,
    sum: f64,
    sum_of_squares: f64,
    max: f32,
    min: f32,
    nonzero: u64,
}

impl Default for Moments {
    fn default() -> Self {
        Moments {
            count: 0,
            sum: 0.0,
            sum_of_squares: 0.0,
            max: f32::NEG_INFINITY,
            min: f32::INFINITY,
            nonzero: 0,
        }
    }
}

impl Moments {
    pub fn add(&mut self, value: f32) {
        let wide = f64::from(value);
        self.count += 1;
        self.sum += wide;
        self.sum_of_squares += wide * wide;
        self.max = self.max.max(value);
        self.min = self.min.min(value);
        self.nonzero += u64::from(value != 0.0);
    }

    /// The statistics so far; all zero before the first value.
    pub fn statistics(&self) -> FeatureStatistics {
        let count = self.count.max(1) as f64;
        let mean = self.sum / count;
        let variance = (self.sum_of_squares / count - mean * mean).max(0.0);
        let extreme = |value: f32| {
            if self.count == 0 {
                0.0
            } else {
                f64::from(value)
            }
        };
        FeatureStatistics {
            mean,
            std: variance.sqrt(),
            max: extreme(self.max),
            min: extreme(self.min),
            density: self.nonzero as f64 / count,
            tokens: self.count as usize,
            channels_to_flip: None,
        }
    }
}

/// Runs `model` over sequences of `length` tokens and shows `see` the values of each place, chunk by chunk:
/// the chunk's first token, the place, and `[rows, width]` values.
pub fn visit_locations(
    model: &Transformer,
    sequences: &[u32],
    length: usize,
    places: &[Location],
    mut see: impl FnMut(usize, Location, &[f32], usize),
) -> Result<(), FeatureError> {
    let n_layers = model.config.n_layers;
    let at_once = (CHUNK / length).max(1) * length;
    for (chunk, ids) in sequences.chunks(at_once).enumerate() {
        let mut recorder = Recorder::of(places.iter().copied());
        let mut rows = TokenRows::sequences(ids, length, model.device())?;
        let stream = model.embed(&rows)?;
        let first = Site::before_attention(0, n_layers);
        model.run(first, stream, &mut rows, &mut recorder)?;
        for (place, value) in recorder.into_values() {
            let width = value.dim(1)?;
            rows::with_values(&value, |values| see(chunk * at_once, place, values, width))?;
        }
    }
    Ok(())
}

/// Measures every channel of `places` over sequences of `length` tokens.
pub fn measure(
    model: &Transformer,
    sequences: &[u32],
    length: usize,
    places: &[Location],
) -> Result<ReferenceStatistics, FeatureError> {
    let mut moments: BTreeMap<Location, Vec<Moments>> = BTreeMap::new();
    visit_locations(
        model,
        sequences,
        length,
        places,
        |_, place, values, width| {
            let moments = moments
                .entry(place)
                .or_insert_with(|| vec![Moments::default(); width]);
            for row in values.chunks_exact(width) {
                for (moments, &value) in moments.iter_mut().zip(row) {
                    moments.add(value);
                }
            }
        },
    )?;
    let mut reference = ReferenceStatistics::default();
    for (place, moments) in moments {
        let channels: Vec<FeatureStatistics> = moments.iter().map(Moments::statistics).collect();
        let column = |field: fn(&FeatureStatistics) -> f64| -> Vec<f32> {
            channels
                .iter()
                .map(|channel| field(channel) as f32)
                .collect()
        };
        let statistics = LocationStatistics {
            mean: column(|channel| channel.mean),
            std: column(|channel| channel.std),
            max: column(|channel| channel.max),
            min: column(|channel| channel.min),
            density: column(|channel| channel.density),
            tokens: sequences.len(),
        };
        reference.insert(place, statistics);
    }
    Ok(reference)
}

/// The statistics of a channel with weight 1 or -1, where its place was measured.
pub fn of_signed_channel(
    reference: &ReferenceStatistics,
    place: Location,
    channel: usize,
    weight: f64,
) -> Option<FeatureStatistics> {
    let statistics = of_channel(reference, place, channel)?;
    Some(match weight > 0.0 {
        true => statistics,
        false => FeatureStatistics {
            mean: -statistics.mean,
            max: -statistics.min,
            min: -statistics.max,
            ..statistics
        },
    })
}

/// One channel's statistics, where its place was measured.
pub fn of_channel(
    reference: &ReferenceStatistics,
    place: Location,
    channel: usize,
) -> Option<FeatureStatistics> {
    let place = reference.place(place)?;
    let at = |values: &[f32]| values.get(channel).copied().map(f64::from);
    Some(FeatureStatistics {
        mean: at(&place.mean)?,
        std: at(&place.std)?,
        max: at(&place.max)?,
        min: at(&place.min)?,
        density: at(&place.density)?,
        tokens: place.tokens,
        channels_to_flip: None,
    })
}

/// The value `<u, x>` of a group with unit weights at every token of the sequences.
pub fn group_activations(
    model: &Transformer,
    sequences: &[u32],
    length: usize,
    place: Location,
    group: &[WeightedChannel],
) -> Result<Vec<f32>, FeatureError> {
    let width = place.width(&model.config);
    if let Some(bad) = group.iter().find(|member| member.channel >= width) {
        let problem = format!(
            "{place} has {width} channels; there is no channel {}",
            bad.channel
        );
        return Err(FeatureError::Invalid(problem));
    }
    let mut activations = vec![0f32; sequences.len()];
    visit_locations(
        model,
        sequences,
        length,
        &[place],
        |first, _, values, width| {
            for (row, out) in values.chunks_exact(width).zip(&mut activations[first..]) {
                *out = group_value(row, group);
            }
        },
    )?;
    Ok(activations)
}

/// Measures groups with weights of unit length over reference text, all in one pass.
pub fn measure_groups(
    model: &Transformer,
    text: &ReferenceText,
    groups: &[Group],
) -> Result<Vec<MeasuredGroup>, FeatureError> {
    let most = (MOST_TOKENS / text.length).max(1) * text.length;
    let tokens = &text.tokens[..text.tokens.len().min(most)];
    let mut places: Vec<Location> = groups.iter().map(|group| group.place).collect();
    places.sort();
    places.dedup();
    let mut values = vec![Moments::default(); groups.len()];
    let sums = groups.iter().map(|group| vec![0f64; group.channels.len()]);
    let mut sums: Vec<Vec<f64>> = sums.collect();
    visit_locations(
        model,
        tokens,
        text.length,
        &places,
        |_, place, rows, width| {
            let of_place = groups.iter().zip(&mut values).zip(&mut sums);
            for ((group, values), sums) in of_place.filter(|((group, _), _)| group.place == place) {
                for row in rows.chunks_exact(width) {
                    let mut value = 0.0;
                    let channels = group.channels.iter().zip(&group.weights);
                    for ((&channel, weight), sum) in channels.zip(sums.iter_mut()) {
                        value += weight * f64::from(row[channel]);
                        *sum += f64::from(row[channel]);
                    }
                    values.add(value as f32);
                }
            }
        },
    )?;
    let count = tokens.len().max(1) as f64;
    let measured = groups.iter().zip(values).zip(sums);
    let measured = measured.map(|((group, values), sums)| MeasuredGroup {
        group: group.clone(),
        statistics: values.statistics(),
        channel_means: sums.iter().map(|sum| (sum / count) as f32).collect(),
    });
    Ok(measured.collect())
}

/// `<u, x>`.
pub fn group_value(row: &[f32], group: &[WeightedChannel]) -> f32 {
    let sum: f64 = group
        .iter()
        .map(|member| member.weight * f64::from(row[member.channel]))
        .sum();
    sum as f32
}

/// Statistics of a list of values.
pub fn statistics_of(values: &[f32]) -> FeatureStatistics {
    let mut moments = Moments::default();
    values.iter().for_each(|&value| moments.add(value));
    moments.statistics()
}
