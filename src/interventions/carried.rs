//! Steering a dense model: changes of sparse features and of raw directions, computed at their sites and added
//! to the rows they belong to.
//!
//! The tap sees the dense stream `[rows, D]` site after site. At a site it reads what is read through the
//! encoder, then makes the site's edits in the order of the request, each row its own arm's. A change for the
//! stream is added there and then; one for a sublayer's input waits for the pass to come by.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Result, Tensor};

use super::carry::is_sublayer_input;
use super::in_place::{add, touches};
use super::operation::{Action, norm};
use super::plan::condition::Test;
use super::plan::{Edit, Joined, Plan, Route, Source, Step, needs_sparse_rms};
use super::readings::Readings;
use super::receipt::{Record, Records};
use super::rows_of_arms::{Row, RowValues, SteeredArm};
use crate::models::location::{Place, Site};
use crate::models::tap::RowTap;
use crate::numerics::norm::root_mean_square;

/// What other runs of the same step have read.
pub struct Beside<'a> {
    /// The unedited sparse model.
    pub sparse: &'a Readings,
    /// The unedited dense model: on counterfactuals, and on the arms' own tokens for conditions.
    pub dense: &'a Readings,
    /// For each replay of the plan, its sublayer's edited output.
    pub replays: &'a [Readings],
}

/// Changes a dense model's values.
pub struct CarriedTap<'a> {
    plan: &'a Plan,
    joined: Option<Joined<'a>>,
    arms: &'a [SteeredArm],
    rows: &'a [Row],
    beside: Beside<'a>,
    records: &'a mut Records,
    /// The encoder's output for the stream as edited at earlier sites.
    encoded: BTreeMap<Place, RowValues>,
    /// The same of the dense model's unedited runs, by their rows.
    encoded_unedited: BTreeMap<Place, RowValues>,
    /// The dense stream where conditions look at it.
    watched: BTreeMap<Site, RowValues>,
    /// A place's values as edits so far have left them.
    working: BTreeMap<(Place, Source), RowValues>,
    /// Changes that wait for their node.
    pending: BTreeMap<Place, Pending>,
}

/// The dense stream of a site while its edits are made.
struct Stream<'v> {
    /// `[rows, width]`, as the edits so far have left them.
    values: &'v mut [f32],
    width: usize,
    /// Of the rows before any edit; empty where nothing is recorded.
    base_norms: Vec<f32>,
}

impl Stream<'_> {
    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.width..][..self.width]
    }

    fn base_norm(&self, row: usize) -> f32 {
        self.base_norms.get(row).copied().unwrap_or_default()
    }
}

struct Pending {
    changes: RowValues,
    /// The records to complete, with the row and the edit they belong to.
    notes: Vec<(usize, usize, f32)>,
}

impl<'a> CarriedTap<'a> {
    pub fn new(
        plan: &'a Plan,
        joined: Option<Joined<'a>>,
        arms: &'a [SteeredArm],
        rows: &'a [Row],
        beside: Beside<'a>,
        records: &'a mut Records,
    ) -> Self {
        CarriedTap {
            plan,
            joined,
            arms,
            rows,
            beside,
            records,
            encoded: BTreeMap::new(),
            encoded_unedited: BTreeMap::new(),
            watched: BTreeMap::new(),
            working: BTreeMap::new(),
            pending: BTreeMap::new(),
        }
    }
}

impl RowTap for CarriedTap<'_> {
    fn places(&self) -> &BTreeSet<Place> {
        &self.plan.places
    }

    fn visit(&mut self, place: Place, values: &mut [f32], width: usize) -> Result<bool> {
        match place {
            Place::Site(site) => self.at_site(site, values, width),
            Place::Node(_) => match self.pending.remove(&place) {
                Some(pending) => Ok(self.at_node(pending, values, width)),
                None => Ok(false),
            },
        }
    }
}

impl CarriedTap<'_> {
    fn at_site(&mut self, site: Site, values: &mut [f32], width: usize) -> Result<bool> {
        self.read_at(site, values, width)?;
        let plan = self.plan;
        let Some(steps) = plan.steps.get(&site) else {
            return Ok(false);
        };
        let mut stream = Stream {
            base_norms: match self.records.wanted() {
                true => values.chunks_exact(width).map(norm).collect(),
                false => Vec::new(),
            },
            values,
            width,
        };
        let mut changed = false;
        for &step in steps {
            changed |= match step {
                Step::Edit(index) => self.edit(index, site, &mut stream)?,
                Step::Replay(index) => self.replay(index, &mut stream)?,
            };
        }
        Ok(changed)
    }

    /// Adds what waits for a sublayer's input `[rows, d_read]`, whose first channels are the stream's.
    fn at_node(&mut self, pending: Pending, values: &mut [f32], width: usize) -> bool {
        let mut changed = BTreeSet::new();
        for (at, edit, change_norm) in pending.notes {
            let row = &self.rows[at];
            let base_norm = norm(&values[at * width..][..width]);
            self.records
                .measure(row.arm, edit, row.position, change_norm, base_norm);
            changed.insert(at);
        }
        for &at in &changed {
            add(&mut values[at * width..][..width], pending.changes.row(at));
        }
        !changed.is_empty()
    }

    /// Reads through the encoder, and keeps the stream for conditions, before this site's edits.
    fn read_at(&mut self, site: Site, values: &[f32], width: usize) -> Result<()> {
        if self.plan.watches(site) {
            let stream = RowValues::copied(values, width);
            self.watched.insert(site, stream);
        }
        let places = self.plan.encoder_places(site);
        if !places.is_empty() {
            let stream = RowValues::copied(values, width);
            let positions: Vec<u32> = self.rows.iter().map(|row| row.position as u32).collect();
            let encoded = self.encode(site, &stream, &positions, places.into_iter())?;
            self.encoded.extend(encoded);
        }
        let places = self.plan.unedited_encoder_places(site);
        let dense = self.beside.dense;
        if let Some(unedited) = dense.all(Place::Site(site)).filter(|_| !places.is_empty()) {
            let encoded = self.encode(site, unedited, &dense.positions, places.into_iter())?;
            self.encoded_unedited.extend(encoded);
        }
        Ok(())
    }

    /// The encoder's output for a dense stream, at the site and at the places that read it.
    fn encode(
        &self,
        site: Site,
        stream: &RowValues,
        positions: &[u32],
        places: impl Iterator<Item = Place>,
    ) -> Result<Vec<(Place, RowValues)>> {
        let Some(joined) = self.joined else {
            return Ok(Vec::new());
        };
        let encoded = joined.bridge.encode(site, &stream.to_tensor()?)?;
        let mut values = vec![(Place::Site(site), RowValues::of(&encoded)?)];
        for place in places.filter(|place| is_sublayer_input(*place)) {
            let Some(input) = joined.sparse.sublayer_input(site) else {
                continue;
            };
            let positions = Tensor::new(positions, encoded.device())?;
            let positional = joined.sparse.positional_channels(&positions)?;
            let read = input.forward(&encoded, positional.as_ref())?;
            values.push((place, RowValues::of(&read)?));
        }
        Ok(values)
    }

    fn edit(&mut self, index: usize, site: Site, stream: &mut Stream) -> Result<bool> {
        let plan = self.plan;
        let edit = &plan.edits[index];
        let key = (edit.subject.place(), edit.source);
        // Taken out while the edit works on it, so that nothing else borrows it.
        let mut working = match (self.working.remove(&key), edit.source) {
            (Some(values), _) => values,
            (None, Source::Own | Source::Unread) => RowValues::zeros(0, 1),
            (None, Source::Sparse) => self.sparse_values(key.0)?,
            (None, Source::Encoder) => match self.encoded.get(&key.0) {
                Some(values) => values.clone(),
                None => candle_core::bail!("{} was not read through the encoder", key.0),
            },
        };
        let mut changed = false;
        for at in 0..self.rows.len() {
            changed |= self.edit_row(index, at, site, &mut working, stream)?;
        }
        if matches!(edit.source, Source::Sparse | Source::Encoder) {
            self.working.insert(key, working);
        }
        Ok(changed)
    }

    /// The unedited sparse values of a place, by the dense model's rows; zeros where no arm reads them.
    fn sparse_values(&self, place: Place) -> Result<RowValues> {
        let Some(width) = self.beside.sparse.all(place).map(RowValues::width) else {
            return Ok(RowValues::zeros(self.rows.len(), 1));
        };
        let mut values = RowValues::zeros(self.rows.len(), width);
        for at in 0..self.rows.len() {
            if let Some(row) = self.beside.sparse.own(place, at) {
                values.row_mut(at).copy_from_slice(row);
            }
        }
        Ok(values)
    }

    fn edit_row(
        &mut self,
        index: usize,
        at: usize,
        site: Site,
        working: &mut RowValues,
        stream: &mut Stream,
    ) -> Result<bool> {
        let (plan, row) = (self.plan, &self.rows[at]);
        let arm = &self.arms[row.arm];
        if !arm.follows {
            return Ok(false);
        }
        let edit = &plan.edits[index];
        let partner = match edit.action {
            Action::Patch { stream } => Some(self.partner(edit, stream, at)),
            _ => None,
        };
        let touched =
            arm.edits() && touches(edit, row) && partner != Some(None) && self.allowed(edit, at);
        if !touched {
            if self.records.wanted() {
                let own = edit.source == Source::Own;
                let values = if own { stream.row(at) } else { working.row(at) };
                let before = edit.subject.read(values);
                let record = Record {
                    before,
                    after: before,
                    ..Record::default()
                };
                self.records.note(row.arm, index, row.position, record);
            }
            return Ok(false);
        }
        let strength = edit.strength.in_arm(arm.strength);
        let partner = partner.flatten();
        let (moved, mut delta) = match &edit.route {
            Route::Carried(carrier) => {
                let moved = match edit.source {
                    Source::Unread => edit.subject.known_move(&edit.action, strength),
                    Source::Own | Source::Sparse | Source::Encoder => {
                        let row = working.row_mut(at);
                        edit.subject.apply(&edit.action, row, partner, strength)
                    }
                };
                let rms = match needs_sparse_rms(edit) {
                    true => root_mean_square(self.sparse_stream(edit, site, at)?, 0.0),
                    false => 1.0,
                };
                let mut delta = vec![0.0; carrier.width()];
                carrier.add(&moved.change, rms, &mut delta);
                (moved, delta)
            }
            Route::InPlace | Route::Replayed => {
                let mut row = stream.row(at).to_vec();
                let moved = edit
                    .subject
                    .apply(&edit.action, &mut row, partner, strength);
                let delta = moved.change.clone();
                (moved, delta)
            }
        };
        let change_norm = norm(&delta);
        if let Some(directions) = arm.directions.as_deref() {
            directions.replace(index, &mut delta);
        }
        let record = Record {
            touched,
            before: moved.before,
            after: moved.after,
            change_norm,
            base_norm: stream.base_norm(at),
        };
        self.records.note(row.arm, index, row.position, record);
        if change_norm == 0.0 {
            return Ok(false);
        }
        match &edit.route {
            Route::Carried(carrier) if carrier.target != Place::Site(site) => {
                let count = self.rows.len();
                let pending = self
                    .pending
                    .entry(carrier.target)
                    .or_insert_with(|| Pending {
                        changes: RowValues::zeros(count, delta.len()),
                        notes: Vec::new(),
                    });
                add(pending.changes.row_mut(at), &delta);
                pending.notes.push((at, index, change_norm));
                Ok(false)
            }
            _ => {
                add(stream.row_mut(at), &delta);
                Ok(true)
            }
        }
    }

    /// Adds the counterpart of the change that edits inside a sublayer made to its output.
    fn replay(&mut self, index: usize, stream: &mut Stream) -> Result<bool> {
        let replay = &self.plan.replays[index];
        let mut changed = false;
        for (at, row) in self.rows.iter().enumerate() {
            let arm = &self.arms[row.arm];
            let unedited = self.beside.sparse.own(replay.output, at);
            let edited = self
                .beside
                .replays
                .get(index)
                .and_then(|run| run.own(replay.output, at));
            let (Some(unedited), Some(edited), true) = (unedited, edited, arm.edits()) else {
                continue;
            };
            let changes: Vec<f32> = edited.iter().zip(unedited).map(|(a, b)| a - b).collect();
            let mut delta = vec![0.0; replay.carrier.width()];
            replay.carrier.add(&changes, 1.0, &mut delta);
            let change_norm = norm(&delta);
            if let (Some(directions), Some(&first)) =
                (arm.directions.as_deref(), replay.edits.first())
            {
                directions.replace(first, &mut delta);
            }
            for &edit in &replay.edits {
                let base_norm = stream.base_norm(at);
                self.records
                    .measure(row.arm, edit, row.position, change_norm, base_norm);
            }
            if change_norm != 0.0 {
                add(stream.row_mut(at), &delta);
                changed = true;
            }
        }
        Ok(changed)
    }

    /// The sparse stream at an edit's site, as the edit reads it.
    fn sparse_stream(&self, edit: &Edit, site: Site, at: usize) -> Result<&[f32]> {
        let place = Place::Site(site);
        let row = match edit.source {
            Source::Encoder => self.encoded.get(&place).map(|values| values.row(at)),
            Source::Own | Source::Sparse | Source::Unread => self.beside.sparse.own(place, at),
        };
        match row {
            Some(row) => Ok(row),
            None => candle_core::bail!("the sparse stream at {place} was not read"),
        }
    }

    /// The feature's place on the counterfactual token beside a row.
    fn partner(&self, edit: &Edit, stream: usize, at: usize) -> Option<&[f32]> {
        let place = edit.subject.place();
        match edit.source {
            Source::Unread => None,
            Source::Own => self.beside.dense.partner(place, stream, at),
            Source::Sparse => self.beside.sparse.partner(place, stream, at),
            Source::Encoder => {
                let row = self.beside.dense.partner_row(stream, at)?;
                self.encoded_unedited
                    .get(&place)
                    .map(|values| values.row(row))
            }
        }
    }

    fn allowed(&self, edit: &Edit, at: usize) -> bool {
        edit.condition
            .as_ref()
            .is_none_or(|condition| condition.holds(|test| self.tested(test, at)))
    }

    /// The unedited value that a condition looks at.
    fn tested(&self, test: &Test, at: usize) -> Option<f32> {
        let place = test.subject.place();
        let row = match (test.source, place) {
            (Source::Sparse, _) => self.beside.sparse.own(place, at),
            (Source::Own, _) if test.needs_unedited_run => self.beside.dense.own(place, at),
            (Source::Encoder, _) if test.needs_unedited_run => {
                let row = self.beside.dense.own_row(at);
                let encoded = self.encoded_unedited.get(&place).zip(row);
                encoded.map(|(values, row)| values.row(row))
            }
            (Source::Encoder, _) => self.encoded.get(&place).map(|values| values.row(at)),
            (Source::Own, Place::Site(site)) => {
                self.watched.get(&site).map(|values| values.row(at))
            }
            (Source::Own, Place::Node(_)) | (Source::Unread, _) => None,
        };
        row.map(|row| test.subject.read(row))
    }
}
