//! What is known of features over reference text, where an edit counts in it.

use std::sync::Arc;

use super::address::{Resolved, resolve_parts};
use super::circuit_nodes::all_alike;
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
        // Nodes of a circuit count each in its own unit.
        Subject::OwnChannels(_) | Subject::Direction(_) => resolved
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
    found(&scene.measured.sparse, group)
}

fn found<'a>(measured: &'a [Arc<MeasuredGroup>], group: &Group) -> Option<&'a MeasuredGroup> {
    let mut known = measured.iter();
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

/// Groups of channels that must be measured over reference text, by the model that they are of.
#[derive(Debug, Default)]
pub struct UnmeasuredGroups {
    /// Of the sparse model.
    pub sparse: Vec<Group>,
    /// Of the dense model that answers.
    pub dense: Vec<Group>,
}

impl UnmeasuredGroups {
    /// Adds those that an edit must know more of than files say; nothing where it needs nothing more, or is faulty.
    pub fn add(&mut self, request: &EditRequest, scene: &Scene) {
        for resolved in resolve_parts(&request.feature, scene, "").unwrap_or_default() {
            let groups = match &resolved.subject {
                Subject::Channels(_) => &mut self.sparse,
                Subject::OwnChannels(_) => &mut self.dense,
                Subject::Direction(_) => continue,
            };
            let group = unmeasured(request, &resolved, scene);
            groups.extend(group.filter(|group| !groups.contains(group)));
        }
    }
}

fn unmeasured(request: &EditRequest, resolved: &Resolved, scene: &Scene) -> Option<Group> {
    let (Subject::Channels(group) | Subject::OwnChannels(group)) = &resolved.subject else {
        return None;
    };
    let to_mean = matches!(
        (request.op, &request.to),
        (
            Operation::Ablate,
            Some(Destination::Ablation(AblateTo::Mean))
        )
    );
    if let Some(nodes) = &resolved.nodes {
        // The record has the means of a circuit's own nodes. Those of the others are taken of the place as a whole, which
        // is measured once for all circuits.
        let is_known = nodes.known.is_some() || own_reference(&resolved.subject, scene).is_some();
        return (to_mean && !is_known).then(|| whole_place(&resolved.subject, scene))?;
    }
    let is_known = match (request.op, request.unit) {
        (Operation::Add | Operation::Set | Operation::Clamp, Some(Unit::Std | Unit::Max)) => {
            known_statistics(resolved, group, scene).is_some()
        }
        _ if to_mean => reference(group.place, scene).is_some(),
        _ => true,
    };
    (!is_known).then(|| group.clone())
}

/// All channels of the place of some.
fn whole_place(subject: &Subject, scene: &Scene) -> Option<Group> {
    let place = subject.place();
    let config = match subject {
        Subject::Channels(_) => &scene.sparse("").ok()?.config,
        Subject::OwnChannels(_) | Subject::Direction(_) => &scene.model.config,
    };
    Some(all_alike(place, (0..place.width(config)).collect()))
}

/// What the bridge's files say of the place of some channels; nothing of a dense model's.
fn own_reference<'a>(subject: &Subject, scene: &Scene<'a>) -> Option<&'a LocationStatistics> {
    match subject {
        Subject::Channels(group) => reference(group.place, scene),
        Subject::OwnChannels(_) | Subject::Direction(_) => None,
    }
}

/// The means over reference text of channels that are nodes outside of a circuit.
pub fn place_means(
    subject: &Subject,
    group: &Group,
    scene: &Scene,
    param: &str,
) -> Result<Vec<f32>, PlanError> {
    let measured = match subject {
        Subject::OwnChannels(_) => &scene.measured.dense,
        Subject::Channels(_) | Subject::Direction(_) => &scene.measured.sparse,
    };
    let whole = whole_place(subject, scene);
    let means = match own_reference(subject, scene) {
        Some(known) => Some(known.mean.as_slice()),
        None => whole
            .and_then(|whole| found(measured, &whole))
            .map(|known| known.channel_means.as_slice()),
    };
    let means = means.ok_or_else(|| {
        let message = format!(
            "{}, and so no means of nodes outside of the circuit; ablate them to zero",
            not_measured(group.place, scene)
        );
        refused(message, param)
    })?;
    let means = group
        .channels
        .iter()
        .map(|&channel| means.get(channel).copied());
    means.collect::<Option<_>>().ok_or_else(|| {
        let message = format!(
            "the statistics of {} are not those of its channels",
            group.place
        );
        refused(message, param)
    })
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
