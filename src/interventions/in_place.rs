//! Edits in the very place they speak of: a sparse model steered natively, or the second run of a sublayer.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Result;

use super::operation::Action;
use super::plan::{Edit, Plan};
use super::readings::Readings;
use super::receipt::{Record, Records};
use super::rows_of_arms::{Row, RowValues, SteeredArm};
use crate::models::location::Place;
use crate::models::tap::RowTap;

/// Changes values where they are.
pub struct InPlaceTap<'a> {
    pub plan: &'a Plan,
    pub arms: &'a [SteeredArm],
    /// The edits that this pass makes.
    pub edits: &'a [usize],
    /// Where they are, and what is recorded.
    pub places: &'a BTreeSet<Place>,
    pub rows: &'a [Row],
    /// The unedited sparse model's.
    pub readings: &'a Readings,
    /// Control arms get their directions here; otherwise they are edited like steered ones.
    pub controls: bool,
    /// A place to record as edited.
    pub wanted: Option<Place>,
    pub recorded: BTreeMap<Place, RowValues>,
    pub records: &'a mut Records,
}

impl RowTap for InPlaceTap<'_> {
    fn places(&self) -> &BTreeSet<Place> {
        self.places
    }

    fn visit(&mut self, place: Place, values: &mut [f32], width: usize) -> Result<bool> {
        let here: Vec<usize> = self.edits_at(place).collect();
        let changed = !here.is_empty() && self.edit(place, &here, values, width);
        if self.wanted == Some(place) {
            self.recorded
                .insert(place, RowValues::copied(values, width));
        }
        Ok(changed)
    }
}

impl InPlaceTap<'_> {
    fn edits_at(&self, place: Place) -> impl Iterator<Item = usize> {
        let edits = self.edits.iter().copied();
        edits.filter(move |&edit| self.plan.edits[edit].subject.place() == place)
    }

    fn edit(&mut self, place: Place, here: &[usize], values: &mut [f32], width: usize) -> bool {
        let original = RowValues::copied(values, width);
        // In a control arm edits follow the steered values while the model gets the control's.
        let mut working = original.clone();
        let mut output = original.clone();
        let mut changed = false;
        for &index in here {
            let edit = &self.plan.edits[index];
            for (at, row) in self.rows.iter().enumerate() {
                let arm = &self.arms[row.arm];
                if !arm.follows {
                    continue;
                }
                let partner = match edit.action {
                    Action::Patch { stream } => {
                        Some(self.readings.partner(place, stream, row.index))
                    }
                    _ => None,
                };
                let touched = arm.edits()
                    && touches(edit, row)
                    && partner != Some(None)
                    && self.allowed(edit, row);
                if !touched {
                    let before = edit.subject.read(working.row(at));
                    let record = Record {
                        before,
                        after: before,
                        ..Record::default()
                    };
                    self.records.note(row.arm, index, row.position, record);
                    continue;
                }
                let strength = edit.strength.in_arm(arm.strength);
                let moved = edit.subject.apply(
                    &edit.action,
                    working.row_mut(at),
                    partner.flatten(),
                    strength,
                );
                let record = Record {
                    touched,
                    before: moved.before,
                    after: moved.after,
                    change_norm: moved.norm(),
                    base_norm: original.norm(at),
                };
                self.records.note(row.arm, index, row.position, record);
                changed |= record.change_norm != 0.0;
                match arm.directions.as_deref().filter(|_| self.controls) {
                    None => output.row_mut(at).copy_from_slice(working.row(at)),
                    Some(directions) => {
                        let mut change = vec![0.0; output.width()];
                        change[0] = record.change_norm;
                        directions.replace(index, &mut change);
                        add(output.row_mut(at), &change);
                    }
                }
            }
        }
        if changed {
            values.copy_from_slice(output.values());
        }
        changed
    }

    fn allowed(&self, edit: &Edit, row: &Row) -> bool {
        edit.condition.as_ref().is_none_or(|condition| {
            condition.holds(|test| {
                let values = self.readings.own(test.subject.place(), row.index)?;
                Some(test.subject.read(values))
            })
        })
    }
}

/// Whether `at` names the row's token.
pub fn touches(edit: &Edit, row: &Row) -> bool {
    edit.span
        .touches(row.prompt, row.prompt_length, row.position)
}

/// `row += change`.
pub fn add(row: &mut [f32], change: &[f32]) {
    for (value, change) in row.iter_mut().zip(change) {
        *value += change;
    }
}
