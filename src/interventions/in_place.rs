//! Edits in the very place they speak of: a sparse model steered natively, or the second run of a sublayer.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Result, Tensor};

use super::host_copies::HostCopies;
use super::operation::Action;
use super::plan::{Edit, Plan};
use super::readings::Readings;
use super::receipt::{Record, Records};
use super::row_edits::{Change, Outcome, ReadFrom, RowEdit, RowEdits, WriteTo};
use super::rows_of_arms::{Row, RowBlock, SteeredArm};
use crate::models::location::Location;
use crate::models::tap::{OwnRows, RowTap};
use crate::numerics::kernels::edit_table::{EditTable, OwnOutcomes};

/// Changes values where they are.
pub struct InPlaceTap<'a> {
    pub plan: &'a Plan,
    pub arms: &'a [SteeredArm],
    /// The edits that this pass makes.
    pub edits: &'a [usize],
    /// Where they are, and what is recorded.
    pub places: &'a BTreeSet<Location>,
    pub rows: &'a [Row],
    /// The unedited sparse model's.
    pub readings: &'a Readings,
    /// Control arms get their directions here; otherwise they are edited like steered ones.
    pub controls: bool,
    /// A place to record as edited.
    pub wanted: Option<Location>,
    pub recorded: BTreeMap<Location, Tensor>,
    pub records: &'a mut Records,
    /// What conditions look at.
    pub tested: HostCopies,
    /// What is to be done at the place that was looked at last.
    pub table: RowEdits<'a>,
    /// Of each of the table's entries: its row, its edit, and whether the edit touches it.
    pub notes: Vec<(usize, usize, bool)>,
}

impl RowTap for InPlaceTap<'_> {
    fn places(&self) -> &BTreeSet<Location> {
        self.places
    }

    fn look(&mut self, place: Location, _rows: &OwnRows, changed: &mut Vec<u32>) -> Result<()> {
        self.table = RowEdits::default();
        self.notes.clear();
        let plan = self.plan;
        let at_place = |edit: &usize| plan.edits[*edit].subject.place() == place;
        let here: Vec<usize> = self.edits.iter().copied().filter(at_place).collect();
        self.compile(place, &here)?;
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

    fn leave(&mut self, place: Location, rows: &OwnRows) -> Result<()> {
        if self.wanted == Some(place) {
            self.recorded.insert(place, rows.tensor()?);
        }
        Ok(())
    }
}

impl InPlaceTap<'_> {
    /// Takes down what the table's entries came to.
    fn note(&mut self, outcomes: Vec<Outcome>) {
        for (&(at, edit, touched), outcome) in self.notes.iter().zip(outcomes) {
            let row = &self.rows[at];
            let record = Record::of(touched, &outcome);
            self.records.note(row.arm, edit, row.position, record);
        }
    }

    /// Makes the table of these edits of a place.
    fn compile(&mut self, place: Location, here: &[usize]) -> Result<()> {
        let (plan, arms) = (self.plan, self.arms);
        let recorded = self.records.wanted();
        let takes_part = |at: &usize| {
            let row = &self.rows[*at];
            let touched = || here.iter().any(|&edit| touches(&plan.edits[edit], row));
            arms[row.arm].follows && (recorded || touched())
        };
        let candidates: Vec<usize> = (0..self.rows.len()).filter(takes_part).collect();
        if here.is_empty() || candidates.is_empty() {
            return Ok(());
        }
        let partners = here.iter().map(|&edit| match plan.edits[edit].action {
            Action::Patch { stream } => {
                let rows = candidates.iter().map(|&at| self.rows[at].index);
                self.readings.partners(place, stream, rows)
            }
            _ => Ok(None),
        });
        let partners: Vec<Option<RowBlock>> = partners.collect::<Result<_>>()?;
        for (candidate, &at) in candidates.iter().enumerate() {
            let row = &self.rows[at];
            let arm = &arms[row.arm];
            for (&index, partners) in here.iter().zip(&partners) {
                let edit = &plan.edits[index];
                let partner = match partners {
                    Some(block) => block.row(candidate)?,
                    None => None,
                };
                let paired = partner.is_some() || !matches!(edit.action, Action::Patch { .. });
                let touched =
                    arm.edits() && touches(edit, row) && paired && self.allowed(edit, row)?;
                if !touched && !recorded {
                    continue;
                }
                let change = change_in_place(edit, touched, arm, partner);
                let directions = arm.directions.as_deref().filter(|_| self.controls);
                let entry = RowEdit {
                    row: self.table.row(at),
                    change,
                    control: directions.and_then(|directions| directions.of_edit(index)),
                };
                self.table.push(entry);
                self.notes.push((at, index, touched));
            }
        }
        Ok(())
    }

    fn allowed(&self, edit: &Edit, row: &Row) -> Result<bool> {
        let Some(condition) = &edit.condition else {
            return Ok(true);
        };
        condition.holds(|test| {
            let values = self.readings.all(test.subject.place());
            let Some((values, at)) = values.zip(self.readings.own_row(row.index)) else {
                return Ok(None);
            };
            let values = self.tested.row(values, at)?;
            Ok(Some(test.subject.read(&values)))
        })
    }
}

/// What an edit does to a row of its own place; nothing where it does not touch it.
pub fn change_in_place<'a>(
    edit: &'a Edit,
    touched: bool,
    arm: &SteeredArm,
    partner: Option<&[f32]>,
) -> Change<'a> {
    match touched {
        true => Change::Operation {
            subject: &edit.subject,
            action: &edit.action,
            strength: edit.strength.in_arm(arm.strength),
            counterfactual: partner.map(<[f32]>::to_vec),
            read: ReadFrom::Row,
            write: WriteTo::Itself,
        },
        false => Change::Nothing {
            subject: &edit.subject,
            read: ReadFrom::Row,
        },
    }
}

/// Whether `at` names the row's token.
pub fn touches(edit: &Edit, row: &Row) -> bool {
    edit.span
        .touches(row.prompt, row.prompt_length, row.position)
}
