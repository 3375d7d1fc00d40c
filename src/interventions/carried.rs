//! Steering a dense model: changes of sparse features and of raw directions, computed at their sites and added
//! to the rows they belong to.
//!
//! The tap sees the dense stream `[rows, D]` site after site. At a site it reads what is read through the
//! encoder, then makes a table of the site's edits in the order of the request, each row its own arm's. A change for
//! the stream is added there and then; one for a sublayer's input waits for the pass to come by. Edits of the sparse
//! model's places are made where those are joined to the dense model ([`crate::bridge::site_map`]); what is read of the
//! sparse model, or through the encoder, is kept by its places there. Nodes of the dense model's own are edited where they
//! are, after what comes there from elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Result, Tensor, bail};

use super::carry::is_sublayer_input;
use super::host_copies::HostCopies;
use super::in_place::{change_in_place, touches};
use super::operation::Action;
use super::plan::condition::Test;
use super::plan::{Edit, Plan, Route, Source, Step, needs_sparse_rms};
use super::readings::Readings;
use super::receipt::{Record, Records};
use super::row_delta::RowDelta;
use super::row_edits::{Change, Outcome, ReadFrom, Rms, RowEdit, RowEdits, WriteTo};
use super::rows_of_arms::{Row, RowBlock, SteeredArm};
use crate::features::pair::Pair;
use crate::models::location::{Location, Site};
use crate::models::tap::{OwnRows, RowTap};
use crate::numerics::device;
use crate::numerics::kernels::edit_table::{EditTable, OwnOutcomes};

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
    pair: Option<&'a Pair>,
    arms: &'a [SteeredArm],
    rows: &'a [Row],
    beside: Beside<'a>,
    records: &'a mut Records,
    /// The encoder's output `[rows, S]` for the stream as edited at earlier sites.
    encoded: BTreeMap<Location, Tensor>,
    /// The same of the dense model's unedited runs, by their rows.
    encoded_unedited: BTreeMap<Location, Tensor>,
    /// The dense stream where conditions look at it.
    watched: BTreeMap<Site, Tensor>,
    tested: HostCopies,
    /// Changes that wait for their node, by row.
    pending: BTreeMap<Location, BTreeMap<usize, Pending>>,
    /// What is to be done at the place that was looked at last, and what is noted of each entry.
    table: RowEdits<'a>,
    notes: Vec<(usize, Note<'a>)>,
}

/// What a block has beside a row.
fn beside(block: &Option<RowBlock>, row: usize) -> Result<Option<&[f32]>> {
    match block {
        Some(block) => block.row(row),
        None => Ok(None),
    }
}

/// A change that waits for the pass to come by.
#[derive(Default)]
struct Pending {
    changes: Vec<RowDelta>,
    /// The edits that it is made of, with their norms.
    edits: Vec<(usize, f32)>,
}

/// What is noted of a table's entry once it is carried out.
enum Note<'a> {
    Edit {
        edit: usize,
        touched: bool,
        /// Where a change that is handed back waits to be added.
        target: Location,
    },
    /// Edits whose changes have come here, each with its own norm.
    Arrived(Vec<(usize, f32)>),
    /// Edits that are carried as one.
    Together(&'a [usize]),
}

/// What the steps of a site read on the rows that take part, by their numbers among those.
#[derive(Default)]
struct Operands {
    /// Where the table keeps the values that the feature is read and moved in.
    block: Option<usize>,
    partners: Option<RowBlock>,
    /// Where the table keeps the sparse stream, whose size the change takes.
    stream: Option<usize>,
    /// A sublayer's output without and with the edits inside.
    outputs: Option<(RowBlock, RowBlock)>,
}

impl<'a> CarriedTap<'a> {
    pub fn new(
        plan: &'a Plan,
        pair: Option<&'a Pair>,
        arms: &'a [SteeredArm],
        rows: &'a [Row],
        beside: Beside<'a>,
        records: &'a mut Records,
    ) -> Self {
        CarriedTap {
            plan,
            pair,
            arms,
            rows,
            beside,
            records,
            encoded: BTreeMap::new(),
            encoded_unedited: BTreeMap::new(),
            watched: BTreeMap::new(),
            tested: HostCopies::default(),
            pending: BTreeMap::new(),
            table: RowEdits::default(),
            notes: Vec::new(),
        }
    }
}

impl RowTap for CarriedTap<'_> {
    fn places(&self) -> &BTreeSet<Location> {
        &self.plan.places
    }

    fn look(&mut self, place: Location, rows: &OwnRows, changed: &mut Vec<u32>) -> Result<()> {
        self.table = RowEdits::default();
        self.notes.clear();
        match place {
            Location::Site(site) => {
                self.read_at(site, rows)?;
                self.compile(site)?;
            }
            Location::Node(_) => self.compile_node(place)?,
        }
        changed.extend_from_slice(self.table.rows());
        Ok(())
    }

    fn change(&mut self, _place: Location, rows: &mut [f32], width: usize) -> Result<()> {
        let outcomes = self.table.carry_out(rows, width, self.records.wanted())?;
        self.note(outcomes);
        Ok(())
    }

    fn tabulate(&mut self, _place: Location, first: u32, table: &mut EditTable) -> Result<bool> {
        self.table.tabulate(first, table)
    }

    fn carried_out(&mut self, _place: Location, done: &OwnOutcomes) -> Result<()> {
        let outcomes = self.table.outcomes(done, self.records.wanted())?;
        self.note(outcomes);
        Ok(())
    }
}

impl<'a> CarriedTap<'a> {
    /// Takes down what the table's entries came to, and keeps what waits for its place.
    fn note(&mut self, outcomes: Vec<Outcome>) {
        for ((at, note), outcome) in self.notes.drain(..).zip(outcomes) {
            let row = &self.rows[at];
            match note {
                Note::Edit {
                    edit,
                    touched,
                    target,
                } => {
                    let record = Record::of(touched, &outcome);
                    self.records.note(row.arm, edit, row.position, record);
                    if let Some(change) = outcome.later {
                        let waiting = self.pending.entry(target).or_default();
                        let waiting = waiting.entry(at).or_default();
                        change.join(&mut waiting.changes);
                        waiting.edits.push((edit, outcome.change_norm));
                    }
                }
                Note::Arrived(edits) => {
                    for (edit, norm) in edits {
                        let base = outcome.base_norm;
                        self.records
                            .measure(row.arm, edit, row.position, norm, base);
                    }
                }
                Note::Together(edits) => {
                    let (norm, base) = (outcome.change_norm, outcome.base_norm);
                    for &edit in edits {
                        self.records
                            .measure(row.arm, edit, row.position, norm, base);
                    }
                }
            }
        }
    }

    /// Makes the table of a node of the dense model: what waits for it, a sublayer's input `[rows, d_read]` whose first
    /// channels are the stream's, is added; then the model's own nodes there are edited.
    fn compile_node(&mut self, place: Location) -> Result<()> {
        let (plan, arms) = (self.plan, self.arms);
        let mut waiting = self.pending.remove(&place).unwrap_or_default();
        let here = plan.own_edits.get(&place).map_or(&[][..], Vec::as_slice);
        let recorded = self.records.wanted();
        let edits_row = |at: usize| {
            let (row, touched) = (&self.rows[at], |edit: &usize| {
                touches(&plan.edits[*edit], &self.rows[at])
            });
            let arm = &arms[row.arm];
            arm.follows && (recorded || arm.edits() && here.iter().any(touched))
        };
        let edited: Vec<usize> = match here.is_empty() {
            true => Vec::new(),
            false => (0..self.rows.len()).filter(|&at| edits_row(at)).collect(),
        };
        let partners = here.iter().map(|&edit| match plan.edits[edit].action {
            Action::Patch { stream } => {
                let rows = edited.iter().copied();
                self.beside.dense.partners(place, stream, rows)
            }
            _ => Ok(None),
        });
        let partners: Vec<Option<RowBlock>> = partners.collect::<Result<_>>()?;
        // Entries of one row come one after another.
        let mut rows: Vec<usize> = edited.iter().chain(waiting.keys()).copied().collect();
        rows.sort_unstable();
        rows.dedup();
        for at in rows {
            if let Some(Pending { changes, mut edits }) = waiting.remove(&at) {
                for change in changes {
                    let entry = RowEdit {
                        row: self.table.row(at),
                        change: Change::Given(change),
                        control: None,
                    };
                    self.table.push(entry);
                    // The first of them stands for all.
                    let edits = std::mem::take(&mut edits);
                    self.notes.push((at, Note::Arrived(edits)));
                }
            }
            let Ok(candidate) = edited.binary_search(&at) else {
                continue;
            };
            for (&index, partners) in here.iter().zip(&partners) {
                let partner = beside(partners, candidate)?;
                self.compile_own(index, place, at, partner)?;
            }
        }
        Ok(())
    }

    /// Adds an edit of the dense model's own nodes on one row.
    fn compile_own(
        &mut self,
        index: usize,
        place: Location,
        at: usize,
        partner: Option<&[f32]>,
    ) -> Result<()> {
        let (plan, arms, row) = (self.plan, self.arms, &self.rows[at]);
        let (edit, arm) = (&plan.edits[index], &arms[row.arm]);
        let paired = partner.is_some() || !matches!(edit.action, Action::Patch { .. });
        let touched = arm.edits() && touches(edit, row) && paired && self.allowed(edit, at)?;
        if !touched && !self.records.wanted() {
            return Ok(());
        }
        let directions = arm.directions.as_deref();
        let entry = RowEdit {
            row: self.table.row(at),
            change: change_in_place(edit, touched, arm, partner),
            control: directions.and_then(|directions| directions.of_edit(index)),
        };
        self.table.push(entry);
        let note = Note::Edit {
            edit: index,
            touched,
            target: place,
        };
        self.notes.push((at, note));
        Ok(())
    }

    /// Reads through the encoder, and keeps the stream for conditions, before this site's edits.
    fn read_at(&mut self, site: Site, rows: &OwnRows) -> Result<()> {
        if self.plan.watches(site) {
            self.watched.insert(site, rows.tensor()?);
        }
        let places = self.plan.encoder_places(site);
        if !places.is_empty() {
            let positions: Vec<u32> = self.rows.iter().map(|row| row.position as u32).collect();
            let encoded = self.encode(site, &rows.tensor()?, &positions, places.into_iter())?;
            self.encoded.extend(encoded);
        }
        let places = self.plan.unedited_encoder_places(site);
        let dense = self.beside.dense;
        if let Some(unedited) = dense
            .all(Location::Site(site))
            .filter(|_| !places.is_empty())
        {
            let encoded = self.encode(site, unedited, &dense.positions, places.into_iter())?;
            self.encoded_unedited.extend(encoded);
        }
        Ok(())
    }

    /// The encoder's output for the dense stream at a site, at the sparse model's site and at the places that read it.
    fn encode(
        &self,
        site: Site,
        stream: &Tensor,
        positions: &[u32],
        places: impl Iterator<Item = Location>,
    ) -> Result<Vec<(Location, Tensor)>> {
        let joined = self.pair.zip(self.plan.site_map.sparse_of(site));
        let Some((pair, site)) = joined else {
            return Ok(Vec::new());
        };
        let encoded = pair.bridge.encode(site, &stream.contiguous()?)?;
        let encoded = device::moved(&encoded, pair.sparse.device())?;
        let mut values = vec![(Location::Site(site), encoded.clone())];
        for place in places.filter(|place| is_sublayer_input(*place)) {
            let Some(input) = pair.sparse.sublayer_input(site) else {
                continue;
            };
            let positions = Tensor::new(positions, encoded.device())?;
            let positional = pair.sparse.positional_channels(&positions)?;
            values.push((place, input.forward(&encoded, positional.as_ref())?));
        }
        Ok(values)
    }

    /// Makes the table of a site's steps.
    fn compile(&mut self, site: Site) -> Result<()> {
        let (plan, arms) = (self.plan, self.arms);
        let Some(steps) = plan.steps.get(&site) else {
            return Ok(());
        };
        let recorded = self.records.wanted();
        let takes_part = |at: &usize| {
            let row = &self.rows[*at];
            let touched = |step: &Step| match *step {
                Step::Edit(edit) => touches(&plan.edits[edit], row),
                Step::Replay(_) => true,
            };
            let arm = &arms[row.arm];
            arm.follows && (recorded || arm.edits() && steps.iter().any(touched))
        };
        let candidates: Vec<usize> = (0..self.rows.len()).filter(takes_part).collect();
        if candidates.is_empty() {
            return Ok(());
        }
        let mut known = BTreeMap::new();
        let mut operands = Vec::with_capacity(steps.len());
        for &step in steps {
            operands.push(match step {
                Step::Edit(index) => self.operands(&plan.edits[index], &candidates, &mut known)?,
                Step::Replay(index) => self.outputs(index, &candidates)?,
            });
        }
        for (candidate, &at) in candidates.iter().enumerate() {
            for (&step, operands) in steps.iter().zip(&operands) {
                match step {
                    Step::Edit(index) => self.compile_edit(index, site, candidate, at, operands)?,
                    Step::Replay(index) => self.compile_replay(index, candidate, at, operands)?,
                }
            }
        }
        Ok(())
    }

    /// What an edit reads on the rows `candidates`; edits of one place and source go on from the same values.
    fn operands(
        &mut self,
        edit: &Edit,
        candidates: &[usize],
        known: &mut BTreeMap<(Location, Source), usize>,
    ) -> Result<Operands> {
        let place = edit.subject.place();
        let rows = || candidates.iter().copied();
        let encoded = |place: Location| match self.encoded.get(&place) {
            Some(values) => RowBlock::gather(values, rows().map(Some)).map(Some),
            None => bail!("{place} was not read through the encoder"),
        };
        let sparse = |place: Location| self.beside.sparse.own(place, rows());
        let read = match (known.get(&(place, edit.source)), edit.source) {
            (Some(_), _) | (None, Source::Own | Source::Unread) => None,
            (None, Source::Sparse) => sparse(place)?,
            (None, Source::Encoder) => encoded(place)?,
        };
        let site = Location::Site(place.site(self.plan.site_map.sparse_layers()));
        let stream = match (needs_sparse_rms(edit), edit.source) {
            (false, _) => None,
            (true, Source::Encoder) => encoded(site)?,
            (true, Source::Own | Source::Sparse | Source::Unread) => sparse(site)?,
        };
        let partners = match edit.action {
            Action::Patch { stream } => self.partners(edit, stream, candidates)?,
            _ => None,
        };
        if let Some(read) = read {
            known.insert((place, edit.source), self.table.add_block(read));
        }
        let stream = stream.map(|stream| self.table.add_block(stream));
        Ok(Operands {
            block: known.get(&(place, edit.source)).copied(),
            partners,
            stream,
            outputs: None,
        })
    }

    /// The feature's place on the counterfactual tokens beside rows.
    fn partners(&self, edit: &Edit, stream: usize, rows: &[usize]) -> Result<Option<RowBlock>> {
        let place = edit.subject.place();
        let (dense, rows) = (self.beside.dense, rows.iter().copied());
        match edit.source {
            Source::Unread => Ok(None),
            Source::Own => dense.partners(place, stream, rows),
            Source::Sparse => self.beside.sparse.partners(place, stream, rows),
            Source::Encoder => {
                let beside = rows.map(|row| dense.partner_row(stream, row));
                let encoded = self.encoded_unedited.get(&place);
                encoded
                    .map(|encoded| RowBlock::gather(encoded, beside))
                    .transpose()
            }
        }
    }

    /// A replayed sublayer's output without and with its edits.
    fn outputs(&self, index: usize, candidates: &[usize]) -> Result<Operands> {
        let output = self.plan.replays[index].output;
        let rows = || candidates.iter().copied();
        let unedited = self.beside.sparse.own(output, rows())?;
        let edited = match self.beside.replays.get(index) {
            Some(run) => run.own(output, rows())?,
            None => None,
        };
        Ok(Operands {
            outputs: unedited.zip(edited),
            ..Operands::default()
        })
    }

    fn compile_edit(
        &mut self,
        index: usize,
        site: Site,
        candidate: usize,
        at: usize,
        operands: &Operands,
    ) -> Result<()> {
        let (plan, arms, row) = (self.plan, self.arms, &self.rows[at]);
        let (edit, arm) = (&plan.edits[index], &arms[row.arm]);
        let counterfactual = beside(&operands.partners, candidate)?.map(<[f32]>::to_vec);
        let paired = counterfactual.is_some() || !matches!(edit.action, Action::Patch { .. });
        let touched = arm.edits() && touches(edit, row) && paired && self.allowed(edit, at)?;
        if !touched && !self.records.wanted() {
            return Ok(());
        }
        let read = match (edit.source, operands.block) {
            (Source::Own, _) => ReadFrom::Row,
            (Source::Unread, _) => ReadFrom::Nowhere,
            (Source::Sparse | Source::Encoder, Some(block)) => ReadFrom::Block {
                block,
                row: candidate,
            },
            (Source::Sparse | Source::Encoder, None) => {
                bail!("{} was not read", edit.subject.place())
            }
        };
        let (change, target) = match touched {
            false => (
                Change::Nothing {
                    subject: &edit.subject,
                    read,
                },
                Location::Site(site),
            ),
            true => {
                let rms = match needs_sparse_rms(edit) {
                    false => Rms::Known(1.0),
                    true => match operands.stream {
                        Some(block) => Rms::Of {
                            block,
                            row: candidate,
                        },
                        None => bail!("the sparse stream was not read for the dense one at {site}"),
                    },
                };
                let (write, target) = match &edit.route {
                    Route::Carried(carrier) if carrier.target == Location::Site(site) => {
                        (WriteTo::Columns { carrier, rms }, carrier.target)
                    }
                    Route::Carried(carrier) => (WriteTo::Later { carrier, rms }, carrier.target),
                    Route::InPlace | Route::Replayed => (WriteTo::Added, Location::Site(site)),
                };
                let change = Change::Operation {
                    subject: &edit.subject,
                    action: &edit.action,
                    strength: edit.strength.in_arm(arm.strength),
                    counterfactual,
                    read,
                    write,
                };
                (change, target)
            }
        };
        let directions = arm.directions.as_deref();
        let entry = RowEdit {
            row: self.table.row(at),
            change,
            control: directions.and_then(|directions| directions.of_edit(index)),
        };
        self.table.push(entry);
        let note = Note::Edit {
            edit: index,
            touched,
            target,
        };
        self.notes.push((at, note));
        Ok(())
    }

    /// Adds the counterpart of the change that edits inside a sublayer made to its output.
    fn compile_replay(
        &mut self,
        index: usize,
        candidate: usize,
        at: usize,
        operands: &Operands,
    ) -> Result<()> {
        let (plan, arms) = (self.plan, self.arms);
        let (replay, arm) = (&plan.replays[index], &arms[self.rows[at].arm]);
        let Some((unedited, edited)) = operands.outputs.as_ref().filter(|_| arm.edits()) else {
            return Ok(());
        };
        let (unedited, edited) = (unedited.row(candidate)?, edited.row(candidate)?);
        let Some((unedited, edited)) = unedited.zip(edited) else {
            return Ok(());
        };
        let changes: Vec<f32> = edited.iter().zip(unedited).map(|(a, b)| a - b).collect();
        let mut delta = vec![0.0; replay.carrier.width()];
        replay.carrier.add(&changes, 1.0, &mut delta);
        let first = replay.edits.first().copied().unwrap_or_default();
        let directions = arm.directions.as_deref();
        let entry = RowEdit {
            row: self.table.row(at),
            change: Change::Given(RowDelta::OnHost(delta)),
            control: directions.and_then(|directions| directions.of_edit(first)),
        };
        self.table.push(entry);
        self.notes.push((at, Note::Together(&replay.edits)));
        Ok(())
    }

    fn allowed(&self, edit: &Edit, at: usize) -> Result<bool> {
        match &edit.condition {
            None => Ok(true),
            Some(condition) => condition.holds(|test| self.tested(test, at)),
        }
    }

    /// The unedited value that a condition looks at.
    fn tested(&self, test: &Test, at: usize) -> Result<Option<f32>> {
        let place = test.subject.place();
        let Beside { sparse, dense, .. } = self.beside;
        let (values, row) = match (test.source, place) {
            (Source::Sparse, _) => (sparse.all(place), sparse.own_row(at)),
            (Source::Own, _) if test.needs_unedited_run => (dense.all(place), dense.own_row(at)),
            (Source::Encoder, _) if test.needs_unedited_run => {
                (self.encoded_unedited.get(&place), dense.own_row(at))
            }
            (Source::Encoder, _) => (self.encoded.get(&place), Some(at)),
            (Source::Own, Location::Site(site)) => (self.watched.get(&site), Some(at)),
            (Source::Own, Location::Node(_)) | (Source::Unread, _) => (None, None),
        };
        let Some((values, row)) = values.zip(row) else {
            return Ok(None);
        };
        let values = self.tested.row(values, row)?;
        Ok(Some(test.subject.read(&values)))
    }
}
