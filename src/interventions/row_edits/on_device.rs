//! A table of edits as a device carries it out, beside those of other requests in one launch.

use candle_core::Result;

use super::{Change, Outcome, ReadFrom, Rms, RowEdit, RowEdits, WriteTo};
use crate::interventions::carry::Carrier;
use crate::interventions::operation::Action;
use crate::interventions::row_delta::RowDelta;
use crate::interventions::rows_of_arms::RowBlock;
use crate::interventions::subject::Subject;
use crate::numerics::kernels::edit_table::{
    EditTable, EditedFeature, OwnOutcomes, ReadAt, TableEntry, TableOperation, WriteAt, WrittenBy,
};

impl RowEdits<'_> {
    /// Puts all entries into `table`, whose batch has this table's rows from `first` on; false where one of them is for the
    /// host alone, and then nothing is put there.
    pub fn tabulate(&self, first: u32, table: &mut EditTable) -> Result<bool> {
        let width = table.width();
        let can_be = |entry: &RowEdit| entry.is_for_devices(width, table) && self.finds(entry);
        if !self.entries.iter().all(can_be) {
            return Ok(false);
        }
        let mut sources = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            sources.push(match block.tensor()? {
                Some(rows) => table.add_sources(rows)?,
                None => 0,
            });
        }
        let source = |block: usize, row: usize| {
            let at = self.blocks.get(block)?.place(row);
            at.map(|at| sources[block] + at)
        };
        let mut line = None;
        // In a control arm edits of the row's own features go on from the steered values.
        let mut steered = None;
        for entry in &self.entries {
            if line != Some(entry.row) {
                table.begin_line(first + self.rows[entry.row]);
                (line, steered) = (Some(entry.row), None);
            }
            let read = |read: ReadFrom| match read {
                ReadFrom::Row => Some(ReadAt::Row),
                ReadFrom::Nowhere => Some(ReadAt::Nowhere),
                ReadFrom::Block { block, row } => source(block, row).map(ReadAt::Source),
            };
            match &entry.change {
                Change::Given(RowDelta::OnHost(change)) => {
                    table.push(TableEntry::Given(change), entry.control)
                }
                Change::Given(RowDelta::OnDevice(change)) => {
                    table.push(TableEntry::Waited(change), entry.control)
                }
                Change::Nothing { subject, read: at } => {
                    let own = (*at == ReadFrom::Row).then_some(steered).flatten();
                    let entry = TableEntry::Move {
                        feature: feature(subject),
                        operation: TableOperation::ReadOnly,
                        strength: 0.0,
                        // A row that is not there has no value.
                        read: own.or(read(*at)).unwrap_or(ReadAt::Nowhere),
                        write: WriteAt::Itself,
                    };
                    table.push(entry, None);
                }
                Change::Operation {
                    subject,
                    action,
                    strength,
                    counterfactual,
                    read: at,
                    write,
                } => {
                    let mut read_at = read(*at).unwrap_or(ReadAt::Nowhere);
                    if let (ReadFrom::Row, WriteTo::Itself, Some(_)) = (at, write, entry.control) {
                        read_at = *steered.get_or_insert_with(|| table.add_copy());
                    }
                    let by = |carrier: &Carrier, rms: Rms| {
                        let stream = match rms {
                            Rms::Known(_) => None,
                            Rms::Of { block, row } => {
                                let width = self.blocks.get(block).map(RowBlock::width);
                                source(block, row).zip(width)
                            }
                        };
                        let factor = match rms {
                            Rms::Known(rms) if carrier.times_sparse_rms => rms,
                            _ => 1.0,
                        };
                        (stream, factor)
                    };
                    let written = |carrier, rms| {
                        let (stream, factor) = by(carrier, rms);
                        WrittenBy {
                            columns: carrier.columns().collect(),
                            stream,
                            factor,
                        }
                    };
                    let Some(operation) = operation(subject, action, counterfactual.as_deref())
                    else {
                        candle_core::bail!("an edit was taken for one that a device can do")
                    };
                    let entry_of = TableEntry::Move {
                        feature: feature(subject),
                        operation,
                        strength: *strength,
                        read: read_at,
                        write: match write {
                            WriteTo::Itself | WriteTo::Added => WriteAt::Itself,
                            WriteTo::Columns { carrier, rms } => {
                                WriteAt::Columns(written(carrier, *rms))
                            }
                            WriteTo::Later { carrier, rms } => {
                                WriteAt::Later(written(carrier, *rms))
                            }
                        },
                    };
                    table.push(entry_of, entry.control);
                }
            }
        }
        Ok(true)
    }

    /// Whether the blocks have the rows that an operation reads and takes its size from. Where they do not the host knows what
    /// is to be done.
    fn finds(&self, entry: &RowEdit) -> bool {
        let Change::Operation { read, write, .. } = &entry.change else {
            return true;
        };
        let is_there = |block: usize, row: usize| {
            let block = self.blocks.get(block);
            block.is_some_and(|block| block.place(row).is_some())
        };
        let rms = match write {
            WriteTo::Columns { rms, .. } | WriteTo::Later { rms, .. } => Some(*rms),
            WriteTo::Itself | WriteTo::Added => None,
        };
        let reads = match *read {
            ReadFrom::Block { block, row } => is_there(block, row),
            ReadFrom::Row | ReadFrom::Nowhere => true,
        };
        let measures = match rms {
            Some(Rms::Of { block, row }) => is_there(block, row),
            Some(Rms::Known(_)) | None => true,
        };
        reads && measures
    }

    /// What the entries came to on the device; their numbers only where they are `wanted`, for they must be waited for.
    pub fn outcomes(&self, done: &OwnOutcomes, wanted: bool) -> Result<Vec<Outcome>> {
        let numbers = match wanted {
            true => done.numbers()?,
            false => vec![[0.0; 4]; self.entries.len()],
        };
        let mut later = 0;
        let outcomes = self.entries.iter().zip(numbers).map(|(entry, numbers)| {
            let [before, after, change_norm, base_norm] = numbers;
            let is_later = matches!(
                entry.change,
                Change::Operation {
                    write: WriteTo::Later { .. },
                    ..
                }
            );
            let handed_back = is_later.then(|| done.later(later)).flatten();
            later += usize::from(is_later);
            Outcome {
                before,
                after,
                change_norm,
                base_norm,
                later: handed_back.map(RowDelta::OnDevice),
            }
        });
        Ok(outcomes.collect())
    }
}

impl RowEdit<'_> {
    /// Whether the kernel knows this change of a row as wide as `width`.
    fn is_for_devices(&self, width: usize, table: &EditTable) -> bool {
        let Change::Operation {
            subject,
            action,
            counterfactual,
            read,
            write,
            ..
        } = &self.change
        else {
            return match &self.change {
                Change::Given(RowDelta::OnHost(change)) => change.len() == width,
                Change::Given(RowDelta::OnDevice(change)) => change.width().ok() == Some(width),
                _ => true,
            };
        };
        let of_channels = !matches!(subject, Subject::Direction(_));
        let fits = match write {
            WriteTo::Columns { carrier, .. } | WriteTo::Later { carrier, .. } => {
                of_channels && carrier.width() == width
            }
            // A direction's change is as wide as its row, and is added to it.
            WriteTo::Added => !of_channels && *read == ReadFrom::Row,
            WriteTo::Itself => *read == ReadFrom::Row,
        };
        fits && (of_channels || *read == ReadFrom::Row)
            && table.has_room_for(if of_channels { subject.width() } else { 0 })
            && operation(subject, action, counterfactual.as_deref()).is_some()
    }
}

fn feature(subject: &Subject) -> EditedFeature<'_> {
    match subject {
        Subject::Channels(group) | Subject::OwnChannels(group) => EditedFeature::Channels {
            channels: &group.channels,
            weights: &group.weights,
        },
        Subject::Direction(direction) => EditedFeature::Direction {
            vector: &direction.vector,
            squared_norm: direction.squared_norm,
        },
    }
}

/// The kernel's operation; none where it has none.
fn operation(
    subject: &Subject,
    action: &Action,
    counterfactual: Option<&[f32]>,
) -> Option<TableOperation> {
    let group = match subject {
        Subject::Channels(group) | Subject::OwnChannels(group) => Some(group),
        Subject::Direction(_) => None,
    };
    Some(match (action, group) {
        (Action::Add(value), _) => TableOperation::Add(*value),
        (Action::Set(value), _) => TableOperation::Set(*value),
        (Action::Clamp { min, max }, _) => TableOperation::Clamp(*min, *max),
        (Action::Scale(value), _) => TableOperation::Scale(*value),
        (Action::AddResidual(value), None) => TableOperation::AddResidual(*value),
        (Action::Ablate(_), None) => TableOperation::Set(0.0),
        (Action::Patch { .. }, None) => {
            TableOperation::Set(f64::from(subject.read(counterfactual?)))
        }
        (Action::Ablate(to), Some(_)) => {
            TableOperation::EachTo(to.iter().map(|&value| f64::from(value)).collect())
        }
        (Action::Patch { .. }, Some(group)) => {
            let partner = counterfactual?;
            let to = group
                .channels
                .iter()
                .map(|&channel| f64::from(partner[channel]));
            TableOperation::EachTo(to.collect())
        }
        (Action::AddEach(values), Some(_)) => TableOperation::AddEach(values.clone()),
        (Action::ClampEach(bounds), Some(_)) => TableOperation::ClampEach(bounds.clone()),
        (Action::ScaleEach(value), Some(_)) => TableOperation::ScaleEach(*value),
        (Action::Swap, Some(_)) => TableOperation::Swap,
        (Action::AddResidual(_), Some(_))
        | (Action::AddEach(_) | Action::ClampEach(_) | Action::ScaleEach(_) | Action::Swap, None) =>
        {
            return None;
        }
    })
}
