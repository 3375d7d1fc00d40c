//! Minimal pairs run through both models, ready to be patched.
//!
//! The sparse model runs on the presented and on the counterfactual prompts; a *patch* moves some channels of one
//! place from the one's values to the other's, at every token, in the sparse model or through the bridge in the
//! dense one. Rows are the tokens from each pair's first difference on; before it nothing changes.

use std::collections::BTreeMap;

use candle_core::{Result as CandleResult, Tensor};

use super::DiscoveryError;
use super::patience::Patience;
use super::prompt_run::PromptRun;
use super::question::{Answers, PromptPair};
use super::route::{ChannelColumns, Route};
use crate::features::pair::Pair;
use crate::interventions::carry::row_rms;
use crate::models::location::{Location, Site};
use crate::numerics::rows;

/// Pairs and everything both models made of them.
pub struct Patching<'m> {
    pub models: &'m Pair,
    pub pairs: Vec<PromptPair>,
    dense: PromptRun<'m>,
    sparse: PromptRun<'m>,
    /// The sparse model on the counterfactual prompts, `[rows, width]` each.
    counterfactual: BTreeMap<Location, Tensor>,
    /// The dense stream on the counterfactual prompts, `[rows, D]` for each site.
    dense_counterfactual: Vec<Tensor>,
    pub answers: UneditedAnswers,
    patience: Patience,
}

/// What the models answer when nothing is edited.
#[derive(Debug, Clone)]
pub struct UneditedAnswers {
    pub dense_presented: Answers,
    pub dense_counterfactual: Answers,
    pub sparse_presented: Answers,
    pub sparse_counterfactual: Answers,
}

impl UneditedAnswers {
    /// The share of prompts, of both kinds together, that a model answers rightly.
    pub fn accuracy(presented: &Answers, counterfactual: &Answers) -> f64 {
        let right = presented
            .logit_diffs
            .iter()
            .filter(|logit_diff| **logit_diff < 0.0)
            .count()
            + counterfactual
                .logit_diffs
                .iter()
                .filter(|logit_diff| **logit_diff > 0.0)
                .count();
        right as f64
            / (presented.logit_diffs.len() + counterfactual.logit_diffs.len()).max(1) as f64
    }
}

impl<'m> Patching<'m> {
    /// Runs the pairs. Of the sparse model, the given places (and all residual sites) can be patched.
    pub fn new(
        models: &'m Pair,
        pairs: Vec<PromptPair>,
        places: &[Location],
    ) -> Result<Self, DiscoveryError> {
        Self::patient(models, pairs, places, Patience::endless())
    }

    /// The same, as long as `patience` lasts: what is done with the pairs ends with it.
    pub fn patient(
        models: &'m Pair,
        pairs: Vec<PromptPair>,
        places: &[Location],
        patience: Patience,
    ) -> Result<Self, DiscoveryError> {
        let vocabulary = models.dense.config.vocab_size;
        for (index, pair) in pairs.iter().enumerate() {
            if pair.presented.len() != pair.counterfactual.len() {
                let (one, other) = (pair.presented.len(), pair.counterfactual.len());
                let problem = format!("pair {index}: its prompts have {one} and {other} tokens");
                return Err(DiscoveryError::Invalid(problem));
            }
            if pair.question.largest_token() as usize >= vocabulary {
                let problem = format!("pair {index}: a candidate is no token of the {vocabulary}");
                return Err(DiscoveryError::Invalid(problem));
            }
        }
        if pairs.is_empty() {
            return Err(DiscoveryError::Invalid("no pairs were given".to_owned()));
        }
        let from: Vec<usize> = pairs.iter().map(PromptPair::first_difference).collect();
        let presented: Vec<&[u32]> = pairs.iter().map(|pair| pair.presented.as_slice()).collect();
        let counterfactual: Vec<&[u32]> = pairs
            .iter()
            .map(|pair| pair.counterfactual.as_slice())
            .collect();
        let run = |model, prompts: &[&[u32]], places: &[Location]| {
            patience.check()?;
            let run = PromptRun::new(model, prompts, &from, places.iter().copied());
            run.map_err(DiscoveryError::from)
        };
        let answers =
            |run: &PromptRun| Answers::read(pairs.iter().map(|pair| pair.question), run.logits());
        let dense = run(&models.dense, &presented, &[])?;
        let sparse = run(&models.sparse, &presented, places)?;
        let dense_other = run(&models.dense, &counterfactual, &[])?;
        let sparse_other = run(&models.sparse, &counterfactual, places)?;
        let dense_counterfactual = Site::all(models.dense.config.n_layers)
            .map(|site| dense_other.value(Location::Site(site)).cloned())
            .collect::<CandleResult<_>>()?;
        let sites = Site::all(models.n_layers()).map(Location::Site);
        let counterfactual = sites
            .chain(places.iter().copied())
            .map(|place| Ok((place, sparse_other.value(place)?.clone())))
            .collect::<CandleResult<_>>()?;
        let answers = UneditedAnswers {
            dense_presented: answers(&dense)?,
            dense_counterfactual: answers(&dense_other)?,
            sparse_presented: answers(&sparse)?,
            sparse_counterfactual: answers(&sparse_other)?,
        };
        Ok(Patching {
            models,
            pairs,
            dense,
            sparse,
            counterfactual,
            dense_counterfactual,
            answers,
            patience,
        })
    }

    /// What the model that a route edits answers without an edit.
    pub fn before(&self, route: Route) -> &Answers {
        match route {
            Route::Native => &self.answers.sparse_presented,
            Route::Bridge(_) => &self.answers.dense_presented,
        }
    }

    /// The pairs whose presented prompt that model gets right: those that a flip is counted among.
    pub fn right(&self, route: Route) -> Vec<bool> {
        self.before(route).presented()
    }

    /// The patch of every channel of a place.
    pub fn location_patch(
        &self,
        place: Location,
        route: Route,
    ) -> Result<LocationPatch, DiscoveryError> {
        self.patience.check()?;
        let columns = ChannelColumns::new(self.models, place, route)?;
        let Some(counterfactual) = self.counterfactual.get(&place) else {
            return Err(DiscoveryError::Invalid(format!("{place} was not recorded")));
        };
        let presented = self.sparse.value(place)?;
        let channels = presented.dim(1)?;
        let mut changes = rows::to_vec(&(counterfactual - presented)?)?;
        if columns.times_sparse_rms {
            let site = Location::Site(place.site(self.models.n_layers()));
            let factors = row_rms(self.sparse.value(site)?)?;
            for (row, factor) in changes.chunks_exact_mut(channels).zip(factors) {
                row.iter_mut().for_each(|change| *change *= factor);
            }
        }
        Ok(LocationPatch {
            place,
            route,
            channels,
            changes,
            columns,
        })
    }

    /// The sparse values of a place on the presented and the counterfactual prompts, `[rows, width]` each.
    pub fn sparse_values(&self, place: Location) -> Result<[&Tensor; 2], DiscoveryError> {
        match self.counterfactual.get(&place) {
            Some(counterfactual) => Ok([self.sparse.value(place)?, counterfactual]),
            None => Err(DiscoveryError::Invalid(format!("{place} was not recorded"))),
        }
    }

    /// The answers when `change [rows, width]` is added at the patch's target.
    pub fn answers_with(
        &mut self,
        patch: &LocationPatch,
        change: Vec<f32>,
    ) -> Result<Answers, DiscoveryError> {
        self.patience.check()?;
        let logits = self
            .run_of(patch.route)
            .with_change(patch.columns.target, change)?;
        Ok(self.read(&logits)?)
    }

    /// The answers when `change [rows, D]` is added to the dense stream at a site of the dense model.
    pub fn answers_with_dense(
        &mut self,
        site: Site,
        change: Vec<f32>,
    ) -> Result<Answers, DiscoveryError> {
        self.patience.check()?;
        let logits = self.dense.with_change(Location::Site(site), change)?;
        Ok(self.read(&logits)?)
    }

    fn read(&self, logits: &Tensor) -> CandleResult<Answers> {
        Answers::read(self.pairs.iter().map(|pair| pair.question), logits)
    }

    fn run_of(&mut self, route: Route) -> &mut PromptRun<'m> {
        match route {
            Route::Native => &mut self.sparse,
            Route::Bridge(_) => &mut self.dense,
        }
    }

    /// Rows of a change.
    pub fn rows(&self) -> usize {
        self.dense.kept_rows()
    }

    /// The pair of each row.
    pub fn pair_of_rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.dense.kept().iter().map(|at| at.slot)
    }

    /// The row of each pair's last token.
    pub fn last_rows(&self) -> &[u32] {
        self.dense.last_rows()
    }

    /// Each row's pair and position in the prompt.
    pub fn row_positions(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.dense.kept().iter().map(|at| (at.slot, at.position))
    }

    /// Mean difference of the dense stream at a site of the dense model, counterfactual less presented, over the rows of each [`Part`]: `[D]`
    /// each, in the order of [`Part::ALL`].
    pub fn dense_mean_differences(&self, site: Site) -> CandleResult<[Vec<f32>; 3]> {
        let presented = self.dense.value(Location::Site(site))?;
        let difference = (&self.dense_counterfactual[site.index()] - presented)?;
        let width = difference.dim(1)?;
        let values = rows::to_vec(&difference)?;
        let parts = self.parts();
        Ok(Part::ALL.map(|part| {
            let mut mean = vec![0f32; width];
            let rows = values.chunks_exact(width).zip(&parts);
            let rows: Vec<&[f32]> = rows
                .filter(|(_, of)| **of == part)
                .map(|(row, _)| row)
                .collect();
            for row in &rows {
                for (mean, value) in mean.iter_mut().zip(*row) {
                    *mean += value / rows.len() as f32;
                }
            }
            mean
        }))
    }

    /// What exchanging the tokens' embeddings for the counterfactual prompt's would add to the dense stream, `[rows, D]`:
    /// zero where the prompts agree.
    pub fn token_swap(&self) -> Result<Vec<f32>, DiscoveryError> {
        let first = Site::before_attention(0, self.models.dense.config.n_layers);
        let presented = self.dense.value(Location::Site(first))?;
        let swap = (&self.dense_counterfactual[first.index()] - presented)?;
        Ok(rows::to_vec(&swap)?)
    }

    /// The part of its prompt that each row is.
    pub fn parts(&self) -> Vec<Part> {
        let pairs: Vec<usize> = self.pair_of_rows().collect();
        let part = |row: usize| match (row.checked_sub(1), pairs.get(row + 1)) {
            (_, next) if next != Some(&pairs[row]) => Part::Last,
            (Some(before), _) if pairs[before] == pairs[row] => Part::Between,
            _ => Part::First,
        };
        (0..pairs.len()).map(part).collect()
    }
}

/// Where in a prompt a row stands, from the first difference on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first token that differs, unless it is the last.
    First,
    Between,
    /// The prompt's last token.
    Last,
}

impl Part {
    pub const ALL: [Part; 3] = [Part::First, Part::Between, Part::Last];
}

/// What patching each channel of one place would add to the edited model, at every row.
#[derive(Debug, Clone)]
pub struct LocationPatch {
    pub place: Location,
    pub route: Route,
    /// Channels of the place.
    pub channels: usize,
    /// `[rows, channels]`: the change of each channel times its token's factor.
    changes: Vec<f32>,
    pub columns: ChannelColumns,
}

impl LocationPatch {
    /// The change `[rows, width]` at the target that nothing has been added to yet.
    pub fn nothing(&self) -> Vec<f32> {
        vec![0.0; self.changes.len() / self.channels * self.columns.width]
    }

    /// Adds the patch of one channel to a change.
    pub fn add(&self, channel: usize, strength: f32, change: &mut [f32]) {
        let rows = self.changes.chunks_exact(self.channels);
        for (row, out) in rows.zip(change.chunks_exact_mut(self.columns.width)) {
            if row[channel] != 0.0 {
                self.columns.add(channel, strength * row[channel], out);
            }
        }
    }

    /// The change of patching a group of channels.
    pub fn group(&self, channels: &[usize], strength: f32) -> Vec<f32> {
        let mut change = self.nothing();
        for &channel in channels {
            self.add(channel, strength, &mut change);
        }
        change
    }

    /// First-order effect of each channel, given the gradient `[rows, width]` at the target.
    pub fn first_order(&self, gradient: &[f32]) -> Vec<f64> {
        let mut effects = vec![0f64; self.channels];
        let rows = self.changes.chunks_exact(self.channels);
        for (row, gradient) in rows.zip(gradient.chunks_exact(self.columns.width)) {
            for (channel, (&change, effect)) in row.iter().zip(&mut effects).enumerate() {
                if change != 0.0 {
                    *effect += f64::from(change * self.columns.dot(channel, gradient));
                }
            }
        }
        effects
    }

    /// The mean change of a channel over all rows.
    pub fn mean_change(&self, channel: usize) -> f64 {
        let column = self.changes.iter().skip(channel).step_by(self.channels);
        let rows = (self.changes.len() / self.channels).max(1);
        column.map(|&change| f64::from(change)).sum::<f64>() / rows as f64
    }

    /// The channels whose value differs anywhere: those that are alive on these prompts.
    pub fn live_channels(&self) -> Vec<usize> {
        let mut live = vec![false; self.channels];
        for row in self.changes.chunks_exact(self.channels) {
            for (live, &change) in live.iter_mut().zip(row) {
                *live |= change != 0.0;
            }
        }
        (0..self.channels)
            .filter(|&channel| live[channel] && self.columns.refusal(channel).is_none())
            .collect()
    }
}
