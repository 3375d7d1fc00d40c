//! Axes: the range that a chart shows in one direction, its ticks, and how the ticks are printed.
//!
//! Ticks are round: multiples of 1, 2 or 5 times a power of ten, so few that their labels stand apart and so far
//! apart, for their size, that their labels stay short.

/// A step between ticks leaves at most so many intervals over the values themselves.
const MOST_INTERVALS: f64 = 5.0;
/// Values that differ by less than this share of the largest are drawn as equal: ticks between them would need more
/// digits than there is room for.
const SMALLEST_SHARE: f64 = 1e-4;
/// What is smaller than this is zero, and what is larger than its inverse as large: steps neither vanish nor overflow.
const TINY: f64 = 1e-290;
/// A tick this near to a value, in steps, covers it: decimal fractions are not exact.
const SLACK: f64 = 1e-9;
/// Ticks from here on are printed with an exponent, as are those that all are below [`EXPONENT_BELOW`].
const EXPONENT_FROM: f64 = 1e7;
const EXPONENT_BELOW: f64 = 1e-3;

/// One direction of a chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    pub label: String,
    /// The values at the axis's two ends, the lower first.
    pub range: (f64, f64),
    /// Where values are marked, ascending, within the range.
    pub ticks: Vec<f64>,
}

impl Axis {
    /// From 0 to 1 in fifths.
    pub fn unit(label: &str) -> Self {
        Axis {
            label: label.to_owned(),
            range: (0.0, 1.0),
            ticks: (0..=5).map(|fifth| f64::from(fifth) / 5.0).collect(),
        }
    }

    /// Round ticks that cover the finite ones of `values`; from 0 to 1 without any, and around a single one.
    pub fn fitting(label: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = widened(extent(values));
        let (digit, power) = nice_step((high - low) / MOST_INTERVALS);
        let count = |value: f64| times_ten_to(value, -power) / digit;
        let first = (count(low) + SLACK).floor();
        let last = (count(high) - SLACK).ceil();
        // Adding zero turns a negative one into the usual one.
        let ticks: Vec<f64> = (0..=(last - first) as usize)
            .map(|index| times_ten_to((first + index as f64) * digit, power) + 0.0)
            .collect();
        let first = ticks.first().map_or(low, |tick| tick.min(low));
        let last = ticks.last().map_or(high, |tick| tick.max(high));
        Axis {
            label: label.to_owned(),
            range: (first, last),
            ticks,
        }
    }

    /// How far along the axis a value is, from 0 to 1; what lies outside is at the nearer end.
    pub fn share(&self, value: f64) -> f64 {
        let (low, high) = self.range;
        ((value - low) / (high - low)).clamp(0.0, 1.0)
    }

    /// The ticks in words: with as many decimals as the step between them needs.
    pub fn tick_labels(&self) -> Vec<String> {
        let gaps = self.ticks.windows(2).map(|pair| pair[1] - pair[0]);
        let step = gaps.fold(f64::INFINITY, f64::min);
        let largest = self
            .ticks
            .iter()
            .fold(0.0, |largest: f64, tick| largest.max(tick.abs()));
        let label = |&tick: &f64| match (EXPONENT_BELOW..EXPONENT_FROM).contains(&largest) {
            true => format!("{tick:.*}", decimals(step)),
            false => with_exponent(tick, step),
        };
        self.ticks.iter().map(label).collect()
    }
}

/// The least and the greatest finite value.
fn extent(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.into_iter().filter(|value| value.is_finite());
    finite
        .map(|value| value.clamp(-TINY.recip(), TINY.recip()))
        .fold(None, |extent, value| match extent {
            None => Some((value, value)),
            Some((low, high)) => Some((value.min(low), value.max(high))),
        })
}

/// The same where there is something between the two; otherwise a tenth of the value on either side.
fn widened(extent: Option<(f64, f64)>) -> (f64, f64) {
    let (low, high) = extent.unwrap_or((0.0, 0.0));
    let largest = low.abs().max(high.abs());
    if largest <= TINY {
        return (0.0, 1.0);
    }
    match high - low <= largest * SMALLEST_SHARE {
        true => (low - largest / 10.0, high + largest / 10.0),
        false => (low, high),
    }
}

/// The least of 1, 2 and 5 times a power of ten that is not below `raw`, as digit and power.
fn nice_step(raw: f64) -> (f64, i32) {
    let power = raw.log10().floor() as i32;
    let digits = times_ten_to(raw, -power);
    let digit = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|digit| digits <= digit + SLACK);
    match digit {
        Some(digit) => (digit, power),
        None => (1.0, power + 1),
    }
}

/// Divides for negative powers: a power of ten itself is exact, its inverse is not.
fn times_ten_to(value: f64, power: i32) -> f64 {
    match power < 0 {
        true => value / 10f64.powi(-power),
        false => value * 10f64.powi(power),
    }
}

/// How many decimals a multiple of `step` needs; none where there is no step.
fn decimals(step: f64) -> usize {
    let exact = |decimals: &usize| {
        let scaled = times_ten_to(step, *decimals as i32);
        (scaled - scaled.round()).abs() <= SLACK * scaled.max(1.0) && scaled.round() >= 1.0
    };
    match step.is_finite() {
        true => (0..=12).find(exact).unwrap_or(12),
        false => 0,
    }
}

/// `2e-5`, with as many digits as tell the tick from the next.
fn with_exponent(tick: f64, step: f64) -> String {
    if tick == 0.0 {
        return "0".to_owned();
    }
    let power = |value: f64| (value.abs().log10() + SLACK).floor();
    let digits = match step.is_finite() {
        true => (power(tick) - power(step)).clamp(0.0, 12.0) as usize,
        false => 0,
    };
    format!("{tick:.digits$e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64]) -> String {
        let axis = Axis::fitting("", values.iter().copied());
        axis.tick_labels().join(" ")
    }

    #[test]
    fn a_unit_axis_is_marked_in_fifths() {
        let labels = Axis::unit("share").tick_labels().join(" ");
        assert_eq!(labels, "0.0 0.2 0.4 0.6 0.8 1.0");
    }

    #[test]
    fn ticks_are_round_and_their_labels_short() {
        assert_eq!(labels(&[1.0, 100.0]), "0 20 40 60 80 100");
        assert_eq!(labels(&[0.0, 3.0]), "0 1 2 3");
        assert_eq!(
            labels(&[0.0, 1_000_000.0]),
            "0 200000 400000 600000 800000 1000000"
        );
        assert_eq!(labels(&[2.31, 2.74]), "2.3 2.4 2.5 2.6 2.7 2.8");
        assert_eq!(labels(&[0.3, 0.6]), "0.3 0.4 0.5 0.6");
        assert_eq!(labels(&[-0.5, 0.9]), "-0.5 0.0 0.5 1.0");
        assert_eq!(labels(&[0.0, 0.002]), "0.0000 0.0005 0.0010 0.0015 0.0020");
        assert_eq!(labels(&[0.0, 2e-5]), "0 5e-6 1.0e-5 1.5e-5 2.0e-5");
        assert_eq!(labels(&[0.0, 4e9]), "0 1e9 2e9 3e9 4e9");
    }

    #[test]
    fn what_has_no_extent_is_widened() {
        assert_eq!(labels(&[]), "0.0 0.2 0.4 0.6 0.8 1.0");
        assert_eq!(labels(&[f64::NAN, f64::INFINITY]), labels(&[]));
        assert_eq!(labels(&[0.0, 0.0]), labels(&[]));
        assert_eq!(labels(&[1.0]), "0.90 0.95 1.00 1.05 1.10");
        assert_eq!(labels(&[1.0, 1.0 + 1e-12]), labels(&[1.0]));
        assert_eq!(labels(&[-50.0]), "-56 -54 -52 -50 -48 -46 -44");
    }

    #[test]
    fn any_values_are_covered_by_few_ticks_with_different_labels() {
        let ends = [
            0.0, -0.0, 1.0, -1.0, 0.1, 0.3, 1e-3, 9.99e-4, 2.5, 1e4, 12_345.678, 1e7, 1e-320,
            1e-290, 1e-200, 1e300, -1e300,
        ];
        let ends = ends.into_iter().chain([f64::MAX, f64::MIN, f64::EPSILON]);
        let ends: Vec<f64> = ends.collect();
        for &one in &ends {
            for &other in &ends {
                let axis = Axis::fitting("", [one, other]);
                let (low, high) = axis.range;
                assert!(low < high && (high - low).is_finite(), "{one} {other}");
                for value in [one, other] {
                    let value = value.clamp(-TINY.recip(), TINY.recip());
                    let covered = low - TINY <= value && value <= high + TINY;
                    assert!(covered, "{one} {other}: {axis:?}");
                    assert!((0.0..=1.0).contains(&axis.share(value)));
                }
                assert!((2..=8).contains(&axis.ticks.len()), "{axis:?}");
                let mut labels = axis.tick_labels();
                assert!(labels.iter().all(|label| label.len() <= 10), "{labels:?}");
                let all = labels.len();
                labels.dedup();
                assert_eq!(labels.len(), all, "{one} {other}: {labels:?}");
            }
        }
    }
}
