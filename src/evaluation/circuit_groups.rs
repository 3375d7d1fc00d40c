//! From a circuit to features: which groups of its nodes steer the dense model.
//!
//! A circuit says which channels of the sparse model a task needs. They are tried in the dense model, over the bridge, in
//! two ways: the circuit's nodes of one place, and the channels of the stream at one site that a later node of the circuit
//! reads. Channels are sorted by what each of them does alone to the training pairs, and as few of the first ones are
//! taken as flip the most; figures are of held-out pairs.

use std::collections::BTreeSet;

use serde::Serialize;

use super::EvaluationError;
use super::task_table::{RouteFigures, TaskRow, route_figures};
use crate::circuits::nodes::NodeSet;
use crate::discovery::DiscoveryError;
use crate::discovery::contrast::{evaluate_prefixes, unit};
use crate::discovery::patching::{Patching, UneditedAnswers};
use crate::discovery::patience::Patience;
use crate::discovery::question::PromptPair;
use crate::discovery::route::Route;
use crate::discovery::twin::twin_check;
use crate::features::effects::TwinAgreement;
use crate::features::group::{WeightedChannel, Write};
use crate::features::pair::Pair;
use crate::models::location::{Location, NodeKind, Site};
use crate::tasks::Task;

/// Channels of a group at most.
const MOST_CHANNELS: usize = 16;
/// Groups that are measured on held-out pairs, the best on training pairs.
const MEASURED: usize = 4;
/// A further channel must flip this much more of the training pairs to be taken.
const LEAST_FLIPS: f64 = 0.005;

/// A group of a circuit's channels, and what patching it does to the dense model.
#[derive(Debug, Clone, Serialize)]
pub struct CircuitGroup {
    pub figures: RouteFigures,
    pub twin: TwinAgreement,
}

/// A group as it was chosen on training pairs.
struct Chosen {
    place: Location,
    write: Write,
    channels: Vec<usize>,
    flips: f64,
}

/// What is known of a task's pairs, as a row of the table of tasks that has no groups of its own.
pub fn row_of(
    models: &Pair,
    task: Task,
    held_out: &[PromptPair],
) -> Result<TaskRow, EvaluationError> {
    let patching = Patching::new(models, held_out.to_vec(), &[])?;
    let answers = &patching.answers;
    let (dense, sparse) = (
        (&answers.dense_presented, &answers.dense_counterfactual),
        (&answers.sparse_presented, &answers.sparse_counterfactual),
    );
    let count = |right: Vec<bool>| right.into_iter().filter(|right| *right).count();
    Ok(TaskRow {
        task,
        n_layers: models.n_layers(),
        held_out_pairs: held_out.len(),
        dense_accuracy: UneditedAnswers::accuracy(dense.0, dense.1),
        sparse_accuracy: UneditedAnswers::accuracy(sparse.0, sparse.1),
        dense_right: count(dense.0.presented()),
        sparse_right: count(sparse.0.presented()),
        native: None,
        residual: None,
        sublayer: None,
        layers: Vec::new(),
    })
}

/// The groups that flip the most training pairs, with their figures on held-out ones: those that pass both controls first,
/// and of several those that flip more.
pub fn circuit_groups(
    models: &Pair,
    nodes: &NodeSet,
    train: Vec<PromptPair>,
    held_out: Vec<PromptPair>,
    seed: u64,
) -> Result<Vec<CircuitGroup>, EvaluationError> {
    let candidates = candidates(models, nodes);
    let places: Vec<Location> = candidates.iter().map(|(place, _)| *place).collect();
    let mut patching = Patching::new(models, train, &places)?;
    let mut chosen = Vec::new();
    for (place, channels) in &candidates {
        for write in [Write::Residual, Write::Sublayer] {
            chosen.extend(choose(&mut patching, *place, write, channels)?);
        }
    }
    chosen.sort_by(|one: &Chosen, other| {
        let fewer = one.channels.len().cmp(&other.channels.len());
        other.flips.total_cmp(&one.flips).then(fewer)
    });
    chosen.truncate(MEASURED);
    let places: Vec<Location> = chosen.iter().map(|chosen| chosen.place).collect();
    let mut patching = Patching::new(models, held_out.clone(), &places)?;
    let mut groups = Vec::new();
    for Chosen {
        place,
        write,
        channels,
        ..
    } in &chosen
    {
        let route = Route::Bridge(*write);
        let (place, patience) = (*place, Patience::endless());
        // As the task changes them; no weight is zero.
        let patch = patching.location_patch(place, route)?;
        let changes = channels.iter().map(|&channel| patch.mean_change(channel));
        let changes = changes.map(|change| if change == 0.0 { 1e-6 } else { change });
        let weights = unit(changes.collect());
        let weighted = channels.iter().zip(weights);
        let weighted: Vec<WeightedChannel> = weighted
            .map(|(&channel, weight)| WeightedChannel { channel, weight })
            .collect();
        groups.push(CircuitGroup {
            figures: route_figures(&mut patching, place, route, &weighted, seed)?,
            twin: twin_check(models, &held_out, place, *write, channels, patience)?,
        });
    }
    groups.sort_by(|one, other| {
        let fails = one.figures.passes().cmp(&other.figures.passes()).reverse();
        let flips = other.figures.flips_16.total_cmp(&one.figures.flips_16);
        fails.then(flips)
    });
    Ok(groups)
}

/// The circuit's nodes of each place, and the channels of the stream at each inner site that its later nodes read.
fn candidates(models: &Pair, nodes: &NodeSet) -> Vec<(Location, Vec<usize>)> {
    let n_layers = models.n_layers();
    let of_places = nodes.places();
    let of_places = of_places.map(|(node, channels)| (Location::Node(node), channels.to_vec()));
    let sites = Site::all(n_layers).filter(|site| site.index() > 0 && !site.is_last());
    let of_stream = sites.filter_map(|site| {
        let readers = nodes.iter().filter(|(node, _)| {
            let reads = matches!(node.kind, NodeKind::AttnIn | NodeKind::MlpIn);
            reads && Location::Node(*node).site(n_layers).index() >= site.index()
        });
        let channels: BTreeSet<usize> = readers.map(|(_, channel)| channel).collect();
        let channels: Vec<usize> = channels.into_iter().collect();
        (!channels.is_empty()).then_some((Location::Site(site), channels))
    });
    of_places.chain(of_stream).collect()
}

/// The best group of some channels of a place on the training pairs; none where none of them can be carried over.
fn choose(
    patching: &mut Patching,
    place: Location,
    write: Write,
    channels: &[usize],
) -> Result<Option<Chosen>, EvaluationError> {
    let route = Route::Bridge(write);
    let patch = match patching.location_patch(place, route) {
        Ok(patch) => patch,
        Err(DiscoveryError::NotCarried(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let right = patching.right(route);
    let mut alone = Vec::new();
    for &channel in channels {
        if patch.columns.refusal(channel).is_none() {
            let answers = patching.answers_with(&patch, patch.group(&[channel], 1.0))?;
            alone.push((channel, answers.mean_share(&right).unwrap_or(0.0)));
        }
    }
    alone.sort_by(|one, other| other.1.total_cmp(&one.1));
    alone.truncate(MOST_CHANNELS);
    let ranked: Vec<usize> = alone.into_iter().map(|(channel, _)| channel).collect();
    let steps = evaluate_prefixes(patching, place, route, &ranked)?;
    let most = steps.iter().map(|step| step.flips).fold(0.0, f64::max);
    let enough = steps
        .iter()
        .position(|step| step.flips >= most - LEAST_FLIPS);
    Ok(enough.filter(|_| most > 0.0).map(|last| Chosen {
        place,
        write,
        channels: ranked[..=last].to_vec(),
        flips: most,
    }))
}
