//! What operations on a circuit's nodes move them to: every node by itself, in its own unit and to its own mean.

use super::circuit_nodes::CircuitNodes;
use super::scene::{PlanError, Scene, refused};
use super::statistics::place_means;
use crate::circuits::circuit::ReferenceActivations;
use crate::features::group::Group;
use crate::interventions::operation::Action;
use crate::interventions::request::{
    AblateTo, Counterfactual, Destination, EditRequest, Operation, Unit,
};
use crate::interventions::subject::Subject;

/// The action of an edit of a circuit's nodes; none where it is a patch, which is the same for nodes and for groups.
pub fn action(
    request: &EditRequest,
    nodes: &CircuitNodes,
    subject: &Subject,
    scene: &Scene,
    param: &str,
) -> Result<Option<Action>, PlanError> {
    let (Subject::Channels(group) | Subject::OwnChannels(group)) = subject else {
        return Ok(None);
    };
    let value = request.value.unwrap_or_default();
    let units = || units(request, nodes, group, &format!("{param}.unit"));
    Ok(Some(match (request.op, &request.to) {
        (Operation::Add, _) => {
            Action::AddEach(units()?.into_iter().map(|unit| value * unit).collect())
        }
        (Operation::Set, _) => Action::Ablate(
            units()?
                .into_iter()
                .map(|unit| (value * unit) as f32)
                .collect(),
        ),
        (Operation::Clamp, _) => {
            let min = request.min.unwrap_or_default();
            let max = request.max.unwrap_or_default();
            let bounds = units()?.into_iter().map(|unit| (min * unit, max * unit));
            Action::ClampEach(bounds.collect())
        }
        (Operation::Scale, _) => Action::ScaleEach(value),
        (Operation::Ablate, Some(Destination::Ablation(AblateTo::Mean))) => {
            Action::Ablate(match &nodes.known {
                Some(known) => known.iter().map(|known| known.mean).collect(),
                None => place_means(subject, group, scene, &format!("{param}.to"))?,
            })
        }
        (Operation::Ablate, _) => Action::Ablate(vec![0.0; group.channels.len()]),
        (
            Operation::Patch,
            Some(Destination::Counterfactual(Counterfactual {
                prompt: None,
                value: Some(value),
                align: None,
            })),
        ) if value.is_finite() => Action::Ablate(vec![*value as f32; group.channels.len()]),
        (Operation::Patch, _) => return Ok(None),
        (Operation::Swap, _) => {
            let message = "a swap exchanges two channels, and a circuit's nodes have no partners; name one channel by \
                           `node` and `channel` instead of a circuit";
            return Err(refused(message, &format!("{param}.op")));
        }
    }))
}

/// What the numbers of an edit are multiples of, node by node.
fn units(
    request: &EditRequest,
    nodes: &CircuitNodes,
    group: &Group,
    param: &str,
) -> Result<Vec<f64>, PlanError> {
    let (name, read): (_, fn(&ReferenceActivations) -> f32) = match request.unit {
        None | Some(Unit::Raw) => return Ok(vec![1.0; group.channels.len()]),
        Some(Unit::Residual) => {
            let message = "`residual` is the unit of `add` on a vector or a direction only";
            return Err(refused(message, param));
        }
        Some(Unit::Std) => ("standard deviation", |known| known.std),
        Some(Unit::Max) => ("largest value", |known| known.max),
    };
    let Some(known) = &nodes.known else {
        let message = "`std` and `max` are units of a circuit's own nodes, which its record has statistics of; those \
                       outside of it count in `raw`";
        return Err(refused(message, param));
    };
    let units = known.iter().zip(&group.channels).map(|(known, channel)| {
        let unit = f64::from(read(known));
        match unit > 0.0 && unit.is_finite() {
            true => Ok(unit),
            false => {
                let message = format!(
                    "the {name} of node {}:{channel} over reference text is {unit}, which is no unit; use `raw`",
                    group.place
                );
                Err(refused(message, param))
            }
        }
    });
    units.collect()
}
