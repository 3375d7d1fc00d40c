//! Taps: what may look at, and change, the values inside a forward pass.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use candle_core::{Result, Tensor};

use super::location::{Location, Node, Site};
use crate::numerics::kernels::edit_table::{EditTable, OwnOutcomes};
use crate::numerics::{kernels, row_updates};

/// Sees every value of a forward pass on its way, `[rows, channels]`, and may put another in its place.
pub trait ResidualTap {
    /// Called once for each place in the order of the pass; what it returns goes on.
    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor>;

    /// Whether it looks at this place: where it does not, the value need not be there.
    fn looks_at(&self, _place: Location) -> bool {
        true
    }

    /// What the norm before a sublayer's input, `attn.act_in` or `mlp.act_in`, multiplies each row by, `[rows, 1]`, where it
    /// shall not be what it finds.
    fn norm_scale(&mut self, _input: Node) -> Option<Tensor> {
        None
    }
}

/// Changes nothing.
pub struct NoTap;

impl ResidualTap for NoTap {
    fn looks_at(&self, _place: Location) -> bool {
        false
    }

    fn visit(&mut self, _place: Location, value: Tensor) -> Result<Tensor> {
        Ok(value)
    }
}

/// Sees the values of those rows of a pass that belong together, such as one request's.
pub trait RowTap: Send {
    /// Where it looks. It is shown nothing else, and a place that nobody looks at costs nothing.
    fn places(&self) -> &BTreeSet<Location>;

    /// Looks at its rows of one of its places, and adds those that it changes there to `changed`, each once.
    fn look(&mut self, place: Location, rows: &OwnRows, changed: &mut Vec<u32>) -> Result<()>;

    /// Changes the rows that it has just named: `[named rows, width]`, in the order in which it named them.
    fn change(&mut self, _place: Location, _rows: &mut [f32], _width: usize) -> Result<()> {
        Ok(())
    }

    /// Puts what it does with the rows that it has just named into a table that a device carries out, its own first row being
    /// number `first` of the batch. False where it does it itself, by [`RowTap::change`].
    fn tabulate(&mut self, _place: Location, _first: u32, _table: &mut EditTable) -> Result<bool> {
        Ok(false)
    }

    /// Sees what its entries of the table came to.
    fn carried_out(&mut self, _place: Location, _done: &OwnOutcomes) -> Result<()> {
        Ok(())
    }

    /// Sees its rows as they go on.
    fn leave(&mut self, _place: Location, _rows: &OwnRows) -> Result<()> {
        Ok(())
    }
}

/// Keeps what a part's rows hold at some places as they go on, after what `edits` does to them.
pub struct WatchTap<'a> {
    edits: Option<Box<dyn RowTap + 'a>>,
    watched: &'a BTreeSet<Location>,
    /// Those, and where the edits look.
    places: BTreeSet<Location>,
    seen: &'a mut BTreeMap<Location, Tensor>,
}

impl<'a> WatchTap<'a> {
    pub fn new(
        edits: Option<Box<dyn RowTap + 'a>>,
        watched: &'a BTreeSet<Location>,
        seen: &'a mut BTreeMap<Location, Tensor>,
    ) -> Self {
        let looked_at = edits.iter().flat_map(|edits| edits.places());
        WatchTap {
            places: looked_at.chain(watched).copied().collect(),
            edits,
            watched,
            seen,
        }
    }

    /// The edits, where they look at a place.
    fn edits_at(&mut self, place: Location) -> Option<&mut Box<dyn RowTap + 'a>> {
        let edits = self.edits.as_mut();
        edits.filter(|edits| edits.places().contains(&place))
    }
}

impl RowTap for WatchTap<'_> {
    fn places(&self) -> &BTreeSet<Location> {
        &self.places
    }

    fn look(&mut self, place: Location, rows: &OwnRows, changed: &mut Vec<u32>) -> Result<()> {
        match self.edits_at(place) {
            Some(edits) => edits.look(place, rows, changed),
            None => Ok(()),
        }
    }

    fn change(&mut self, place: Location, rows: &mut [f32], width: usize) -> Result<()> {
        match self.edits_at(place) {
            Some(edits) => edits.change(place, rows, width),
            None => Ok(()),
        }
    }

    fn tabulate(&mut self, place: Location, first: u32, table: &mut EditTable) -> Result<bool> {
        match self.edits_at(place) {
            Some(edits) => edits.tabulate(place, first, table),
            None => Ok(false),
        }
    }

    fn carried_out(&mut self, place: Location, done: &OwnOutcomes) -> Result<()> {
        match self.edits_at(place) {
            Some(edits) => edits.carried_out(place, done),
            None => Ok(()),
        }
    }

    fn leave(&mut self, place: Location, rows: &OwnRows) -> Result<()> {
        if let Some(edits) = self.edits_at(place) {
            edits.leave(place, rows)?;
        }
        if self.watched.contains(&place) {
            self.seen.insert(place, rows.tensor()?);
        }
        Ok(())
    }
}

/// A part's rows of a batch. Most parts never look at them.
pub struct OwnRows<'v> {
    batch: &'v Tensor,
    rows: Range<usize>,
}

impl OwnRows<'_> {
    /// `[rows, width]`, without a copy.
    pub fn tensor(&self) -> Result<Tensor> {
        self.batch.narrow(0, self.rows.start, self.rows.len())
    }
}

/// Shows every part of a pass its own rows. The parts share the pass, whatever each of them does: the rows that any
/// of them changes are taken out of the batch together, and put back together; on a device one launch changes them where
/// they are.
#[derive(Default)]
pub struct SplitTap<'a> {
    parts: Vec<(Range<usize>, &'a mut dyn RowTap)>,
    /// The parts that look at each place.
    lookers: BTreeMap<Location, Vec<usize>>,
}

impl<'a> SplitTap<'a> {
    /// Adds a part that owns these rows.
    pub fn push(&mut self, rows: Range<usize>, tap: &'a mut dyn RowTap) {
        for &place in tap.places() {
            self.lookers
                .entry(place)
                .or_default()
                .push(self.parts.len());
        }
        self.parts.push((rows, tap));
    }
}

impl ResidualTap for SplitTap<'_> {
    fn looks_at(&self, place: Location) -> bool {
        self.lookers.contains_key(&place)
    }

    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        let Some(lookers) = self.lookers.get(&place) else {
            return Ok(value);
        };
        let value = value.contiguous()?;
        let (mut changed, mut shares) = (Vec::new(), Vec::with_capacity(lookers.len()));
        let on_device = kernels::run_on(value.device());
        let mut tabulated = Vec::new();
        let mut table = EditTable::new(value.dim(1)?);
        for &part in lookers {
            let (rows, tap) = &mut self.parts[part];
            let (first, before) = (rows.start as u32, changed.len());
            let own = OwnRows {
                batch: &value,
                rows: rows.clone(),
            };
            tap.look(place, &own, &mut changed)?;
            let mark = table.mark();
            if on_device && changed.len() > before && tap.tabulate(place, first, &mut table)? {
                changed.truncate(before);
                tabulated.push((part, mark, table.mark()));
            }
            changed[before..].iter_mut().for_each(|row| *row += first);
            shares.push(changed.len() - before);
        }
        let value = match changed.is_empty() {
            true => value,
            false => {
                let width = value.dim(1)?;
                let mut taken = row_updates::gather(&value, &changed)?;
                let mut rest = taken.as_mut_slice();
                for (&part, share) in lookers.iter().zip(shares) {
                    let (own, others) = rest.split_at_mut(share * width);
                    if share > 0 {
                        self.parts[part].1.change(place, own, width)?;
                    }
                    rest = others;
                }
                row_updates::scatter(&value, &changed, taken)?
            }
        };
        let value = match tabulated.is_empty() {
            true => value,
            false => {
                let done = table.carry_out(&value)?;
                for (part, first, end) in tabulated {
                    let own = done.between(first, end);
                    self.parts[part].1.carried_out(place, &own)?;
                }
                done.rows
            }
        };
        for &part in lookers {
            let (rows, tap) = &mut self.parts[part];
            let own = OwnRows {
                batch: &value,
                rows: rows.clone(),
            };
            tap.leave(place, &own)?;
        }
        Ok(value)
    }
}

/// Keeps the values of the places it was asked for; changes nothing.
#[derive(Default)]
pub struct Recorder {
    wanted: BTreeSet<Location>,
    values: BTreeMap<Location, Tensor>,
}

impl Recorder {
    pub fn of(places: impl IntoIterator<Item = Location>) -> Self {
        Recorder {
            wanted: places.into_iter().collect(),
            values: BTreeMap::new(),
        }
    }

    /// A recorder of the residual stream at every site.
    pub fn of_sites(n_layers: usize) -> Self {
        Self::of(Site::all(n_layers).map(Location::Site))
    }

    /// What was seen at `place`, if it was asked for and the pass has come by.
    pub fn get(&self, place: Location) -> Option<&Tensor> {
        self.values.get(&place)
    }

    pub fn into_values(self) -> BTreeMap<Location, Tensor> {
        self.values
    }

    /// The recorded residual stream, site after site.
    pub fn into_sites(self) -> Vec<Tensor> {
        self.values
            .into_iter()
            .filter(|(place, _)| matches!(place, Location::Site(_)))
            .map(|(_, value)| value)
            .collect()
    }
}

impl ResidualTap for Recorder {
    fn looks_at(&self, place: Location) -> bool {
        self.wanted.contains(&place)
    }

    fn visit(&mut self, place: Location, value: Tensor) -> Result<Tensor> {
        if self.wanted.contains(&place) {
            self.values.insert(place, value.clone());
        }
        Ok(value)
    }
}
