//! One step of many requests: every pass through a model is one batch of all their rows.
//!
//! A step takes the unedited runs first, then the second runs, then the answering models; the rows of all requests
//! that use a model in such a pass go through it together, each request's tap seeing its own rows only. Rows with
//! different edits, conditions and counterfactuals are never split into batches of their own, and a row's result
//! does not depend on its neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::next::{Next, WantedRow};
use super::pass::{Part, Parting, pass};
use super::session::Session;
use super::slots::Caches;
use crate::features::pair::Pair;
use crate::interventions::plan::counterfactual::StreamModel;
use crate::interventions::readings::{ReadingTap, Readings};
use crate::interventions::rows_of_arms::{
    Feed, PassRows, Row, SamePrompts, cache_rows, ids_of, rows_of,
};
use crate::interventions::steering::{ArmSlots, Steering, StepReadings};
use crate::models::location::{Location, Site};
use crate::models::model::LoadedModel;
use crate::models::tap::{RowTap, WatchTap};

/// What one request feeds in a step: arms, and how many of their tokens at most.
pub struct Share<'s> {
    pub session: &'s mut Session,
    pub arms: Vec<(usize, usize)>,
    /// Where the values that the answering model goes on with are kept.
    pub watched: BTreeSet<Location>,
}

/// What a step has computed for one request.
pub struct Computed {
    /// All rows that were fed.
    pub rows: Vec<Row>,
    /// What comes after those rows of which something was wanted, by row.
    pub next: Vec<(usize, Next)>,
    /// What was watched, `[rows, width]` each.
    pub seen: BTreeMap<Location, Tensor>,
}

/// One request's part of the work.
struct Work<'s> {
    feeds: Vec<Feed<'s>>,
    rows: Vec<Row>,
    wanted: Vec<WantedRow>,
    /// By arm.
    slots: BTreeMap<usize, &'s ArmSlots>,
    model: Arc<LoadedModel>,
    sparse: Option<Arc<LoadedModel>>,
    pair: Option<&'s Pair>,
    steering: Option<&'s mut Steering>,
    edits: Vec<usize>,
    readings: StepReadings,
    watched: &'s BTreeSet<Location>,
    seen: BTreeMap<Location, Tensor>,
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
        let wanted = rows.iter().filter(|row| session.wants_logits(row));
        let wanted = wanted.map(|row| WantedRow {
            row: row.index,
            draw: session.draw_after(row),
        });
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
            pair: session.pair.as_deref(),
            edits: match &steering {
                Some(steering) => (0..steering.plan.edits.len()).collect(),
                None => Vec::new(),
            },
            steering,
            readings: StepReadings::default(),
            watched: &share.watched,
            seen: BTreeMap::new(),
        }
    }

    /// The rows that the answering model takes. Below the first place that anyone looks at, what arms with the same
    /// prompt have in common is run once.
    fn answering_rows(&self) -> Part<'s> {
        let all = PassRows {
            ids: ids_of(&self.feeds),
            at: cache_rows(&self.rows, |arm| self.slots[&arm].answer),
            copies: Vec::new(),
        };
        let mut once = PassRows::default();
        let mut same = SamePrompts::default();
        let mut sources = Vec::with_capacity(self.rows.len());
        for (row, (&id, &at)) in self.rows.iter().zip(all.ids.iter().zip(&all.at)) {
            let in_prompt = row.position < row.prompt_length;
            let text = in_prompt.then_some((&mut same, 0, row.prompt));
            sources.push(once.push(text, id, at) as u32);
        }
        let steering = self.steering.as_deref();
        let looked_at = steering.and_then(|steering| steering.plan.first_site());
        let (rows, parting) = match (once.copies.is_empty(), looked_at) {
            (true, _) => (all, None),
            (false, at) => {
                // Nobody looks: they part for the sake of their logits only.
                let config = &self.model.transformer.config;
                let last = Site::before_attention(config.n_layers, config.n_layers);
                let at = at.unwrap_or(last).pass_start(config);
                (
                    once,
                    Some(Parting {
                        at,
                        rows: all,
                        sources,
                    }),
                )
            }
        };
        Part {
            rows,
            tap: None,
            parting,
            wanted: self.wanted.clone(),
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
        let parts = passes.into_iter().zip(taps).map(silent).collect();
        pass(&model.transformer, caches.cache_of(&model), parts)?;
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
            let parts = passes.into_iter().zip(row_taps).map(silent).collect();
            pass(&model.transformer, caches.cache_of(&model), parts)?;
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

/// A part that is run for what its tap sees.
fn silent<'p>((rows, tap): (PassRows, &'p mut dyn RowTap)) -> Part<'p> {
    Part {
        rows,
        tap: Some(tap),
        parting: None,
        wanted: Vec::new(),
    }
}

/// The answering models, and what comes after the rows that want it.
fn answer(works: &mut [Work], caches: &mut Caches) -> Result<Vec<Computed>> {
    let mut computed: Vec<Computed> = works
        .iter()
        .map(|work| Computed {
            rows: work.rows.clone(),
            next: Vec::new(),
            seen: BTreeMap::new(),
        })
        .collect();
    for model in models(works.iter().map(|work| &work.model)) {
        let mut members = Vec::new();
        let (mut taps, mut parts) = (Vec::new(), Vec::new());
        for (index, work) in works.iter_mut().enumerate() {
            if !Arc::ptr_eq(&work.model, &model) {
                continue;
            }
            let part = work.answering_rows();
            let wanted = work.wanted.clone();
            let Work {
                pair,
                steering,
                edits,
                rows,
                readings,
                watched,
                seen,
                ..
            } = work;
            let steering = steering.as_deref_mut();
            let tap = steering.map(|steering| steering.answering_tap(*pair, edits, rows, readings));
            taps.push(match watched.is_empty() {
                true => tap,
                false => Some(Box::new(WatchTap::new(tap, watched, seen)) as Box<dyn RowTap>),
            });
            members.push((index, wanted));
            parts.push(part);
        }
        for (part, tap) in parts.iter_mut().zip(&mut taps) {
            part.tap = tap.as_mut().map(|tap| tap.as_mut() as &mut dyn RowTap);
        }
        let next = pass(&model.transformer, caches.cache_of(&model), parts)?;
        for ((index, wanted), next) in members.into_iter().zip(next) {
            let rows = wanted.into_iter().map(|wanted| wanted.row);
            computed[index].next = rows.zip(next).collect();
        }
    }
    for (computed, work) in computed.iter_mut().zip(works) {
        computed.seen = std::mem::take(&mut work.seen);
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::generation::tests::forward::{OTHER, PROMPT};
    use crate::generation::tests::pair::{request, steered};
    use crate::interventions::plan::counterfactual::StreamModel::Sparse;

    /// The first step of a request whose arms all have slots and take their whole prompt.
    fn first_rows(asked: crate::generation::request::GenerationRequest) -> (usize, Part<'static>) {
        let mut session = Session::admit(asked).expect("a session");
        let mut caches = Caches::new(16);
        for arm in 0..session.arms.len() {
            session.slots[arm] = caches
                .lend(&session, session.needs(arm))
                .expect("room in memory");
        }
        let arms = (0..session.arms.len())
            .map(|arm| (arm, usize::MAX))
            .collect();
        let mut share = Share {
            session: &mut session,
            arms,
            watched: BTreeSet::new(),
        };
        let work = Work::of(&mut share);
        let steering = work.steering.as_deref();
        let read = steering
            .and_then(|steering| steering.reading(Sparse, &work.feeds, |arm| work.slots[&arm]));
        let read = read.map_or(0, |(rows, _)| rows.ids.len());
        let Part {
            rows,
            parting,
            wanted,
            ..
        } = work.answering_rows();
        let part = Part {
            rows,
            tap: None,
            parting,
            wanted,
        };
        (read, part)
    }

    #[test]
    fn samples_of_a_prompt_run_it_once() {
        let mut asked = request(&[PROMPT, OTHER]);
        asked.n = 3;
        let (_, part) = first_rows(asked);
        let once = PROMPT.len() + OTHER.len();
        assert_eq!(part.rows.ids.len(), once);
        assert_eq!(part.rows.copies.len(), 2 * once);
        let parting = part.parting.expect("three continuations each");
        assert!(parting.at.is_last());
        assert_eq!(parting.rows.ids.len(), 3 * once);
    }

    #[test]
    fn arms_part_at_the_first_place_that_is_edited_and_read_one_sparse_run() {
        let edit = json!({"feature": {"node": "1.resid_mid", "channel": 2}, "op": "scale", "value": 2,
            "strength": [0.5, 1, 2]});
        let steer = json!({"edits": [edit], "variants": ["steered", "baseline"]});
        let (read, part) = first_rows(steered(&[PROMPT], steer));
        assert_eq!(part.rows.ids.len(), PROMPT.len());
        assert_eq!(read, PROMPT.len());
        let parting = part.parting.expect("four continuations");
        assert_eq!(parting.at.to_string(), "1.resid_mid");
        assert_eq!(parting.rows.ids.len(), 4 * PROMPT.len());
        let (_, alone) = first_rows(request(&[PROMPT]));
        assert!(alone.parting.is_none());
    }
}
