//! Tables of edits held against what their entries mean, written out in double precision.

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::features::group::Group;
use crate::interventions::subject::Direction;
use crate::models::location::{Location, Site};

const WIDTH: usize = 7;
/// Of the values that are read elsewhere.
const READ_WIDTH: usize = 9;
const ROWS: usize = 3;

fn place() -> Location {
    Location::Site(Site::before_attention(0, 1))
}

/// What can be in a table, owned so that a table can borrow it.
struct Drawn {
    row: usize,
    subject: Subject,
    action: Action,
    strength: f64,
    counterfactual: Option<Vec<f32>>,
    how: How,
    carrier: Carrier,
    rms: f32,
    given: Vec<f32>,
    control: Option<Vec<f32>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    Itself,
    Added,
    Columns,
    Later,
    Given,
    ReadOnly,
}

fn numbers(count: usize, draw: &mut ChaCha8Rng) -> Vec<f32> {
    (0..count).map(|_| draw.random_range(-1.0..1.0)).collect()
}

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = norm(&vector);
    vector.iter_mut().for_each(|value| *value /= length);
    vector
}

fn group(width: usize, swap: bool, draw: &mut ChaCha8Rng) -> Group {
    let mut channels: Vec<usize> = (0..width).collect();
    let count = if swap { 2 } else { draw.random_range(1..=3) };
    let channels = (0..count)
        .map(|_| channels.swap_remove(draw.random_range(0..channels.len())))
        .collect();
    let weights = match (swap, count) {
        (true, _) => vec![1.0, 0.0],
        (_, 1) => vec![[1.0, -1.0][draw.random_range(0..2)]],
        _ => {
            let weights: Vec<f64> = (0..count).map(|_| draw.random_range(0.2..1.0)).collect();
            let length = weights
                .iter()
                .map(|weight| weight * weight)
                .sum::<f64>()
                .sqrt();
            weights.iter().map(|weight| weight / length).collect()
        }
    };
    Group {
        place: place(),
        channels,
        weights,
    }
}

fn drawn(row: usize, draw: &mut ChaCha8Rng) -> Drawn {
    use How::{Added, Columns, Given, Itself, Later, ReadOnly};
    let how = [Itself, Added, Columns, Later, Given, ReadOnly][draw.random_range(0..6)];
    let width = if matches!(how, Columns | Later) {
        READ_WIDTH
    } else {
        WIDTH
    };
    let direction = how == Added || how == Itself && draw.random_bool(0.3);
    let operation = draw.random_range(0..if direction { 6 } else { 10 });
    let subject = match direction {
        true => {
            let vector = numbers(width, draw);
            let squared_norm = vector.iter().map(|&v| f64::from(v).powi(2)).sum();
            Subject::Direction(Direction {
                site: Site::before_attention(0, 1),
                vector,
                squared_norm,
            })
        }
        false => Subject::Channels(group(width, operation == 6, draw)),
    };
    let channels = subject.channels().len();
    let value = draw.random_range(-2.0..2.0);
    let action = match operation {
        0 => Action::Add(value),
        1 => Action::Set(value),
        2 => Action::Clamp {
            min: value,
            max: value + 0.5,
        },
        3 => Action::Scale(value),
        4 => Action::Ablate(numbers(channels, draw)),
        5 => Action::Patch { stream: 0 },
        6 => Action::Swap,
        7 => Action::AddEach(numbers(channels, draw).into_iter().map(f64::from).collect()),
        8 => Action::ScaleEach(value),
        _ => {
            let least = numbers(channels, draw).into_iter().map(f64::from);
            Action::ClampEach(least.map(|least| (least, least + 0.5)).collect())
        }
    };
    let columns = (0..channels.max(1)).map(|_| numbers(WIDTH, draw)).collect();
    Drawn {
        row,
        strength: [1.0, draw.random_range(-2.0..2.0)][draw.random_range(0..2)],
        counterfactual: (operation == 5).then(|| numbers(width, draw)),
        carrier: Carrier::of_columns(place(), columns, draw.random_bool(0.5)),
        rms: draw.random_range(0.5..2.0),
        given: numbers(WIDTH, draw),
        control: draw.random_bool(0.3).then(|| unit(numbers(WIDTH, draw))),
        subject,
        action,
        how,
    }
}

/// The meaning in double precision, one entry at a time: what a feature's change is, and where it goes.
struct Meaning {
    row: Vec<f64>,
    steered: Option<Vec<f64>>,
    read: Vec<f64>,
}

fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn value(subject: &Subject, values: &[f64]) -> f64 {
    match subject {
        Subject::Channels(group) | Subject::OwnChannels(group) => {
            let terms = group.channels.iter().zip(&group.weights);
            terms
                .map(|(&channel, weight)| weight * values[channel])
                .sum()
        }
        Subject::Direction(direction) => {
            let terms = direction.vector.iter().zip(values);
            let product: f64 = terms.map(|(&v, x)| f64::from(v) * x).sum();
            product / direction.squared_norm
        }
    }
}

/// Moves the values; the change, one number for each channel of a group or of the whole row.
fn moved(of: &Drawn, values: &mut [f64]) -> Vec<f64> {
    let a = value(&of.subject, values);
    let partner = |channel: usize| {
        of.counterfactual
            .as_ref()
            .map(|row| f64::from(row[channel]))
    };
    let target = match of.action {
        Action::Set(value) => Some(value),
        Action::Clamp { min, max } => Some(a.clamp(min, max)),
        Action::Scale(value) => Some(value * a),
        Action::Add(value) => Some(a + value),
        _ => None,
    };
    match &of.subject {
        Subject::Channels(group) | Subject::OwnChannels(group) => {
            let before: Vec<f64> = group.channels.iter().map(|&c| values[c]).collect();
            let change: Vec<f64> = (0..before.len())
                .map(|at| {
                    let to = match (&of.action, target) {
                        (_, Some(target)) => before[at] + group.weights[at] * (target - a),
                        (Action::Ablate(to), _) => f64::from(to[at]),
                        (Action::AddEach(added), _) => before[at] + added[at],
                        (Action::ScaleEach(factor), _) => before[at] * factor,
                        (Action::ClampEach(bounds), _) => {
                            before[at].clamp(bounds[at].0, bounds[at].1)
                        }
                        (Action::Patch { .. }, _) => {
                            partner(group.channels[at]).expect("a partner")
                        }
                        _ => before[before.len() - 1 - at],
                    };
                    of.strength * (to - before[at])
                })
                .collect();
            for (&channel, change) in group.channels.iter().zip(&change) {
                values[channel] += change;
            }
            change
        }
        Subject::Direction(direction) => {
            let to = match (&of.action, target) {
                (_, Some(target)) => target,
                (Action::Patch { .. }, _) => {
                    let row = of.counterfactual.as_ref().expect("a partner");
                    let row: Vec<f64> = row.iter().map(|&value| f64::from(value)).collect();
                    value(&of.subject, &row)
                }
                _ => 0.0,
            };
            let along = of.strength * (to - a);
            let change = direction.vector.iter().map(|&v| along * f64::from(v));
            let change: Vec<f64> = change.collect();
            values
                .iter_mut()
                .zip(&change)
                .for_each(|(x, step)| *x += step);
            change
        }
    }
}

impl Meaning {
    /// Carries one entry out: before, after, the norm of the change, and a change for later.
    fn carry_out(&mut self, of: &Drawn) -> (f64, f64, f64, Option<Vec<f64>>) {
        let carried = |change: &[f64]| -> Vec<f64> {
            let mut delta = vec![0f32; WIDTH];
            let mut sum = vec![0.0; WIDTH];
            for (at, change) in change.iter().enumerate() {
                let mut alone = vec![0.0; change_count(of)];
                alone[at] = 1.0;
                delta.fill(0.0);
                of.carrier.add(&alone, of.rms, &mut delta);
                let column = delta.iter().map(|&value| f64::from(value));
                sum.iter_mut()
                    .zip(column)
                    .for_each(|(sum, value)| *sum += change * value);
            }
            sum
        };
        let (before, after, delta) = match of.how {
            How::Given => (0.0, 0.0, of.given.iter().map(|&v| f64::from(v)).collect()),
            How::ReadOnly => {
                let values = self.steered.as_ref().unwrap_or(&self.row);
                let before = value(&of.subject, values);
                return (before, before, 0.0, None);
            }
            How::Itself => {
                let mut values = match &of.control {
                    None => self.row.clone(),
                    Some(_) => self.steered.clone().unwrap_or_else(|| self.row.clone()),
                };
                let before = value(&of.subject, &values);
                let change = moved(of, &mut values);
                let after = value(&of.subject, &values);
                match &of.control {
                    None => self.row = values,
                    Some(unit) => {
                        self.steered = Some(values);
                        let size = length(&change);
                        let steps = unit.iter().map(|&unit| size * f64::from(unit));
                        self.row
                            .iter_mut()
                            .zip(steps)
                            .for_each(|(x, step)| *x += step);
                    }
                }
                return (before, after, length(&change), None);
            }
            How::Added => {
                let mut values = self.row.clone();
                let before = value(&of.subject, &values);
                let change = moved(of, &mut values);
                (before, value(&of.subject, &values), change)
            }
            How::Columns | How::Later => {
                let before = value(&of.subject, &self.read);
                let mut values = self.read.clone();
                let change = moved(of, &mut values);
                self.read = values;
                (before, value(&of.subject, &self.read), carried(&change))
            }
        };
        let size = length(&delta);
        let written: Vec<f64> = match &of.control {
            None => delta,
            Some(unit) => unit.iter().map(|&unit| size * f64::from(unit)).collect(),
        };
        if of.how == How::Later {
            return (before, after, size, Some(written));
        }
        self.row
            .iter_mut()
            .zip(&written)
            .for_each(|(x, step)| *x += step);
        (before, after, size, None)
    }
}

fn change_count(of: &Drawn) -> usize {
    of.subject.channels().len()
}

fn entry(of: &Drawn, row: usize, block: usize) -> RowEdit<'_> {
    let read = match of.how {
        How::Columns | How::Later => ReadFrom::Block { block, row: of.row },
        _ => ReadFrom::Row,
    };
    let (carrier, rms) = (&of.carrier, Rms::Known(of.rms));
    let write = match of.how {
        How::Itself => WriteTo::Itself,
        How::Columns => WriteTo::Columns { carrier, rms },
        How::Later => WriteTo::Later { carrier, rms },
        How::Added | How::Given | How::ReadOnly => WriteTo::Added,
    };
    let subject = &of.subject;
    let change = match of.how {
        How::Given => Change::Given(RowDelta::OnHost(of.given.clone())),
        How::ReadOnly => Change::Nothing { subject, read },
        _ => Change::Operation {
            subject,
            action: &of.action,
            strength: of.strength,
            counterfactual: of.counterfactual.clone(),
            read,
            write,
        },
    };
    RowEdit {
        row,
        change,
        control: of.control.as_deref(),
    }
}

fn handed_back(outcome: &Outcome) -> Option<Vec<f32>> {
    let later = outcome.later.as_ref()?;
    Some(later.values().expect("numbers").into_owned())
}

fn near(found: f32, expected: f64) -> bool {
    (f64::from(found) - expected).abs() <= 2e-4 * (1.0 + expected.abs())
}

#[test]
fn a_table_does_what_its_entries_mean_one_after_another() {
    let mut draw = ChaCha8Rng::seed_from_u64(11);
    for case in 0..500 {
        let batch = numbers(ROWS * WIDTH, &mut draw);
        let read = numbers(ROWS * READ_WIDTH, &mut draw);
        let entries: Vec<Drawn> = (0..ROWS)
            .flat_map(|row| vec![row; [1, 4, 2][row]])
            .map(|row| drawn(row, &mut draw))
            .collect();
        let carry_out = |only: Option<usize>| {
            let mut table = RowEdits::default();
            let shape = (ROWS, READ_WIDTH);
            let tensor = Tensor::from_slice(&read, shape, &Device::Cpu).expect("a tensor");
            let block = RowBlock::gather(&tensor, (0..ROWS).map(Some)).expect("rows");
            let block = table.add_block(block);
            for of in entries
                .iter()
                .filter(|of| only.is_none_or(|row| of.row == row))
            {
                let row = table.row(of.row);
                table.push(entry(of, row, block));
            }
            let named = table.rows().iter();
            let mut rows: Vec<f32> = named
                .flat_map(|&row| batch[row as usize * WIDTH..][..WIDTH].to_vec())
                .collect();
            let outcomes = table.carry_out(&mut rows, WIDTH, true).expect("outcomes");
            (rows, outcomes)
        };
        let (rows, outcomes) = carry_out(None);
        assert_eq!(outcomes.len(), entries.len());
        for row in 0..ROWS {
            let double = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect();
            let mut meaning = Meaning {
                row: double(&batch[row * WIDTH..][..WIDTH]),
                steered: None,
                read: double(&read[row * READ_WIDTH..][..READ_WIDTH]),
            };
            let base = length(&meaning.row);
            for (of, outcome) in entries.iter().zip(&outcomes) {
                if of.row != row {
                    continue;
                }
                let (before, after, size, later) = meaning.carry_out(of);
                let told = (of.how, &of.action, outcome);
                assert!(near(outcome.before, before), "{case}: {told:?} {before}");
                assert!(near(outcome.after, after), "{case}: {told:?} {after}");
                assert!(near(outcome.change_norm, size), "{case}: {told:?} {size}");
                assert!(near(outcome.base_norm, base), "{case}: {told:?} {base}");
                let later = later.unwrap_or_default();
                let found = handed_back(outcome).unwrap_or_default();
                let zero = found.is_empty() && later.iter().all(|value| value.abs() < 1e-6);
                assert!(zero || found.len() == later.len(), "{case}: {told:?}");
                assert!(
                    found
                        .iter()
                        .zip(&later)
                        .all(|(&found, &later)| near(found, later))
                );
            }
            let own = &rows[row * WIDTH..][..WIDTH];
            assert!(
                own.iter()
                    .zip(&meaning.row)
                    .all(|(&found, &expected)| near(found, expected)),
                "{case}: {own:?} instead of {:?}",
                meaning.row
            );
            // A row alone gives the same bits as among others.
            let (alone, alone_outcomes) = carry_out(Some(row));
            assert_eq!(alone, own);
            let here = entries
                .iter()
                .zip(&outcomes)
                .filter(|(of, _)| of.row == row);
            for (alone, (_, among)) in alone_outcomes.iter().zip(here) {
                let numbers = |of: &Outcome| [of.before, of.after, of.change_norm, of.base_norm];
                assert_eq!(numbers(alone), numbers(among));
                assert_eq!(handed_back(alone), handed_back(among));
            }
        }
    }
}
