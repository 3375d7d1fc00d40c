//! Edits as data: a table of what one step changes in some rows of one place, and the routine that carries it out.
//!
//! An entry names a row, the feature that is read of it with its channels and weights, the operation with its
//! operands, and the columns that the change is written with. The rows are taken out of the batch and put back by
//! [`crate::models::tap::SplitTap`], for all requests of a pass at once; on a device they stay there, and a kernel does what
//! this routine does (`on_device`). A control arm differs from a steered one in what is written alone: a unit vector, as long
//! as the steered change would have been.

mod on_device;

use candle_core::{Result, bail};

use super::carry::Carrier;
use super::operation::{Action, norm};
use super::row_delta::{RowDelta, add};
use super::rows_of_arms::RowBlock;
use super::subject::Subject;
use crate::numerics::norm::root_mean_square;

/// The changes of one place. Entries of one row are carried out in their order, each on what its predecessors left.
#[derive(Debug, Default)]
pub struct RowEdits<'a> {
    /// The rows of the place that entries speak of, each once.
    rows: Vec<u32>,
    entries: Vec<RowEdit<'a>>,
    /// Values that are read elsewhere, and moved where they were read.
    blocks: Vec<RowBlock>,
}

/// One change of one row.
#[derive(Debug)]
pub struct RowEdit<'a> {
    /// Which of the table's rows.
    pub row: usize,
    pub change: Change<'a>,
    /// Written in place of the change, at its norm.
    pub control: Option<&'a [f32]>,
}

/// Where a change comes from.
#[derive(Debug)]
pub enum Change<'a> {
    /// Of the feature's value.
    Operation {
        subject: &'a Subject,
        action: &'a Action,
        strength: f64,
        /// The whole counterfactual row, for a patch.
        counterfactual: Option<Vec<f32>>,
        read: ReadFrom,
        write: WriteTo<'a>,
    },
    /// Known beforehand, one number for each channel of the row.
    Given(RowDelta),
    /// None: the feature is only read.
    Nothing {
        subject: &'a Subject,
        read: ReadFrom,
    },
}

/// The values that a feature is read of and moved in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// The row itself.
    Row,
    /// A row of one of the table's blocks.
    Block { block: usize, row: usize },
    /// None: the move is known whatever the value.
    Nowhere,
}

/// How the change of a feature becomes one of the row.
#[derive(Debug, Clone, Copy)]
pub enum WriteTo<'a> {
    /// The feature is the row's own and meets its target there, exactly.
    Itself,
    /// Added, a number for each channel of the row.
    Added,
    /// By a column for each channel of the feature; `rms` is that of the sparse stream, where the columns take it.
    Columns { carrier: &'a Carrier, rms: Rms },
    /// The same, but the change is handed back for a place that the pass has still to come to.
    Later { carrier: &'a Carrier, rms: Rms },
}

/// A root mean square of a row.
#[derive(Debug, Clone, Copy)]
pub enum Rms {
    Known(f32),
    /// Of a row of one of the table's blocks.
    Of {
        block: usize,
        row: usize,
    },
}

impl Rms {
    fn in_blocks(self, blocks: &[RowBlock]) -> Result<f32> {
        let (block, row) = match self {
            Rms::Known(rms) => return Ok(rms),
            Rms::Of { block, row } => (block, row),
        };
        let values = match blocks.get(block) {
            Some(block) => block.row(row)?,
            None => None,
        };
        match values {
            Some(values) => Ok(root_mean_square(values, 0.0)),
            None => bail!("the stream whose size a change takes was not read"),
        }
    }
}

/// What one entry came to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The feature's value before and after.
    pub before: f32,
    pub after: f32,
    /// The norm of what was added to the row.
    pub change_norm: f32,
    /// Of the row before any entry; zero where it was not to be measured.
    pub base_norm: f32,
    /// A change for a later place.
    pub later: Option<RowDelta>,
}

impl<'a> RowEdits<'a> {
    /// The table's row for row number `row` of the place: all entries of a row come one after another.
    pub fn row(&mut self, row: usize) -> usize {
        if self.rows.last() != Some(&(row as u32)) {
            self.rows.push(row as u32);
        }
        self.rows.len() - 1
    }

    /// Adds values for entries to read, and says which block they are.
    pub fn add_block(&mut self, block: RowBlock) -> usize {
        self.blocks.push(block);
        self.blocks.len() - 1
    }

    pub fn push(&mut self, entry: RowEdit<'a>) {
        self.entries.push(entry);
    }

    /// The place's rows, in the order in which [`Self::carry_out`] takes them.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// Changes `rows [table's rows, width]`; what each entry came to, in their order. `measured` asks for the norms of
    /// the rows.
    pub fn carry_out(
        &mut self,
        rows: &mut [f32],
        width: usize,
        measured: bool,
    ) -> Result<Vec<Outcome>> {
        let base_norms: Vec<f32> = match measured {
            true => rows.chunks_exact(width).map(norm).collect(),
            false => Vec::new(),
        };
        // In a control arm edits of the row's own features go on from the steered values.
        let controls = self.entries.iter().any(|entry| entry.control.is_some());
        let mut steered: Vec<Option<Vec<f32>>> = match controls {
            true => vec![None; self.rows.len()],
            false => Vec::new(),
        };
        let mut none = None;
        let (entries, blocks) = (&self.entries, &mut self.blocks);
        let outcomes = entries.iter().map(|entry| {
            let row = &mut rows[entry.row * width..][..width];
            let steered = steered.get_mut(entry.row).unwrap_or(&mut none);
            let outcome = entry.carry_out(row, steered, blocks)?;
            Ok(Outcome {
                base_norm: base_norms.get(entry.row).copied().unwrap_or_default(),
                ..outcome
            })
        });
        outcomes.collect()
    }
}

impl RowEdit<'_> {
    fn carry_out(
        &self,
        row: &mut [f32],
        steered: &mut Option<Vec<f32>>,
        blocks: &mut [RowBlock],
    ) -> Result<Outcome> {
        let (subject, action, strength, counterfactual, read, write) = match &self.change {
            Change::Operation {
                subject,
                action,
                strength,
                counterfactual,
                read,
                write,
            } => (subject, action, *strength, counterfactual, *read, *write),
            Change::Given(delta) => {
                let delta = delta.values()?;
                let change_norm = norm(&delta);
                self.add(row, &delta, change_norm);
                return Ok(Outcome {
                    change_norm,
                    ..Outcome::default()
                });
            }
            Change::Nothing { subject, read } => {
                let values = match *read {
                    ReadFrom::Row => Some(steered.as_deref().unwrap_or(row)),
                    ReadFrom::Block { block, row } => match blocks.get(block) {
                        Some(block) => block.row(row)?,
                        None => None,
                    },
                    ReadFrom::Nowhere => None,
                };
                let before = values.map_or(0.0, |values| subject.read(values));
                return Ok(Outcome {
                    before,
                    after: before,
                    ..Outcome::default()
                });
            }
        };
        let counterfactual = counterfactual.as_deref();
        let moved = match (read, write) {
            (ReadFrom::Row, WriteTo::Itself) => {
                let values = match self.control {
                    None => &mut *row,
                    Some(_) => steered.get_or_insert_with(|| row.to_vec()).as_mut_slice(),
                };
                subject.apply(action, values, counterfactual, strength)
            }
            (ReadFrom::Row, _) => {
                subject.apply(action, &mut row.to_vec(), counterfactual, strength)
            }
            (ReadFrom::Block { block, row }, _) => {
                let values = match blocks.get_mut(block) {
                    Some(block) => block.row_mut(row)?,
                    None => None,
                };
                match values {
                    Some(values) => subject.apply(action, values, counterfactual, strength),
                    None => return Ok(Outcome::default()),
                }
            }
            (ReadFrom::Nowhere, _) => subject.known_move(action, strength),
        };
        let mut outcome = Outcome {
            before: moved.before,
            after: moved.after,
            ..Outcome::default()
        };
        match write {
            WriteTo::Itself => {
                outcome.change_norm = moved.norm();
                if self.control.is_some() {
                    self.add(row, &[], outcome.change_norm);
                }
            }
            WriteTo::Added => {
                outcome.change_norm = moved.norm();
                self.add(row, &moved.change, outcome.change_norm);
            }
            WriteTo::Columns { carrier, rms } => {
                let delta = carried(carrier, &moved.change, rms.in_blocks(blocks)?);
                outcome.change_norm = norm(&delta);
                self.add(row, &delta, outcome.change_norm);
            }
            WriteTo::Later { carrier, rms } => {
                let mut delta = carried(carrier, &moved.change, rms.in_blocks(blocks)?);
                outcome.change_norm = norm(&delta);
                if let Some(unit) = self.control {
                    delta.fill(0.0);
                    add_scaled(&mut delta, unit, outcome.change_norm);
                }
                outcome.later = (outcome.change_norm != 0.0).then_some(RowDelta::OnHost(delta));
            }
        }
        Ok(outcome)
    }

    /// Adds a change of this norm, or the control's in its place.
    fn add(&self, row: &mut [f32], delta: &[f32], change_norm: f32) {
        if change_norm == 0.0 {
            return;
        }
        match self.control {
            None => add(row, delta),
            Some(unit) => add_scaled(row, unit, change_norm),
        }
    }
}

fn carried(carrier: &Carrier, changes: &[f32], rms: f32) -> Vec<f32> {
    let mut delta = vec![0.0; carrier.width()];
    carrier.add(changes, rms, &mut delta);
    delta
}

fn add_scaled(row: &mut [f32], unit: &[f32], size: f32) {
    for (value, unit) in row.iter_mut().zip(unit) {
        *value += size * unit;
    }
}

#[cfg(test)]
mod tests;
