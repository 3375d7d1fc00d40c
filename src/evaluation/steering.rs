//! The dose-response curve: how probable the counterfactual's token becomes as a feature is steered harder.
//!
//! Held-out pairs of a task, one feature at one place, patched at strengths 0, 0.1 ... 1. Beside the steered arm
//! two random ones of equal norm at every token, and, for orientation, what the dense model's own mean difference
//! does, found without any sparse model: counterfactual less presented over training pairs, at the same site,
//! averaged apart for the first token that differs, the last token, and those between, and added at each.
//! Intervals are 95%, by bootstrap over the pairs.

use std::fmt::Write as _;

use serde::Serialize;

use super::EvaluationError;
use super::controls;
use super::interval::Interval;
use crate::discovery::patching::{Part, Patching};
use crate::discovery::question::Answers;
use crate::discovery::route::Route;
use crate::features::group::Write;
use crate::models::location::{Location, Site};
use crate::plot::{Axis, Curve, Plot, PlotPoint};

/// What the curves are drawn for.
#[derive(Debug, Clone)]
pub struct Dose {
    pub place: Location,
    pub channels: Vec<usize>,
    pub write: Write,
    pub seed: u64,
}

/// The arms of an experiment, in the order they are drawn.
pub const ARMS: [&str; 4] = ["steered", "random", "random_feature", "difference_of_means"];

/// One strength of one arm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DosePoint {
    pub strength: f64,
    /// The counterfactual's share of the two answers.
    pub two_way: Interval,
    /// Its probability among all next tokens.
    pub probability: Interval,
    /// Share flipped of the pairs that the dense model gets right unsteered.
    pub flips: Option<f64>,
}

/// One arm's curve.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DoseCurve {
    pub arm: &'static str,
    pub points: Vec<DosePoint>,
}

/// All arms over the same pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DoseResponse {
    pub pairs: usize,
    /// Pairs whose presented prompt the dense model gets right.
    pub right: usize,
    pub curves: Vec<DoseCurve>,
}

/// Measures the curves on `held_out`; `train` gives the difference of means.
pub fn dose_response(
    held_out: &mut Patching,
    train: &Patching,
    dose: &Dose,
) -> Result<DoseResponse, EvaluationError> {
    let patch = held_out.location_patch(dose.place, Route::Bridge(dose.write))?;
    for &channel in &dose.channels {
        if channel >= patch.channels {
            let problem = format!(
                "{} has {} channels; there is no channel {channel}",
                dose.place, patch.channels
            );
            return Err(EvaluationError::Invalid(problem));
        }
        if let Some(refusal) = patch.columns.refusal(channel) {
            return Err(crate::discovery::DiscoveryError::from(refusal.clone()).into());
        }
    }
    let right = held_out.right(patch.route);
    let site = held_out.models.bridge.site_map.dense_site(dose.place);
    let steered = patch.group(&dose.channels, 1.0);
    let random = controls::random(held_out, &patch, &steered, dose.seed);
    let feature = controls::random_feature(held_out, &patch, &dose.channels, &steered, dose.seed)?;
    let means = mean_differences(held_out, train, site)?;
    let mut curves = Vec::new();
    for (arm, change) in ARMS.into_iter().zip([steered, random, feature, means]) {
        let mut points = Vec::new();
        for tenth in 0..=10 {
            let strength = f64::from(tenth) / 10.0;
            let scaled = change.iter().map(|value| value * strength as f32).collect();
            let answers = match arm {
                "difference_of_means" => held_out.answers_with_dense(site, scaled)?,
                _ => held_out.answers_with(&patch, scaled)?,
            };
            points.push(point(strength, &answers, &right));
        }
        curves.push(DoseCurve { arm, points });
    }
    Ok(DoseResponse {
        pairs: held_out.pairs.len(),
        right: right.iter().filter(|right| **right).count(),
        curves,
    })
}

/// The training pairs' mean differences at the rows of the held-out ones.
fn mean_differences(
    held_out: &Patching,
    train: &Patching,
    site: Site,
) -> Result<Vec<f32>, EvaluationError> {
    let differences = train.dense_mean_differences(site)?;
    let mut change = Vec::new();
    for part in held_out.parts() {
        let difference = match part {
            Part::First => &differences[0],
            Part::Between => &differences[1],
            Part::Last => &differences[2],
        };
        change.extend_from_slice(difference);
    }
    Ok(change)
}

fn point(strength: f64, answers: &Answers, right: &[bool]) -> DosePoint {
    let shares: Vec<f64> = answers.shares().collect();
    let probabilities: Vec<f64> = answers
        .probabilities
        .iter()
        .map(|&probability| f64::from(probability))
        .collect();
    DosePoint {
        strength,
        two_way: Interval::bootstrap(&shares),
        probability: Interval::bootstrap(&probabilities),
        flips: answers.flips(right),
    }
}

impl DoseResponse {
    /// One line an arm and strength, with a header.
    pub fn to_csv(&self) -> String {
        let mut csv = String::from(
            "arm,strength,two_way_mean,two_way_low,two_way_high,\
             probability_mean,probability_low,probability_high,flips\n",
        );
        for curve in &self.curves {
            for point in &curve.points {
                let (two_way, probability) = (point.two_way, point.probability);
                let flips = point
                    .flips
                    .map_or_else(String::new, |flips| format!("{flips:.6}"));
                // Writing to a string does not fail.
                let _ = writeln!(
                    csv,
                    "{},{:.1},{:.6},{:.6},{:.6},{:.6},{:.6},{:.6},{flips}",
                    curve.arm,
                    point.strength,
                    two_way.mean,
                    two_way.low,
                    two_way.high,
                    probability.mean,
                    probability.low,
                    probability.high,
                );
            }
        }
        csv
    }

    /// The two-way probability of every arm.
    pub fn plot(&self, title: &str) -> Plot {
        let curve = |curve: &DoseCurve| Curve {
            label: curve.arm.replace('_', " "),
            points: curve
                .points
                .iter()
                .map(|point| PlotPoint {
                    x: point.strength,
                    y: point.two_way.mean,
                    low: point.two_way.low,
                    high: point.two_way.high,
                })
                .collect(),
        };
        Plot {
            title: title.to_owned(),
            x: Axis::unit("strength"),
            y: Axis::unit("two-way probability of the counterfactual's token"),
            curves: self.curves.iter().map(curve).collect(),
        }
    }

    /// The curves as lines for a terminal.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{} held-out pairs, {} of them right unsteered; two-way probability with 95% interval, probability\n",
            self.pairs, self.right
        );
        for curve in &self.curves {
            let _ = writeln!(text, "{}", curve.arm);
            for point in &curve.points {
                let two_way = point.two_way;
                let flips = point
                    .flips
                    .map_or_else(|| "-".to_owned(), |flips| format!("{flips:.2}"));
                let _ = writeln!(
                    text,
                    "  {:.1}  {:.3} [{:.3}, {:.3}]  p {:.4}  flips {flips}",
                    point.strength, two_way.mean, two_way.low, two_way.high, point.probability.mean
                );
            }
        }
        text
    }
}
