//! Edits of rows on a device: the table that `row_edits.cu` carries out, put together on the host and sent at once.
//!
//! A table is of one place's batch `[rows, width]`. It has a line for each row that changes, and a line has entries, carried
//! out in their order. Features that are read elsewhere are read of `sources`, which are on the device already; what the host
//! knows (channels, weights, numbers, columns) goes there in two copies.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use candle_core::{DType, Result, Tensor};

use super::launch::{Launch, unwritten};
use crate::numerics::device;

/// Bytes of shared memory that every device has for a block.
const SHARED_EVERYWHERE: usize = 96 << 10;
/// Numbers of an entry's outcome.
const OUTCOME: usize = 4;

/// What the feature's value, or each of its channels, is moved to; numbered as in the kernel.
#[derive(Debug, Clone, PartialEq)]
pub enum TableOperation {
    Add(f64),
    AddResidual(f64),
    Set(f64),
    Clamp(f64, f64),
    Scale(f64),
    EachTo(Vec<f64>),
    AddEach(Vec<f64>),
    ClampEach(Vec<(f64, f64)>),
    ScaleEach(f64),
    Swap,
    ReadOnly,
}

/// What an entry reads and moves.
#[derive(Debug, Clone, Copy)]
pub enum EditedFeature<'f> {
    Channels {
        channels: &'f [usize],
        weights: &'f [f64],
    },
    Direction {
        vector: &'f [f32],
        squared_norm: f64,
    },
}

/// Where it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAt {
    Row,
    /// The move is known whatever the value.
    Nowhere,
    /// A row of the sources.
    Source(usize),
    /// A copy of the row, which moves in the row's stead; the first entry that names it makes it.
    Copy(usize),
}

/// The columns that a change of the channels is written with, times `factor`, and times the root mean square of the first
/// so many numbers of a source's row where there is one.
#[derive(Debug)]
pub struct WrittenBy<'f> {
    pub columns: Vec<&'f [f32]>,
    pub stream: Option<(usize, usize)>,
    pub factor: f32,
}

/// How the change becomes one of the row.
#[derive(Debug)]
pub enum WriteAt<'f> {
    /// Where it was read.
    Itself,
    Columns(WrittenBy<'f>),
    /// Handed back for another place.
    Later(WrittenBy<'f>),
}

/// One change of a line's row.
#[derive(Debug)]
pub enum TableEntry<'f> {
    Move {
        feature: EditedFeature<'f>,
        operation: TableOperation,
        strength: f64,
        read: ReadAt,
        write: WriteAt<'f>,
    },
    /// A change that the host knows, a number for each of the row's.
    Given(&'f [f32]),
    /// One that an earlier table handed back.
    Waited(&'f DeviceRow),
}

/// A row that only the device has.
#[derive(Debug, Clone)]
pub struct DeviceRow {
    rows: Tensor,
    row: usize,
}

impl DeviceRow {
    /// How many numbers it has.
    pub fn width(&self) -> Result<usize> {
        self.rows.dim(1)
    }

    /// Its numbers, brought to the host.
    pub fn values(&self) -> Result<Vec<f32>> {
        self.rows.get(self.row)?.to_vec1()
    }
}

/// A table being put together.
#[derive(Debug)]
pub struct EditTable {
    width: usize,
    /// By line: the row of the batch, and its first entry.
    rows: Vec<i32>,
    starts: Vec<i32>,
    /// The kernel's `Edit`s, as 32-bit words.
    entries: Vec<u32>,
    channels: Vec<i32>,
    weights: Vec<f64>,
    operands: Vec<f64>,
    /// `[columns, width]`, and where each column that the host has stands in it.
    columns: Vec<f32>,
    known: BTreeMap<Vec<usize>, usize>,
    /// Rows of changes that wait on the device, and the entries that name them.
    waited: Vec<DeviceRow>,
    waiting: Vec<(usize, usize)>,
    sources: Vec<Tensor>,
    source_rows: usize,
    /// Rows among the sources for copies of the batch's, and the entries that name them.
    copies: usize,
    copied: Vec<(usize, usize)>,
    later: usize,
    most_channels: usize,
}

/// Words of a kernel's `Edit`, and the places of two of them.
const ENTRY_WORDS: usize = 20;
const SOURCE_WORD: usize = 10;
const COLUMN_WORD: usize = 13;

/// What a table came to.
#[derive(Debug)]
pub struct CarriedOut {
    /// The batch with its changes, `[rows, width]`.
    pub rows: Tensor,
    done: Done,
}

/// Outcomes on the device, which come to the host when somebody asks.
#[derive(Debug, Clone)]
struct Done {
    /// `[entries, 4]`.
    outcomes: Tensor,
    on_host: Rc<OnceCell<Vec<f32>>>,
    later: Option<Tensor>,
}

/// What the entries of one user of a table came to.
#[derive(Debug)]
pub struct OwnOutcomes {
    done: Done,
    entries: Range<usize>,
    first_later: usize,
}

impl OwnOutcomes {
    /// Of each entry its feature's value before and after, the norm of what was written, and the norm of its row before any.
    pub fn numbers(&self) -> Result<Vec<[f32; OUTCOME]>> {
        let all = match self.done.on_host.get() {
            Some(all) => all,
            None => {
                let all = self.done.outcomes.flatten_all()?.to_vec1()?;
                self.done.on_host.get_or_init(|| all)
            }
        };
        let (own, _) = all[OUTCOME * self.entries.start..OUTCOME * self.entries.end].as_chunks();
        Ok(own.to_vec())
    }

    /// What the user's entry that was number `index` of those to be handed back wrote.
    pub fn later(&self, index: usize) -> Option<DeviceRow> {
        Some(DeviceRow {
            rows: self.done.later.clone()?,
            row: self.first_later + index,
        })
    }
}

impl CarriedOut {
    /// What came of what a user put into the table between these two marks.
    pub fn between(&self, first: Mark, end: Mark) -> OwnOutcomes {
        OwnOutcomes {
            done: self.done.clone(),
            entries: first.entries..end.entries,
            first_later: first.later,
        }
    }
}

/// How far a table has been put together.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    entries: usize,
    later: usize,
}

impl EditTable {
    /// Of a batch of rows as wide as `width`.
    pub fn new(width: usize) -> Self {
        EditTable {
            width,
            rows: Vec::new(),
            starts: vec![0],
            entries: Vec::new(),
            channels: Vec::new(),
            weights: Vec::new(),
            operands: Vec::new(),
            columns: Vec::new(),
            known: BTreeMap::new(),
            waited: Vec::new(),
            waiting: Vec::new(),
            sources: Vec::new(),
            source_rows: 0,
            copies: 0,
            copied: Vec::new(),
            later: 0,
            most_channels: 0,
        }
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether a block has room for features of so many channels.
    pub fn has_room_for(&self, channels: usize) -> bool {
        shared_memory(channels, self.width) <= SHARED_EVERYWHERE
    }

    pub fn mark(&self) -> Mark {
        Mark {
            entries: self.entries.len() / ENTRY_WORDS,
            later: self.later,
        }
    }

    /// Begins the line of a row of the batch that has none yet.
    pub fn begin_line(&mut self, row: u32) {
        self.rows.push(row as i32);
        self.starts.push((self.entries.len() / ENTRY_WORDS) as i32);
    }

    /// Adds rows on the device to those that features are read of, and says which the first of them is.
    pub fn add_sources(&mut self, rows: Tensor) -> Result<usize> {
        let first = self.source_rows;
        self.source_rows += rows.dim(0)?;
        self.sources.push(rows);
        Ok(first)
    }

    /// Room for a copy of the line's row, to be read and moved in its stead.
    pub fn add_copy(&mut self) -> ReadAt {
        self.copies += 1;
        ReadAt::Copy(self.copies - 1)
    }

    fn column(&mut self, column: &[f32]) -> usize {
        self.columns(&[column])
    }

    /// Where columns of the host's stand, one after another; what many entries name is sent once.
    fn columns(&mut self, columns: &[&[f32]]) -> usize {
        let next = self.columns.len() / self.width.max(1);
        let addresses = columns.iter().map(|column| column.as_ptr() as usize);
        let at = *self.known.entry(addresses.collect()).or_insert(next);
        if at == next {
            self.columns.extend(columns.iter().copied().flatten());
        }
        at
    }

    /// Adds a change to the last line. A control stands in for it, at its length.
    pub fn push(&mut self, entry: TableEntry, control: Option<&[f32]>) {
        let mut row = EntryRow {
            strength: 1.0,
            control: control.map_or(-1, |control| self.column(control) as i32),
            stream: -1,
            first_channel: self.channels.len() as i32,
            ..EntryRow::default()
        };
        let number = self.entries.len() / ENTRY_WORDS;
        match entry {
            TableEntry::Given(change) => {
                (row.operation, row.write) = (GIVEN, COLUMNS);
                row.column = self.column(change) as i32;
            }
            TableEntry::Waited(change) => {
                (row.operation, row.write) = (GIVEN, COLUMNS);
                self.waiting.push((number, self.waited.len()));
                self.waited.push(change.clone());
            }
            TableEntry::Move {
                feature,
                operation,
                strength,
                read,
                write,
            } => {
                row.strength = strength;
                let operands = row.operate(operation);
                match feature {
                    EditedFeature::Channels { channels, weights } => {
                        let count = channels.len();
                        row.channel_count = count as i32;
                        // What is only read takes no room.
                        if row.operation != READ_ONLY {
                            self.most_channels = self.most_channels.max(count);
                        }
                        self.channels
                            .extend(channels.iter().map(|&channel| channel as i32));
                        self.weights.extend(weights);
                        self.operands.extend(operands.into_iter().flatten());
                        self.operands.resize(2 * self.weights.len(), 0.0);
                    }
                    EditedFeature::Direction {
                        vector,
                        squared_norm,
                    } => {
                        row.squared_norm = squared_norm;
                        row.column = self.column(vector) as i32;
                    }
                }
                row.source = match read {
                    ReadAt::Row => OF_ROW,
                    ReadAt::Nowhere => NOWHERE,
                    ReadAt::Source(source) => source as i32,
                    ReadAt::Copy(copy) => {
                        // A copy is its line's own.
                        let is_first = self.copied.last().is_none_or(|(_, last)| *last != copy);
                        row.fills_source = i32::from(is_first);
                        self.copied.push((number, copy));
                        0
                    }
                };
                let (kind, by) = match write {
                    WriteAt::Itself => (ITSELF, None),
                    WriteAt::Columns(by) => (COLUMNS, Some(by)),
                    WriteAt::Later(by) => (LATER, Some(by)),
                };
                row.write = kind;
                if let Some(by) = by {
                    row.column = self.columns(&by.columns) as i32;
                    row.factor = by.factor;
                    if let Some((source, width)) = by.stream {
                        (row.stream, row.stream_width) = (source as i32, width as i32);
                    }
                }
                if kind == LATER {
                    row.later = self.later as i32;
                    self.later += 1;
                }
            }
        }
        row.append_to(&mut self.entries);
        if let Some(end) = self.starts.last_mut() {
            *end = number as i32 + 1;
        }
    }

    /// Changes a copy of `x [rows, width]`.
    pub fn carry_out(mut self, x: &Tensor) -> Result<CarriedOut> {
        let device = x.device();
        let entries = self.entries.len() / ENTRY_WORDS;
        for &(entry, copy) in &self.copied {
            self.entries[entry * ENTRY_WORDS + SOURCE_WORD] = (self.source_rows + copy) as u32;
        }
        if self.copies > 0 {
            let shape = (self.copies, self.width);
            self.sources.push(Tensor::zeros(shape, DType::F32, device)?);
        }
        let host_columns = self.columns.len() / self.width.max(1);
        for &(entry, waited) in &self.waiting {
            self.entries[entry * ENTRY_WORDS + COLUMN_WORD] = (host_columns + waited) as u32;
        }
        let mut columns = Vec::new();
        if host_columns > 0 {
            let shape = (host_columns, self.width);
            columns.push(Tensor::from_vec(self.columns, shape, device)?);
        }
        for change in &self.waited {
            columns.push(change.rows.narrow(0, change.row, 1)?);
        }
        let columns = match columns.is_empty() {
            true => None,
            false => Some(Tensor::cat(&columns, 0)?.contiguous()?),
        };
        let source_width = self.sources.iter().map(|rows| rows.dim(1));
        let source_width = source_width.max_by_key(|width| *width.as_ref().unwrap_or(&0));
        let source_width = source_width.transpose()?.unwrap_or(0);
        let widened = self.sources.iter().map(|rows| {
            let rows = device::moved(rows, device)?;
            let short = source_width - rows.dim(1)?;
            match short {
                0 => Ok(rows),
                _ => rows.pad_with_zeros(1, 0, short),
            }
        });
        let widened = widened.collect::<Result<Vec<_>>>()?;
        let sources = match widened.is_empty() {
            true => None,
            // The kernel moves them, and whoever lent one reads it again.
            false => Some(Tensor::cat(&widened, 0)?.copy()?),
        };
        // What is eight bytes wide comes first.
        let parts: [&[u32]; 6] = [
            &self.entries,
            bytemuck::cast_slice(&self.weights),
            bytemuck::cast_slice(&self.operands),
            bytemuck::cast_slice(&self.rows),
            bytemuck::cast_slice(&self.starts),
            bytemuck::cast_slice(&self.channels),
        ];
        let words = Tensor::new(parts.concat(), device)?;
        let mut first = 0;
        let parts = parts.map(|part| {
            let begin = first;
            first += part.len();
            match part.is_empty() {
                true => Ok(None),
                false => words.narrow(0, begin, part.len()).map(Some),
            }
        });
        let [of_entries, weights, operands, rows, starts, channels] = parts;
        let later = match self.later {
            0 => None,
            count => Some(Tensor::zeros((count, self.width), DType::F32, device)?),
        };
        let rows_after = x.copy()?;
        let outcomes = unwritten((entries.max(1), OUTCOME), DType::F32, device)?;
        let launch = Launch::new("row_edits", DType::F32, [self.rows.len(), 1, 1])?
            .shared(shared_memory(self.most_channels, self.width))?
            .written(&rows_after)?
            .changed(sources.as_ref())?
            .optional(rows?.as_ref())?
            .optional(starts?.as_ref())?
            .optional(of_entries?.as_ref())?
            .optional(channels?.as_ref())?
            .optional(weights?.as_ref())?
            .optional(operands?.as_ref())?
            .optional(columns.as_ref())?
            .changed(later.as_ref())?
            .written(&outcomes)?
            .count(self.width)?
            .count(source_width)?
            .count(self.most_channels)?;
        launch.run(device)?;
        Ok(CarriedOut {
            rows: rows_after,
            done: Done {
                outcomes,
                on_host: Rc::default(),
                later,
            },
        })
    }
}

/// Bytes that `row_edits` asks for.
fn shared_memory(most_channels: usize, width: usize) -> usize {
    12 * most_channels + 4 * width
}

// The kernel's numbers.
const READ_ONLY: i32 = 10;
const GIVEN: i32 = 11;
const ITSELF: i32 = 0;
const COLUMNS: i32 = 1;
const LATER: i32 = 2;
const OF_ROW: i32 = -1;
const NOWHERE: i32 = -2;

/// The kernel's `Edit`.
#[derive(Debug, Default)]
struct EntryRow {
    strength: f64,
    value: f64,
    bound: f64,
    squared_norm: f64,
    operation: i32,
    write: i32,
    source: i32,
    first_channel: i32,
    channel_count: i32,
    column: i32,
    control: i32,
    later: i32,
    factor: f32,
    stream: i32,
    stream_width: i32,
    fills_source: i32,
}

impl EntryRow {
    /// Takes an operation in, and returns its operands: two of each channel.
    fn operate(&mut self, operation: TableOperation) -> Vec<[f64; 2]> {
        let single = |values: Vec<f64>| values.into_iter().map(|value| [value, 0.0]).collect();
        let (number, value, bound, operands) = match operation {
            TableOperation::Add(value) => (0, value, 0.0, Vec::new()),
            TableOperation::AddResidual(value) => (1, value, 0.0, Vec::new()),
            TableOperation::Set(value) => (2, value, 0.0, Vec::new()),
            TableOperation::Clamp(low, high) => (3, low, high, Vec::new()),
            TableOperation::Scale(value) => (4, value, 0.0, Vec::new()),
            TableOperation::EachTo(values) => (5, 0.0, 0.0, single(values)),
            TableOperation::AddEach(values) => (6, 0.0, 0.0, single(values)),
            TableOperation::ClampEach(bounds) => {
                let bounds = bounds.into_iter().map(|(low, high)| [low, high]);
                (7, 0.0, 0.0, bounds.collect())
            }
            TableOperation::ScaleEach(value) => (8, value, 0.0, Vec::new()),
            TableOperation::Swap => (9, 0.0, 0.0, Vec::new()),
            TableOperation::ReadOnly => (READ_ONLY, 0.0, 0.0, Vec::new()),
        };
        (self.operation, self.value, self.bound) = (number, value, bound);
        operands
    }

    fn append_to(&self, words: &mut Vec<u32>) {
        let halves = |number: f64| {
            let bits = number.to_bits();
            [bits as u32, (bits >> 32) as u32]
        };
        words.extend(
            [self.strength, self.value, self.bound, self.squared_norm]
                .into_iter()
                .flat_map(halves),
        );
        let numbers = [
            self.operation,
            self.write,
            self.source,
            self.first_channel,
            self.channel_count,
            self.column,
            self.control,
            self.later,
        ];
        words.extend(numbers.map(|number| number as u32));
        words.push(self.factor.to_bits());
        let last = [self.stream, self.stream_width, self.fills_source];
        words.extend(last.map(|number| number as u32));
    }
}
