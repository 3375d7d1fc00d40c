//! Unedited runs beside the arms: the sparse model on the arms' own tokens, and the counterfactual streams.
//!
//! Each arm has a slot for its own tokens and one for every stream; all of them step as one batch. What is
//! recorded is found by the answering model's rows.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Result;

use super::plan::Plan;
use super::plan::counterfactual::StreamModel;
use super::rows_of_arms::{Feed, Row, RowValues, rows_of};
use crate::models::kv_cache::{CacheRow, KvCache};
use crate::models::location::Place;
use crate::models::tap::Recorder;
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;

/// One model's unedited runs for a request.
pub struct ReadingRun<'m> {
    model: &'m Transformer,
    cache: KvCache,
    /// Whether it runs on the arms' own tokens.
    own: bool,
    /// The plan's streams that it runs.
    streams: Vec<usize>,
    places: BTreeSet<Place>,
}

/// What one step of a [`ReadingRun`] recorded.
#[derive(Debug, Default)]
pub struct Readings {
    values: BTreeMap<Place, RowValues>,
    /// The position of each recorded row.
    pub positions: Vec<u32>,
    /// By the answering model's row: the row of the same token.
    own: Vec<Option<usize>>,
    /// By stream, then by the answering model's row: the row of the counterfactual token beside it.
    partners: BTreeMap<usize, Vec<Option<usize>>>,
}

impl Readings {
    /// The values of `place` on the token of the answering model's row `row`.
    pub fn own(&self, place: Place, row: usize) -> Option<&[f32]> {
        let at = (*self.own.get(row)?)?;
        Some(self.values.get(&place)?.row(at))
    }

    /// The values of `place` on the token that stands beside row `row` in a stream.
    pub fn partner(&self, place: Place, stream: usize, row: usize) -> Option<&[f32]> {
        Some(self.values.get(&place)?.row(self.partner_row(stream, row)?))
    }

    /// The recorded row that stands beside row `row` in a stream.
    pub fn partner_row(&self, stream: usize, row: usize) -> Option<usize> {
        *self.partners.get(&stream)?.get(row)?
    }

    /// All recorded rows of `place`.
    pub fn all(&self, place: Place) -> Option<&RowValues> {
        self.values.get(&place)
    }

    /// Values recorded by another kind of run, on the tokens of these rows.
    pub fn of_rows(values: BTreeMap<Place, RowValues>, rows: &[Row], count: usize) -> Self {
        let mut own = vec![None; count];
        for (at, row) in rows.iter().enumerate() {
            own[row.index] = Some(at);
        }
        let positions = rows.iter().map(|row| row.position as u32).collect();
        Readings {
            values,
            positions,
            own,
            partners: BTreeMap::new(),
        }
    }
}

impl<'m> ReadingRun<'m> {
    /// The run of `model` that the plan calls for; none where it reads nothing there.
    pub fn new(
        plan: &Plan,
        kind: StreamModel,
        model: &'m Transformer,
        arms: usize,
        capacity: usize,
    ) -> Option<Self> {
        let streams = plan.streams_of(kind);
        let (own, places) = match kind {
            StreamModel::Sparse => (plan.reads_sparse(), plan.sparse_places()),
            StreamModel::Dense => (false, plan.dense_places()),
        };
        if !own && streams.is_empty() {
            return None;
        }
        let slots = arms * (usize::from(own) + streams.len());
        let cache = KvCache::new(&model.config, slots, capacity);
        Some(ReadingRun {
            model,
            cache,
            own,
            streams,
            places,
        })
    }

    /// Runs the tokens of `feeds` for those arms that `follows` names, and the tokens beside them.
    pub fn step(
        &mut self,
        plan: &Plan,
        feeds: &[Feed],
        follows: impl Fn(usize) -> bool,
    ) -> Result<Readings> {
        let main = rows_of(feeds);
        let per_arm = usize::from(self.own) + self.streams.len();
        let mut readings = Readings {
            own: vec![None; main.len()],
            partners: self
                .streams
                .iter()
                .map(|&stream| (stream, vec![None; main.len()]))
                .collect(),
            ..Readings::default()
        };
        let (mut ids, mut at) = (Vec::new(), Vec::new());
        let mut first_row = 0;
        for feed in feeds {
            let fed = feed.tokens.len() - feed.from;
            let first = first_row;
            first_row += fed;
            if !follows(feed.arm) {
                continue;
            }
            let slot = feed.arm * per_arm;
            if self.own {
                for position in feed.from..feed.tokens.len() {
                    readings.own[first + position - feed.from] = Some(ids.len());
                    ids.push(feed.tokens[position]);
                    at.push(CacheRow { slot, position });
                }
            }
            for (offset, &index) in self.streams.iter().enumerate() {
                let slot = slot + usize::from(self.own) + offset;
                let stream = &plan.streams[index];
                let prompt = &stream.prompts[feed.prompt];
                let start = match feed.from {
                    0 => 0,
                    from => from + prompt.len() - feed.prompt_length,
                };
                let end = feed.tokens.len() + prompt.len() - feed.prompt_length;
                let first_id = ids.len();
                for position in start..end {
                    ids.push(match position.checked_sub(prompt.len()) {
                        None => prompt[position],
                        Some(generated) => feed.tokens[feed.prompt_length + generated],
                    });
                    at.push(CacheRow { slot, position });
                }
                let Some(partners) = readings.partners.get_mut(&index) else {
                    continue;
                };
                for position in feed.from..feed.tokens.len() {
                    let beside = stream.partner(feed.prompt, feed.prompt_length, position);
                    partners[first + position - feed.from] =
                        beside.map(|beside| first_id + beside - start);
                }
            }
        }
        if ids.is_empty() {
            return Ok(readings);
        }
        readings.positions = at.iter().map(|row| row.position as u32).collect();
        let mut recorder = Recorder::of(self.places.iter().copied());
        let mut rows = TokenRows::cached(&ids, at, &mut self.cache)?;
        let stream = self.model.embed(&rows)?;
        let first = crate::models::location::Site::before_attention(0, self.model.config.n_layers);
        self.model.run(first, stream, &mut rows, &mut recorder)?;
        for (place, value) in recorder.into_values() {
            readings.values.insert(place, RowValues::of(&value)?);
        }
        Ok(readings)
    }
}
