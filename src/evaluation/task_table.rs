//! Every task: how well both models do it, and how few channels steer it.
//!
//! For each way in (natively in the sparse model; through the bridge, into the residual stream or a sublayer's
//! input) the group of channels and its place are selected on training pairs; every figure is then measured on
//! held-out pairs, among those whose presented prompt the edited model gets right.

use serde::Serialize;

use super::controls;
use super::{EvaluationError, task_pairs};
use crate::corpus::Split;
use crate::discovery::attribution::Attribution;
use crate::discovery::contrast::{Contrast, ContrastOptions, evaluate_prefixes};
use crate::discovery::patching::{Patching, UneditedAnswers};
use crate::discovery::route::Route;
use crate::discovery::search::search;
use crate::features::group::{WeightedChannel, Write};
use crate::features::pair::Pair;
use crate::models::location::{Location, LocationName};
use crate::tasks::Task;

/// How the table is made.
#[derive(Debug, Clone, Copy)]
pub struct TableOptions {
    /// Pairs that groups are selected on.
    pub train_pairs: usize,
    /// Pairs that figures are measured on.
    pub held_out_pairs: usize,
    /// Places searched in earnest for each way in.
    pub refined: usize,
    pub seed: u64,
    pub contrast: ContrastOptions,
}

impl Default for TableOptions {
    fn default() -> Self {
        TableOptions {
            train_pairs: 64,
            held_out_pairs: 128,
            refined: 3,
            seed: 0,
            contrast: ContrastOptions::default(),
        }
    }
}

/// One way in: the group selected, and its held-out figures.
#[derive(Debug, Clone, Serialize)]
pub struct RouteFigures {
    pub place: LocationName,
    pub route: Route,
    /// In the order of the ranking, with unit weights.
    pub channels: Vec<WeightedChannel>,
    /// The fewest channels that flip half of the training pairs, and of the held-out ones.
    pub channels_to_flip_train: Option<usize>,
    pub channels_to_flip: Option<usize>,
    /// Held-out flips with the first 1, 4 and 16 channels (or as many as there are).
    pub flips_1: f64,
    pub flips_4: f64,
    pub flips_16: f64,
    /// Held-out flips by the number of channels, from one on.
    pub flips: Vec<f64>,
    /// Flips with 16 channels edited at all positions but the prompt's last.
    pub flips_before_last: f64,
    /// Mean two-way probability of the counterfactual's answer with 16 channels, and without an edit.
    pub two_way: f64,
    pub two_way_before: f64,
    /// Flips of the two random arms at the norm of the 16 channels' change.
    pub random: f64,
    pub random_feature: f64,
    /// Geometric mean over all held-out pairs of the probability of the counterfactual's token with 16 channels,
    /// as a share of what it is after the counterfactual prompt itself.
    pub geometric_share: f64,
    /// The same channels of the same place natively in the sparse model: the fewest that flip half.
    pub channels_to_flip_natively: Option<usize>,
}

/// One task's row.
#[derive(Debug, Clone, Serialize)]
pub struct TaskRow {
    pub task: Task,
    pub held_out_pairs: usize,
    /// Share of presented and counterfactual held-out prompts answered rightly.
    pub dense_accuracy: f64,
    pub sparse_accuracy: f64,
    /// Held-out pairs whose presented prompt is answered rightly.
    pub dense_right: usize,
    pub sparse_right: usize,
    pub native: Option<RouteFigures>,
    pub residual: Option<RouteFigures>,
    pub sublayer: Option<RouteFigures>,
}

impl TaskRow {
    /// The better of the two ways over the bridge: more flips with 16 channels, and where that is much the same
    /// (to a twentieth) fewer channels for half of the pairs.
    pub fn best_bridge(&self) -> Option<&RouteFigures> {
        let badness = |figures: &&RouteFigures| {
            let channels = figures
                .channels_to_flip
                .map_or(1e3, |channels| channels as f64);
            channels - 100.0 * (20.0 * figures.flips_16).round()
        };
        let both = self.residual.iter().chain(&self.sublayer);
        both.min_by(|one, other| badness(one).total_cmp(&badness(other)))
    }
}

/// Measures one task.
pub fn task_row(
    models: &Pair,
    task: Task,
    options: &TableOptions,
) -> Result<TaskRow, EvaluationError> {
    let pairs = |count, split| task_pairs(models, task, count, options.seed, split);
    let (sites, inputs) = (models.inner_sites(), models.inner_inputs());
    let mut train = Patching::new(models, pairs(options.train_pairs, Split::Train)?, &inputs)?;
    let mut held_out = Patching::new(
        models,
        pairs(options.held_out_pairs, Split::HeldOut)?,
        &inputs,
    )?;
    let with = |places: &[Location], route: Route| -> Vec<(Location, Route)> {
        places.iter().map(|&place| (place, route)).collect()
    };
    let both: Vec<Location> = sites.iter().chain(&inputs).copied().collect();
    let mut best = |places: &[(Location, Route)]| -> Result<Option<RouteFigures>, EvaluationError> {
        let Some(&(_, route)) = places.first() else {
            return Ok(None);
        };
        if !train.right(route).contains(&true) || !held_out.right(route).contains(&true) {
            return Ok(None);
        }
        let attribution = Attribution::new(&train, route)?;
        let found = search(
            &mut train,
            &attribution,
            places,
            options.refined,
            &options.contrast,
        )?;
        match found.first() {
            Some(contrast) if !contrast.group.is_empty() => {
                route_figures(&mut held_out, contrast, options.seed).map(Some)
            }
            _ => Ok(None),
        }
    };
    let native = best(&with(&both, Route::Native))?;
    let residual = best(&with(&both, Route::Bridge(Write::Residual)))?;
    let sublayer = best(&with(&inputs, Route::Bridge(Write::Sublayer)))?;
    let answers = &held_out.answers;
    let count = |right: Vec<bool>| right.into_iter().filter(|right| *right).count();
    Ok(TaskRow {
        task,
        held_out_pairs: held_out.pairs.len(),
        dense_accuracy: UneditedAnswers::accuracy(
            &answers.dense_presented,
            &answers.dense_counterfactual,
        ),
        sparse_accuracy: UneditedAnswers::accuracy(
            &answers.sparse_presented,
            &answers.sparse_counterfactual,
        ),
        dense_right: count(answers.dense_presented.presented()),
        sparse_right: count(answers.sparse_presented.presented()),
        native,
        residual,
        sublayer,
    })
}

/// A group's figures on the pairs of `held_out`.
pub fn route_figures(
    held_out: &mut Patching,
    contrast: &Contrast,
    seed: u64,
) -> Result<RouteFigures, EvaluationError> {
    let (place, route) = (contrast.place, contrast.route);
    let channels = contrast.channels();
    let steps = evaluate_prefixes(held_out, place, route, &channels)?;
    let natively = match route {
        Route::Native => None,
        Route::Bridge(_) => {
            let steps = evaluate_prefixes(held_out, place, Route::Native, &channels)?;
            steps
                .iter()
                .position(|step| step.flips >= 0.5)
                .map(|index| index + 1)
        }
    };
    let flips: Vec<f64> = steps.iter().map(|step| step.flips).collect();
    let flips_at = |count: usize| {
        flips
            .get(count.min(flips.len()).wrapping_sub(1))
            .copied()
            .unwrap_or(0.0)
    };
    let patch = held_out.location_patch(place, route)?;
    let right = held_out.right(route);
    let change = patch.group(&channels, 1.0);
    let random = controls::random(held_out, &patch, &change, seed);
    let feature = controls::random_feature(held_out, &patch, &channels, &change, seed)?;
    let before_last = controls::before_last(held_out, &patch, change.clone());
    let mut flips_of = |change: Vec<f32>| -> Result<f64, EvaluationError> {
        Ok(held_out
            .answers_with(&patch, change)?
            .flips(&right)
            .unwrap_or(0.0))
    };
    let (random, random_feature) = (flips_of(random)?, flips_of(feature)?);
    let flips_before_last = flips_of(before_last)?;
    let steered = held_out.answers_with(&patch, change)?;
    let own = match route {
        Route::Native => &held_out.answers.sparse_counterfactual,
        Route::Bridge(_) => &held_out.answers.dense_counterfactual,
    };
    let flips_1 = flips_at(1);
    let (flips_4, flips_16) = (flips_at(4), flips_at(16));
    Ok(RouteFigures {
        place: place.into(),
        route,
        channels: contrast.weighted(channels.len()),
        channels_to_flip_train: contrast.channels_to_flip,
        channels_to_flip: flips
            .iter()
            .position(|&flips| flips >= 0.5)
            .map(|index| index + 1),
        flips_1,
        flips_4,
        flips_16,
        flips_before_last,
        two_way: steered.mean_share(&right).unwrap_or(0.0),
        two_way_before: held_out.before(route).mean_share(&right).unwrap_or(0.0),
        random,
        random_feature,
        geometric_share: geometric_share(&steered.probabilities, &own.probabilities),
        channels_to_flip_natively: natively,
        flips,
    })
}

/// Geometric mean of the ratios of two lists of probabilities.
pub fn geometric_share(steered: &[f32], counterfactual: &[f32]) -> f64 {
    let log = |probability: f32| f64::from(probability).max(1e-30).ln();
    let ratios = steered
        .iter()
        .zip(counterfactual)
        .map(|(&one, &other)| log(one) - log(other));
    (ratios.sum::<f64>() / steered.len().max(1) as f64).exp()
}
