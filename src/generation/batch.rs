//! One step of many requests: every pass through a model is one batch of all their rows.
//!
//! A step takes the unedited runs first, then the second runs, then the answering models; the rows of all requests
//! that use a model in such a pass go through it together, each request's tap seeing its own rows only. Rows with
//! different edits, conditions and counterfactuals are never split into batches of their own, and a row's result
//! does not depend on its neighbours.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::catalog::LoadedModel;
use super::session::Session;
use super::slots::Caches;
use crate::interventions::plan::Joined;
use crate::interventions::plan::counterfactual::StreamModel;
use crate::interventions::readings::{ReadingTap, Readings};
use crate::interventions::rows_of_arms::{Feed, PassRows, Row, cache_rows, ids_of, rows_of};
use crate::interventions::steering::{ArmSlots, Steering, StepReadings};
use crate::models::kv_cache::KvCache;
use crate::models::location::Site;
use crate::models::tap::{RowTap, SplitTap};
use crate::models::token_rows::TokenRows;
use crate::numerics::rows;

/// Logits are computed for this many rows at once.
const ROWS_OF_LOGITS: usize = 256;

/// What one request feeds in a step: arms, and how many of their tokens at most.
pub struct Share<'s> {
    pub session: &'s mut Session,
    pub arms: Vec<(usize, usize)>,
}

/// What a step has computed for one request.
pub struct Computed {
    /// All rows that were fed.
    pub rows: Vec<Row>,
    /// The logits after those rows that were wanted, by row.
    pub logits: Vec<(usize, Vec<f32>)>,
}

/// One request's part of the work.
struct Work<'s> {
    feeds: Vec<Feed<'s>>,
    rows: Vec<Row>,
    wanted: Vec<usize>,
    /// By arm.
    slots: BTreeMap<usize, &'s ArmSlots>,
    model: Arc<LoadedModel>,
    sparse: Option<Arc<LoadedModel>>,
    joined: Option<Joined<'s>>,
    steering: Option<&'s mut Steering>,
    edits: Vec<usize>,
    readings: StepReadings,
}

/// Runs a step. Nothing of the requests but their notes changes, and those are the same when a step is run again.
pub fn run(shares: &mut [Share], caches: &mut Caches) -> Result<Vec<Computed>> {
    let mut works: Vec<Work> = shares.iter_mut().map(Work::of).collect();
    for kind in [StreamModel::Sparse, StreamModel::Dense] {
        read(&mut works, kind, caches)?;
    }
    let most_replays = works.iter().map(Work::replays).max().unwrap_or(0);
    for replay in 0..most_replays {
        run_replay(&mut works, replay, caches)?;
    }
    answer(&mut works, caches)
}

impl<'s> Work<'s> {
    fn of(share: &'s mut Share) -> Self {
        let session = &mut *share.session;
        let sparse = session.sparse().cloned();
        let feeds = share.arms.iter();
        let feeds: Vec<Feed> = feeds
            .map(|&(arm, most)| session.arms[arm].feed(arm, most))
            .collect();
        let rows = rows_of(&feeds);
        let wanted = (0..rows.len()).filter(|&at| session.wants_logits(&rows[at]));
        let wanted = wanted.collect();
        let steering = session.steering.as_mut();
        let steering = steering.filter(|steering| !steering.plan.is_empty());
        Work {
            wanted,
            feeds,
            rows,
            slots: share
                .arms
                .iter()
                .filter_map(|&(arm, _)| Some((arm, session.slots[arm].as_ref()?)))
                .collect(),
            model: session.model.clone(),
            sparse,
            joined: session.joined.as_ref().map(|joined| joined.view()),
            edits: match &steering {
                Some(steering) => (0..steering.plan.edits.len()).collect(),
                None => Vec::new(),
            },
            steering,
            readings: StepReadings::default(),
        }
    }

    fn replays(&self) -> usize {
        let steering = self.steering.as_ref();
        steering.map_or(0, |steering| steering.plan.replays.len())
    }

    /// The model that an unedited run of this kind takes.
    fn reader(&self, kind: StreamModel) -> Option<&Arc<LoadedModel>> {
        match kind {
            StreamModel::Sparse => self.sparse.as_ref(),
            StreamModel::Dense => Some(&self.model),
        }
    }
}

/// The unedited runs of one kind, for all requests that read in one.
fn read(works: &mut [Work], kind: StreamModel, caches: &mut Caches) -> Result<()> {
    let mut parts: Vec<(usize, PassRows, Readings)> = Vec::new();
    for (index, work) in works.iter().enumerate() {
        let Some(steering) = work.steering.as_deref() else {
            continue;
        };
        let slots = |arm| work.slots[&arm];
        if let Some((rows, readings)) = steering.reading(kind, &work.feeds, slots) {
            parts.push((index, rows, readings));
        }
    }
    for model in models(
        parts
            .iter()
            .filter_map(|(index, ..)| works[*index].reader(kind)),
    ) {
        let mut taps = Vec::new();
        let mut passes = Vec::new();
        for (index, rows, readings) in &mut parts {
            let work = &works[*index];
            let same = work
                .reader(kind)
                .is_some_and(|own| Arc::ptr_eq(own, &model));
            let needs = work
                .steering
                .as_deref()
                .and_then(|steering| steering.needs(kind));
            if let Some(needs) = needs.filter(|_| same && !rows.ids.is_empty()) {
                taps.push(ReadingTap { needs, readings });
                passes.push(std::mem::take(rows));
            }
        }
        let taps = taps.iter_mut().map(|tap| tap as &mut dyn RowTap);
        pass(&model, caches.of(&model), passes, taps.map(Some).collect())?;
    }
    for (index, _, readings) in parts {
        *works[index].readings.of(kind) = readings;
    }
    Ok(())
}

/// The second run of number `replay` of every request that has so many.
fn run_replay(works: &mut [Work], replay: usize, caches: &mut Caches) -> Result<()> {
    for model in models(works.iter().filter_map(|work| work.sparse.as_ref())) {
        let mut prepared = Vec::new();
        for (index, work) in works.iter().enumerate() {
            let same = work
                .sparse
                .as_ref()
                .is_some_and(|own| Arc::ptr_eq(own, &model));
            if !same || work.replays() <= replay {
                continue;
            }
            if let Some(steering) = work.steering.as_deref() {
                let slots = |arm| work.slots[&arm];
                let (followed, rows) = steering.replay_rows(replay, &work.feeds, &work.rows, slots);
                prepared.push((index, followed, rows));
            }
        }
        let mut results = Vec::new();
        {
            let (mut taps, mut passes) = (Vec::new(), Vec::new());
            let mut prepared = prepared.iter_mut().peekable();
            for (index, work) in works.iter_mut().enumerate() {
                let Some((_, followed, rows)) = prepared.next_if(|(of, ..)| *of == index) else {
                    continue;
                };
                let Work {
                    steering, readings, ..
                } = work;
                if let Some(steering) = steering.as_deref_mut().filter(|_| !rows.ids.is_empty()) {
                    taps.push((index, steering.replay_tap(replay, followed, readings)));
                    passes.push(std::mem::take(rows));
                }
            }
            let row_taps = taps.iter_mut().map(|(_, tap)| tap as &mut dyn RowTap);
            pass(
                &model,
                caches.of(&model),
                passes,
                row_taps.map(Some).collect(),
            )?;
            for (index, tap) in taps {
                results.push((index, tap.recorded));
            }
        }
        for (index, followed, _) in prepared {
            let recorded = results.iter().position(|(of, _)| *of == index);
            let readings = match recorded {
                Some(at) => {
                    let (_, recorded) = results.swap_remove(at);
                    Readings::of_rows(recorded, &followed, works[index].rows.len())
                }
                None => Readings::default(),
            };
            works[index].readings.replays.push(readings);
        }
    }
    Ok(())
}

/// The answering models, and the logits after the rows that want them.
fn answer(works: &mut [Work], caches: &mut Caches) -> Result<Vec<Computed>> {
    let mut computed: Vec<Computed> = works
        .iter()
        .map(|work| Computed {
            rows: work.rows.clone(),
            logits: Vec::new(),
        })
        .collect();
    for model in models(works.iter().map(|work| &work.model)) {
        let mut members = Vec::new();
        let (mut taps, mut passes) = (Vec::new(), Vec::new());
        for (index, work) in works.iter_mut().enumerate() {
            if !Arc::ptr_eq(&work.model, &model) {
                continue;
            }
            let Work {
                feeds,
                rows,
                slots,
                joined,
                steering,
                edits,
                readings,
                wanted,
                ..
            } = work;
            passes.push(PassRows {
                ids: ids_of(feeds),
                at: cache_rows(rows, |arm| slots[&arm].answer),
            });
            taps.push(
                steering
                    .as_deref_mut()
                    .map(|steering| steering.answering_tap(*joined, edits, rows, readings)),
            );
            members.push((index, wanted.as_slice()));
        }
        let taps = taps.iter_mut();
        let taps = taps.map(|tap| tap.as_mut().map(|tap| tap.as_mut() as &mut dyn RowTap));
        let Some(Passed { stream, ids, rows }) =
            pass(&model, caches.of(&model), passes, taps.collect())?
        else {
            continue;
        };
        let wanted: Vec<(usize, usize, u32)> = members
            .iter()
            .zip(&rows)
            .flat_map(|(&(index, wanted), rows)| {
                let global = move |&at: &usize| (index, at, (rows.start + at) as u32);
                wanted.iter().map(global)
            })
            .collect();
        let vocabulary = model.transformer.config.vocab_size;
        for chunk in wanted.chunks(ROWS_OF_LOGITS) {
            let picked: Vec<u32> = chunk.iter().map(|&(_, _, row)| row).collect();
            let picked = Tensor::new(picked, &Device::Cpu)?;
            let (stream, ids) = (
                stream.index_select(&picked, 0)?,
                ids.index_select(&picked, 0)?,
            );
            let logits = rows::to_vec(&model.transformer.unembed(&stream, &ids)?)?;
            for (&(index, at, _), logits) in chunk.iter().zip(logits.chunks_exact(vocabulary)) {
                computed[index].logits.push((at, logits.to_vec()));
            }
        }
    }
    Ok(computed)
}

/// The distinct ones, in the order of their first appearance.
fn models<'m>(all: impl Iterator<Item = &'m Arc<LoadedModel>>) -> Vec<Arc<LoadedModel>> {
    let mut distinct: Vec<Arc<LoadedModel>> = Vec::new();
    for model in all {
        if !distinct.iter().any(|known| Arc::ptr_eq(known, model)) {
            distinct.push(model.clone());
        }
    }
    distinct
}

/// What went through a model.
struct Passed {
    /// At the last site, `[rows, d_model]`.
    stream: Tensor,
    /// `[rows]`.
    ids: Tensor,
    /// The rows of each part.
    rows: Vec<Range<usize>>,
}

/// One pass of all parts' rows, each part with its tap; none where there are no rows.
fn pass(
    model: &LoadedModel,
    cache: &mut KvCache,
    parts: Vec<PassRows>,
    taps: Vec<Option<&mut dyn RowTap>>,
) -> Result<Option<Passed>> {
    let mut all = PassRows::default();
    let (mut split, mut rows) = (SplitTap::default(), Vec::with_capacity(parts.len()));
    for (part, tap) in parts.into_iter().zip(taps) {
        let first = all.ids.len();
        all.ids.extend(part.ids);
        all.at.extend(part.at);
        rows.push(first..all.ids.len());
        if let Some(tap) = tap {
            split.push(first..all.ids.len(), tap);
        }
    }
    if all.ids.is_empty() {
        return Ok(None);
    }
    let transformer = &model.transformer;
    let mut tokens = TokenRows::cached(&all.ids, all.at, cache)?;
    let ids = tokens.ids.clone();
    let stream = transformer.embed(&tokens)?;
    let first = Site::before_attention(0, transformer.config.n_layers);
    let stream = transformer.run(first, stream, &mut tokens, &mut split)?;
    Ok(Some(Passed { stream, ids, rows }))
}
