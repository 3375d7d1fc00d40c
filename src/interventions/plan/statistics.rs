//! What is known of features over reference text, where an edit counts in it.

use std::sync::Arc;

use super::address::{Resolved, resolve};
use super::scene::{PlanError, Scene, refused};
use crate::features::group::Group;
use crate::features::measured::MeasuredGroup;
use crate::features::reference::LocationStatistics;
use crate::features::registry::FeatureStatistics;
use crate::features::statistics::of_signed_channel;
use crate::interventions::request::{AblateTo, Destination, EditRequest, Operation, Unit};
use crate::interventions::subject::Subject;
use crate::models::location::Location;

/// The feature's standard deviation or largest value over reference text.
pub fn statistic(
    unit: Unit,
    resolved: &Resolved,
    scene: &Scene,
    param: &str,
) -> Result<f64, PlanError> {
    let known = match &resolved.subject {
        Subject::Channels(group) => known_statistics(resolved, group, scene)
            .ok_or_else(|| refused(not_measured(group.place, scene), param))?,
        Subject::Direction(_) => resolved
            .statistics
            .ok_or_else(|| refused(unknown_projection(resolved), param))?,
    };
    let (name, value) = match unit {
        Unit::Max => ("largest value", known.max),
        _ => ("standard deviation", known.std),
    };
    match value > 0.0 && value.is_finite() {
        true => Ok(value),
        false => {
            let message = format!(
                "the feature's {name} over reference text is {value}, which is no unit; use `raw`"
            );
            Err(refused(message, param))
        }
    }
}

/// Why nothing is known of a direction over reference text.
fn unknown_projection(resolved: &Resolved) -> String {
    match &resolved.name {
        None => "a vector has no statistics; its units are `raw` and `residual`".to_owned(),
        Some(name) => format!(
            "direction {name:?} was registered without text to measure it over and has no statistics: its units are \
             `raw` and `residual`; register it with `texts` to have others"
        ),
    }
}

/// What is known of a feature over reference text: its own statistics, its channel's, or what was measured for the
/// request.
fn known_statistics(
    resolved: &Resolved,
    group: &Group,
    scene: &Scene,
) -> Option<FeatureStatistics> {
    let of_channel = || {
        let reference = &scene.pair?.reference;
        match (group.channels.as_slice(), group.weights.as_slice()) {
            (&[channel], &[weight]) => of_signed_channel(reference, group.place, channel, weight),
            _ => None,
        }
    };
    let measured = || measured(group, scene).map(|known| known.statistics);
    resolved.statistics.or_else(of_channel).or_else(measured)
}

fn measured<'a>(group: &Group, scene: &Scene<'a>) -> Option<&'a MeasuredGroup> {
    let mut known = scene.measured.iter();
    known.find(|known| known.group == *group).map(Arc::as_ref)
}

fn not_measured(place: Location, scene: &Scene) -> String {
    match scene.pair {
        Some(pair) => format!(
            "bridge {:?} came without statistics of {place} and without reference text to measure them over",
            pair.id()
        ),
        None => format!(
            "{:?} has no bridge that has statistics of {place}",
            scene.model_id
        ),
    }
}

/// The group that an edit must know more of than the pair's files say; none where it needs nothing more, or is
/// faulty.
pub fn unmeasured(request: &EditRequest, scene: &Scene) -> Option<Group> {
    let resolved = resolve(&request.feature, scene, "").ok()?;
    let Subject::Channels(group) = &resolved.subject else {
        return None;
    };
    let is_known = match (request.op, &request.to, request.unit) {
        (Operation::Add | Operation::Set | Operation::Clamp, _, Some(Unit::Std | Unit::Max)) => {
            known_statistics(&resolved, group, scene).is_some()
        }
        (Operation::Ablate, Some(Destination::Ablation(AblateTo::Mean)), _) => {
            reference(group.place, scene).is_some()
        }
        _ => true,
    };
    (!is_known).then(|| group.clone())
}

/// The mean projection on a direction over reference text.
pub fn mean_projection(resolved: &Resolved, param: &str) -> Result<f64, PlanError> {
    let known = resolved.statistics.map(|statistics| statistics.mean);
    known.ok_or_else(|| {
        refused(
            "the mean projection on this vector is not known; ablate it to zero",
            param,
        )
    })
}

fn reference<'a>(place: Location, scene: &Scene<'a>) -> Option<&'a LocationStatistics> {
    scene.pair.and_then(|pair| pair.reference.place(place))
}

pub fn means(group: &Group, scene: &Scene, param: &str) -> Result<Vec<f32>, PlanError> {
    if let Some(place) = reference(group.place, scene) {
        let means = group.channels.iter().map(|&channel| place.mean[channel]);
        return Ok(means.collect());
    }
    match measured(group, scene) {
        Some(known) => Ok(known.channel_means.clone()),
        None => Err(refused(not_measured(group.place, scene), param)),
    }
}
