//! Unedited runs beside the arms: on the arms' own tokens, and on the counterfactual streams.
//!
//! Each arm has a slot for its own tokens and one for every stream; the rows of all arms, whosever they are, run as
//! one pass. What is recorded is found by the answering model's rows.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Result, Tensor};

use super::plan::Plan;
use super::plan::counterfactual::StreamModel;
use super::rows_of_arms::{Feed, PassRows, Row, RowBlock, SamePrompts, rows_of};
use crate::models::kv_cache::CacheRow;
use crate::models::location::Location;
use crate::models::tap::{OwnRows, RowTap};

/// What a plan reads in unedited runs of one model.
#[derive(Debug)]
pub struct ReadingNeeds {
    /// Whether it runs on the arms' own tokens.
    own: bool,
    /// The plan's streams that it runs.
    streams: Vec<usize>,
    places: BTreeSet<Location>,
}

/// What one step's unedited run of a model recorded.
#[derive(Debug, Default)]
pub struct Readings {
    /// `[recorded rows, width]`, where the pass left them.
    values: BTreeMap<Location, Tensor>,
    /// The position of each recorded row.
    pub positions: Vec<u32>,
    /// By the answering model's row: the row of the same token.
    own: Vec<Option<usize>>,
    /// By stream, then by the answering model's row: the row of the counterfactual token beside it.
    partners: BTreeMap<usize, Vec<Option<usize>>>,
}

impl Readings {
    /// The values of `place` on the tokens of these rows of the answering model; none where they were not recorded.
    pub fn own(
        &self,
        place: Location,
        rows: impl Iterator<Item = usize>,
    ) -> Result<Option<RowBlock>> {
        let own = rows.map(|row| self.own_row(row));
        let values = self.values.get(&place);
        values
            .map(|values| RowBlock::gather(values, own))
            .transpose()
    }

    /// The recorded row of the same token as the answering model's row `row`.
    pub fn own_row(&self, row: usize) -> Option<usize> {
        *self.own.get(row)?
    }

    /// The values of `place` on the tokens that stand beside these rows in a stream.
    pub fn partners(
        &self,
        place: Location,
        stream: usize,
        rows: impl Iterator<Item = usize>,
    ) -> Result<Option<RowBlock>> {
        let beside = rows.map(|row| self.partner_row(stream, row));
        let values = self.values.get(&place);
        values
            .map(|values| RowBlock::gather(values, beside))
            .transpose()
    }

    /// The recorded row that stands beside row `row` in a stream.
    pub fn partner_row(&self, stream: usize, row: usize) -> Option<usize> {
        *self.partners.get(&stream)?.get(row)?
    }

    /// All recorded rows of `place`.
    pub fn all(&self, place: Location) -> Option<&Tensor> {
        self.values.get(&place)
    }

    /// Values recorded by another kind of run, on the tokens of these rows.
    pub fn of_rows(values: BTreeMap<Location, Tensor>, rows: &[Row], count: usize) -> Self {
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

/// Records what an unedited run is read for.
pub struct ReadingTap<'a> {
    pub needs: &'a ReadingNeeds,
    pub readings: &'a mut Readings,
}

impl RowTap for ReadingTap<'_> {
    fn places(&self) -> &BTreeSet<Location> {
        &self.needs.places
    }

    fn look(&mut self, place: Location, rows: &OwnRows, _changed: &mut Vec<u32>) -> Result<()> {
        self.readings.values.insert(place, rows.tensor()?);
        Ok(())
    }
}

impl ReadingNeeds {
    /// What the plan reads in one model; none where it reads nothing there.
    pub fn of(plan: &Plan, kind: StreamModel) -> Option<Self> {
        let streams = plan.streams_of(kind);
        let (own, places) = match kind {
            StreamModel::Sparse => (plan.reads_sparse(), plan.sparse_places()),
            StreamModel::Dense => (plan.reads_dense(), plan.dense_places()),
        };
        (own || !streams.is_empty()).then_some(ReadingNeeds {
            own,
            streams,
            places,
        })
    }

    /// Slots that one arm takes.
    pub fn slots(&self) -> usize {
        usize::from(self.own) + self.streams.len()
    }

    /// What runs in each of an arm's slots, in their order: the arm's own tokens, which are no stream, or a stream.
    pub fn texts(&self) -> impl Iterator<Item = Option<usize>> {
        let streams = self.streams.iter().copied().map(Some);
        self.own.then_some(None).into_iter().chain(streams)
    }

    /// The tokens to run beside `feeds`, for those arms that have `slots`, and the readings to be filled by a
    /// [`ReadingTap`].
    pub fn prepare<'s>(
        &self,
        plan: &Plan,
        feeds: &[Feed],
        slots: impl Fn(usize) -> &'s [usize],
    ) -> (PassRows, Readings) {
        let main = rows_of(feeds);
        let mut readings = Readings {
            own: vec![None; main.len()],
            partners: self
                .streams
                .iter()
                .map(|&stream| (stream, vec![None; main.len()]))
                .collect(),
            ..Readings::default()
        };
        let mut pass = PassRows::default();
        // Unedited, a prompt is the same for all arms that have it.
        let mut same = SamePrompts::default();
        let mut first_row = 0;
        for feed in feeds {
            let fed = feed.tokens.len() - feed.from;
            let first = first_row;
            first_row += fed;
            let mut slots = slots(feed.arm).iter().copied();
            if self.own
                && let Some(slot) = slots.next()
            {
                for position in feed.from..feed.tokens.len() {
                    let in_prompt = position < feed.prompt_length;
                    let text = in_prompt.then_some((&mut same, 0, feed.prompt));
                    let row = pass.push(text, feed.tokens[position], CacheRow { slot, position });
                    readings.own[first + position - feed.from] = Some(row);
                }
            }
            for (&index, slot) in self.streams.iter().zip(slots) {
                let stream = &plan.streams[index];
                let prompt = &stream.prompts[feed.prompt];
                let up_to = |position| stream.before(feed.prompt, feed.prompt_length, position);
                let start = if feed.from == 0 { 0 } else { up_to(feed.from) };
                let mut streamed = Vec::new();
                for position in start..up_to(feed.tokens.len()) {
                    let (id, text) = match position.checked_sub(prompt.len()) {
                        None => (prompt[position], Some((&mut same, 1 + index, feed.prompt))),
                        Some(generated) => (feed.tokens[feed.prompt_length + generated], None),
                    };
                    streamed.push(pass.push(text, id, CacheRow { slot, position }));
                }
                let Some(partners) = readings.partners.get_mut(&index) else {
                    continue;
                };
                for position in feed.from..feed.tokens.len() {
                    let beside = stream.partner(feed.prompt, feed.prompt_length, position);
                    partners[first + position - feed.from] =
                        beside.map(|beside| streamed[beside - start]);
                }
            }
        }
        readings.positions = pass.at.iter().map(|row| row.position as u32).collect();
        (pass, readings)
    }
}
