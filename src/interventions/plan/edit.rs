//! One edit of a request, checked and resolved.

use super::address::Resolved;
use super::circuit_nodes::CircuitNodes;
use super::condition::{Condition, Reach};
use super::counterfactual::{Stream, StreamModel, stream};
use super::each_node;
use super::scene::{PlanError, Scene, refused};
use super::source::Source;
use super::span::{Prompts, Span};
use super::statistics::{mean_projection, means, statistic};
use crate::features::group::Group;
use crate::features::group::Write;
use crate::interventions::carry::{Carrier, KnownColumns, NotCarried, is_sublayer_input};
use crate::interventions::operation::Action;
use crate::interventions::request::{
    AblateTo, Counterfactual, Destination, EditRequest, Operation, Read, Strength, Unit,
};
use crate::interventions::subject::Subject;
use crate::models::location::{Location, Node, NodeKind};

/// How a change takes effect.
#[derive(Debug, Clone)]
pub enum Route {
    /// At its own place in the answering model.
    InPlace,
    /// Through the decoder.
    Carried(Carrier),
    /// In a second run of a sparse sublayer, whose changed output goes through the decoder.
    Replayed,
}

/// An edit's strength: its own, or the arm's in a sweep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EditStrength {
    Fixed(f64),
    Swept,
}

impl EditStrength {
    /// In an arm whose place in the sweep is `swept`.
    pub fn in_arm(self, swept: Option<f64>) -> f64 {
        match self {
            EditStrength::Fixed(strength) => strength,
            EditStrength::Swept => swept.unwrap_or(1.0),
        }
    }
}

/// Which circuit an edit is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EditedCircuit {
    pub id: String,
    /// What is edited is outside of it.
    pub complement: bool,
}

/// One validated edit.
#[derive(Debug, Clone)]
pub struct Edit {
    /// The registered feature's name.
    pub name: Option<String>,
    /// The circuit that it is a part of an edit of.
    pub circuit: Option<EditedCircuit>,
    pub operation: Operation,
    pub subject: Subject,
    pub action: Action,
    pub strength: EditStrength,
    pub span: Span,
    pub condition: Option<Condition>,
    pub source: Source,
    pub route: Route,
    /// How the change is written; none in the model's own place.
    pub write: Option<Write>,
}

impl Edit {
    /// The width of what the edit changes: its own place, or the dense stream.
    pub fn changed_width(&self, scene: &Scene) -> usize {
        match (&self.subject, scene.native) {
            (Subject::OwnChannels(_), _) | (_, true) => {
                self.subject.place().width(&scene.model.config)
            }
            (_, false) => scene.model.config.d_model,
        }
    }
}

/// Whether carrying the edit takes the root mean square of the sparse stream at its site.
pub fn needs_sparse_rms(edit: &Edit) -> bool {
    matches!(&edit.route, Route::Carried(carrier) if carrier.times_sparse_rms)
}

/// The residual delta that a node inside a sublayer works through; none for other places.
pub fn sublayer_output(place: Location) -> Option<Location> {
    let Location::Node(Node { layer, kind }) = place else {
        return None;
    };
    let kind = match kind {
        NodeKind::Q | NodeKind::K | NodeKind::V | NodeKind::AttnY => NodeKind::AttnOut,
        NodeKind::PostAct => NodeKind::MlpOut,
        NodeKind::AttnIn | NodeKind::AttnOut | NodeKind::MlpIn | NodeKind::MlpOut => return None,
    };
    Some(Location::Node(Node { layer, kind }))
}

/// Checks one edit of what its feature was resolved to; counterfactual streams it needs are added to `streams`, and
/// columns it writes to `columns`. `param` is its path.
pub fn compile(
    request: &EditRequest,
    mut resolved: Resolved,
    scene: &Scene,
    streams: &mut Vec<Stream>,
    columns: &mut KnownColumns,
    param: &str,
) -> Result<Edit, PlanError> {
    let source = source(request, &resolved.subject, scene, param)?;
    let action = action(request, &mut resolved, source, scene, streams, param)?;
    let (route, write) = route(request, &resolved, scene, columns, param)?;
    let lengths: Vec<usize> = scene.prompts.iter().map(Vec::len).collect();
    let prompts = Prompts {
        lengths: &lengths,
        text: &|prompt| scene.tokenizer.decode_with_starts(&scene.prompts[prompt]),
    };
    let span = Span::new(request.at.as_ref(), &prompts, &format!("{param}.at"))?;
    let dense_site = match (scene.native, &route) {
        (false, Route::InPlace | Route::Carried(_)) => {
            Some(resolved.subject.answering_site(&scene.site_map()))
        }
        _ => None,
    };
    let condition = match &request.when {
        None => None,
        Some(when) => {
            let reach = Reach {
                read: request.read,
                dense_site,
            };
            Some(Condition::new(
                when,
                scene,
                &reach,
                &format!("{param}.when"),
            )?)
        }
    };
    let of_circuit = |nodes: CircuitNodes| EditedCircuit {
        id: nodes.circuit,
        complement: nodes.complement,
    };
    Ok(Edit {
        name: resolved.name,
        circuit: resolved.nodes.map(of_circuit),
        operation: request.op,
        subject: resolved.subject,
        action,
        strength: match request.strength {
            None => EditStrength::Fixed(1.0),
            Some(Strength::One(strength)) => EditStrength::Fixed(strength),
            Some(Strength::Sweep(_)) => EditStrength::Swept,
        },
        span,
        condition,
        source,
        route,
        write,
    })
}

/// Each operation has exactly its own arguments, all of them finite.
pub fn arguments(request: &EditRequest, param: &str) -> Result<(), PlanError> {
    use Operation::{Ablate, Add, Clamp, Patch, Scale, Set, Swap};
    let op = request.op;
    let name = serde_json::to_value(op).ok();
    let name = name
        .as_ref()
        .and_then(|name| name.as_str())
        .unwrap_or_default();
    let numbers = [
        ("value", request.value),
        ("min", request.min),
        ("max", request.max),
    ];
    for (key, number) in numbers {
        if number.is_some_and(|number| !number.is_finite()) {
            return Err(refused(
                format!("`{key}` is not a finite number"),
                &format!("{param}.{key}"),
            ));
        }
    }
    let given = [
        (
            "value",
            request.value.is_some(),
            matches!(op, Add | Set | Scale),
            matches!(op, Add | Set | Scale),
        ),
        ("min", request.min.is_some(), op == Clamp, op == Clamp),
        ("max", request.max.is_some(), op == Clamp, op == Clamp),
        (
            "to",
            request.to.is_some(),
            matches!(op, Patch | Ablate),
            op == Patch,
        ),
        ("with", request.with.is_some(), op == Swap, op == Swap),
        (
            "unit",
            request.unit.is_some_and(|unit| unit != Unit::Raw),
            matches!(op, Add | Set | Clamp),
            false,
        ),
    ];
    for (key, given, allowed, needed) in given {
        let param = format!("{param}.{key}");
        if given && !allowed {
            return Err(refused(format!("`{name}` takes no `{key}`"), &param));
        }
        if needed && !given {
            return Err(refused(format!("`{name}` needs `{key}`"), &param));
        }
    }
    if let (Some(min), Some(max)) = (request.min, request.max)
        && min > max
    {
        return Err(refused(
            format!("`min` {min} is above `max` {max}"),
            &format!("{param}.min"),
        ));
    }
    match (&request.to, op) {
        (Some(Destination::Counterfactual(_)), Ablate) => Err(refused(
            "`ablate` goes to \"zero\" or \"mean\"",
            &format!("{param}.to"),
        )),
        (Some(Destination::Ablation(_)), Patch) => {
            let message =
                "`patch` goes to a counterfactual `{\"prompt\": ...}` or `{\"value\": ...}`";
            Err(refused(message, &format!("{param}.to")))
        }
        _ => Ok(()),
    }
}

fn source(
    request: &EditRequest,
    subject: &Subject,
    scene: &Scene,
    param: &str,
) -> Result<Source, PlanError> {
    let param = format!("{param}.read");
    let place = match (subject, scene.native) {
        (Subject::Direction(_), _) => {
            return match request.read {
                None => Ok(Source::Own),
                Some(_) => Err(refused(
                    "a vector is read from the model's own residual stream",
                    &param,
                )),
            };
        }
        (Subject::OwnChannels(_), _) => {
            return match request.read {
                None => Ok(Source::Own),
                Some(_) => Err(refused(
                    "a dense model's own nodes are read where they are; `read` is for features of its sparse partner",
                    &param,
                )),
            };
        }
        (Subject::Channels(_), true) => {
            return match request.read {
                None | Some(Read::Sparse) => Ok(Source::Own),
                Some(Read::Encoder) => Err(refused(
                    "a sparse model reads its own features; it has no encoder",
                    &param,
                )),
            };
        }
        (Subject::Channels(group), false) => group.place,
    };
    match request.read {
        None | Some(Read::Sparse) => Ok(Source::Sparse),
        Some(Read::Encoder) if is_sublayer_input(place) || matches!(place, Location::Site(_)) => {
            Ok(Source::Encoder)
        }
        Some(Read::Encoder) => {
            let message =
                format!("the encoder gives residual sites and sublayer inputs; {place} is neither");
            Err(refused(message, &param))
        }
    }
}

fn action(
    request: &EditRequest,
    resolved: &mut Resolved,
    source: Source,
    scene: &Scene,
    streams: &mut Vec<Stream>,
    param: &str,
) -> Result<Action, PlanError> {
    if let Some(nodes) = &resolved.nodes
        && let Some(action) = each_node::action(request, nodes, &resolved.subject, scene, param)?
    {
        return Ok(action);
    }
    let unit = match request.unit {
        None | Some(Unit::Raw) => 1.0,
        Some(Unit::Residual) => {
            if !matches!(resolved.subject, Subject::Direction(_)) || request.op != Operation::Add {
                let message = "`residual` is the unit of `add` on a vector or a direction only";
                return Err(refused(message, &format!("{param}.unit")));
            }
            return Ok(Action::AddResidual(request.value.unwrap_or_default()));
        }
        Some(unit) => statistic(unit, resolved, scene, &format!("{param}.unit"))?,
    };
    let value = request.value.unwrap_or_default();
    Ok(match (request.op, &request.to) {
        (Operation::Add, _) => Action::Add(value * unit),
        (Operation::Set, _) => Action::Set(value * unit),
        (Operation::Scale, _) => Action::Scale(value),
        (Operation::Clamp, _) => Action::Clamp {
            min: request.min.unwrap_or_default() * unit,
            max: request.max.unwrap_or_default() * unit,
        },
        (Operation::Ablate, Some(Destination::Ablation(AblateTo::Mean))) => {
            let param = format!("{param}.to");
            match &resolved.subject {
                Subject::Channels(group) => Action::Ablate(means(group, scene, &param)?),
                Subject::OwnChannels(_) | Subject::Direction(_) => {
                    Action::Set(mean_projection(resolved, &param)?)
                }
            }
        }
        (Operation::Ablate, _) => Action::Ablate(vec![0.0; resolved.subject.channels().len()]),
        (Operation::Patch, Some(Destination::Counterfactual(to))) => patch(
            to,
            &resolved.subject,
            source,
            scene,
            streams,
            &format!("{param}.to"),
        )?,
        (Operation::Patch, _) => return Err(refused("`patch` needs `to`", &format!("{param}.to"))),
        (Operation::Swap, _) => {
            let param = format!("{param}.with");
            let with = request
                .with
                .ok_or_else(|| refused("`swap` needs `with`", &param))?;
            join_for_swap(&mut resolved.subject, with, scene, &param)?;
            Action::Swap
        }
    })
}

fn patch(
    to: &Counterfactual,
    subject: &Subject,
    source: Source,
    scene: &Scene,
    streams: &mut Vec<Stream>,
    param: &str,
) -> Result<Action, PlanError> {
    let prompt = match (&to.prompt, to.value) {
        (Some(prompt), None) => prompt,
        (None, Some(value)) => {
            if !value.is_finite() {
                return Err(refused(
                    "`value` is not a finite number",
                    &format!("{param}.value"),
                ));
            }
            if to.align.is_some() {
                return Err(refused(
                    "`align` is for a counterfactual prompt",
                    &format!("{param}.align"),
                ));
            }
            return Ok(Action::Set(value));
        }
        _ => return Err(refused("`to` has either a `prompt` or a `value`", param)),
    };
    let dense = !scene.native && (source == Source::Encoder || subject.is_dense());
    let model = if dense {
        StreamModel::Dense
    } else {
        StreamModel::Sparse
    };
    let stream = stream(to, prompt, model, scene, param)?;
    let known = streams.iter().position(|known| *known == stream);
    let index = known.unwrap_or_else(|| {
        streams.push(stream);
        streams.len() - 1
    });
    Ok(Action::Patch { stream: index })
}

/// Adds the other channel with no weight: the feature's value stays the first channel's.
fn join_for_swap(
    subject: &mut Subject,
    with: usize,
    scene: &Scene,
    param: &str,
) -> Result<(), PlanError> {
    let Subject::Channels(group) = subject else {
        return Err(refused("a vector cannot be swapped with a channel", param));
    };
    let &[channel] = group.channels.as_slice() else {
        return Err(refused(
            "only a single channel can be swapped with another",
            param,
        ));
    };
    let width = group.place.width(&scene.sparse(param)?.config);
    if with >= width {
        let message = format!(
            "{} has channels 0 to {}; {with} is none of them",
            group.place,
            width - 1
        );
        return Err(refused(message, param));
    }
    if with == channel {
        return Err(refused(
            format!("channel {channel} cannot be swapped with itself"),
            param,
        ));
    }
    group.channels.push(with);
    group.weights.push(0.0);
    Ok(())
}

fn route(
    request: &EditRequest,
    resolved: &Resolved,
    scene: &Scene,
    columns: &mut KnownColumns,
    param: &str,
) -> Result<(Route, Option<Write>), PlanError> {
    let write_param = format!("{param}.write");
    let group = match (&resolved.subject, scene.native) {
        (Subject::Direction(_), false) => {
            return match request.write {
                None | Some(Write::Residual) => Ok((Route::InPlace, Some(Write::Residual))),
                Some(Write::Sublayer) => Err(refused(
                    "a vector is written to the residual stream",
                    &write_param,
                )),
            };
        }
        (Subject::OwnChannels(_), false) => {
            return match request.write {
                None => Ok((Route::InPlace, None)),
                Some(_) => Err(refused(
                    "a dense model's own nodes are edited in place; `write` is for features of its sparse partner",
                    &write_param,
                )),
            };
        }
        (_, true) if request.write.is_some() => {
            let message = "a sparse model is edited in place; `write` is for dense models";
            return Err(refused(message, &write_param));
        }
        (_, true) => return Ok((Route::InPlace, None)),
        (Subject::Channels(group), false) => group,
    };
    let usual = if is_sublayer_input(group.place) {
        Write::Sublayer
    } else {
        Write::Residual
    };
    let registered = resolved.write.filter(|_| is_sublayer_input(group.place));
    let write = request.write.or(registered).unwrap_or(usual);
    if sublayer_output(group.place).is_some() {
        return match write {
            Write::Residual => Ok((Route::Replayed, Some(write))),
            Write::Sublayer => Err(refused(
                NotCarried::NoSublayer { place: group.place }.to_string(),
                &write_param,
            )),
        };
    }
    let carrier = carry(group, write, scene, columns, param)?;
    Ok((Route::Carried(carrier), Some(write)))
}

fn carry(
    group: &Group,
    write: Write,
    scene: &Scene,
    columns: &mut KnownColumns,
    param: &str,
) -> Result<Carrier, PlanError> {
    let pair = scene.pair(&format!("{param}.feature"))?;
    let site = group.place.site(pair.sparse.config.n_layers);
    let scales = &pair.record.sites[site.index()];
    let ratio = scales.sparse_rms / scales.dense_rms;
    if write == Write::Sublayer && !(ratio > 0.0 && ratio.is_finite()) {
        let message =
            format!("the bridge's record has no usable scales at {site}; write to `residual`");
        return Err(refused(message, &format!("{param}.write")));
    }
    let carrier = Carrier::sharing(
        &pair.dense,
        &pair.sparse,
        &pair.bridge,
        group.place,
        &group.channels,
        write,
        ratio,
        columns,
    )?;
    carrier.map_err(|error| {
        let key = match error {
            NotCarried::NoSublayer { .. } => "write",
            NotCarried::Positional { .. } | NotCarried::ZeroGain { .. } => "feature",
        };
        refused(error.to_string(), &format!("{param}.{key}"))
    })
}
