//! The rows of one step: which token of which arm stands where.
//!
//! An *arm* is one sequence that is generated: a prompt, a sample, a variant, a strength. All arms of a request
//! step together; their tokens are the rows of one batch.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::control::Directions;
use super::request::Variant;
use crate::models::kv_cache::CacheRow;
use crate::numerics::{kernels, row_updates, rows};

/// What steering knows of an arm.
#[derive(Debug, Clone)]
pub struct SteeredArm {
    pub variant: Variant,
    /// Its place in a sweep.
    pub strength: Option<f64>,
    /// What stands in for each change, in a control arm.
    pub directions: Option<Arc<Directions>>,
    /// Its features are read, whether or not they are edited.
    pub follows: bool,
}

impl SteeredArm {
    /// Whether the arm's values are changed.
    pub fn edits(&self) -> bool {
        self.variant != Variant::Baseline
    }
}

/// Tokens that an arm feeds to its model in this step.
#[derive(Debug, Clone, Copy)]
pub struct Feed<'t> {
    pub arm: usize,
    pub prompt: usize,
    pub prompt_length: usize,
    /// The arm's tokens so far; those from `from` on are fed.
    pub tokens: &'t [u32],
    pub from: usize,
}

/// One token of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its row in the answering model's batch.
    pub index: usize,
    pub arm: usize,
    pub prompt: usize,
    pub prompt_length: usize,
    pub position: usize,
}

/// The rows of all feeds, one after another.
pub fn rows_of(feeds: &[Feed]) -> Vec<Row> {
    let tokens = feeds.iter().flat_map(|feed| {
        (feed.from..feed.tokens.len()).map(move |position| Row {
            index: 0,
            arm: feed.arm,
            prompt: feed.prompt,
            prompt_length: feed.prompt_length,
            position,
        })
    });
    tokens
        .enumerate()
        .map(|(index, row)| Row { index, ..row })
        .collect()
}

/// The token ids of all feeds.
pub fn ids_of(feeds: &[Feed]) -> Vec<u32> {
    feeds
        .iter()
        .flat_map(|feed| &feed.tokens[feed.from..])
        .copied()
        .collect()
}

/// The rows' places in a cache; `slot` names each arm's.
pub fn cache_rows(rows: &[Row], slot: impl Fn(usize) -> usize) -> Vec<CacheRow> {
    rows.iter()
        .map(|row| CacheRow {
            slot: slot(row.arm),
            position: row.position,
        })
        .collect()
}

/// Tokens for a model to run, each with its place in the model's cache.
#[derive(Debug, Clone, Default)]
pub struct PassRows {
    pub ids: Vec<u32>,
    pub at: Vec<CacheRow>,
    /// Rows with a further place that takes their key and value: the same token of the same text for another arm.
    pub copies: Vec<(usize, CacheRow)>,
}

impl PassRows {
    /// Adds a token; `text` says where it stands in which text if other arms may have the same one, which is then
    /// run once for all of them. Returns the row that runs it.
    pub fn push(
        &mut self,
        text: Option<(&mut SamePrompts, usize, usize)>,
        id: u32,
        at: CacheRow,
    ) -> usize {
        let row = self.ids.len();
        let first = text.map_or(row, |(same, text, prompt)| {
            same.first(text, prompt, at.position, row)
        });
        if first < row {
            self.copies.push((first, at));
        } else {
            self.ids.push(id);
            self.at.push(at);
        }
        first
    }

    /// Every slot that is written.
    pub fn slots(&self) -> impl Iterator<Item = usize> {
        let copies = self.copies.iter().map(|(_, at)| at);
        self.at.iter().chain(copies).map(|at| at.slot)
    }
}

/// Which of these rows are the same token of the same prompt.
#[derive(Debug, Default)]
pub struct SamePrompts {
    first: BTreeMap<(usize, usize, usize), usize>,
}

impl SamePrompts {
    /// The row that was the first to stand for this position of this prompt of this text (the arms' own, or one of
    /// several beside it); `row` itself if it is.
    pub fn first(&mut self, text: usize, prompt: usize, position: usize, row: usize) -> usize {
        *self.first.entry((text, prompt, position)).or_insert(row)
    }
}

/// Rows of one place, `[rows, width]`, out of their tensor; where there is none beside a row, it has none.
#[derive(Debug, Clone)]
pub struct RowBlock {
    width: usize,
    /// By the row that was asked for.
    at: Vec<Option<usize>>,
    values: BlockValues,
}

/// Where a block's values are.
#[derive(Debug, Clone)]
enum BlockValues {
    OnHost(Vec<f32>),
    /// On the device that they were computed on, and from when the host first asks also there.
    OnDevice {
        rows: Tensor,
        read: OnceCell<Vec<f32>>,
    },
}

impl RowBlock {
    /// The named rows of `values`, in one copy.
    pub fn gather(values: &Tensor, rows: impl Iterator<Item = Option<usize>>) -> Result<Self> {
        let (mut at, mut found) = (Vec::new(), Vec::new());
        for row in rows {
            at.push(row.map(|_| found.len()));
            found.extend(row.map(|row| row as u32));
        }
        let on_device = kernels::run_on(values.device()) && !found.is_empty();
        Ok(RowBlock {
            width: values.dim(1)?,
            at,
            values: match on_device {
                true => BlockValues::OnDevice {
                    rows: values
                        .contiguous()?
                        .index_select(&Tensor::new(found, values.device())?, 0)?,
                    read: OnceCell::new(),
                },
                false => BlockValues::OnHost(row_updates::gather(values, &found)?),
            },
        })
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// Which of the block's rows is the one that was asked for as number `index`.
    pub fn place(&self, index: usize) -> Option<usize> {
        *self.at.get(index)?
    }

    /// All of the block's rows as a device may read them, `[rows, width]`; none where it has no rows.
    pub fn tensor(&self) -> Result<Option<Tensor>> {
        match &self.values {
            BlockValues::OnDevice { rows, .. } => Ok(Some(rows.clone())),
            BlockValues::OnHost(values) if values.is_empty() => Ok(None),
            BlockValues::OnHost(values) => {
                let shape = (values.len() / self.width, self.width);
                Tensor::from_slice(values, shape, &Device::Cpu).map(Some)
            }
        }
    }

    /// Of the row that was asked for as number `index`, on the host.
    pub fn row(&self, index: usize) -> Result<Option<&[f32]>> {
        let Some(at) = self.place(index) else {
            return Ok(None);
        };
        let values = match &self.values {
            BlockValues::OnHost(values) => values,
            BlockValues::OnDevice { rows, read } => match read.get() {
                Some(values) => values,
                None => {
                    let values = rows::to_vec(rows)?;
                    read.get_or_init(|| values)
                }
            },
        };
        Ok(values.get(at * self.width..(at + 1) * self.width))
    }

    pub fn row_mut(&mut self, index: usize) -> Result<Option<&mut [f32]>> {
        // A device's values are changed where the host has them.
        self.row(index)?;
        let Some(at) = self.place(index) else {
            return Ok(None);
        };
        let values = match &mut self.values {
            BlockValues::OnHost(values) => Some(values),
            BlockValues::OnDevice { read, .. } => read.get_mut(),
        };
        let range = at * self.width..(at + 1) * self.width;
        Ok(values.and_then(|values| values.get_mut(range)))
    }
}
