//! One pass through a model: the rows of many requests, divided between threads, each request's tap seeing its own.
//!
//! `parts -> logits`, `[vocabulary]` for every row that wants them, or on a device the token that was drawn from them. Rows go
//! through the model in groups, a thread each, because a token's row meets no other but in its own slot of the cache: a
//! group needs no word from the others between the embedding and the logits. What several rows of a part have in common
//! (arms with the same prompt, below the first place where they can differ) is computed once and then given to all of them.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::next::{Next, WantedRow};
use crate::interventions::rows_of_arms::PassRows;
use crate::models::kv_cache::{CacheSlots, KvCache};
use crate::models::location::Site;
use crate::models::tap::{RowTap, SplitTap};
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::numerics::kernels::operations::{TokenDraw, draw};
use crate::numerics::{kernels, rows};

/// Logits are computed for this many rows at once.
const ROWS_OF_LOGITS: usize = 256;
/// So many rows keep a thread busy with weights that it reads anyway.
const ROWS_WORTH_A_THREAD: usize = 16;

/// One request's rows in a pass.
pub struct Part<'p> {
    pub rows: PassRows,
    pub tap: Option<&'p mut dyn RowTap>,
    /// Where `rows` become more.
    pub parting: Option<Parting>,
    /// Of the rows at the end, those of which something is wanted.
    pub wanted: Vec<WantedRow>,
}

/// Where rows that were computed once go separate ways.
#[derive(Debug, Clone)]
pub struct Parting {
    /// Up to here they are the same.
    pub at: Site,
    pub rows: PassRows,
    /// For each of these, the row that was computed for it.
    pub sources: Vec<u32>,
}

impl Part<'_> {
    fn most_rows(&self) -> usize {
        let parted = self.parting.as_ref().map(|parting| parting.rows.ids.len());
        parted.unwrap_or(self.rows.ids.len())
    }

    fn slots(&self) -> impl Iterator<Item = usize> {
        let parted = self.parting.iter().flat_map(|parting| parting.rows.slots());
        self.rows.slots().chain(parted)
    }
}

/// Runs all parts and returns, for each, what it wants of its rows, in their order.
pub fn pass(
    transformer: &Transformer,
    cache: &mut KvCache,
    parts: Vec<Part>,
) -> Result<Vec<Vec<Next>>> {
    let groups = match cache.is_divisible() {
        true => grouped(parts),
        false => vec![parts],
    };
    let slots: Vec<Vec<usize>> = groups
        .iter()
        .map(|parts| parts.iter().flat_map(Part::slots).collect())
        .collect();
    let caches = cache.divide(&slots);
    let run = |(parts, cache)| run_group(transformer, cache, parts);
    let groups: Vec<(Vec<Part>, CacheSlots)> = groups.into_iter().zip(caches).collect();
    let logits: Result<Vec<_>> = match groups.len() {
        // Not worth another thread, nor a word to it.
        1 => groups.into_iter().map(run).collect(),
        _ => groups.into_par_iter().map(run).collect(),
    };
    Ok(logits?.into_iter().flatten().collect())
}

/// Neighbouring parts with about as many rows in each group.
fn grouped(parts: Vec<Part>) -> Vec<Vec<Part>> {
    let rows: usize = parts.iter().map(Part::most_rows).sum();
    let count = (rows / ROWS_WORTH_A_THREAD).clamp(1, rayon::current_num_threads());
    let share = rows.div_ceil(count).max(1);
    let mut groups: Vec<Vec<Part>> = vec![Vec::new()];
    let mut filled = 0;
    for part in parts {
        if filled >= share {
            groups.push(Vec::new());
            filled = 0;
        }
        filled += part.most_rows();
        if let Some(group) = groups.last_mut() {
            group.push(part);
        }
    }
    groups
}

fn run_group(
    transformer: &Transformer,
    cache: CacheSlots,
    mut parts: Vec<Part>,
) -> Result<Vec<Vec<Next>>> {
    let (all, mut ranges) = joined(&parts);
    if all.ids.is_empty() {
        return Ok(parts.iter().map(|_| Vec::new()).collect());
    }
    let mut tokens = TokenRows::in_slots(&all.ids, all.at, all.copies, cache)?;
    let mut stream = transformer.embed(&tokens)?;
    let mut from = Site::before_attention(0, transformer.config.n_layers);
    loop {
        let partings = parts.iter().filter_map(|part| part.parting.as_ref());
        let next = partings.map(|parting| parting.at).min();
        let mut split = SplitTap::default();
        for (part, range) in parts.iter_mut().zip(&ranges) {
            if let Some(tap) = part.tap.as_deref_mut() {
                split.push(range.clone(), tap);
            }
        }
        stream = transformer.run_until(next, from, stream, &mut tokens, &mut split)?;
        let Some(site) = next else {
            break;
        };
        let sources = part_ways(&mut parts, &ranges, site);
        stream = stream.index_select(&Tensor::new(sources, transformer.device())?, 0)?;
        let (all, new_ranges) = joined(&parts);
        tokens = tokens.instead(&all.ids, all.at, all.copies)?;
        (ranges, from) = (new_ranges, site);
    }
    wanted_logits(transformer, &stream, &tokens.ids, &parts, &ranges)
}

/// The rows of all parts, one part's after the other's, and where each part's are.
fn joined(parts: &[Part]) -> (PassRows, Vec<Range<usize>>) {
    let mut all = PassRows::default();
    let mut ranges = Vec::with_capacity(parts.len());
    for part in parts {
        let first = all.ids.len();
        all.ids.extend_from_slice(&part.rows.ids);
        all.at.extend_from_slice(&part.rows.at);
        let copies = part.rows.copies.iter();
        all.copies
            .extend(copies.map(|&(row, at)| (first + row, at)));
        ranges.push(first..all.ids.len());
    }
    (all, ranges)
}

/// Lets the parts that part at `site` have all their rows, and returns which of the rows so far each comes from.
fn part_ways(parts: &mut [Part], ranges: &[Range<usize>], site: Site) -> Vec<u32> {
    let mut sources = Vec::new();
    for (part, range) in parts.iter_mut().zip(ranges) {
        match part.parting.take_if(|parting| parting.at == site) {
            Some(parting) => {
                let first = range.start as u32;
                sources.extend(parting.sources.iter().map(|source| first + source));
                part.rows = parting.rows;
            }
            None => sources.extend(range.start as u32..range.end as u32),
        }
    }
    sources
}

fn wanted_logits(
    transformer: &Transformer,
    stream: &Tensor,
    ids: &Tensor,
    parts: &[Part],
    ranges: &[Range<usize>],
) -> Result<Vec<Vec<Next>>> {
    let on_device = kernels::run_on(transformer.device());
    let mut all: Vec<WantedOfPart> = parts
        .iter()
        .zip(ranges)
        .enumerate()
        .flat_map(|(part, (of, range))| {
            let wanted = move |(place, wanted): (usize, &WantedRow)| WantedOfPart {
                part,
                place,
                row: (range.start + wanted.row) as u32,
                draw: wanted.draw.filter(|_| on_device),
            };
            of.wanted.iter().enumerate().map(wanted)
        })
        .collect();
    // Rows whose tokens are drawn stand together; the sort keeps everyone else's order.
    all.sort_by_key(|wanted| wanted.draw.is_some());
    let vocabulary = transformer.config.vocab_size;
    let nothing = |part: &Part| vec![Next::Token(None); part.wanted.len()];
    let mut found: Vec<Vec<Next>> = parts.iter().map(nothing).collect();
    for chunk in all.chunks(ROWS_OF_LOGITS) {
        let picked: Vec<u32> = chunk.iter().map(|wanted| wanted.row).collect();
        let picked = Tensor::new(picked, transformer.device())?;
        let stream = stream.index_select(&picked, 0)?;
        let ids = ids.index_select(&picked, 0)?;
        let logits = transformer.unembed(&stream, &ids)?;
        let whole = chunk.partition_point(|wanted| wanted.draw.is_none());
        let (whole, drawn) = chunk.split_at(whole);
        if !drawn.is_empty() {
            let draws: Vec<TokenDraw> = drawn.iter().filter_map(|wanted| wanted.draw).collect();
            let tokens = draw(&logits.narrow(0, whole.len(), drawn.len())?, &draws)?;
            for (of, token) in drawn.iter().zip(tokens) {
                found[of.part][of.place] = Next::Token(token);
            }
        }
        if !whole.is_empty() {
            let logits = logits.narrow(0, 0, whole.len())?;
            rows::with_values(&logits, |values| {
                for (of, row) in whole.iter().zip(values.chunks_exact(vocabulary)) {
                    found[of.part][of.place] = Next::Logits(row.to_vec());
                }
            })?;
        }
    }
    Ok(found)
}

/// One of the wanted rows of all parts.
struct WantedOfPart {
    part: usize,
    /// Its place among those of the part.
    place: usize,
    row: u32,
    draw: Option<TokenDraw>,
}
