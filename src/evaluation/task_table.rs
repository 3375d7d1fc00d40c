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
use crate::discovery::patching::{Part, Patching, UneditedAnswers};
use crate::discovery::route::Route;
use crate::discovery::search::search;
use crate::features::effects::{ActsAt, PatchEffect};
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
    /// Look for the best place of every layer too.
    pub by_layer: bool,
    pub seed: u64,
    pub contrast: ContrastOptions,
}

impl Default for TableOptions {
    fn default() -> Self {
        TableOptions {
            train_pairs: 64,
            held_out_pairs: 128,
            refined: 3,
            by_layer: false,
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
    /// Pairs that the edited model gets right of the two answers, and those whose right answer is its most probable next
    /// token; the share of the latter whose most probable next token becomes the counterfactual's, with 16 channels.
    pub right: usize,
    pub greedily_right: usize,
    pub greedy_flips: Option<f64>,
    /// Flips when only the differing tokens' embeddings are exchanged, in the dense stream at the place's site; none
    /// for the native way.
    pub token_swap_flips: Option<f64>,
    pub acts_at: ActsAt,
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
    /// Of the models.
    pub n_layers: usize,
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
    /// Over the bridge, by either way: the best place of each layer.
    pub layers: Vec<RouteFigures>,
}

impl RouteFigures {
    /// The same as it is told in the registry; none of the native way.
    pub fn effect(&self) -> Option<PatchEffect> {
        let Route::Bridge(write) = self.route else {
            return None;
        };
        Some(PatchEffect {
            node: self.place.as_str().to_owned(),
            write,
            channels: self.channels.len(),
            channels_to_flip: self.channels_to_flip,
            right: self.right,
            flips: self.flips_16,
            greedily_right: self.greedily_right,
            greedy_flips: self.greedy_flips,
            token_swap_flips: self.token_swap_flips?,
            random_flips: self.random,
            random_feature_flips: self.random_feature,
            acts_at: self.acts_at,
        })
    }

    /// Whether at most 16 channels flip half of the pairs while both controls flip next to nothing.
    pub fn passes(&self) -> bool {
        self.channels_to_flip.is_some()
            && self.random <= MOST_CONTROL_FLIPS
            && self.random_feature <= MOST_CONTROL_FLIPS
    }

    /// Smaller is better: more flips with 16 channels, and where that is much the same (to a twentieth) fewer channels
    /// for half of the pairs.
    fn badness(&self) -> f64 {
        let channels = self
            .channels_to_flip
            .map_or(1e3, |channels| channels as f64);
        channels - 100.0 * (20.0 * self.flips_16).round()
    }
}

/// What the control arms of a way in that counts may flip.
const MOST_CONTROL_FLIPS: f64 = 0.05;

impl TaskRow {
    /// The better of the two ways over the bridge: one that [`passes`](RouteFigures::passes), and of several that do or
    /// do not the one with more flips, or fewer channels.
    pub fn best_bridge(&self) -> Option<&RouteFigures> {
        let both = self.residual.iter().chain(&self.sublayer);
        both.chain(&self.layers).min_by(|one, other| {
            let order = |figures: &RouteFigures| (!figures.passes(), figures.badness());
            let ((one_fails, one), (other_fails, other)) = (order(one), order(other));
            one_fails.cmp(&other_fails).then(one.total_cmp(&other))
        })
    }

    /// The best way in at a layer of the later half of the model, among those that pass.
    pub fn best_late(&self) -> Option<&RouteFigures> {
        let n_layers = self.n_layers;
        let late = self.layers.iter().filter(|figures| {
            let place = figures.place.in_model(n_layers);
            figures.passes() && place.is_ok_and(|place| 2 * place.layer() >= n_layers)
        });
        late.min_by(|one, other| one.badness().total_cmp(&other.badness()))
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
    let mut best = |places: &[(Location, Route)],
                    refined: usize|
     -> Result<Option<RouteFigures>, EvaluationError> {
        let Some(&(_, route)) = places.first() else {
            return Ok(None);
        };
        if !train.right(route).contains(&true) || !held_out.right(route).contains(&true) {
            return Ok(None);
        }
        let attribution = Attribution::new(&train, route)?;
        let found = search(&mut train, &attribution, places, refined, &options.contrast)?;
        match found.first() {
            Some(contrast) if !contrast.group.is_empty() => {
                contrast_figures(&mut held_out, contrast, options.seed).map(Some)
            }
            _ => Ok(None),
        }
    };
    let native = best(&with(&both, Route::Native), options.refined)?;
    let residual = best(
        &with(&both, Route::Bridge(Write::Residual)),
        options.refined,
    )?;
    let sublayer = best(
        &with(&inputs, Route::Bridge(Write::Sublayer)),
        options.refined,
    )?;
    let mut layers = Vec::new();
    for layer in (0..models.n_layers()).filter(|_| options.by_layer) {
        let of_layer = |places: &[Location]| -> Vec<Location> {
            let places = places.iter().copied();
            places.filter(|place| place.layer() == layer).collect()
        };
        let mut places = with(&of_layer(&both), Route::Bridge(Write::Residual));
        places.extend(with(&of_layer(&inputs), Route::Bridge(Write::Sublayer)));
        layers.extend(best(&places, 1)?);
    }
    let answers = &held_out.answers;
    let count = |right: Vec<bool>| right.into_iter().filter(|right| *right).count();
    Ok(TaskRow {
        task,
        n_layers: models.n_layers(),
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
        layers,
    })
}

fn contrast_figures(
    held_out: &mut Patching,
    contrast: &Contrast,
    seed: u64,
) -> Result<RouteFigures, EvaluationError> {
    let channels = contrast.weighted(contrast.group.len());
    let figures = route_figures(held_out, contrast.place, contrast.route, &channels, seed)?;
    Ok(RouteFigures {
        channels_to_flip_train: contrast.channels_to_flip,
        ..figures
    })
}

/// A group's figures on the pairs of `held_out`.
pub fn route_figures(
    held_out: &mut Patching,
    place: Location,
    route: Route,
    weighted: &[WeightedChannel],
    seed: u64,
) -> Result<RouteFigures, EvaluationError> {
    let channels: Vec<usize> = weighted.iter().map(|member| member.channel).collect();
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
    let acts_at = acts_at(held_out, &change, patch.columns.width);
    let mut flips_of = |change: Vec<f32>| -> Result<f64, EvaluationError> {
        Ok(held_out
            .answers_with(&patch, change)?
            .flips(&right)
            .unwrap_or(0.0))
    };
    let (random, random_feature) = (flips_of(random)?, flips_of(feature)?);
    let flips_before_last = flips_of(before_last)?;
    let token_swap_flips = match route {
        Route::Native => None,
        Route::Bridge(_) => {
            let site = held_out.models.bridge.site_map.dense_site(place);
            let swapped = held_out.answers_with_dense(site, held_out.token_swap()?)?;
            Some(swapped.flips(&right).unwrap_or(0.0))
        }
    };
    let steered = held_out.answers_with(&patch, change)?;
    let greedily_right = held_out.before(route).greedily_presented();
    let own = match route {
        Route::Native => &held_out.answers.sparse_counterfactual,
        Route::Bridge(_) => &held_out.answers.dense_counterfactual,
    };
    let flips_1 = flips_at(1);
    let (flips_4, flips_16) = (flips_at(4), flips_at(16));
    Ok(RouteFigures {
        place: place.into(),
        route,
        channels: weighted.to_vec(),
        channels_to_flip_train: None,
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
        right: right.iter().filter(|right| **right).count(),
        greedily_right: greedily_right.iter().filter(|right| **right).count(),
        greedy_flips: steered.greedy_flips(&greedily_right),
        token_swap_flips,
        acts_at,
        random,
        random_feature,
        geometric_share: geometric_share(&steered.probabilities, &own.probabilities),
        channels_to_flip_natively: natively,
        flips,
    })
}

/// How the squared norm of a change is spread over the parts of the prompts; all zero where nothing is changed.
fn acts_at(patching: &Patching, change: &[f32], width: usize) -> ActsAt {
    let mut squares = [0f64; 3];
    for (row, part) in change.chunks_exact(width).zip(patching.parts()) {
        let square: f64 = row.iter().map(|&value| f64::from(value).powi(2)).sum();
        squares[Part::ALL.iter().position(|of| *of == part).unwrap_or(0)] += square;
    }
    let total = squares.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let [first_difference, between, last] = squares.map(|square| square / total);
    ActsAt {
        first_difference,
        between,
        last,
    }
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
